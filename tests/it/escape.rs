//! Ways out of the sandbox, tried by actions of a client, each with the attempt's own evidence and a look at the host.

mod terminal;

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use croft::digest::{Digest, Function};
use croft::proto::rev2::{Action, Directory, DirectoryNode, ExecuteResponse, FileNode};
use tonic::Code;

use crate::client::{Client, Inputs, code, message, shell, stderr, stdout};
use crate::farm::Farm;
use crate::sandbox::{as_nobody, processes};

const LIMIT: Duration = Duration::from_secs(30);

/// A farm with a client, and files that no action may see.
struct Prison {
    farm: Farm,
    client: Client,
}

impl Prison {
    async fn build() -> Self {
        let farm = Farm::start();
        let client = Client::new(&farm).await;
        Self { farm, client }
    }

    /// Runs a Python program as an action; `None` where the system's own Python is missing.
    async fn python(&self, program: &str, arguments: &str) -> Option<ExecuteResponse> {
        if !std::path::Path::new("/usr/bin/python3").exists() {
            eprintln!("skipped: there is no /usr/bin/python3");
            return None;
        }
        let inputs = Inputs::default().file("try.py", program.to_owned());
        Some(self.client.run(&format!("/usr/bin/python3 try.py {arguments}"), &inputs, &[]).await)
    }

    async fn shell(&self, script: &str) -> ExecuteResponse {
        self.client.run(script, &Inputs::default(), &[]).await
    }

    /// Everything that happened to the farm's own must not have: it goes on working.
    async fn stands(&self) {
        let response = self.shell("echo stands; cat /proc/sys/kernel/random/uuid").await;
        assert!(stdout(&response).starts_with("stands\n"), "{response:?}");
    }
}

fn exit_code(response: &ExecuteResponse) -> i32 {
    response.result.as_ref().map_or(-1, |result| result.exit_code)
}

#[tokio::test]
async fn no_system_call_leads_out() {
    let prison = Prison::build().await;
    let Some(response) = prison.python(include_str!("escape/calls.py"), "").await else { return };
    let printed = stdout(&response);
    assert_eq!(exit_code(&response), 0, "{printed}{}", stderr(&response));
    let attempts: Vec<Vec<&str>> = printed.lines().map(|line| line.split('|').collect()).collect();
    for attempt in &attempts {
        let [label, expected, happened] = attempt[..] else { panic!("{attempt:?}") };
        assert_eq!(happened, expected, "{label}");
    }
    assert!(attempts.len() > 75, "all of them are tried: {}", attempts.len());
    prison.stands().await;
}

#[tokio::test]
async fn no_file_or_device_of_the_host_is_reached() {
    let prison = Prison::build().await;
    let outside = tempfile::NamedTempFile::new().unwrap();
    let data = prison.farm.data().display().to_string();
    let paths = format!("{data} {data}/worker {data}/cas {}", outside.path().display());
    let Some(response) = prison.python(include_str!("escape/files.py"), &paths).await else { return };
    let printed = stdout(&response);
    assert_eq!(exit_code(&response), 0, "{printed}{}", stderr(&response));
    let reached: Vec<&str> = printed.lines().filter(|line| line.ends_with("|ok")).collect();
    assert!(reached.is_empty(), "{reached:?}");
    assert!(printed.lines().count() > 45, "all of them are tried: {printed}");
    assert!(!std::path::Path::new("/usr/croft-was-here").exists());
    prison.stands().await;
}

#[tokio::test]
async fn no_program_gives_privileges_and_no_descriptor_is_inherited() {
    let prison = Prison::build().await;
    let script = "grep -E '^(Cap(Prm|Eff|Bnd|Amb|Inh)|NoNewPrivs|Seccomp|Groups):' /proc/self/status | tr -s '\\t' ' '; \
                  cp /usr/bin/id id; chmod 6755 id; ./id -u; ls -l /proc/self/fd | wc -l; su root -c id < /dev/null";
    let response = prison.shell(script).await;
    let printed = stdout(&response);
    let lines: Vec<&str> = printed.lines().collect();
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(lines.contains(&format!("{capabilities}: 0000000000000000").as_str()), "{printed}");
    }
    assert!(lines.contains(&"NoNewPrivs: 1") && lines.contains(&"Seccomp: 2"), "{printed}");
    // The line of the total, 0, 1, 2, and the one that `ls` reads the directory by.
    assert_eq!(lines[lines.len() - 2..], ["1000", "5"], "{printed}");
    assert_ne!(exit_code(&response), 0);
}

