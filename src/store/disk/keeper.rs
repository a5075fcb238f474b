//! The thread for what nobody waits for: deleting files that have lost their name, and telling the writer that time passes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::WeakSender;

use super::writer::Request;

/// How often the writer looks at what is due.
const TICK: Duration = Duration::from_secs(10);

/// Runs until the writer has ended.
pub(super) fn run(trash: &Receiver<PathBuf>, requests: &WeakSender<Request>) {
    let mut next_tick = Instant::now() + TICK;
    loop {
        match trash.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
            Ok(path) => delete(&path),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            // A writer that is so busy that its queue is full gets the next one.
            let _ = requests.upgrade().map(|requests| requests.try_send(Request::Tick));
        }
    }
}

pub(super) fn delete(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("an evicted file could not be deleted; the next start deletes it: {error}");
        }
        Ok(()) | Err(_) => {}
    }
}
