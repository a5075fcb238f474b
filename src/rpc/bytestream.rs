//! `ByteStream`: blobs of any size, in pieces, and what running commands print.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::access::{Demand, Right};
use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::byte_stream_server::ByteStream;
use crate::proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use crate::store::{Blob, Chunks, zstandard};

use super::resource::{self, Form};
use super::{Farm, cas, logs, uploads};

/// Blobs that are taken whole when they come in one message. Hashing and decompressing this much takes 0.5 ms, which other requests on
/// the same thread can wait for.
const WHOLE_BYTES_MAX: u64 = 256 << 10;

#[tonic::async_trait]
impl ByteStream for Farm {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let chunks = match logs::parse(&request.get_ref().resource_name) {
            Some(name) => self.follow_log(&demand, name, request.get_ref()).await?,
            None => self.open(&demand, request.get_ref()).await?,
        };
        Ok(Response::new(chunks.map(|chunk| Ok(ReadResponse { data: chunk? })).boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Write);
        let committed_size = self.receive(&demand, request.into_inner()).await?;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Write);
        let name = resource::Write::parse(&request.get_ref().resource_name)?;
        self.instances.admit(&demand, &name.instance)?;
        if self.cas.missing(&[name.digest]).await?.is_empty() {
            let committed_size = uploads::to_wire(name.digest.size());
            return Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: true }));
        }
        // An upload that we do not know has nothing committed. Clients take NOT_FOUND for a failure, and 0 for "begin again".
        let committed_size = uploads::to_wire(self.uploads.committed(&name).unwrap_or(0));
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: false }))
    }
}

impl Farm {
    async fn open(&self, demand: &Demand, request: &ReadRequest) -> Result<Chunks> {
        let name = resource::Read::parse(&request.resource_name)?;
        self.instances.admit(demand, &name.instance)?;
        let size = name.digest.size();
        let offset = u64::try_from(request.read_offset)
            .ok()
            .filter(|offset| *offset <= size)
            .ok_or_else(|| out_of_range(request.read_offset, size))?;
        let limit = limit_of(request)?;
        if name.form != Form::Plain && limit != 0 {
            return Err(Error::invalid("a read of a compressed blob has no limit"));
        }
        let blob = self.cas.open(&name.digest, offset).await?.ok_or_else(|| cas::absent(&name.digest))?;
        Ok(match name.form {
            Form::Zstd => zstandard::compressed(blob.size(), blob.into_chunks()),
            Form::Plain if limit == 0 => blob.into_chunks(),
            Form::Plain => limited(blob.into_chunks(), limit),
        })
    }

    /// Takes a blob and returns what the client is told: the size of what it sent, unless it stopped early and may resume.
    async fn receive(&self, demand: &Demand, mut messages: Streaming<WriteRequest>) -> Result<i64> {
        let first = next(&mut messages).await?.ok_or_else(|| Error::invalid("the write has no message"))?;
        let name = resource::Write::parse(&first.resource_name)?;
        self.instances.admit(demand, &name.instance)?;
        if first.finish_write && first.write_offset == 0 && name.digest.size() <= WHOLE_BYTES_MAX {
            return self.receive_whole(&name, first).await;
        }
        if first.write_offset != 0 && self.cas.missing(&[name.digest]).await?.is_empty() {
            // What it would go on with has been completed by another upload.
            return Ok(uploads::not_needed(&name));
        }
        let mut upload = self.uploads.begin(&self.cas, (name, demand.caller.account()), &first)?;
        let mut message = first;
        loop {
            let is_last = message.finish_write;
            upload.take(message).await?;
            if is_last {
                return upload.finish().await;
            }
            // The store may have the blob already: REv2 lets the server answer before the client has sent it all.
            let following = tokio::select! {
                following = next(&mut messages) => following?,
                settled = upload.settled() => {
                    settled?;
                    None
                }
            };
            // Should the stream break off or end here, the upload waits for the client to go on.
            match following {
                Some(following) => message = following,
                None if upload.is_complete() => return upload.finish().await,
                None if self.cas.missing(&[upload.name().digest]).await?.is_empty() => {
                    return Ok(uploads::not_needed(upload.name()));
                }
                None => return Ok(uploads::to_wire(upload.committed())),
            }
        }
    }

    /// A small blob that came in one message needs no task beside the request's.
    async fn receive_whole(&self, name: &resource::Write, message: WriteRequest) -> Result<i64> {
        uploads::check(name, 0, &message)?;
        let sent = uploads::to_wire(message.data.len() as u64);
        let content = match name.form {
            Form::Plain => message.data,
            Form::Zstd => zstandard::decompress(name.digest.size(), message.data)?,
        };
        self.cas.put(&name.digest, Blob::Whole(content)).await?;
        Ok(sent)
    }
}

async fn next(messages: &mut Streaming<WriteRequest>) -> Result<Option<WriteRequest>> {
    messages.message().await.map_err(|status| {
        let kind = if status.code() == tonic::Code::OutOfRange { Kind::Invalid } else { Kind::Cancelled };
        Error::new(kind, "the client's stream broke off").with_source(status)
    })
}

/// How many bytes a client wants at most; 0 for all.
pub(super) fn limit_of(request: &ReadRequest) -> Result<u64> {
    u64::try_from(request.read_limit)
        .map_err(|_| Error::invalid(format!("read limit {} is negative", request.read_limit)))
}

/// The first `limit` bytes of `chunks`; nothing past them is read.
pub(super) fn limited(chunks: Chunks, limit: u64) -> Chunks {
    stream::unfold((chunks, limit), |(mut chunks, left)| async move {
        if left == 0 {
            return None;
        }
        let chunk = chunks.next().await?.map(|mut bytes: Bytes| {
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            bytes
        });
        let taken = chunk.as_ref().map_or(left, |bytes| bytes.len() as u64);
        Some((chunk, (chunks, left - taken)))
    })
    .boxed()
}

fn out_of_range(offset: i64, size: u64) -> Error {
    Error::new(Kind::OutOfRange, format!("read offset {offset} is outside the blob of {size} bytes"))
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_limit_cuts_the_last_chunk_and_reads_no_further() {
        let polled = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = polled.clone();
        let chunks = stream::iter([&b"abcd"[..], b"efgh", b"ijkl"]).map(move |chunk| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(Bytes::from_static(chunk))
        });
        let cut: Vec<Bytes> = limited(chunks.boxed(), 6).try_collect().await.unwrap();
        assert_eq!(cut.concat(), b"abcdef");
        assert_eq!(polled.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_limit_past_the_end_gives_all() {
        let chunks = stream::iter([Ok(Bytes::from_static(b"abc"))]).boxed();
        let all: Vec<Bytes> = limited(chunks, 100).try_collect().await.unwrap();
        assert_eq!(all.concat(), b"abc");
    }
}
