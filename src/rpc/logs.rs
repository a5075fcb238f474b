//! What running commands print, kept in memory while they run and read with `ByteStream.Read`.
//!
//! A stream is named after its operation: `{instance}/operations/{id}/logs/stdout`. No blob has such a name, because `operations` is
//! a segment that no instance may contain. A read follows what is printed until the operation ends, and then goes on with the result
//! in the CAS: so a reader gets everything, although only the first [`STREAM_BYTES_MAX`] are kept here. Each attempt has its own
//! streams, and two may run at once. A reader gets those of the attempt that clients are told of, and is told when that is another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::access::Demand;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::ReadRequest;
use crate::proto::rev2::ExecuteResponse;
use crate::proto::worker::output::Stream;
use crate::scheduler::{Lease, Watch};
use crate::store::Chunks;

use super::Farm;
use super::bytestream::{limit_of, limited};

/// Bytes of one stream that are kept: as many as a worker sends.
const STREAM_BYTES_MAX: usize = 1 << 20;

/// Bytes of all streams together. The oldest goes first, ended ones before those that still grow.
const TOTAL_BYTES_MAX: usize = 64 << 20;

/// What a stream counts on top of its text, so that their number is bounded, too.
const STREAM_OVERHEAD: usize = 1 << 10;

/// How long the output of an attempt that has ended stays. Its followers are done far sooner.
const ENDED_KEPT: Duration = Duration::from_secs(5 * 60);

/// How often a follower looks for more: as often as workers send it.
const LOOKS: Duration = Duration::from_millis(500);

/// How long a follower waits for a next byte before its stream ends; it may read on from where it was.
const SILENCE_MAX: Duration = Duration::from_secs(15 * 60);

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;

/// The segments between an operation's name and its streams.
const SEPARATOR: &str = "/logs/";

/// The name under which a stream of the operation called `operation` can be read.
pub(super) fn name(operation: &str, stream: Stream) -> String {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("{operation}{SEPARATOR}{stream}")
}

/// The operation and the stream that a resource name speaks of; `None` when it is not the name of a stream.
pub(super) fn parse(name: &str) -> Option<(&str, Stream)> {
    let (operation, stream) = name.rsplit_once(SEPARATOR)?;
    match stream {
        "stdout" => Some((operation, Stream::Stdout)),
        "stderr" => Some((operation, Stream::Stderr)),
        _ => None,
    }
}

/// The streams of running executions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    shelf: Arc<Mutex<Shelf>>,
}

type Key = (Lease, Stream);

#[derive(Debug, Default)]
struct Shelf {
    texts: BTreeMap<Key, Text>,
    /// What goes first comes first: the ended before the growing, the older before the younger.
    order: BTreeSet<(bool, u64, Key)>,
    /// What all texts count.
    bytes: usize,
    /// How many texts there have been.
    count: u64,
}

/// What one attempt has printed into one stream.
#[derive(Debug)]
struct Text {
    number: u64,
    bytes: Vec<u8>,
    ended: Option<Instant>,
}

impl Logs {
    /// Takes more of what an attempt has printed.
    ///
    /// A piece that does not follow what is here is left out, and so is all that comes after it: what is here is always the beginning.
    pub(super) fn append(&self, lease: Lease, stream: Stream, (offset, data): (u64, &[u8])) {
        let mut shelf = self.lock();
        let key = (lease, stream);
        if !shelf.texts.contains_key(&key) {
            shelf.begin(key);
        }
        shelf.extend(key, (offset, data));
        shelf.make_room(Instant::now());
    }

    /// An attempt has ended and prints no more.
    pub(super) fn end(&self, lease: Lease) {
        let mut shelf = self.lock();
        for stream in [Stream::Stdout, Stream::Stderr] {
            shelf.end((lease, stream));
        }
    }

