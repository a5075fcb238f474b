//! An init does one action after the other: none finds anything of the one before, and an init that is lost is replaced.

use std::collections::BTreeSet;

use rustix::process::{Pid, Signal, kill_process};

use super::{Bench, LIMIT, Scratch, processes, wait_until};
use crate::traces::family;

#[tokio::test]
async fn no_action_finds_anything_of_those_before_it() {
    for scratch in [Scratch::Memory, Scratch::Disk] {
        let bench = Bench::with(1, scratch);
        let look = "echo $$; echo /proc/[0-9]*; ls -A /tmp /dev/shm /dev/pts; tail -n +2 /proc/sysvipc/shm; \
                    cat /proc/mounts | wc -l; stat -c %a /tmp /dev/shm";
        let leave = "touch /tmp/x /dev/shm/x; chmod 700 /tmp /dev/shm; ipcmk -M 4096; setsid sleep 100 & sleep 0.01 & wait $!";
        let mut seen = BTreeSet::new();
        // More than there are inits, so each of them does several.
        for number in 0..12 {
            let outcome =
                bench.run(&format!("a{number}"), &format!("{look}; ({leave}) > /dev/null 2>&1")).await;
            outcome.succeeded();
            seen.insert(outcome.stdout);
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen.iter().all(|text| text.starts_with("2\n")), "{seen:?}");
    }
}

#[tokio::test]
async fn an_action_counts_only_what_it_has_used_itself() {
    let bench = Bench::with(1, Scratch::Memory);
    let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let spent = bench.run("burning", burn).await.exit.usage;
    for number in 0..6 {
        let usage = bench.run(&format!("idle{number}"), ":").await.exit.usage;
        assert!(usage.user_us < spent.user_us, "{usage:?} after {spent:?}");
    }
}

#[tokio::test]
async fn an_init_that_is_lost_is_replaced() {
    let bench = Bench::with(1, Scratch::Memory);
    let launcher = bench.launcher.process_id();
    let inits = || family(launcher).len() - 1;
    let count = inits();
    for number in 0..2 * count {
        let mark = format!("{}.875", 7000 + std::process::id() % 1000);
        let running = bench.start(&format!("a{number}"), &format!("sleep {mark}")).await;
        wait_until(|| processes(&mark) == 1).await;
        for pid in busy(launcher) {
            // The command may have gone with its init.
            let _ = kill_process(pid, Signal::KILL);
        }
        let fault = tokio::time::timeout(LIMIT, running.wait());
        let error = fault.await.expect("in time").expect_err("a fault");
        assert_eq!(error.kind(), croft::error::Kind::Unavailable, "{}", error.chain());
        wait_until(|| processes(&mark) == 0 && inits() == count).await;
    }
    bench.run("b", "true").await.succeeded();
}

/// The processes below `launcher` that have children: the init that runs a command, and perhaps the command.
fn busy(launcher: u32) -> impl Iterator<Item = Pid> {
    let has_children = |pid: &u32| family(*pid).len() > 1;
    let pids = family(launcher).into_iter().filter(move |pid| *pid != launcher).filter(has_children);
    pids.map(|pid| Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("positive"))
}
