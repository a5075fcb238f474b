//! One blob over ByteStream, up or down, in pieces that every server takes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::failure::Failure;
use super::link::{Pulse, in_time};
use crate::credential::Lane;
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::byte_stream_client::ByteStreamClient;
use crate::proto::bytestream::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use crate::store::{Blob, CHUNK_BYTES, Chunks};

/// Bytes of a blob in one message that we send: far below the 4 MiB that most servers take in one.
const PIECE_BYTES_MAX: usize = CHUNK_BYTES;

/// Pieces that wait for a connection: enough to keep it busy while the next is read from where it comes from.
const PIECES_MAX: usize = 4;

/// Bytes of one message that we take; servers may send larger pieces than we do.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What is left of a blob up to this size is read at once, so that a small blob is whole for whoever is above.
const WHOLE_BYTES_MAX: u64 = CHUNK_BYTES as u64;

/// Which blob, as whom, and how patiently.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) digest: Digest,
    pub(super) instance: Arc<str>,
    pub(super) timeout: Duration,
}

impl Transfer {
    /// `{instance}/` or nothing, then `rest`.
    fn resource(&self, rest: &str) -> String {
        if self.instance.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.instance) }
    }

    /// Sends the blob under an upload's name of its own. The server may say at any time that it has the blob already.
    pub(super) async fn upload(self, channel: Lane, chunks: Chunks) -> Result<(), Failure> {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let mut client = ByteStreamClient::new(channel);
        let mut answer = pin!(client.write(ReceiverStream::new(pieces)));
        let mut fed = pin!(self.feed(chunks, sender));
        tokio::select! {
            biased;
            early = &mut answer => return self.committed(early?),
            fed = &mut fed => fed?,
        }
        let answer = in_time(self.timeout, answer).await?;
        self.committed(answer)
    }

    fn committed(&self, answer: Response<WriteResponse>) -> Result<(), Failure> {
        let committed = answer.into_inner().committed_size;
        if u64::try_from(committed) == Ok(self.digest.size()) {
            return Ok(());
        }
        let message = format!("a server of the farm tier took {committed} bytes of blob {}", self.digest);
        Err(Failure::Source(Error::new(Kind::Unavailable, message)))
    }

    /// Hands the blob's pieces to the call. Only the server's share of the time is bounded: the source may be a slow client.
    async fn feed(&self, chunks: Chunks, sender: mpsc::Sender<WriteRequest>) -> Result<(), Failure> {
        let mut requests = self.requests(chunks);
        while let Some(request) = requests.try_next().await.map_err(Failure::Source)? {
            match tokio::time::timeout(self.timeout, sender.send(request)).await {
                Ok(Ok(())) => {}
                // The call has ended; its answer says why.
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Failure::Late),
            }
        }
        Ok(())
    }

    /// The messages of an upload. The last piece is sent only when the source has ended without complaint, because with it the
    /// server stores the blob.
    fn requests(&self, chunks: Chunks) -> impl stream::Stream<Item = Result<WriteRequest>> + Unpin + use<> {
        let upload = format!("uploads/{}/blobs/{}", uuid::Uuid::new_v4(), self.digest);
        let (name, size) = (self.resource(&upload), self.digest.size());
        let empty = stream::iter((size == 0).then(|| Ok(Bytes::new())));
        let pieces = last_when_ended(size, chunks).chain(empty);
        let requests = pieces.scan((name, 0), move |(name, offset): &mut (String, u64), piece| {
            let request = piece.map(|data: Bytes| {
                let write_offset = i64::try_from(*offset).expect("the size of a digest came from an i64");
                *offset += data.len() as u64;
                let finish_write = *offset == size;
                // Only the first message must name the blob.
                WriteRequest { resource_name: std::mem::take(name), write_offset, finish_write, data }
            });
            std::future::ready(Some(request))
        });
        Box::pin(requests)
    }

    /// Opens the blob from `offset`, which is at most its size; `None` if it is absent.
    pub(super) async fn download(
        self,
        channel: Lane,
        offset: u64,
        pulse: Pulse,
    ) -> Result<Option<Blob>, Failure> {
        let read_offset = i64::try_from(offset).expect("the size of a digest came from an i64");
        let resource_name = self.resource(&format!("blobs/{}", self.digest));
        let request = ReadRequest { resource_name, read_offset, read_limit: 0 };
        let mut client = ByteStreamClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = match in_time(self.timeout, client.read(request)).await {
            Err(failure) if failure.is_not_found() => return Ok(None),
            answer => answer?,
        };
        let mut body = Body {
            messages: answer.into_inner(),
            left: self.digest.size() - offset,
            timeout: self.timeout,
            pulse,
        };
        let first = match body.next().await {
            Err(failure) if failure.is_not_found() => return Ok(None),
            first => first?,
        };
        Ok(Some(body.into_blob(first).await?))
    }
}

/// Pieces of at most [`PIECE_BYTES_MAX`], the last of `size` bytes only when the source has ended there.
fn last_when_ended(size: u64, chunks: Chunks) -> impl stream::Stream<Item = Result<Bytes>> + Send {
    let ended = stream::try_unfold((chunks, size), |(mut chunks, left)| async move {
        let Some(chunk) = chunks.try_next().await? else { return Ok(None) };
        // The blob's own stream has refused to be longer than its size.
        let left = left - chunk.len() as u64;
        if left == 0 && chunks.try_next().await?.is_some_and(|more| !more.is_empty()) {
            return Err(Error::invalid("a blob goes on beyond its size"));
        }
        Ok(Some((chunk, (chunks, left))))
    });
    ended.map_ok(|chunk| stream::iter(split(chunk)).map(Ok)).try_flatten()
}

