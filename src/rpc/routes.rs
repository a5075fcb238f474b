//! Which services a listener carries.

use tonic::server::NamedService;
use tonic::service::Routes;

use crate::error::{Error, Result};
use crate::listen;
use crate::proto;
use crate::proto::asset::fetch_server::FetchServer;
use crate::proto::asset::push_server::PushServer;
use crate::proto::build_events::publish_build_event_server::PublishBuildEventServer;
use crate::proto::bytestream::byte_stream_server::ByteStreamServer;
use crate::proto::keda::external_scaler_server::ExternalScalerServer;
use crate::proto::longrunning::operations_server::OperationsServer;
use crate::proto::rev2::action_cache_server::ActionCacheServer;
use crate::proto::rev2::capabilities_server::CapabilitiesServer;
use crate::proto::rev2::content_addressable_storage_server::ContentAddressableStorageServer;
use crate::proto::rev2::execution_server::ExecutionServer;
use crate::proto::worker::workers_server::WorkersServer;

use crate::store::RESULT_MAX;

use super::scaler::Scaler;
use super::{Farm, Health, Offered, http, lookups};

/// Bytes of one message that we take. A batch of blobs at its limit needs more than its blobs: 4 MiB of 1 KiB blobs carry 400 KiB
/// of digests, and a question after 50,000 digests has 3.6 MiB. A build event that names 100,000 targets has 10 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one message of a worker: the largest result that is stored, and what stands around it.
const WORKER_MESSAGE_BYTES_MAX: usize = RESULT_MAX as usize + (1 << 20);

/// The services for clients: those that the farm offers here. They are said to serve when [`Health`] is told so.
///
/// # Errors
/// When the descriptors for reflection do not parse, which is a fault of the build.
pub async fn client_routes(farm: &Farm) -> Result<(Routes, Health)> {
    let names = &service_names(farm.offered);
    listen::promise(names);
    lookups::promise(farm.offered);
    let (health, server) = Health::of(names.clone()).await;
    // A scheduler alone has ByteStream, too: what running actions print is read there.
    let services = Routes::new(server)
        .add_service(CapabilitiesServer::new(farm.clone()))
        .add_service(ByteStreamServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PublishBuildEventServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(reflection(names).build_v1().map_err(unreflected)?)
        .add_service(reflection(names).build_v1alpha().map_err(unreflected)?);
    let services = match farm.offered.execution {
        true => with_execution(services, farm),
        false => services,
    };
    let services = match farm.offered.cache {
        true => http::beside(with_cache(services, farm), farm.clone()),
        false => services,
    };
    Ok((http::guarded(services), health))
}

fn with_cache(services: Routes, farm: &Farm) -> Routes {
    services
        .add_service(
            ContentAddressableStorageServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(ActionCacheServer::new(farm.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(FetchServer::new(farm.assets.clone()))
        .add_service(PushServer::new(farm.assets.clone()))
}

fn with_execution(services: Routes, farm: &Farm) -> Routes {
    services.add_service(ExecutionServer::new(farm.clone())).add_service(OperationsServer::new(farm.clone()))
}

/// The services for workers, and for who adds and removes them. Whoever may work can hand in results, so it is never on the clients' listener.
pub async fn worker_routes(farm: &Farm) -> (Routes, Health) {
    listen::promise(&WORKER_SERVICES);
    let (health, server) = Health::of(WORKER_SERVICES.to_vec()).await;
    let workers = WorkersServer::new(farm.clone()).max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX);
    let scaler = ExternalScalerServer::new(Scaler::new(farm.scheduler.clone()));
    (Routes::new(workers).add_service(scaler).add_service(server), health)
}

/// The workers' services by their full names.
const WORKER_SERVICES: [&str; 2] = [WorkersServer::<Farm>::NAME, ExternalScalerServer::<Scaler>::NAME];

/// What reflection and health tell of.
fn service_names(offered: Offered) -> Vec<&'static str> {
    let mut names = vec![
        "build.bazel.remote.execution.v2.Capabilities",
        "google.bytestream.ByteStream",
        "google.devtools.build.v1.PublishBuildEvent",
        "grpc.health.v1.Health",
    ];
    if offered.cache {
        names.extend([
            "build.bazel.remote.asset.v1.Fetch",
            "build.bazel.remote.asset.v1.Push",
            "build.bazel.remote.execution.v2.ActionCache",
            "build.bazel.remote.execution.v2.ContentAddressableStorage",
        ]);
    }
    if offered.execution {
        names.extend(["build.bazel.remote.execution.v2.Execution", "google.longrunning.Operations"]);
    }
    names
}

/// Both versions of the protocol are offered: grpcurl of Debian 12 asks for v1alpha.
fn reflection(names: &[&str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}

fn unreflected(error: tonic_reflection::server::Error) -> Error {
    Error::bug("the descriptors for reflection do not parse").with_source(error)
}
