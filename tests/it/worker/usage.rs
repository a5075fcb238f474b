//! What a command has used.

use croft::proto::worker::ResourceUsage;

use super::*;

fn usage(result: &rev2::ActionResult) -> (Duration, u64, Duration) {
    let metadata = result.execution_metadata.as_ref().expect("metadata");
    let usage = ResourceUsage::of(metadata).expect("a usage");
    let time = |duration: Option<croft::proto::Duration>| -> Duration {
        let duration = duration.expect("a duration");
        Duration::new(duration.seconds.cast_unsigned(), duration.nanos.cast_unsigned())
    };
    (time(usage.cpu_time), usage.peak_memory_bytes, time(metadata.virtual_execution_duration))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processor_time_of_all_processes_is_reported() {
    let mut farm = Farm::start().await;
    // The kernel ends each loop when it has used a second, however busy the machine is.
    let burn = "(ulimit -t 1; while :; do :; done)";
    let script = format!("{burn}; {burn} & wait; true");
    let result = farm.run(&script, &[]).await.result.expect("a result");
    assert_eq!(result.exit_code, 0);
    let (cpu, _, wall) = usage(&result);
    assert!((Duration::from_millis(1500)..Duration::from_secs(4)).contains(&cpu), "{cpu:?}");
    assert!(wall >= Duration::from_secs(1), "{wall:?}");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peak_of_memory_is_reported_also_after_a_timeout() {
    const ALLOCATED: u64 = 64 << 20;
    let mut farm = Farm::start().await;
    let allocate = "x=$(head -c 67108864 /dev/zero | tr '\\0' x); : ${#x}";
    let small = farm.run("true", &[]).await.result.expect("a result");
    assert!((1..ALLOCATED).contains(&usage(&small).1), "{small:?}");
    let large = farm.run(allocate, &[]).await.result.expect("a result");
    assert!((ALLOCATED..16 * ALLOCATED).contains(&usage(&large).1), "{large:?}");

    let command = rev2::Command {
        arguments: vec!["/bin/sh".into(), "-c".into(), format!("{allocate}; sleep 600")],
        ..rev2::Command::default()
    };
    let command = farm.put(command.encode_to_vec()).await;
    let root = farm.put(rev2::Directory::default().encode_to_vec()).await;
    farm.start_action(command, root, 4).await;
    let response = farm.response().await;
    assert_eq!(code(&response), 4, "{response:?}");
    let (_, memory, wall) = usage(&response.result.expect("a result"));
    assert!(memory >= ALLOCATED && wall >= Duration::from_secs(4), "{memory} {wall:?}");
    farm.stop().await;
}
