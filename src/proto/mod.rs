//! The messages and stubs of every protocol we speak.
//!
//! `build.rs` says which messages are the crate `bazel-remote-apis`' and which are ours.

mod usage;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use prost::Message;

/// The header in which clients say what they build, as [`rev2::RequestMetadata`].
pub const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// As gRPC sends bytes in headers: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the client says of its request; `None` when it says nothing or that is malformed.
pub fn request_metadata(headers: &http::HeaderMap) -> Option<rev2::RequestMetadata> {
    let bytes = BASE64.decode(headers.get(REQUEST_METADATA)?).ok()?;
    rev2::RequestMetadata::decode(&*bytes).ok()
}

/// Remote Execution API v2.
pub mod rev2 {
    pub use bazel_remote_apis::build::bazel::remote::execution::v2::*;

    // An explicit definition beside a glob wins: these are our messages and stubs, with blobs as `Bytes`.
    pub use self::own::{
        BatchReadBlobsResponse, BatchUpdateBlobsRequest, action_cache_client, action_cache_server,
        batch_read_blobs_response, batch_update_blobs_request, capabilities_client, capabilities_server,
        content_addressable_storage_client, content_addressable_storage_server, execution_client,
        execution_server,
    };

    #[allow(unreachable_pub, clippy::all, clippy::pedantic)]
    mod own {
        tonic::include_proto!("build.bazel.remote.execution.v2");
    }
}

/// Remote Asset API v1.
pub mod asset {
    pub use self::own::{fetch_client, fetch_server, push_client, push_server};
    pub use bazel_remote_apis::build::bazel::remote::asset::v1::*;

    #[allow(unreachable_pub, clippy::all, clippy::pedantic)]
    mod own {
        tonic::include_proto!("build.bazel.remote.asset.v1");
    }
}

/// `google.bytestream`, with data as `Bytes`.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod bytestream {
    tonic::include_proto!("google.bytestream");
}

/// `google.longrunning`.
pub mod longrunning {
    pub use self::own::{operations_client, operations_server};
    pub use bazel_remote_apis::google::longrunning::*;

    #[allow(unreachable_pub, clippy::all, clippy::pedantic)]
    mod own {
        tonic::include_proto!("google.longrunning");
    }
}

/// How build tools tell of their builds: the Build Event Service.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod build_events {
    tonic::include_proto!("google.devtools.build.v1");
}

/// What Bazel tells in its build events.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod bazel_events {
    tonic::include_proto!("build_event_stream");
}

/// What the scheduler's journal keeps.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod journal {
    tonic::include_proto!("croft.journal.v1");
}

/// How workers and the scheduler talk.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod worker {
    tonic::include_proto!("croft.worker.v1");

    /// The platform properties by which an action says how much it needs: cores, and bytes of memory.
    pub const CORES: &str = "cores";
    pub const MEMORY: &str = "memory";
    /// The platform property that says in which image an action runs.
    pub const IMAGE: &str = "container-image";
    /// The platform properties by which Bazel says that a tool can stay running, and in which form it takes its requests.
    pub const PERSISTENT_KEY: &str = "persistentWorkerKey";
    pub const PERSISTENT_PROTOCOL: &str = "persistentWorkerProtocol";

    /// How many leases a worker of so many slots may hold that run, and how many that are answered and not acknowledged: a slot is
    /// given again as soon as its lease is answered, which is some time before the answer is safe.
    pub fn leases_max(slots: u32) -> usize {
        64 + 4 * slots as usize
    }
}

/// How Bazel talks to tools that stay running.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod persistent {
    tonic::include_proto!("blaze.worker");
}

/// KEDA's external scaler.
#[allow(unreachable_pub, clippy::all, clippy::pedantic)]
pub mod keda {
    tonic::include_proto!("externalscaler");
}

pub use bazel_remote_apis::build::bazel::semver::SemVer;
pub use bazel_remote_apis::google::protobuf::{Any, Duration, Timestamp};
pub use bazel_remote_apis::google::rpc::Status;

/// The segments that no instance name may contain, since they begin the rest of a resource name (REv2, "instance_name").
pub const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// Whether REv2 allows `name` for an instance. The empty name is allowed.
pub fn is_instance_name(name: &str) -> bool {
    let mut segments = name.split('/');
    name.is_empty() || segments.all(|segment| !segment.is_empty() && !RESERVED.contains(&segment))
}

/// A moment by the wall clock; a clock set before 1970 reads as 1970.
pub fn timestamp(time: std::time::SystemTime) -> Timestamp {
    let since_epoch = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = since_epoch.subsec_nanos().cast_signed();
    Timestamp { seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX), nanos }
}

/// The time since 1970; `None` for a moment before, and for a malformed one.
pub fn since_epoch(timestamp: &Timestamp) -> Option<std::time::Duration> {
    span((timestamp.seconds, timestamp.nanos))
}

/// The moment in a message; `None` for one before 1970 or beyond the clock, and for a malformed one.
pub fn read_timestamp(message: &Timestamp) -> Option<std::time::SystemTime> {
    std::time::SystemTime::UNIX_EPOCH.checked_add(since_epoch(message)?)
}

/// A span of time; the longest there is when it has more seconds than the message holds.
pub fn duration(span: std::time::Duration) -> Duration {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    Duration { seconds, nanos: span.subsec_nanos().cast_signed() }
}

/// The span of time in a message; `None` for one that is negative or malformed.
pub fn read_duration(message: &Duration) -> Option<std::time::Duration> {
    span((message.seconds, message.nanos))
}

fn span((seconds, nanos): (i64, i32)) -> Option<std::time::Duration> {
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(std::time::Duration::new(u64::try_from(seconds).ok()?, nanos))
}

/// The compiled descriptors of all of the above, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
