//! A server of somebody else's: it says that it has every blob, and serves nothing but gRPC.

use std::net::{Ipv4Addr, SocketAddr};

use croft::proto::rev2;
use croft::proto::rev2::content_addressable_storage_server::{
    ContentAddressableStorage, ContentAddressableStorageServer,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Runs until the test ends.
pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Server::builder()
        .add_service(ContentAddressableStorageServer::new(Foreign))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    address
}

struct Foreign;

#[tonic::async_trait]
impl ContentAddressableStorage for Foreign {
    type GetTreeStream = tokio_stream::Empty<Result<rev2::GetTreeResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        _: Request<rev2::FindMissingBlobsRequest>,
    ) -> Result<Response<rev2::FindMissingBlobsResponse>, Status> {
        Ok(Response::new(rev2::FindMissingBlobsResponse::default()))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<rev2::BatchUpdateBlobsRequest>,
    ) -> Result<Response<rev2::BatchUpdateBlobsResponse>, Status> {
        let taken =
            request.into_inner().requests.into_iter().map(|blob| {
                rev2::batch_update_blobs_response::Response { digest: blob.digest, status: None }
            });
        Ok(Response::new(rev2::BatchUpdateBlobsResponse { responses: taken.collect() }))
    }

    async fn batch_read_blobs(
        &self,
        _: Request<rev2::BatchReadBlobsRequest>,
    ) -> Result<Response<rev2::BatchReadBlobsResponse>, Status> {
        Err(Status::unimplemented("it only takes"))
    }

    async fn get_tree(
        &self,
        _: Request<rev2::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented("it only takes"))
    }

    async fn split_blob(
        &self,
        _: Request<rev2::SplitBlobRequest>,
    ) -> Result<Response<rev2::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("it only takes"))
    }

    async fn splice_blob(
        &self,
        _: Request<rev2::SpliceBlobRequest>,
    ) -> Result<Response<rev2::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("it only takes"))
    }
}
