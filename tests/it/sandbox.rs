//! What an action can and cannot do, tried in the real sandbox by the real binary.

mod groups;
mod inits;
mod roots;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use croft::worker::sandbox::{
    Claim, Config, End, Exit, Groups, Launcher, Limits, Ownership, Running, Scratch, Spec, System, claim,
};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::farm::executable;

const LIMIT: Duration = Duration::from_secs(30);
/// A sandbox with a directory for its actions.
struct Bench {
    // Goes before the groups that it holds processes in.
    launcher: Launcher,
    directory: tempfile::TempDir,
    limits: Limits,
    groups: Option<Groups>,
}

struct Outcome {
    exit: Exit,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        Self::with(2, Scratch::Memory)
    }

    fn with(networks: u32, scratch: Scratch) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let config = config(directory.path(), networks, scratch);
        let groups = config.groups.clone();
        let launcher = Launcher::start(&executable(), config).expect("the sandbox starts");
        Self { launcher, directory, limits: Limits::AMPLE, groups }
    }

    /// Makes an action's directory as the worker does, with one input file.
    fn prepare(&self, name: &str) {
        let path = self.directory.path().join(name);
        for part in ["", "root", "root/sub", "scratch"] {
            fs::create_dir(path.join(part)).expect("mkdir");
        }
        fs::write(path.join("root/input"), "input").expect("write");
        fs::set_permissions(path.join("root/input"), fs::Permissions::from_mode(0o444)).expect("chmod");
        if let Ownership::Mapped { uid, gid } = self.launcher.ownership() {
            chown(path.join("scratch"), Some(uid), Some(gid)).expect("chown");
        }
    }

    fn spec(&self, name: &str, arguments: &[&str]) -> Spec {
        self.prepare(name);
        Spec {
            directory: name.to_owned(),
            layers: vec![format!("{name}/root")],
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: vec!["PATH=/usr/bin:/bin".to_owned(), "COLOUR=grün".to_owned()],
            working_directory: String::new(),
            root: 0,
            limits: self.limits,
        }
    }

    async fn start(&self, name: &str, script: &str) -> Running {
        let spec = self.spec(name, &["/bin/sh", "-c", script]);
        self.launcher.run(spec).await.expect("the command starts")
    }

    async fn finish(&self, running: Running) -> Outcome {
        let exit = tokio::time::timeout(LIMIT, running.wait()).await.expect("in time").expect("an exit");
        let read = |file: &File| {
            let mut bytes = vec![0; usize::try_from(file.metadata().expect("stat").len()).expect("small")];
            file.read_exact_at(&mut bytes, 0).expect("read");
            String::from_utf8(bytes).expect("UTF-8")
        };
        Outcome { stdout: read(&exit.stdout), stderr: read(&exit.stderr), exit }
    }

    async fn run(&self, name: &str, script: &str) -> Outcome {
        let running = self.start(name, script).await;
        self.finish(running).await
    }
}

pub(crate) fn config(directory: &Path, networks: u32, scratch: Scratch) -> Config {
    let ids = rustix::process::geteuid().is_root().then_some((65534, 65534));
    let Claim { groups, .. } = claim(ids, 1 << 40);
    let (uid, gid) = (65534, 65534);
    Config {
        directory: directory.to_owned(),
        roots: vec![System::Directories("/".into())],
        uid,
        gid,
        networks,
        scratch,
        groups,
    }
}

impl Outcome {
    #[track_caller]
    fn succeeded(&self) {
        assert_eq!(self.exit.end, End::Exited(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
    }

    #[track_caller]
    fn failed(&self) {
        assert!(
            matches!(self.exit.end, End::Exited(code) if code != 0),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
    }

    fn read(&self, path: &str) -> std::io::Result<String> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&self.exit.view, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), beneath)?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }
}

#[tokio::test]
async fn a_command_sees_a_fixed_world() {
    let bench = Bench::new();
    let script = "id -u; id -g; hostname; pwd; echo $COLOUR; echo $$; umask; ls /; ls -A /tmp; env | sort | tr '\\n' ' '";
    let outcome = bench.run("a", script).await;
    outcome.succeeded();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..7], ["1000", "1000", "croft", "/build", "grün", "2", "0022"], "{}", outcome.stdout);
    assert!(lines.contains(&"usr") && !lines.contains(&"home"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("COLOUR=grün PATH=/usr/bin:/bin PWD=/build"), "{}", outcome.stdout);
    assert!(outcome.exit.usage.resident_bytes > 0);
}

