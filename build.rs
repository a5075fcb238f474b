//! Compiles the `.proto` files of `src/proto` with protox, so that a build needs no `protoc`.
//!
//! Messages of the Remote Execution API are those of the crate `bazel-remote-apis`, except the ones named in `OWN`: they carry
//! blobs, and ours hold them as `Bytes`, which are cut out of the received frame instead of copied.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;
use prost_types::FileDescriptorSet;

const FILES: &[&str] = &[
    "blaze/worker/worker_protocol.proto",
    "build/bazel/remote/asset/v1/remote_asset.proto",
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "bazel/build_event_stream.proto",
    "google/bytestream/bytestream.proto",
    "google/devtools/build/v1/publish_build_event.proto",
    "google/longrunning/operations.proto",
    "croft/journal/v1/journal.proto",
    "croft/worker/v1/worker.proto",
    "keda/externalscaler.proto",
];

/// Packages whose messages the crate `bazel-remote-apis` has, and where.
const FOREIGN: &[(&str, &str)] = &[
    ("build.bazel.remote.asset.v1", "::bazel_remote_apis::build::bazel::remote::asset::v1"),
    ("build.bazel.remote.execution.v2", "::bazel_remote_apis::build::bazel::remote::execution::v2"),
    ("build.bazel.semver", "::bazel_remote_apis::build::bazel::semver"),
    ("google.longrunning", "::bazel_remote_apis::google::longrunning"),
    ("google.rpc", "::bazel_remote_apis::google::rpc"),
];

const OWN: &[&str] = &["BatchUpdateBlobsRequest", "BatchReadBlobsResponse"];

/// The messages of `google.protobuf` that ours contain.
const WELL_KNOWN: &[&str] = &["Any", "Duration", "Timestamp"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/proto");
    let descriptors = protox::compile(FILES, ["src/proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure().compile_well_known_types(true);
    builder = builder.extern_path(".google.protobuf.Empty", "()");
    for (proto, rust) in foreign_messages(&descriptors) {
        builder = builder.extern_path(proto, rust);
    }
    for name in WELL_KNOWN {
        builder = builder.extern_path(
            format!(".google.protobuf.{name}"),
            format!("::bazel_remote_apis::google::protobuf::{name}"),
        );
    }
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    builder.compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn foreign_messages(descriptors: &FileDescriptorSet) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for file in &descriptors.file {
        let Some((package, rust)) = FOREIGN.iter().find(|(package, _)| *package == file.package()) else {
            continue;
        };
        for message in file.message_type.iter().filter(|message| !OWN.contains(&message.name())) {
            pairs.push((format!(".{package}.{}", message.name()), format!("{rust}::{}", message.name())));
        }
    }
    pairs
}
