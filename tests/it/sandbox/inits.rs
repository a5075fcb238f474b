//! An init does one action after the other: none finds anything of the one before, and an init that is lost is replaced.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};

use super::{Bench, LIMIT, Scratch, as_nobody_below, processes, wait_until};
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

#[tokio::test]
async fn no_action_lowers_the_limits_of_the_next_one() {
    let bench = Bench::with(1, Scratch::Memory);
    let lower = "prlimit --pid 1 --nofile=64:64; prlimit --pid 1 --fsize=4096:4096; prlimit --pid 1 --cpu=5:5; ulimit -Ha";
    let mut seen = BTreeSet::new();
    for number in 0..6 {
        seen.insert(bench.run(&format!("a{number}"), lower).await.stdout);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn no_program_is_found_through_a_descriptor_of_the_init() {
    let bench = Bench::with(1, Scratch::Memory);
    let script = "#!/bin/sh\nexit 0\n";
    for descriptor in 3..24 {
        let name = format!("a{descriptor}");
        let tool = format!("/proc/self/fd/{descriptor}/tool");
        let spec = bench.spec(&name, &[&tool]);
        let path = bench.directory.path().join(&name).join("root/tool");
        fs::write(&path, script).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        let running = bench.launcher.run(spec).await.expect("started");
        bench.finish(running).await.failed();
    }
}

#[tokio::test]
async fn programs_that_cannot_be_executed_leave_nothing_in_their_inits_memory() {
    let bench = Bench::with(1, Scratch::Memory);
    let launcher = bench.launcher.process_id();
    let program = "x".repeat(1_000_000);
    let mut held = Vec::new();
    for number in 0..60 {
        let running =
            bench.launcher.run(bench.spec(&format!("a{number}"), &[&program])).await.expect("started");
        bench.finish(running).await.failed();
        if number % 30 == 29 {
            held.push(family(launcher).into_iter().map(resident_kib).sum::<u64>());
        }
    }
    assert!(held[1] < held[0] + 16 * 1024, "KiB: {held:?}");
}

/// Memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[tokio::test]
async fn a_command_that_is_stopped_has_not_ended() {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no /usr/bin/python3");
        return;
    }
    let bench = Bench::with(1, Scratch::Memory);
    let mark = format!("stopped-{}", std::process::id());
    // PTRACE_TRACEME: the parent, which is the init, is told of each signal.
    let program = "import ctypes, os, signal; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0), flush=True); \
                   os.kill(os.getpid(), signal.SIGUSR1)";
    let running = bench.start("a", &format!("exec /usr/bin/python3 -c '{program}' {mark}")).await;
    let is_stopped =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") t "));
    let launcher = bench.launcher.process_id();
    wait_until(|| family(launcher).iter().any(is_stopped)).await;
    running.kill();
    let outcome = bench.finish(running).await;
    assert_eq!((outcome.exit.end, outcome.stdout.as_str()), (croft::worker::sandbox::End::Killed, "0\n"));
}

#[tokio::test]
async fn no_port_is_taken_by_an_earlier_action() {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no /usr/bin/python3");
        return;
    }
    let bench = Bench::with(1, Scratch::Memory);
    // The side that closes first keeps the port for a minute.
    let program = "import socket; server = socket.socket(); server.bind((\"127.0.0.1\", 8080)); server.listen(); \
                   client = socket.create_connection((\"127.0.0.1\", 8080)); server.accept()[0].close(); client.close()";
    for number in 0..6 {
        bench.run(&format!("a{number}"), &format!("/usr/bin/python3 -c '{program}'")).await.succeeded();
    }
}

#[tokio::test]
async fn an_action_does_not_see_its_init() {
    let bench = Bench::with(1, Scratch::Memory);
    let outcome = bench.run("a", "echo /proc/[0-9]*; cat /proc/1/stat").await;
    outcome.failed();
    assert_eq!(outcome.stdout, "/proc/2\n");
}

/// A part of `/proc` that container engines hide.
const MASKED: &str = "/proc/irq";

/// Says something where [`MASKED`] is hidden, by a process without privileges: then the kernel allows no other `/proc`.
#[tokio::test]
async fn an_init_says_what_it_lacks() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    if rustix::process::geteuid().is_root() || !mounts.contains(&format!(" {MASKED} ")) {
        eprintln!("skipped: /proc is there as a whole");
        return;
    }
    let bench = Bench::with(1, Scratch::Memory);
    for number in 0..6 {
        let running = bench.start(&format!("a{number}"), "true").await;
        let answer = tokio::time::timeout(LIMIT, running.wait()).await.expect("in time");
        let error = answer.expect_err("a fault");
        assert!(error.chain().contains("mount /proc"), "{}", error.chain());
    }
}

#[test]
fn what_an_init_lacks_is_told_without_root() {
    let mounts = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    if !mounts.is_ok_and(|status| status.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let mask = format!("unshare --mount /bin/sh -c 'mount -t tmpfs none {MASKED} && exec \"$0\" \"$@\"'");
    let Some(text) = as_nobody_below(&mask, "an_init_says_what_it_lacks") else { return };
    assert!(text.contains("an_init_says_what_it_lacks ... ok"), "{text}");
}