#[tokio::test]
async fn outputs_are_read_through_the_view_after_the_end() {
    let bench = Bench::new();
    let outcome =
        bench.run("a", "mkdir -p out/x; echo hello > out/x/file; ln -s /etc/passwd out/link; rm input").await;
    outcome.succeeded();
    assert_eq!(outcome.read("out/x/file").expect("read"), "hello\n");
    assert!(outcome.read("out/link").is_err(), "a link out of the tree is not followed");
    assert!(outcome.read("input").is_err(), "what was deleted is gone");
    assert!(bench.directory.path().join("a/root/input").exists(), "the staged input is untouched");
}

#[tokio::test]
async fn an_input_cannot_be_changed_for_others() {
    for scratch in [Scratch::Memory, Scratch::Disk] {
        cannot_change_inputs(&Bench::with(1, scratch)).await;
    }
}

async fn cannot_change_inputs(bench: &Bench) {
    let script =
        "chmod 777 input && echo changed > input && cat input && mv input moved && touch -d @0 moved";
    let outcome = bench.run("a", script).await;
    outcome.succeeded();
    assert_eq!(outcome.stdout, "changed\n");
    let input = bench.directory.path().join("a/root/input");
    assert_eq!(fs::read_to_string(&input).expect("read"), "input");
    assert_eq!(fs::metadata(&input).expect("stat").mode() & 0o777, 0o444);
}

#[tokio::test]
async fn what_is_the_hosts_stays_out_of_reach() {
    let bench = Bench::new();
    fs::write(bench.directory.path().join("secret"), "secret").expect("write");
    let secret = bench.directory.path().join("secret").display().to_string();
    let scripts = [
        "cat /etc/shadow",
        "ls /root /home",
        "ls /.croft/lower",
        "ls /.croft/scratch",
        &format!("cat {secret}"),
        "ls /proc/1/root/",
        "cat /proc/1/environ",
        "echo x > /usr/croft-was-here",
        "echo x > /croft-was-here",
        "echo x > /dev/shm/../x",
        "mount -t tmpfs none /tmp",
        "chroot /build /bin/true",
        "unshare --mount true",
        "hostname other",
        "mknod /tmp/disk b 254 0",
        "su root -c true < /dev/null",
        "ls /sys/kernel",
    ];
    for (number, script) in scripts.iter().enumerate() {
        let outcome = bench.run(&format!("a{number}"), script).await;
        assert!(outcome.exit.end != End::Exited(0), "`{script}` succeeded: {}", outcome.stdout);
    }
}

#[tokio::test]
async fn an_action_cannot_end_its_init() {
    let bench = Bench::new();
    let outcome = bench.run("a", "kill -9 1; kill -15 1; kill -0 1 && echo alive").await;
    outcome.succeeded();
    assert_eq!(outcome.stdout, "alive\n");
}

#[tokio::test]
async fn there_is_no_network_but_ones_own_loopback() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let outcome = bench.run("a", &format!("exec bash -c 'echo > /dev/tcp/127.0.0.1/{port}'")).await;
    outcome.failed();
    let outcome = bench.run("b", "cat /proc/net/dev | tail -n +3 | cut -d: -f1").await;
    outcome.succeeded();
    assert_eq!(outcome.stdout.trim(), "lo");
}

#[tokio::test]
async fn temporary_files_are_an_actions_own() {
    let bench = Bench::new();
    bench.run("a", "echo a > /tmp/a; echo a > /dev/shm/a; ls /tmp /dev/shm").await.succeeded();
    let outcome = bench.run("b", "ls -A /tmp /dev/shm | grep a$").await;
    outcome.failed();
}

#[tokio::test]
async fn every_end_is_told_apart() {
    let bench = Bench::new();
    let cases = [("exit 7", End::Exited(7)), ("kill -11 $$", End::Signaled(11)), ("true", End::Exited(0))];
    for (number, (script, end)) in cases.into_iter().enumerate() {
        assert_eq!(bench.run(&format!("a{number}"), script).await.exit.end, end, "{script}");
    }
}

