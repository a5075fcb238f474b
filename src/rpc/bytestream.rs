//! `ByteStream`: blobs of any size, in pieces.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::byte_stream_server::ByteStream;
use crate::proto::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use crate::store::Chunks;

use super::{Farm, cas, resource};

#[tonic::async_trait]
impl ByteStream for Farm {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let chunks = self.open(request.get_ref()).await?;
        Ok(Response::new(chunks.map(|chunk| Ok(ReadResponse { data: chunk? })).boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let committed_size = self.receive(request.into_inner()).await?;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let name = resource::Write::parse(&request.get_ref().resource_name)?;
        self.instances.check(&name.instance)?;
        if self.cas.missing(&[name.digest]).await?.is_empty() {
            let committed_size = to_wire(name.digest.size());
            return Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: true }));
        }
        // An upload that we do not know has nothing committed. Clients take NOT_FOUND for a failure, and 0 for "begin again".
        let committed_size = to_wire(self.uploads.committed(&name).unwrap_or(0));
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: false }))
    }
}

impl Farm {
    async fn open(&self, request: &ReadRequest) -> Result<Chunks> {
        let name = resource::Read::parse(&request.resource_name)?;
        self.instances.check(&name.instance)?;
        let size = name.digest.size();
        let offset = u64::try_from(request.read_offset)
            .ok()
            .filter(|offset| *offset <= size)
            .ok_or_else(|| out_of_range(request.read_offset, size))?;
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| Error::invalid(format!("read limit {} is negative", request.read_limit)))?;
        let blob = self.cas.open(&name.digest, offset).await?.ok_or_else(|| cas::absent(&name.digest))?;
        Ok(if limit == 0 { blob.into_chunks() } else { limited(blob.into_chunks(), limit) })
    }

    /// Takes a blob and returns how many bytes of it are here: all of them, unless the client stopped early and may resume.
    async fn receive(&self, mut messages: Streaming<WriteRequest>) -> Result<i64> {
        let first = next(&mut messages).await?.ok_or_else(|| Error::invalid("the write has no message"))?;
        let name = resource::Write::parse(&first.resource_name)?;
        self.instances.check(&name.instance)?;
        if self.cas.missing(&[name.digest]).await?.is_empty() {
            // The blob is here already: REv2 lets the server answer before the client has sent it all.
            return Ok(to_wire(name.digest.size()));
        }
        let mut upload = self.uploads.begin(&self.cas, &name, first.write_offset)?;
        let mut message = first;
        loop {
            let finish = message.finish_write;
            upload.check(&message)?;
            upload.send(message.data).await?;
            if finish {
                return Ok(to_wire(upload.finish().await?));
            }
            // Should the stream break off or end here, the upload waits for the client to go on.
            match next(&mut messages).await? {
                Some(following) => message = following,
                None if upload.is_complete() => return Ok(to_wire(upload.finish().await?)),
                None => return Ok(to_wire(upload.committed())),
            }
        }
    }
}

async fn next(messages: &mut Streaming<WriteRequest>) -> Result<Option<WriteRequest>> {
    messages.message().await.map_err(|status| {
        let kind = if status.code() == tonic::Code::OutOfRange { Kind::Invalid } else { Kind::Cancelled };
        Error::new(kind, "the client's stream broke off").with_source(status)
    })
}

/// The first `limit` bytes of `chunks`; nothing past them is read.
fn limited(chunks: Chunks, limit: u64) -> Chunks {
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

fn to_wire(size: u64) -> i64 {
    i64::try_from(size).expect("the size of a digest came from an i64")
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