#[tokio::test]
async fn no_socket_of_the_host_answers() {
    let prison = Prison::build().await;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("croft-escape-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let unix = UnixListener::bind_addr(&address).unwrap();
    tcp.set_nonblocking(true).unwrap();
    unix.set_nonblocking(true).unwrap();
    let program = format!(
        "import socket\n\
         for family, address in [(socket.AF_INET, ('127.0.0.1', {})), (socket.AF_UNIX, '\\0{name}'),\n\
         \x20                       (socket.AF_INET, ('192.0.2.1', 80)), (socket.AF_INET, ('{}', {}))]:\n\
         \x20   print(socket.socket(family).connect_ex(address))\n",
        tcp.local_addr().unwrap().port(),
        prison.farm.public.rsplit_once(':').unwrap().0,
        prison.farm.public.rsplit_once(':').unwrap().1,
    );
    let Some(response) = prison.python(&program, "").await else { return };
    let (refused, unreachable) = (libc::ECONNREFUSED, libc::ENETUNREACH);
    assert_eq!(
        stdout(&response),
        format!("{refused}\n{refused}\n{unreachable}\n{refused}\n"),
        "{}",
        stderr(&response)
    );
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(unix.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn no_process_of_the_host_is_seen_or_signalled() {
    let prison = Prison::build().await;
    let pid = prison.farm.pid();
    // In a new process namespace, a number as high as the farm's is nobody's.
    let response = prison.shell(&format!("ls -d /proc/[0-9]* | wc -l; kill -9 {pid} || echo nobody")).await;
    let printed = stdout(&response);
    let count: usize = printed.lines().next().unwrap().parse().unwrap();
    assert!(count <= 5 && (printed.contains("nobody") || pid < 10), "{printed}");
    // Everything that an action may signal is its own.
    prison.shell("trap '' TERM; kill -9 -1").await;
    prison.stands().await;
}

#[tokio::test]
async fn what_evades_signals_ends_with_the_timeout() {
    let prison = Prison::build().await;
    let mark = format!("hopper-{}", std::process::id());
    let inputs = Inputs::default().file(&mark, include_str!("escape/hopper.py"));
    let script = format!("trap '' TERM INT HUP; /usr/bin/python3 {mark} & echo begun; sleep 600");
    let change = |action: &mut Action| {
        action.timeout = Some(croft::proto::Duration { seconds: 1, nanos: 0 });
    };
    let action = prison.client.action(&shell(&script, &[]), &inputs, change).await;
    let response = prison.client.execute(prison.client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::DeadlineExceeded as i32, "{response:?}");
    assert_eq!(stdout(&response), "begun\n");
    assert_eq!(processes(&mark), 0);
    prison.stands().await;
}

#[tokio::test]
async fn daemons_and_zombies_end_with_their_action() {
    let prison = Prison::build().await;
    let mark = format!("{}.75", 7000 + std::process::id() % 1000);
    let begin = Instant::now();
    let script = format!(
        "setsid sleep {mark} & (setsid sh -c 'setsid sleep {mark} & exec sleep {mark}' &) ; \
         for i in 1 2 3 4 5 6 7 8; do (true &) ; done; echo done"
    );
    let response = prison.shell(&script).await;
    assert_eq!((exit_code(&response), stdout(&response)), (0, "done\n".into()), "{response:?}");
    assert!(begin.elapsed() < LIMIT);
    assert_eq!(processes(&mark), 0);
}

#[tokio::test]
async fn an_input_is_the_same_for_the_next_action_whatever_one_does_to_it() {
    let prison = Prison::build().await;
    // Larger than what the store keeps within its index, so that the worker may link the store's own file.
    let content = "the input\n".repeat(20_000);
    let deep = prison.client.put_message(&one_file("deep", &prison.client.put(content.clone()).await)).await;
    let inputs = |program: &str| {
        let mut inputs = Inputs::default().file("input", content.clone()).file("try.py", program.to_owned());
        inputs.root.directories = vec![DirectoryNode { name: "sub".into(), digest: Some(deep.to_proto()) }];
        inputs
    };
    let script = "/usr/bin/python3 try.py; cat input";
    let bad = prison.client.run(script, &inputs(include_str!("escape/inputs.py")), &[]).await;
    assert_eq!(stdout(&bad), "changed by an action\n", "its own view is changed: {}", stderr(&bad));
    let look = "sha256sum < input; sha256sum < sub/deep; stat -c %a.%h input; test -w / ; ls | tr '\\n' ' '";
    let after = prison.client.run(look, &inputs("pass"), &[]).await;
    let expected = Function::Sha256.hash(content.as_bytes());
    let printed = stdout(&after);
    let lines: Vec<&str> = printed.lines().collect();
    for line in &lines[..2] {
        assert_eq!(line.split(' ').next(), Some(hash_of(&expected).as_str()));
    }
    assert!(lines[2].starts_with("444.") || lines[2].starts_with("644."), "{printed}");
    assert_eq!(lines[3].trim(), "input sub try.py");
    assert_eq!(prison.client.read_blob(&expected).await.unwrap(), content.as_bytes(), "the store's own");
}

fn one_file(name: &str, digest: &Digest) -> Directory {
    let file = FileNode { name: name.into(), digest: Some(digest.to_proto()), ..FileNode::default() };
    Directory { files: vec![file], ..Directory::default() }
}

fn hash_of(digest: &Digest) -> String {
    digest.to_proto().hash
}

#[tokio::test]
async fn outputs_that_point_out_upload_nothing_of_the_host() {
    let prison = Prison::build().await;
    let secret = format!("secret of {}", uuid::Uuid::new_v4());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &secret).unwrap();
    let path = file.path().display().to_string();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let scripts = [
        format!("ln -s {path} out"),
        "ln -s /etc/passwd out".to_owned(),
        "ln -s /proc/1/root/etc/shadow out".to_owned(),
        format!("ln -s {parent} dir; ln -s dir/{name} out"),
        "ln -s ../../../../../etc out".to_owned(),
        "ln -s /proc/self/root out".to_owned(),
        format!("mkdir out; ln -s / out/root; ln -s {path} out/file; ln -s ../../.. out/up"),
        "mkdir d; ln -s / d/e; ln -s d/e/etc/passwd out".to_owned(),
        "ln -s out out".to_owned(),
    ];
    for script in scripts {
        let response = prison.client.run(&script, &Inputs::default(), &["out"]).await;
        let listed = format!("{response:?}");
        assert_eq!(
            response.result.as_ref().map_or(0, |result| result.output_files.len()),
            0,
            "{script}: {listed}"
        );
        assert!(!listed.contains(&secret), "{script}");
    }
    // A directory on the way to the output that is a link out.
    for (script, output) in [("rmdir d; ln -s /etc d", "d/passwd"), ("rmdir d; ln -s / d", "d/proc/version")]
    {
        let response = prison.client.run(script, &Inputs::default(), &[output]).await;
        assert_eq!(response.result.map_or(0, |result| result.output_files.len()), 0, "{script}");
    }
    let secrets =
        [Function::Sha256.hash(secret.as_bytes()), hash_of_file("/etc/passwd"), hash_of_file("/etc/shadow")];
    assert_eq!(prison.client.missing(&secrets).await.len(), secrets.len(), "nothing of it is stored");
}

fn hash_of_file(path: &str) -> Digest {
    // Without root, what cannot be read is represented by something that nobody stores either.
    Function::Sha256.hash(&std::fs::read(path).unwrap_or_else(|_| b"unreadable".to_vec()))
}

#[tokio::test]
async fn outputs_that_are_no_files_hang_nobody() {
    let prison = Prison::build().await;
    for script in [
        "mkfifo out",
        "mkdir out; mkfifo out/pipe",
        "/usr/bin/python3 -c 'import socket; \
                    socket.socket(socket.AF_UNIX).bind(\"out\")'",
    ] {
        let action = prison.client.action(&shell(script, &["out"]), &Inputs::default(), |_| {}).await;
        let answer = prison.client.execute(prison.client.request(&action));
        let response = tokio::time::timeout(LIMIT, answer).await.expect("in time").unwrap();
        let result = response.result.clone().unwrap_or_default();
        assert!(result.output_files.is_empty(), "{script}: {response:?}");
    }
    prison.stands().await;
}

#[tokio::test]
async fn shared_memory_is_bounded_and_a_huge_argument_is_the_commands_own_fault() {
    let prison = Prison::build().await;
    let program = "import os\nfile = os.open('/dev/shm/full', os.O_CREAT | os.O_RDWR)\n\
                   try:\n    os.posix_fallocate(file, 0, 600 << 20)\nexcept OSError as error:\n    print(error.strerror)\n";
    if let Some(response) = prison.python(program, "").await {
        assert_eq!(stdout(&response), "No space left on device\n", "{}", stderr(&response));
    }
    let mut command = shell("true", &[]);
    command.arguments.push("x".repeat(200 << 10));
    let action = prison.client.action(&command, &Inputs::default(), |_| {}).await;
    let response = prison.client.execute(prison.client.request(&action)).await.unwrap();
    assert_eq!((code(&response), exit_code(&response)), (0, 126), "{}", message(&response));
    assert!(stderr(&response).contains("Argument list too long"), "{}", stderr(&response));
    prison.stands().await;
}

/// The directories of actions that are there.
fn directories(farm: &Farm) -> usize {
    std::fs::read_dir(farm.data().join("worker/actions")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fills_its_temporary_directory_fails_alone() {
    for scratch in ["memory", "disk"] {
        let environment = [
            ("CROFT_WORKER__SCRATCH", scratch),
            ("CROFT_WORKER__LIMITS__DISK", "32 MiB"),
            ("CROFT_WORKER__SLOTS", "2"),
        ];
        let farm = Farm::start_with(&environment);
        let client = Client::new(&farm).await;
        let neighbour = "head -c 4m /dev/zero > /tmp/mine; for i in 1 2 3 4 5; do sleep 0.2; head -c 1m /dev/zero >> /tmp/mine || exit 9; done; \
                         wc -c < /tmp/mine";
        let glutton = "echo begun; head -c 256m /dev/zero > /tmp/full";
        let none = Inputs::default();
        let (beside, full) = tokio::join!(client.run(neighbour, &none, &[]), client.run(glutton, &none, &[]));
        assert_ne!(exit_code(&full), 0, "{scratch}: {full:?}");
        assert_eq!(stdout(&full), "begun\n", "{scratch}: {}", stderr(&full));
        assert!(full.message.contains("limit of 32.0 MiB"), "{scratch}: {}", full.message);
        assert_eq!((exit_code(&beside), stdout(&beside)), (0, format!("{}\n", 9 << 20)), "{scratch}");
        let after = client.run("find /tmp /var/tmp/ -mindepth 1", &none, &[]).await;
        assert_eq!(
            (exit_code(&after), stdout(&after)),
            (0, String::new()),
            "{scratch}: the next one's is empty"
        );
        let begin = Instant::now();
        while directories(&farm) > 0 {
            assert!(begin.elapsed() < LIMIT, "{scratch}: what it wrote stays on the host");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The same by a farm without privileges: the test runs itself as `nobody`, where it may.
#[test]
fn nothing_escapes_without_root() {
    let Some(text) = as_nobody("escape::") else { return };
    assert!(text.contains("test escape::no_system_call_leads_out ... ok"), "{text}");
}
