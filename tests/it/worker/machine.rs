//! What control groups do for actions. Few hosts of tests have all of their controllers, so these run in a small virtual machine
//! (`tests/machine/run.sh`), where everything takes twenty times as long.

use croft::proto::worker::ResourceUsage;
use croft::worker::sandbox::claim;

use super::*;

const MEMORY: u64 = 96 << 20;
/// Of one action; a machine that is emulated needs it.
const TIMEOUT: i64 = 120;

async fn run(farm: &mut Farm, script: &str) -> ExecuteResponse {
    let command = rev2::Command {
        arguments: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        ..rev2::Command::default()
    };
    let command = farm.put(command.encode_to_vec()).await;
    let root = farm.put(rev2::Directory::default().encode_to_vec()).await;
    farm.start_action(command, root, TIMEOUT).await;
    tokio::time::timeout(Duration::from_secs(2 * TIMEOUT.unsigned_abs()), farm.response())
        .await
        .expect("in time")
}

fn usage(result: &rev2::ActionResult) -> ResourceUsage {
    ResourceUsage::of(result.execution_metadata.as_ref().expect("metadata")).expect("a usage")
}

/// The directories of the groups of all workers of this process, without the group of the farm itself.
fn groups() -> Vec<String> {
    let claim = claim(None, 1 << 40);
    assert_eq!(claim.lacking, [], "{}", claim.reason);
    let own = claim.groups.expect("groups").directory().to_owned();
    let entries = std::fs::read_dir(own.parent().expect("a parent")).expect("list").flatten();
    let lives = entries.filter(|entry| entry.path() != own && entry.file_type().expect("a type").is_dir());
    let below = lives.filter(|life| life.file_name() != "croft.farm").flat_map(|life| {
        let entries = std::fs::read_dir(life.path()).expect("list").flatten();
        entries.filter(|entry| entry.file_type().expect("a type").is_dir())
    });
    below.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs control groups with all controllers: tests/machine/run.sh"]
async fn a_memory_bomb_is_killed_and_told_so() {
    let mut farm = Farm::start_with(|config| config.limits.required = true).await;
    farm.properties = vec![Property { name: "memory".into(), value: MEMORY.to_string() }];
    let response = run(&mut farm, "echo before; (tail /dev/zero; echo after) | cat; echo not here").await;
    assert_eq!(code(&response), 0, "{response:?}");
    assert!(response.message.contains("more memory than its limit of 96.0 MiB"), "{}", response.message);
    let result = response.result.expect("a result");
    assert_eq!(result.exit_code, 137, "all of it goes, the shell too");
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "before\n");
    let peak = usage(&result).peak_group_memory_bytes;
    assert!((MEMORY / 2..=MEMORY).contains(&peak), "{peak}");
    assert!(result.execution_metadata.is_some());
    let response = run(&mut farm, "echo alive").await;
    assert_eq!(response.result.expect("a result").exit_code, 0);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs control groups with all controllers: tests/machine/run.sh"]
async fn files_in_memory_count_as_memory() {
    let mut farm = Farm::start_with(|config| config.limits.memory = Some(bytesize::ByteSize(MEMORY))).await;
    let response = run(&mut farm, "head -c 200m /dev/zero > file; echo not here").await;
    assert!(response.message.contains("more memory than its limit"), "{response:?}");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs control groups with all controllers: tests/machine/run.sh"]
async fn a_fork_bomb_reaches_its_limit_and_harms_nobody() {
    let mut farm =
        Farm::start_with(|config| config.limits.processes = 30.try_into().expect("not zero")).await;
    let bomb = "echo before; i=0; while [ $i -lt 200 ]; do setsid sleep 600 & i=$((i+1)); done; echo $i";
    let response = run(&mut farm, bomb).await;
    assert!(response.message.contains("its limit of 30 processes and threads"), "{response:?}");
    let result = response.result.expect("a result");
    assert_ne!(result.exit_code, 0);
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "before\n");
    let peak = usage(&result).peak_processes;
    assert!(matches!(peak, 0 | 30), "kernels before 6.6 do not tell: {peak}");
    let response = run(&mut farm, "for i in 1 2 3; do sleep 0 & done; wait").await;
    assert_eq!(response.result.expect("a result").exit_code, 0);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs control groups with all controllers: tests/machine/run.sh"]
async fn an_action_gets_its_cores_and_no_more() {
    let mut farm =
        Farm::start_with(|config| config.limits.cores = Some(1.try_into().expect("not zero"))).await;
    // The kernel ends each loop when it has used a second.
    let burn = "(ulimit -t 1; while :; do :; done)";
    let result =
        run(&mut farm, &format!("{burn} & {burn} & {burn}; wait; true")).await.result.expect("a result");
    let usage = usage(&result);
    let throttled = usage.throttled_time.expect("a time");
    assert!(throttled.seconds > 0 || throttled.nanos > 0, "{usage:?}");
    assert!(usage.cpu_pressure.is_some() && usage.peak_group_memory_bytes > 0, "{usage:?}");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs control groups with all controllers: tests/machine/run.sh"]
async fn fifty_actions_and_their_daemons_leave_no_group_behind() {
    let mut farm = Farm::start().await;
    for number in 0..50 {
        let script = format!("cat /proc/self/cgroup; setsid sleep 600 & echo {number}");
        let result = run(&mut farm, &script).await.result.expect("a result");
        let text = farm.text(result.stdout_digest.as_ref()).await;
        assert_eq!(text, format!("0::/\n{number}\n"));
    }
    assert_eq!(groups(), ["launcher"]);
    farm.stop().await;
    assert_eq!(groups(), [""; 0]);
}
