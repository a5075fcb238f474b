//! What a service manager hears of the real binary, from a socket like systemd's.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::farm::Farm;

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
