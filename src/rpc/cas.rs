//! `ContentAddressableStorage`: existence, batches, trees.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status};

use crate::access::{Demand, Right};
use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::batch_read_blobs_response::Response as ReadOne;
use crate::proto::rev2::batch_update_blobs_request::Request as UpdateOne;
use crate::proto::rev2::batch_update_blobs_response::Response as UpdatedOne;
use crate::proto::rev2::compressor::Value as Compressor;
use crate::proto::rev2::content_addressable_storage_server::ContentAddressableStorage;
use crate::proto::rev2::{
    self, BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse,
    FindMissingBlobsRequest, FindMissingBlobsResponse, GetTreeRequest, GetTreeResponse, SpliceBlobRequest,
    SpliceBlobResponse, SplitBlobRequest, SplitBlobResponse,
};
use crate::status;
use crate::store::{tree, zstandard};
use crate::tasks;

use super::Farm;

/// Bytes of blobs in one batch: with their digests they stay near the 4 MiB that clients take in one message.
pub(super) const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Blobs of one batch: each costs an answer with a status, even one that is two bytes of the request.
const BATCH_BLOBS_MAX: usize = 100_000;

/// Blobs of one batch that are read at a time; each may hold a chunk in memory.
const BATCH_READS_MAX: usize = 32;

/// Directories in one message of `GetTree` when the client names no page size.
const PAGE_DEFAULT: usize = 1000;

/// Bytes of directories in one message of `GetTree`; below the 4 MiB that clients take in one message.
const PAGE_BYTES_MAX: usize = 3 << 20;

#[tonic::async_trait]
impl ContentAddressableStorage for Farm {
    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let request = request.into_inner();
        let named = (request.digest_function, request.blob_digests.first());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        let digests = parse_all(function, &request.blob_digests)?;
        let missing = self.cas.missing(&digests).await?;
        let missing_blob_digests = missing.iter().map(Digest::to_proto).collect();
        Ok(Response::new(FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Write);
        let request = request.into_inner();
        let first = request.requests.first().and_then(|one| one.digest.as_ref());
        let function = self.function_of(&demand, &request.instance_name, (request.digest_function, first))?;
        check_count(request.requests.len())?;
        check_batch(request.requests.iter().map(bytes_of).fold(0, u64::saturating_add))?;
        let responses = self.update(function, request.requests).await?;
        Ok(Response::new(BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let request = request.into_inner();
        let named = (request.digest_function, request.digests.first());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        check_count(request.digests.len())?;
        let digests = parse_all(function, &request.digests)?;
        check_batch(digests.iter().fold(0, |sum, digest| sum.saturating_add(digest.size())))?;
        let reads = stream::iter(digests).map(|digest| self.read_one(digest)).buffered(BATCH_READS_MAX);
        let mut responses = reads.collect().await;
        if request.acceptable_compressors.contains(&Compressor::Zstd.into()) {
            responses = compressed(responses).await?;
        }
        Ok(Response::new(BatchReadBlobsResponse { responses }))
    }

    async fn split_blob(
        &self,
        request: Request<SplitBlobRequest>,
    ) -> Result<Response<SplitBlobResponse>, Status> {
        // The chunks hold nothing that a reader could not read.
        let demand = Demand::of(request.extensions(), Right::Read);
        Ok(Response::new(self.split(&demand, request.get_ref()).await?))
    }

    async fn splice_blob(
        &self,
        request: Request<SpliceBlobRequest>,
    ) -> Result<Response<SpliceBlobResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Write);
        Ok(Response::new(self.splice(&demand, request.get_ref()).await?))
    }

    type GetTreeStream = BoxStream<'static, Result<GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        request: Request<GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let request = request.into_inner();
        let named = (request.digest_function, request.root_digest.as_ref());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        let root = Digest::from_proto(function, request.root_digest.as_ref()).map_err(Error::from)?;
        let start = parse_token(&request.page_token)?;
        let page = usize::try_from(request.page_size).ok().filter(|size| *size > 0).unwrap_or(PAGE_DEFAULT);
        let walk = tree::directories(&self.cas, &root, &tree::Limits::default()).await?;
        if walk.missing.contains(&root) {
            return Err(
                Error::new(Kind::NotFound, format!("the root directory {root} is not in the CAS")).into()
            );
        }
        let directories = walk.directories.into_iter().map(|(_, directory)| directory);
        let pages = paginate(directories.skip(start), start, page);
        Ok(Response::new(stream::iter(pages.into_iter().map(Ok)).boxed()))
    }
}

impl Farm {
    /// Stores what is right and answers each blob for itself.
    async fn update(&self, function: Function, requests: Vec<UpdateOne>) -> Result<Vec<UpdatedOne>> {
        let mut responses = Vec::with_capacity(requests.len());
        let mut blobs = Vec::with_capacity(requests.len());
        let mut places = Vec::with_capacity(requests.len());
        let requests = with_contents(function, requests).await?;
        for (request, parsed) in requests {
            responses.push(UpdatedOne { digest: request.digest, status: Some(status::ok()) });
            match parsed {
                Ok(blob) => {
                    places.push(responses.len() - 1);
                    blobs.push(blob);
                }
                Err(error) => set_status(responses.last_mut(), &error),
            }
        }
        let results = self.cas.put_all(blobs).await;
        for (place, result) in places.into_iter().zip(results) {
            if let Err(error) = result {
                set_status(responses.get_mut(place), &error);
            }
        }
        Ok(responses)
    }