fn split(chunk: Bytes) -> impl Iterator<Item = Bytes> {
    let starts = (0..chunk.len()).step_by(PIECE_BYTES_MAX);
    starts.map(move |start| chunk.slice(start..chunk.len().min(start + PIECE_BYTES_MAX)))
}

/// A blob that comes in. It has exactly the bytes that its digest says, or an error: what breaks off elsewhere is an outage to us.
struct Body {
    messages: Streaming<ReadResponse>,
    /// Bytes that are still to come.
    left: u64,
    timeout: Duration,
    pulse: Pulse,
}

impl Body {
    /// The next piece; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(message) = in_time(self.timeout, self.messages.message()).await? else {
                return if self.left == 0 { Ok(None) } else { Err(broken_off()) };
            };
            if message.data.is_empty() {
                continue;
            }
            self.left = self.left.checked_sub(message.data.len() as u64).ok_or_else(too_long)?;
            return Ok(Some(message.data));
        }
    }

    async fn into_blob(mut self, first: Option<Bytes>) -> Result<Blob, Failure> {
        let Some(first) = first else { return Ok(Blob::Whole(Bytes::new())) };
        let size = first.len() as u64 + self.left;
        if size > WHOLE_BYTES_MAX {
            let chunks = stream::iter([Ok(first)]).chain(self.into_chunks()).boxed();
            return Ok(Blob::Stream { size, chunks });
        }
        let mut whole = BytesMut::from(first);
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(Blob::Whole(whole.freeze()))
    }

    fn into_chunks(self) -> impl stream::Stream<Item = Result<Bytes>> + Send {
        stream::try_unfold(self, |mut body| async move {
            match body.next().await {
                Ok(piece) => Ok(piece.map(|piece| (piece, body))),
                Err(failure) => {
                    body.pulse.note(&failure);
                    Err(failure.into_error("read a blob"))
                }
            }
        })
    }
}

fn broken_off() -> Failure {
    Failure::from(Status::unavailable("the blob broke off"))
}

fn too_long() -> Failure {
    Failure::from(Status::data_loss("the blob goes on beyond its size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(size: u64) -> Transfer {
        let digest = Digest::new(crate::digest::Function::Blake3, &[7; 32], size);
        Transfer { digest, instance: "a/b".into(), timeout: Duration::from_secs(1) }
    }

    fn chunks(lengths: &[usize]) -> Chunks {
        let chunks: Vec<_> = lengths.iter().map(|length| Ok(Bytes::from(vec![1; *length]))).collect();
        stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn messages_are_small_and_the_last_finishes() {
        let size = 2 * PIECE_BYTES_MAX + 8;
        let chunks = chunks(&[5, 2 * PIECE_BYTES_MAX + 1, 2]);
        let requests: Vec<WriteRequest> = transfer(size as u64).requests(chunks).try_collect().await.unwrap();
        let lengths: Vec<usize> = requests.iter().map(|request| request.data.len()).collect();
        assert_eq!(lengths, [5, PIECE_BYTES_MAX, PIECE_BYTES_MAX, 1, 2]);
        let offsets: Vec<i64> = requests.iter().map(|request| request.write_offset).collect();
        let piece = PIECE_BYTES_MAX as i64;
        assert_eq!(offsets, [0, 5, 5 + piece, 5 + 2 * piece, 6 + 2 * piece]);
        let finishes: Vec<bool> = requests.iter().map(|request| request.finish_write).collect();
        assert_eq!(finishes, [false, false, false, false, true]);
        assert!(requests[0].resource_name.starts_with("a/b/uploads/"));
        assert!(requests[0].resource_name.ends_with(&format!("/blobs/blake3/{}/{size}", "07".repeat(32))));
        assert!(requests[1..].iter().all(|request| request.resource_name.is_empty()));
    }

    #[tokio::test]
    async fn the_empty_blob_is_one_message() {
        let requests: Vec<WriteRequest> = transfer(0).requests(chunks(&[])).try_collect().await.unwrap();
        assert!(requests.len() == 1 && requests[0].finish_write && !requests[0].resource_name.is_empty());
    }

    #[tokio::test]
    async fn each_attempt_has_a_name_of_its_own() {
        let mut names = std::collections::HashSet::new();
        for _ in 0..3 {
            let requests: Vec<WriteRequest> = transfer(5).requests(chunks(&[5])).try_collect().await.unwrap();
            assert!(names.insert(requests[0].resource_name.clone()));
        }
    }

    #[tokio::test]
    async fn the_last_piece_waits_until_the_source_has_ended_well() {
        let failing = chunks(&[3, 2]).chain(stream::iter([Err(Error::new(Kind::Cancelled, "gone"))])).boxed();
        let requests: Vec<_> = transfer(5).requests(failing).collect().await;
        assert_eq!(requests.len(), 2);
        assert!(!requests[0].as_ref().unwrap().finish_write);
        assert_eq!(requests[1].as_ref().unwrap_err().kind(), Kind::Cancelled);
    }
}
