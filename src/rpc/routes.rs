//! Which services a listener carries.

use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::error::{Error, Result};
use crate::proto;
use crate::proto::asset::fetch_server::FetchServer;
use crate::proto::asset::push_server::PushServer;
use crate::proto::bytestream::byte_stream_server::ByteStreamServer;
use crate::proto::longrunning::operations_server::OperationsServer;
use crate::proto::rev2::action_cache_server::ActionCacheServer;
use crate::proto::rev2::capabilities_server::CapabilitiesServer;
use crate::proto::rev2::content_addressable_storage_server::ContentAddressableStorageServer;
use crate::proto::rev2::execution_server::ExecutionServer;
use crate::proto::worker::workers_server::WorkersServer;

use crate::store::RESULT_MAX;

use super::{Farm, http};

/// Bytes of one message that we take. A batch of blobs at its limit needs more than its blobs: 4 MiB of 1 KiB blobs carry 400 KiB
/// of digests, and a question after 50,000 digests has 3.6 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one message of a worker: the largest result that is stored, and what stands around it.
const WORKER_MESSAGE_BYTES_MAX: usize = RESULT_MAX as usize + (1 << 20);

/// The services for clients.
///
/// # Errors
/// When the descriptors for reflection do not parse, which is a fault of the build.
pub async fn client_routes(farm: &Farm) -> Result<Routes> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::Serving).await;
    reporter.set_serving::<ExecutionServer<Farm>>().await;
    reporter.set_serving::<ContentAddressableStorageServer<Farm>>().await;
    reporter.set_serving::<ActionCacheServer<Farm>>().await;
    let services = Routes::new(health)
        .add_service(CapabilitiesServer::new(farm.clone()))
        .add_service(
            ContentAddressableStorageServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(ByteStreamServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(ActionCacheServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(ExecutionServer::new(farm.clone()))
        .add_service(OperationsServer::new(farm.clone()))
        .add_service(FetchServer::new(farm.assets.clone()))
        .add_service(PushServer::new(farm.assets.clone()))
        .add_service(reflection().build_v1().map_err(unreflected)?)
        .add_service(reflection().build_v1alpha().map_err(unreflected)?);
    Ok(http::beside(services, farm.clone()))
}

/// The service for workers. Whoever reaches it may hand in results, so it is never on the clients' listener.
pub fn worker_routes(farm: &Farm) -> Routes {
    Routes::new(WorkersServer::new(farm.clone()).max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX))
}

/// Both versions of the protocol are offered: grpcurl of Debian 12 asks for v1alpha.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("build.bazel.remote.asset.v1.Fetch")
        .with_service_name("build.bazel.remote.asset.v1.Push")
        .with_service_name("build.bazel.remote.execution.v2.ActionCache")
        .with_service_name("build.bazel.remote.execution.v2.Capabilities")
        .with_service_name("build.bazel.remote.execution.v2.ContentAddressableStorage")
        .with_service_name("build.bazel.remote.execution.v2.Execution")
        .with_service_name("google.bytestream.ByteStream")
        .with_service_name("google.longrunning.Operations")
        .with_service_name("grpc.health.v1.Health")
}

fn unreflected(error: tonic_reflection::server::Error) -> Error {
    Error::bug("the descriptors for reflection do not parse").with_source(error)
}