    async fn read_one(&self, digest: Digest) -> ReadOne {
        let (data, status) = match self.cas.read(&digest, BATCH_BYTES_MAX).await {
            Ok(Some(data)) => (data, status::ok()),
            Ok(None) => (Bytes::new(), status::message_of(&absent(&digest))),
            Err(error) => (Bytes::new(), status::message_of(&error)),
        };
        let compressor = Compressor::Identity.into();
        ReadOne { digest: Some(digest.to_proto()), data, compressor, status: Some(status) }
    }
}

/// The error for a blob that a client wants to read and that is not there.
pub(super) fn absent(digest: &Digest) -> Error {
    Error::new(Kind::NotFound, format!("blob {digest} is not in the CAS"))
}

fn set_status(response: Option<&mut UpdatedOne>, error: &Error) {
    let response = response.expect("the place was made before the blob was stored");
    response.status = Some(status::message_of(error));
}

pub(super) fn parse_all(function: Function, digests: &[rev2::Digest]) -> Result<Vec<Digest>> {
    digests.iter().map(|digest| Ok(Digest::from_proto(function, Some(digest))?)).collect()
}

/// Bytes that a blob of a batch takes, as it came or as it will be when it is decompressed.
fn bytes_of(request: &UpdateOne) -> u64 {
    let declared = match &request.digest {
        Some(digest) if is_compressed(request) => u64::try_from(digest.size_bytes).unwrap_or(0),
        Some(_) | None => 0,
    };
    declared.max(request.data.len() as u64)
}

fn is_compressed(request: &UpdateOne) -> bool {
    request.compressor != i32::from(Compressor::Identity)
}

/// Adds to each request its blob, decompressed, or why it has none.
async fn with_contents(
    function: Function,
    requests: Vec<UpdateOne>,
) -> Result<Vec<(UpdateOne, Result<(Digest, Bytes)>)>> {
    let is_work = requests.iter().any(is_compressed);
    let parse = move || {
        let parsed = requests.into_iter().map(|request| {
            let content = parse_update(function, &request);
            (request, content)
        });
        Ok(parsed.collect())
    };
    if is_work { tasks::blocking(parse).await } else { parse() }
}

fn parse_update(function: Function, request: &UpdateOne) -> Result<(Digest, Bytes)> {
    let digest = Digest::from_proto(function, request.digest.as_ref())?;
    let content = match Compressor::try_from(request.compressor) {
        Ok(Compressor::Identity) => request.data.clone(),
        Ok(Compressor::Zstd) => zstandard::decompress(digest.size(), request.data.clone())?,
        Ok(Compressor::Deflate | Compressor::Brotli) | Err(_) => {
            let message = format!("blob {digest} is compressed in a way that the capabilities do not list");
            return Err(Error::invalid(message));
        }
    };
    if digest.size() != content.len() as u64 {
        return Err(Error::invalid(format!("blob {digest} came with {} bytes", content.len())));
    }
    Ok((digest, content))
}

/// The same blobs, those compressed that get much smaller.
async fn compressed(mut responses: Vec<ReadOne>) -> Result<Vec<ReadOne>> {
    tasks::blocking(move || {
        let blobs: Vec<Bytes> = responses.iter().map(|response| response.data.clone()).collect();
        for (response, compressed) in responses.iter_mut().zip(zstandard::compress_all(&blobs)?) {
            if let Some(compressed) = compressed {
                response.data = compressed;
                response.compressor = Compressor::Zstd.into();
            }
        }
        Ok(responses)
    })
    .await
}

fn check_count(count: usize) -> Result<()> {
    if count > BATCH_BLOBS_MAX {
        return Err(Error::invalid(format!("the batch has {count} blobs; the limit is {BATCH_BLOBS_MAX}")));
    }
    Ok(())
}

fn check_batch(bytes: u64) -> Result<()> {
    if bytes > BATCH_BYTES_MAX {
        let message =
            format!("the batch has {bytes} bytes of blobs; the limit is {BATCH_BYTES_MAX}, use ByteStream");
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// A page token is the number of directories that earlier pages held: the order of the walk is fixed by the tree.
fn parse_token(token: &str) -> Result<usize> {
    if token.is_empty() {
        return Ok(0);
    }
    token.parse().map_err(|_| Error::invalid("the page token is not one of ours"))
}

fn paginate(
    directories: impl Iterator<Item = rev2::Directory>,
    start: usize,
    page_size: usize,
) -> Vec<GetTreeResponse> {
    let mut pages = vec![GetTreeResponse::default()];
    let (mut bytes, mut count) = (0, start);
    for directory in directories {
        let size = prost::Message::encoded_len(&directory);
        let page = pages.last_mut().expect("there is a first page");
        if page.directories.len() >= page_size
            || (bytes + size > PAGE_BYTES_MAX && !page.directories.is_empty())
        {
            page.next_page_token = count.to_string();
            pages.push(GetTreeResponse::default());
            bytes = 0;
        }
        pages.last_mut().expect("there is a first page").directories.push(directory);
        bytes += size;
        count += 1;
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_all_directories_in_order_and_say_where_the_next_begins() {
        let named = |name: &str| rev2::Directory {
            symlinks: vec![rev2::SymlinkNode { name: name.into(), ..rev2::SymlinkNode::default() }],
            ..rev2::Directory::default()
        };
        let all: Vec<_> = ["a", "b", "c", "d", "e"].map(named).into();
        let pages = paginate(all.clone().into_iter(), 10, 2);
        let tokens: Vec<_> = pages.iter().map(|page| page.next_page_token.as_str()).collect();
        assert_eq!(tokens, ["12", "14", ""]);
        let joined: Vec<_> = pages.into_iter().flat_map(|page| page.directories).collect();
        assert_eq!(joined, all);
    }

    #[test]
    fn an_empty_tree_is_one_empty_page() {
        assert_eq!(paginate(std::iter::empty(), 0, 2), [GetTreeResponse::default()]);
    }
}
