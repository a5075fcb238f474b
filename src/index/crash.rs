//! A process that writes until it is stopped or killed: the test program itself, started again for one of its tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::power;

/// How long the writer may take for anything: far more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of the writer that wait to be read.
const LINES_MAX: usize = 10_000;

/// A writer at work. Dropping it kills it.
pub(crate) struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    /// Starts the ignored test of this name with these variables, of which the first is where it writes.
    pub(crate) fn start(test: &str, place: (&str, &Path), variables: &[(&str, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
            .env(place.0, place.1)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// What it says next.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the writer writes until it is killed")
    }

    /// Stops it in the middle of what it does; nothing is said after that.
    pub(crate) fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !power::is_stopped(self.child.id()) {
            assert!(Instant::now() < deadline, "the writer does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it. Returns what it had said until then.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may be dead already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
