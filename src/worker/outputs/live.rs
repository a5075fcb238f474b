//! What a command prints, read while it runs.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::error::Context;
use crate::proto::worker::output::Stream;
use crate::tasks;
use crate::worker::link::Reports;
use crate::worker::sandbox::{Printed, Running};

/// When the first look is taken: most commands have ended by then, and their output is in the result.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The time between two looks, which is how far what a client reads is behind.
const LOOKS: Duration = Duration::from_millis(500);
/// Bytes of one piece. There is at most one of each stream for each look.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one stream that are sent while the command runs; people read no more, and all of it is in the result.
const STREAM_BYTES_MAX: u64 = 1 << 20;

/// Sends what `running` prints for as long as it is polled; dropping it loses nothing, because the result has all of it.
pub(in crate::worker) async fn follow(running: &Running, reports: &Reports) -> Infallible {
    let mut looks = interval_at(Instant::now() + FIRST_LOOK, LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tails = [Tail::new(Stream::Stdout), Tail::new(Stream::Stderr)];
    loop {
        looks.tick().await;
        let Some(printed) = running.printed() else { continue };
        for tail in &mut tails {
            tail.look(&printed, reports).await;
        }
    }
}

/// How far one stream was sent.
struct Tail {
    stream: Stream,
    offset: u64,
}

impl Tail {
    fn new(stream: Stream) -> Self {
        Self { stream, offset: 0 }
    }

    async fn look(&mut self, printed: &Arc<Printed>, reports: &Reports) {
        let (stream, offset, printed) = (self.stream, self.offset, Arc::clone(printed));
        let piece = tasks::blocking(move || {
            let file = match stream {
                Stream::Stdout => &printed.stdout,
                Stream::Stderr => &printed.stderr,
            };
            piece(file, offset).context(|| "read what the command prints")
        });
        match piece.await {
            Ok(piece) if piece.is_empty() => {}
            Ok(piece) => {
                self.offset += piece.len() as u64;
                reports.output(stream, offset, piece).await;
            }
            Err(error) => tracing::debug!(error = error.chain(), "live output is left out"),
        }
    }
}

/// What stands in `file` from `offset` on, up to the bounds of a piece and of a stream. The file's own position stays.
fn piece(file: &File, offset: u64) -> std::io::Result<Bytes> {
    let left = usize::try_from(STREAM_BYTES_MAX.saturating_sub(offset)).unwrap_or(PIECE_BYTES_MAX);
    let end = file.metadata()?.len().saturating_sub(offset);
    let mut piece = vec![0; left.min(PIECE_BYTES_MAX).min(usize::try_from(end).unwrap_or(usize::MAX))];
    let length = file.read_at(&mut piece, offset)?;
    piece.truncate(length);
    Ok(piece.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn pieces_follow_each_other_up_to_the_bound() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(piece(&file, 0).unwrap().is_empty());
        file.write_all(b"one").unwrap();
        assert_eq!(piece(&file, 0).unwrap(), "one");
        file.write_all(b"two").unwrap();
        assert_eq!(piece(&file, 3).unwrap(), "two");
        assert!(piece(&file, 6).unwrap().is_empty());
        file.write_all(&vec![b'x'; 2 << 20]).unwrap();
        assert_eq!(piece(&file, 6).unwrap().len(), PIECE_BYTES_MAX);
        assert_eq!(piece(&file, STREAM_BYTES_MAX - 5).unwrap().len(), 5);
        assert!(piece(&file, STREAM_BYTES_MAX).unwrap().is_empty());
    }
}
