//! The thread for what nobody waits for: deleting files that have lost their name, and telling the writer that time passes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc::WeakSender;

use super::writer::Request;

/// How often the writer looks at what is due.
const TICK: Duration = Duration::from_secs(10);

/// Runs until the writer has ended.
pub(super) fn run(trash: &Receiver<PathBuf>, requests: &WeakSender<Request>) {
    loop {
        match trash.recv_timeout(TICK) {
            Ok(path) => delete(&path),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                // A writer that is busy needs no tick.
                let _ = requests.upgrade().map(|requests| requests.try_send(Request::Tick));
            }
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
