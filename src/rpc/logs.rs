//! What running commands print, as `ByteStream.Read` gives it.
//!
//! A stream is named after its operation: `{instance}/operations/{id}/logs/stdout`. No blob has such a name, because `operations` is
//! a segment that no instance may contain. A read follows what is printed until the operation ends, and then goes on with the result
//! in the CAS: so a reader gets everything, although only the beginning is kept in memory. Each attempt has its own streams, and two may
//! run at once. A reader gets those of the attempt that clients are told of, and is told when that is another.

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

/// How often a follower looks for more: as often as workers send it.
const LOOKS: Duration = Duration::from_millis(500);

/// How long a follower waits for a next byte before its stream ends; it may read on from where it was.
const SILENCE_MAX: Duration = Duration::from_secs(15 * 60);

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
}
