//! What a service manager hears of the real binary, from a socket like systemd's, and what it hands over: sockets and credentials.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::farm::{self, Farm};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages until the one that is waited for; pings are among them.
const MESSAGES_MAX: usize = 1000;

/// The service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, directory }
    }

    fn start(&self) -> Farm {
        let socket = self.directory.path().join("notify");
        let environment = [("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "1000000")];
        Farm::start_with(&environment)
    }

    /// The next message that has `line`.
    fn until(&self, line: &str) -> Vec<String> {
        for _ in 0..MESSAGES_MAX {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).expect("a message in time");
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.iter().any(|it| it == line) {
                return lines;
            }
        }
        panic!("`{line}` does not come");
    }
}

#[test]
fn a_service_manager_hears_of_the_start_a_reload_the_life_and_the_stop() {
    let manager = Manager::new();
    let mut farm = manager.start();
    assert!(manager.until("READY=1").contains(&"STATUS=ready".to_owned()));
    manager.until("WATCHDOG=1");
    let pid = Pid::from_raw(farm.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    let reloading = manager.until("RELOADING=1");
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    assert!(farm.terminate().success());
    manager.until("STOPPING=1");
}

/// The command that starts a farm which is handed a socket under a name, in the way of systemd: as descriptor 3.
fn activated(data: &Path, socket: OwnedFd, name: &str) -> Command {
    let script = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=$1 LISTEN_PID=$$; exec \"$0\"";
    let plain = farm::command(data, &[]);
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(plain.get_program()).arg(name);
    for (key, value) in plain.get_envs() {
        command.env(key, value.expect("the farm's command removes nothing"));
    }
    command.stdin(Stdio::from(socket)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn who_connects_while_the_farm_is_started_again_waits_in_the_socket_of_the_service_manager() {
    let data = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let start = || {
        let command = activated(data.path(), socket.try_clone().unwrap().into(), "public");
        Farm::try_start_by(command, data.path()).unwrap_or_else(|(_, errors)| panic!("{errors}"))
    };
    let mut farm = start();
    assert_eq!(farm.public, address.to_string());
    assert!(farm.terminate().success());
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for client in &mut waiting {
        client
            .write_all(b"GET /cas/nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            .unwrap();
    }
    let mut farm = start();
    for client in &mut waiting {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert!(farm.terminate().success());
}

#[test]
fn a_socket_that_no_listener_can_serve_stops_the_start_with_its_name() {
    let data = tempfile::tempdir().unwrap();
    let listening = || TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = {
        let other = listening();
        TcpStream::connect(other.local_addr().unwrap()).unwrap()
    };
    let wrong: [(OwnedFd, &str, &str); 5] = [
        (
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            "public",
            "the socket `public` does not listen for TCP",
        ),
        (connected.into(), "admin", "the socket `admin` does not listen for TCP"),
        (
            listening().into(),
            "croft.socket",
            "the socket `croft.socket` that was handed over is for no listener",
        ),
        (listening().into(), "public:admin", "with other than 1 names"),
        // The rules for addresses are those of `listen`.
        (TcpListener::bind("0.0.0.0:0").unwrap().into(), "public", "without a section [access]"),
    ];
    for (socket, name, expected) in wrong {
        let Err((status, errors)) = Farm::try_start_by(activated(data.path(), socket, name), data.path())
        else {
            panic!("{name}: it starts")
        };
        assert!(status.code() == Some(78) && errors.contains(expected), "{name}: {errors}");
    }
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let mut farm =
        Farm::start_with(&[("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "public")]);
    assert!(farm.terminate().success());
}

/// A configuration that names a credential and, if they are said, plain files.
fn with_credential(directory: &Path, plain: &str) -> std::path::PathBuf {
    let file = directory.join("croft.toml");
    std::fs::write(&file, format!("[access]\nbasic = {{ file = \"credential:users\" }}\n{plain}")).unwrap();
    file
}

fn check(file: &Path, credentials: Option<&Path>) -> (bool, String) {
    let mut command = Command::new(farm::executable());
    command.arg("check").arg(file).env_remove("CREDENTIALS_DIRECTORY");
    command.envs(credentials.map(|directory| ("CREDENTIALS_DIRECTORY", directory)));
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_credential_is_demanded_where_the_farm_runs_and_believed_where_it_is_built() {
    let directory = tempfile::tempdir().unwrap();
    let file = with_credential(directory.path(), "");
    let (is_right, said) = check(&file, None);
    assert!(is_right && said.contains("credential `users` was not looked at"), "{said}");
    let (is_right, said) = check(&file, Some(directory.path()));
    assert!(!is_right && said.contains("no `users` in $CREDENTIALS_DIRECTORY"), "{said}");
    std::fs::write(directory.path().join("users"), "ann:secret\n").unwrap();
    let (is_right, said) = check(&file, Some(directory.path()));
    assert!(!is_right && said.contains("only bcrypt"), "{said}");
    let serve = |credentials: &Path| {
        let mut command = farm::command(&directory.path().join("data"), &[]);
        command.arg("serve").arg("--config").arg(&file).env("CREDENTIALS_DIRECTORY", credentials);
        Farm::try_start_by(command, directory.path())
    };
    let Err((_, errors)) = serve(directory.path()) else { panic!("it starts with such a file") };
    assert!(errors.contains("only bcrypt"), "{errors}");
    let Err((status, errors)) = serve(Path::new("/nowhere")) else { panic!("it starts without it") };
    assert!(status.code() == Some(78) && errors.contains("LoadCredential=users"), "{errors}");
    std::fs::write(directory.path().join("users"), "").unwrap();
    let mut farm = serve(directory.path()).unwrap_or_else(|(_, errors)| panic!("{errors}"));
    assert!(farm.terminate().success());
}

#[test]
fn check_opens_the_files_of_passwords_and_keys_that_are_plain() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.json");
    std::fs::write(&keys, "{}").unwrap();
    let plain =
        format!("[[access.jwt]]\nissuer = \"i\"\naudiences = [\"a\"]\nkeys = \"{}\"\n", keys.display());
    let file = with_credential(directory.path(), &plain);
    let (is_right, said) = check(&file, None);
    assert!(!is_right && said.contains("no set of keys"), "{said}");
    assert!(!said.contains("access.basic"), "{said}");
    std::fs::write(&keys, "{\"keys\": []}").unwrap();
    assert!(check(&file, None).0);
}