#[tokio::test]
async fn a_program_that_cannot_run_is_reported_as_by_a_shell() {
    let bench = Bench::new();
    let cases =
        [("no-such-tool", 127, "croft: no-such-tool: not found\n"), ("./input", 126, "permission denied")];
    for (number, (program, code, sentence)) in cases.into_iter().enumerate() {
        let name = format!("a{number}");
        let running = bench.launcher.run(bench.spec(&name, &[program])).await.expect("started");
        let outcome = bench.finish(running).await;
        assert_eq!(outcome.exit.end, End::Exited(code));
        assert!(outcome.stderr.contains(sentence), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn a_program_without_a_slash_is_found_in_path() {
    let bench = Bench::new();
    let running = bench.launcher.run(bench.spec("a", &["echo", "found"])).await.expect("started");
    let outcome = bench.finish(running).await;
    assert_eq!(outcome.stdout, "found\n");
}

#[tokio::test]
async fn a_daemon_that_holds_stdout_neither_hangs_nor_survives() {
    let bench = Bench::new();
    let begin = Instant::now();
    let mark = format!("{}.125", 7000 + std::process::id() % 1000);
    bench
        .run("a", &format!("setsid sleep {mark} & setsid setsid sleep {mark} & sleep 0.1; echo done"))
        .await
        .succeeded();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(processes(&mark), 0, "the daemons are gone when the end is reported");
}

#[tokio::test]
async fn killing_takes_every_process_along() {
    let bench = Bench::new();
    let mark = format!("{}.25", 8000 + std::process::id() % 1000);
    let script =
        format!("for i in 1 2 3 4 5 6 7 8; do setsid sleep {mark} & done; echo started; sleep {mark}");
    let running = bench.start("a", &script).await;
    wait_until(|| processes(&mark) == 9).await;
    running.kill();
    let outcome = bench.finish(running).await;
    assert_eq!(outcome.exit.end, End::Killed);
    assert_eq!(outcome.stdout, "started\n");
    assert_eq!(processes(&mark), 0);
}

#[tokio::test]
async fn dropping_a_running_command_kills_it() {
    let bench = Bench::new();
    let mark = format!("{}.375", 8000 + std::process::id() % 1000);
    let running = bench.start("a", &format!("sleep {mark}")).await;
    wait_until(|| processes(&mark) == 1).await;
    drop(running);
    wait_until(|| processes(&mark) == 0).await;
}

#[tokio::test]
async fn a_fork_storm_ends_with_its_action() {
    let bench = Bench::new();
    let mark = format!("{}.5", 9000 + std::process::id() % 1000);
    let script = format!("i=0; while [ $i -lt 150 ]; do setsid sleep {mark} & i=$((i+1)); done; exit 3");
    let outcome = bench.run("a", &script).await;
    assert_eq!(outcome.exit.end, End::Exited(3));
    assert_eq!(processes(&mark), 0);
}

#[tokio::test]
async fn the_end_of_the_launcher_is_a_fault_and_the_next_command_runs() {
    let bench = Bench::new();
    let mark = format!("{}.625", 9000 + std::process::id() % 1000);
    let running = bench.start("a", &format!("sleep {mark}")).await;
    wait_until(|| processes(&mark) == 1).await;
    let pid = i32::try_from(bench.launcher.process_id()).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("positive");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    let error = tokio::time::timeout(LIMIT, running.wait()).await.expect("in time").expect_err("a fault");
    assert_eq!(error.kind(), croft::error::Kind::Unavailable, "{}", error.chain());
    wait_until(|| processes(&mark) == 0).await;
    bench.run("b", "true").await.succeeded();
}

#[tokio::test]
async fn large_environments_arrive() {
    let bench = Bench::new();
    let mut spec = bench.spec("a", &["/bin/sh", "-c", "env | wc -c; echo $# | tail -c 20", "sh"]);
    spec.environment.extend((0..2_000).map(|number| format!("V{number}={}", "x".repeat(300))));
    let running = bench.launcher.run(spec).await.expect("started");
    let outcome = bench.finish(running).await;
    outcome.succeeded();
    let bytes: usize = outcome.stdout.lines().next().expect("a line").trim().parse().expect("a number");
    assert!(bytes > 600_000, "{bytes}");
}

#[tokio::test]
async fn a_script_can_reopen_its_outputs() {
    let bench = Bench::new();
    let outcome = bench.run("a", "echo one > /dev/stdout; echo two >> /dev/stderr; tty; cat").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("one\nnot a tty\n", "two\n"));
}

/// The same as a user without privileges: the test runs itself as `nobody`, where it may.
#[test]
fn the_sandbox_works_without_root() {
    let Some(text) = as_nobody("sandbox::") else { return };
    assert!(text.contains("test sandbox::an_input_cannot_be_changed_for_others ... ok"), "{text}");
}

/// Runs the tests whose names begin with `filter` as `nobody` and returns what they printed; `None` where that is not possible.
pub(crate) fn as_nobody(filter: &str) -> Option<String> {
    as_nobody_below("", filter)
}

/// The same, started by the shell command `starter`, as root, that is followed by what it starts.
fn as_nobody_below(starter: &str, filter: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this whole run is without root already");
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    // The build's own directory may be closed to others, so the binaries go where `nobody` can reach them.
    let test = std::env::current_exe().expect("a path");
    for (from, to) in [(test.as_path(), "it"), (Path::new(env!("CARGO_BIN_EXE_croft")), "croft")] {
        fs::copy(from, directory.path().join(to)).expect("copy");
    }
    let stores = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    fs::set_permissions(stores.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let delegated = groups::Delegated::new();
    // The shell moves itself to the control group, as a service manager would.
    let script = format!(
        "[ -z \"$GROUP\" ] || echo $$ > \"$GROUP/cgroup.procs\"; exec {starter} setpriv --reuid=65534 --regid=65534 \
         --clear-groups --inh-caps=-all \"$0\" \"$@\""
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .arg(directory.path().join("it"))
        .args([filter, "--skip", "without_root"])
        .env("GROUP", delegated.as_ref().map_or(Path::new(""), |delegated| delegated.path()))
        .env("CROFT_UNDER_TEST", directory.path().join("croft"))
        .env("TMPDIR", directory.path())
        .env(crate::toolchain::STORES, stores.path())
        .current_dir("/")
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no setpriv");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    Some(text)
}

/// Processes on this machine that have `mark` as their last argument.
pub(crate) fn processes(mark: &str) -> usize {
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.ends_with(format!("\0{mark}\0").as_bytes()) && !line.starts_with(b"/bin/sh"))
        .count()
}

async fn wait_until(mut is_reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_reached() {
        assert!(begin.elapsed() < LIMIT, "the state is not reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Prints what one `true` costs: `cargo test --release --test it spawn_cost -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn spawn_cost() {
    const ACTIONS: usize = 400;
    for (scratch, at_once) in
        [1, 2, 4].map(|at_once| [(Scratch::Memory, at_once), (Scratch::Disk, at_once)]).concat()
    {
        let bench = std::sync::Arc::new(Bench::with(4, scratch));
        print!("{scratch:?}, {:?}: ", bench.launcher.ownership());
        let specs: Vec<Spec> =
            (0..ACTIONS).map(|number| bench.spec(&format!("a{number}"), &["/bin/true"])).collect();
        let begin = Instant::now();
        let runs = specs.into_iter().map(|spec| {
            let bench = bench.clone();
            async move { bench.launcher.run(spec).await.expect("started").wait().await.expect("an exit") }
        });
        let exits: Vec<Exit> = futures_util::StreamExt::collect(futures_util::StreamExt::buffer_unordered(
            futures_util::stream::iter(runs),
            at_once,
        ))
        .await;
        let elapsed = begin.elapsed();
        assert!(exits.iter().all(|exit| exit.end == End::Exited(0)));
        let closing = Instant::now();
        drop(exits);
        println!(
            "{at_once} at once: {:.2} ms an action, {:.0} a second; closing a view {:.3} ms",
            elapsed.as_secs_f64() * 1e3 / ACTIONS as f64,
            ACTIONS as f64 / elapsed.as_secs_f64(),
            closing.elapsed().as_secs_f64() * 1e3 / ACTIONS as f64,
        );
    }
}
