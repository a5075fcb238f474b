//! What an action may use, as far as any machine enforces it.

use bytesize::ByteSize;
use croft::error::Kind;
use croft::worker::Scratch;
use croft::worker::sandbox::claim;

use super::*;

const DISK: ByteSize = ByteSize::mib(32);

async fn farm(scratch: Scratch) -> Farm {
    Farm::start_with(|config| {
        config.scratch = scratch;
        config.limits.disk = Some(DISK);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fills_its_scratch_is_told_so() {
    for scratch in [Scratch::Memory, Scratch::Disk] {
        let mut farm = farm(scratch).await;
        let response = farm.run("echo begun; exec head -c 64m /dev/zero > large", &["large"]).await;
        assert_eq!(code(&response), 0, "{response:?}");
        assert!(response.message.contains("limit of 32.0 MiB"), "{scratch:?}: {}", response.message);
        let result = response.result.expect("a result");
        assert_ne!(result.exit_code, 0);
        assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "begun\n");
        let small = farm.run("head -c 1m /dev/zero > small", &["small"]).await;
        assert_eq!(small.message, "");
        assert_eq!(small.result.expect("a result").output_files.len(), 1);
        farm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_on_disk_count_together() {
    let mut farm = farm(Scratch::Disk).await;
    let script = "echo begun; for i in 1 2 3 4; do head -c 10m /dev/zero > $i; done; exec sleep 600";
    let response = farm.run(script, &[]).await;
    assert_eq!(code(&response), 0, "{response:?}");
    assert!(response.message.contains("limit of 32.0 MiB"), "{}", response.message);
    let result = response.result.expect("a result");
    assert_eq!(result.exit_code, 137);
    assert_eq!(farm.text(result.stdout_digest.as_ref()).await, "begun\n");
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_named() {
    let mut farm = Farm::start().await;
    let response = farm.run("kill -SEGV $$", &[]).await;
    assert_eq!(response.message, "the command was ended by signal 11 (SIGSEGV)");
    assert_eq!(response.result.expect("a result").exit_code, 139);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_limit_actions_is_refused_if_that_is_demanded() {
    if claim(None, 1 << 40).lacking.is_empty() {
        println!("skipped: this machine can limit everything");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.limits.required = true;
    let cas = Cas::new(Arc::new(Memory::default()));
    let started = Worker::start(config, cas, directory.path(), &crate::farm::executable()).await;
    let Err(error) = started else { panic!("it must not start") };
    assert_eq!(error.kind(), Kind::Unavailable);
    let sentence = error.to_string();
    assert!(sentence.contains("memory") && sentence.contains("worker.limits.required = false"), "{sentence}");
}
