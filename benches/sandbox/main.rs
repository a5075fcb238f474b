//! What it costs to start a command in the sandbox, beside what the machine takes for starting a process at all.
//!
//! `cargo bench --bench sandbox` runs `true` many times, one and two at once, in turns: by `posix_spawn`, by fork and exec, and in the
//! sandbox. `-- --quick` is a tenth of that. The actions' directories lie in the directory named by `CROFT_BENCH_DIRECTORY`, else in
//! that of temporary files.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark prints, reads the clock, and one that cannot go on panics"
)]

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use croft::worker::sandbox::{Config, End, Launcher, Limits, Ownership, Scratch, Spec, claim};
use futures_util::StreamExt;

/// In the sandbox at least half as many commands a second as without: the farm's promise to builds of many small actions.
const SHARE_MIN: f64 = 0.5;

/// Each way is measured this often, in turns, and the best counts: others use the machine, too.
const ROUNDS: usize = 5;

const PROGRAM: &str = "/bin/true";

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let actions = if is_quick { 100 } else { 1000 };
    let parent = std::env::var_os("CROFT_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for at_once in [1, 2] {
        measure(&runtime, &parent, actions, at_once);
    }
}

/// Prints the rates of all ways for `at_once` commands at a time.
fn measure(runtime: &tokio::runtime::Runtime, parent: &Path, actions: usize, at_once: usize) {
    let directory = tempfile::tempdir_in(parent).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = {
        let _guard = runtime.enter();
        start(directory.path(), at_once)
    };
    let (mut spawned, mut forked, mut sandboxed) = (0.0_f64, 0.0_f64, 0.0_f64);
    for round in 0..ROUNDS {
        spawned = spawned.max(rate(actions, || plain(actions, at_once, || Command::new(PROGRAM))));
        let forking = || {
            let mut command = Command::new(PROGRAM);
            // The standard library forks where it has something to do between fork and exec.
            command.uid(rustix::process::getuid().as_raw());
            command
        };
        forked = forked.max(rate(actions, || plain(actions, at_once, forking)));
        let specs: Vec<Spec> =
            (0..actions).map(|number| spec(&launcher, directory.path(), round, number)).collect();
        sandboxed = sandboxed.max(rate(actions, || runtime.block_on(in_sandbox(&launcher, specs, at_once))));
    }
    let share = sandboxed / forked;
    let verdict = if share >= SHARE_MIN { "ok" } else { "MISSED" };
    println!(
        "{at_once} at once, a second: posix_spawn {spawned:.0}, fork and exec {forked:.0}, sandbox {sandboxed:.0}"
    );
    println!(
        "  {:.2} ms more than fork and exec; {share:.2} of its rate, goal {SHARE_MIN}: {verdict}",
        at_once as f64 * 1e3 * (sandboxed.recip() - forked.recip())
    );
}

/// Actions a second.
fn rate(actions: usize, run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    actions as f64 / begin.elapsed().as_secs_f64()
}

fn plain(actions: usize, at_once: usize, command: impl Fn() -> Command + Sync) {
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while begun.fetch_add(1, Ordering::Relaxed) < actions {
                    assert!(command().status().unwrap().success());
                }
            });
        }
    });
}

async fn in_sandbox(launcher: &Launcher, specs: Vec<Spec>, at_once: usize) {
    let runs = specs.into_iter().map(|spec| async {
        let exit = launcher.run(spec).await.unwrap().wait().await.unwrap();
        assert_eq!(exit.end, End::Exited(0));
    });
    futures_util::stream::iter(runs).buffer_unordered(at_once).collect::<()>().await;
}

fn start(directory: &Path, at_once: usize) -> Launcher {
    let config = Config {
        directory: directory.to_owned(),
        root: "/".into(),
        uid: 65534,
        gid: 65534,
        networks: u32::try_from(at_once).unwrap(),
        scratch: Scratch::Memory,
        groups: claim(Some((65534, 65534)), Limits::AMPLE.memory_bytes).groups,
    };
    Launcher::start(Path::new(env!("CARGO_BIN_EXE_croft")), config).unwrap()
}

/// An action's directory as the worker makes it, which is staging and not measured here.
fn spec(launcher: &Launcher, directory: &Path, round: usize, number: usize) -> Spec {
    let name = format!("{round}-{number}");
    for part in ["", "root", "scratch"] {
        std::fs::create_dir(directory.join(&name).join(part)).unwrap();
    }
    if let Ownership::Mapped { uid, gid } = launcher.ownership() {
        chown(directory.join(&name).join("scratch"), Some(uid), Some(gid)).unwrap();
    }
    Spec {
        layers: vec![format!("{name}/root")],
        directory: name,
        limits: Limits::AMPLE,
        arguments: vec![PROGRAM.to_owned()],
        environment: vec!["PATH=/usr/bin:/bin".to_owned()],
        working_directory: String::new(),
    }
}