    /// What an attempt has printed from `offset` on, up to a chunk.
    fn read(&self, lease: Lease, stream: Stream, offset: u64) -> Option<Bytes> {
        let shelf = self.lock();
        let text = shelf.texts.get(&(lease, stream))?;
        let start = usize::try_from(offset).map_or(text.bytes.len(), |offset| offset.min(text.bytes.len()));
        let end = text.bytes.len().min(start + CHUNK_BYTES);
        Some(Bytes::copy_from_slice(&text.bytes[start..end]))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn begin(&mut self, key: Key) {
        self.count += 1;
        self.bytes += STREAM_OVERHEAD;
        self.order.insert((true, self.count, key));
        self.texts.insert(key, Text { number: self.count, bytes: Vec::new(), ended: None });
    }

    fn extend(&mut self, key: Key, (offset, data): (u64, &[u8])) {
        let Some(text) = self.texts.get_mut(&key) else { return };
        let known = text.bytes.len();
        // A worker that connects again may say something twice.
        let Some(skip) = usize::try_from(offset).ok().and_then(|offset| known.checked_sub(offset)) else {
            return;
        };
        let fresh = data.get(skip..).unwrap_or_default();
        let fresh = &fresh[..fresh.len().min(STREAM_BYTES_MAX - known)];
        text.bytes.extend_from_slice(fresh);
        self.bytes += fresh.len();
    }

    fn end(&mut self, key: Key) {
        let Some(text) = self.texts.get_mut(&key) else { return };
        text.ended = Some(Instant::now());
        let number = text.number;
        self.order.remove(&(true, number, key));
        self.order.insert((false, number, key));
    }

    /// Drops what ended long ago, and what is first in order until the rest is within the bound.
    fn make_room(&mut self, now: Instant) {
        while let Some(&(_, _, key)) = self.order.first() {
            let ended = self.texts.get(&key).and_then(|text| text.ended);
            let is_old = ended.is_some_and(|ended| now - ended > ENDED_KEPT);
            if !is_old && self.bytes <= TOTAL_BYTES_MAX {
                return;
            }
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(text) = self.texts.remove(&key) {
            self.order.remove(&(text.ended.is_none(), text.number, key));
            self.bytes -= text.bytes.len() + STREAM_OVERHEAD;
        }
    }
}

impl Farm {
    /// What an operation prints, from the request's offset on, until the operation ends.
    pub(super) async fn follow_log(
        &self,
        demand: &Demand,
        name: (&str, Stream),
        request: &ReadRequest,
    ) -> Result<Chunks> {
        let (operation, stream) = name;
        let position = u64::try_from(request.read_offset).map_err(|_| {
            Error::new(Kind::OutOfRange, format!("read offset {} is negative", request.read_offset))
        })?;
        let limit = limit_of(request)?;
        let watch = self.watch(demand, operation).await?;
        let follower = Follower { farm: self.clone(), watch, stream, position, attempt: None };
        let chunks = stream::try_unfold(Some(follower), |follower| async move {
            match follower {
                Some(follower) => follower.next().await,
                None => Ok(None),
            }
        });
        let chunks = chunks.try_flatten().boxed();
        Ok(if limit == 0 { chunks } else { limited(chunks, limit) })
    }
}

/// A client that reads a stream.
struct Follower {
    farm: Farm,
    watch: Watch,
    stream: Stream,
    position: u64,
    /// The attempt of which something was read.
    attempt: Option<u32>,
}

type Step = Option<(Chunks, Option<Follower>)>;

impl Follower {
    /// The next chunk, or all the rest once the operation has ended.
    async fn next(mut self) -> Result<Step> {
        let begin = Instant::now();
        while begin.elapsed() < SILENCE_MAX {
            // Read before the text is: when it says that the operation has ended, the text is complete.
            let update = self.watch.current();
            self.check_attempt(update.attempt)?;
            let lease = Lease { execution: update.execution, attempt: update.attempt };
            let chunk = self.farm.logs.read(lease, self.stream, self.position).unwrap_or_default();
            if !chunk.is_empty() {
                self.attempt = Some(update.attempt);
                self.position += chunk.len() as u64;
                return Ok(Some((stream::iter([Ok(chunk)]).boxed(), Some(self))));
            }
            if let Some(response) = &update.response {
                let rest = self.rest(response, update.task.action_digest.function()).await?;
                return Ok(rest.map(|rest| (rest, None)));
            }
            tokio::select! {
                next = self.watch.next() => {
                    next.ok_or_else(|| Error::new(Kind::Unavailable, "the farm is stopping"))?;
                }
                () = tokio::time::sleep(LOOKS) => {}
            }
        }
        Err(Error::new(
            Kind::Unavailable,
            "nothing was printed for a long time; read on from the same offset",
        ))
    }

    /// The bytes of two attempts must not be mixed.
    fn check_attempt(&self, attempt: u32) -> Result<()> {
        match self.attempt {
            Some(read) if read != attempt => Err(Error::new(
                Kind::Aborted,
                "another attempt counts by now; read its output from the start",
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// What the result has beyond the position; `None` when there is no more.
    async fn rest(
        &self,
        response: &ExecuteResponse,
        function: crate::digest::Function,
    ) -> Result<Option<Chunks>> {
        let Some(result) = &response.result else { return Ok(None) };
        let (raw, digest) = match self.stream {
            Stream::Stdout => (&result.stdout_raw, &result.stdout_digest),
            Stream::Stderr => (&result.stderr_raw, &result.stderr_digest),
        };
        if let Some(raw) = usize::try_from(self.position).ok().and_then(|position| raw.get(position..))
            && !raw.is_empty()
        {
            return Ok(Some(stream::iter([Ok(Bytes::copy_from_slice(raw))]).boxed()));
        }
        let Some(digest) = digest else { return Ok(None) };
        let digest = Digest::from_proto(function, Some(digest))?;
        if self.position >= digest.size() {
            return Ok(None);
        }
        Ok(self.farm.cas.open(&digest, self.position).await?.map(crate::store::Blob::into_chunks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::ExecutionId;

    fn lease(execution: u128, attempt: u32) -> Lease {
        Lease { execution: ExecutionId::new(execution), attempt }
    }

    fn read(logs: &Logs, (execution, attempt): (u128, u32), offset: u64) -> Option<Bytes> {
        logs.read(lease(execution, attempt), Stream::Stdout, offset)
    }

    #[test]
    fn a_name_is_read_back_and_no_blob_has_one() {
        for operation in ["operations/00", "a/b/operations/00"] {
            let name = name(operation, Stream::Stderr);
            assert_eq!(parse(&name), Some((operation, Stream::Stderr)));
            assert!(super::super::resource::Read::parse(&name).is_err());
        }
        assert_eq!(parse("logs/blobs/00/1"), None);
        assert_eq!(parse("operations/00/logs/both"), None);
    }

    #[test]
    fn what_is_said_twice_is_kept_once_and_a_gap_ends_the_text() {
        let logs = Logs::default();
        for piece in [(0, &b"ab"[..]), (0, b"abc"), (1, b"b"), (9, b"late"), (3, b"d")] {
            logs.append(lease(1, 1), Stream::Stdout, piece);
        }
        assert_eq!(read(&logs, (1, 1), 1).unwrap(), "bcd");
        assert_eq!(read(&logs, (1, 1), 99).unwrap(), "");
        assert_eq!(read(&logs, (2, 1), 0), None);
    }

    #[test]
    fn two_attempts_that_run_at_once_are_kept_apart() {
        let logs = Logs::default();
        logs.append(lease(1, 1), Stream::Stdout, (0, b"first"));
        logs.append(lease(1, 2), Stream::Stdout, (0, b"second"));
        logs.append(lease(1, 1), Stream::Stdout, (5, b" goes on"));
        assert_eq!(read(&logs, (1, 1), 0).unwrap(), "first goes on");
        assert_eq!(read(&logs, (1, 2), 0).unwrap(), "second");
    }

    #[test]
    fn a_stream_and_all_together_are_bounded_and_the_ended_go_first() {
        let logs = Logs::default();
        let megabyte = vec![b'x'; 2 << 20];
        for execution in 0..100 {
            logs.append(lease(execution, 1), Stream::Stdout, (0, &megabyte));
            if execution >= 50 {
                logs.end(lease(execution, 1));
            }
        }
        let shelf = logs.lock();
        assert!(shelf.bytes <= TOTAL_BYTES_MAX);
        assert_eq!(shelf.texts.len(), shelf.order.len());
        assert_eq!(shelf.bytes, shelf.texts.len() * (STREAM_BYTES_MAX + STREAM_OVERHEAD));
        assert!((0..50).all(|execution| shelf.texts.contains_key(&(lease(execution, 1), Stream::Stdout))));
    }

    #[test]
    fn what_ended_long_ago_goes() {
        let logs = Logs::default();
        logs.append(lease(1, 1), Stream::Stdout, (0, b"x"));
        logs.end(lease(1, 1));
        logs.lock().make_room(Instant::now() + ENDED_KEPT / 2);
        assert!(read(&logs, (1, 1), 0).is_some());
        logs.lock().make_room(Instant::now() + ENDED_KEPT * 2);
        assert!(read(&logs, (1, 1), 0).is_none());
        let shelf = logs.lock();
        assert_eq!((shelf.bytes, shelf.order.len()), (0, 0));
    }
}
