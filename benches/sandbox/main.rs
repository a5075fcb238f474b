//! What it costs to start a command in the sandbox, beside what the machine takes for starting a process at all.
//!
//! `cargo bench --bench sandbox` runs `true` many times, one and two at once, in turns: by `posix_spawn`, by fork and exec, and in the
//! sandbox. `-- --quick` is a tenth of that. Then 10,000 actions run, after which nothing of them may be left; else it ends with a
//! failure. The actions' directories lie in the directory named by `CROFT_BENCH_DIRECTORY`, else in
//! that of temporary files.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark prints, reads the clock, and one that cannot go on panics"
)]

mod traces;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use croft::worker::sandbox::{Config, End, Launcher, Limits, Ownership, Scratch, Spec, System, claim};
use futures_util::StreamExt;
use traces::Held;

/// In the sandbox at least half as many commands a second as without: the farm's promise to builds of many small actions.
const SHARE_MIN: f64 = 0.5;

/// Each way is measured this often, in turns; what is printed are medians, and that of the shares within a round: others use the
/// machine, too.
const ROUNDS: usize = 7;

/// So many actions leave nothing behind.
const TRACELESS_ACTIONS: usize = 10_000;

const PROGRAM: &str = "/bin/true";

fn main() -> ExitCode {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let actions = if is_quick { 100 } else { 1000 };
    let parent = std::env::var_os("CROFT_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for at_once in [1, 2] {
        measure(&runtime, &parent, actions, at_once);
    }
    leave_nothing(&runtime, &parent)
}

/// Runs many actions and fails if anything of them is left.
fn leave_nothing(runtime: &tokio::runtime::Runtime, parent: &Path) -> ExitCode {
    let directory = tempfile::tempdir_in(parent).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (launcher, groups) = {
        let _guard = runtime.enter();
        start(directory.path(), 2)
    };
    let groups = groups.as_deref();
    // Whatever the first actions make once is there before it is counted.
    let run = |round, actions: usize| {
        let one = spec(&launcher, directory.path(), round, 0);
        runtime.block_on(in_sandbox(&launcher, std::iter::repeat_n(one, actions).collect(), 2));
    };
    run(0, 100);
    let before = Held::settled(groups);
    let rate = rate(TRACELESS_ACTIONS, || run(1, TRACELESS_ACTIONS));
    let (after, is_clean) = before.returns(groups);
    println!("{TRACELESS_ACTIONS} actions, 2 at once, {rate:.0} a second; before {before:?}");
    println!("  after {after:?}: {}", if is_clean { "nothing is left" } else { "LEFT BEHIND" });
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the rates of all ways for `at_once` commands at a time.
fn measure(runtime: &tokio::runtime::Runtime, parent: &Path, actions: usize, at_once: usize) {
    let directory = tempfile::tempdir_in(parent).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = {
        let _guard = runtime.enter();
        start(directory.path(), at_once).0
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        let spawned = rate(actions, || plain(actions, at_once, || Command::new(PROGRAM)));
        let forking = || {
            let mut command = Command::new(PROGRAM);
            // The standard library forks where it has something to do between fork and exec.
            command.uid(rustix::process::getuid().as_raw());
            command
        };
        let forked = rate(actions, || plain(actions, at_once, forking));
        let specs: Vec<Spec> =
            (0..actions).map(|number| spec(&launcher, directory.path(), round, number)).collect();
        let sandboxed = rate(actions, || runtime.block_on(in_sandbox(&launcher, specs, at_once)));
        for (rates, one) in rates.iter_mut().zip([spawned, forked, sandboxed, sandboxed / forked]) {
            rates.push(one);
        }
    }
    let [spawned, forked, sandboxed, share] = rates.map(median);
    let verdict = if share >= SHARE_MIN { "ok" } else { "MISSED" };
    println!(
        "{at_once} at once, a second: posix_spawn {spawned:.0}, fork and exec {forked:.0}, sandbox {sandboxed:.0}"
    );
    println!(
        "  {:.2} ms more than fork and exec; {share:.2} of its rate, goal {SHARE_MIN}: {verdict}",
        at_once as f64 * 1e3 * (sandboxed.recip() - forked.recip())
    );
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
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

/// A launcher, and where its control groups are.
fn start(directory: &Path, at_once: usize) -> (Launcher, Option<PathBuf>) {
    let groups = claim(Some((65534, 65534)), Limits::AMPLE.memory_bytes).groups;
    let place = groups.as_ref().map(|groups| groups.directory().to_owned());
    let config = Config {
        directory: directory.to_owned(),
        roots: vec![System::Directories("/".into())],
        uid: 65534,
        gid: 65534,
        networks: u32::try_from(at_once).unwrap(),
        scratch: Scratch::Memory,
        groups,
    };
    (Launcher::start(Path::new(env!("CARGO_BIN_EXE_croft")), config).unwrap(), place)
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
        root: 0,
    }
}
