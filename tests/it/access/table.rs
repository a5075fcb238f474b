//! Every RPC and every HTTP route by nobody, by somebody who has every right but the one it takes, and by somebody who has only that.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes};
use croft::digest::{Digest, Function};
use croft::proto::worker::{Hello, WorkerMessage, worker_message};
use croft::proto::{asset, bytestream, keda, longrunning, rev2};
use prost::Message;
use prost_types::FileDescriptorSet;
use reqwest::Method;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Doors;
use crate::farm::Farm;

/// All rights, in the order of the configuration.
const RIGHTS: [&str; 6] = ["read", "write", "cache-write", "execute", "work", "admin"];

/// What a call takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    Nothing,
    /// One of these rights.
    One(&'static [&'static str]),
}

/// What any right is enough for.
const ANY: Takes = Takes::One(&RIGHTS);
const READ: Takes = Takes::One(&["read"]);
const WRITE: Takes = Takes::One(&["write"]);
const CACHE_WRITE: Takes = Takes::One(&["cache-write"]);
const EXECUTE: Takes = Takes::One(&["execute"]);
const FETCH: Takes = Takes::One(&["write", "execute"]);
const TELL: Takes = FETCH;
const CANCEL: Takes = Takes::One(&["execute", "admin"]);
const WORK: Takes = Takes::One(&["work"]);
const ADMIN: Takes = Takes::One(&["admin"]);
const LOOK: Takes = Takes::One(&["read", "admin"]);
const SCALE: Takes = Takes::One(&["read", "work", "admin"]);

/// A call: its method, its one message, what it takes, and what is answered to whoever has that.
struct Row(&'static str, Vec<u8>, Takes, Code);

fn rows() -> Vec<Row> {
    let mut rows = cache_rows();
    rows.extend(execution_rows());
    rows.extend(other_rows());
    rows
}

fn absent() -> Digest {
    Function::Sha256.hash(b"nobody has stored this")
}

fn cache_rows() -> Vec<Row> {
    let absent = Some(absent().to_proto());
    let empty = Some(Digest::empty(Function::Sha256).to_proto());
    let abc = Function::Sha256.hash(b"abc");
    let upload = format!("uploads/{}/blobs/{abc}", uuid::Uuid::nil());
    let read = |resource_name: String| bytestream::ReadRequest { resource_name, ..Default::default() };
    let write = bytestream::WriteRequest {
        resource_name: upload.clone(),
        finish_write: true,
        data: Bytes::from_static(b"abc"),
        ..Default::default()
    };
    let get = rev2::GetActionResultRequest { action_digest: absent.clone(), ..Default::default() };
    let update = rev2::UpdateActionResultRequest {
        action_digest: Some(Function::Sha256.hash(b"an action").to_proto()),
        action_result: Some(rev2::ActionResult::default()),
        ..Default::default()
    };
    let tree = rev2::GetTreeRequest { root_digest: absent.clone(), ..Default::default() };
    let split = rev2::SplitBlobRequest { blob_digest: absent, ..Default::default() };
    let splice = rev2::SpliceBlobRequest { blob_digest: empty, ..Default::default() };
    let log = format!("operations/{}/logs/stdout", "0".repeat(32));
    let status = bytestream::QueryWriteStatusRequest { resource_name: upload };
    const CAS: &str = "build.bazel.remote.execution.v2.ContentAddressableStorage";
    let cas = |method: &str| -> &'static str { format!("{CAS}/{method}").leak() };
    vec![
        Row(
            "build.bazel.remote.execution.v2.ActionCache/GetActionResult",
            get.encode_to_vec(),
            READ,
            Code::NotFound,
        ),
        Row(
            "build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            update.encode_to_vec(),
            CACHE_WRITE,
            Code::Ok,
        ),
        Row(cas("FindMissingBlobs"), vec![], READ, Code::Ok),
        Row(cas("BatchUpdateBlobs"), vec![], WRITE, Code::Ok),
        Row(cas("BatchReadBlobs"), vec![], READ, Code::Ok),
        Row(cas("GetTree"), tree.encode_to_vec(), READ, Code::NotFound),
        Row(cas("SplitBlob"), split.encode_to_vec(), READ, Code::NotFound),
        Row(cas("SpliceBlob"), splice.encode_to_vec(), WRITE, Code::Ok),
        Row(
            "google.bytestream.ByteStream/Read",
            read(format!("blobs/{}", self::absent())).encode_to_vec(),
            READ,
            Code::NotFound,
        ),
        Row("google.bytestream.ByteStream/Read", read(log).encode_to_vec(), READ, Code::NotFound),
        Row("google.bytestream.ByteStream/Write", write.encode_to_vec(), WRITE, Code::Ok),
        Row("google.bytestream.ByteStream/QueryWriteStatus", status.encode_to_vec(), WRITE, Code::Ok),
    ]
}

fn execution_rows() -> Vec<Row> {
    let execute = rev2::ExecuteRequest { action_digest: Some(absent().to_proto()), ..Default::default() };
    let name = format!("operations/{}", "0".repeat(32));
    let wait = rev2::WaitExecutionRequest { name: name.clone() };
    let list = longrunning::ListOperationsRequest { name: "operations".into(), ..Default::default() };
    let get = longrunning::GetOperationRequest { name: name.clone() };
    let cancel = longrunning::CancelOperationRequest { name: name.clone() };
    let delete = longrunning::DeleteOperationRequest { name: name.clone() };
    let wait_operation = longrunning::WaitOperationRequest { name, ..Default::default() };
    vec![
        Row(
            "build.bazel.remote.execution.v2.Execution/Execute",
            execute.encode_to_vec(),
            EXECUTE,
            Code::FailedPrecondition,
        ),
        Row(
            "build.bazel.remote.execution.v2.Execution/WaitExecution",
            wait.encode_to_vec(),
            EXECUTE,
            Code::NotFound,
        ),
        Row("google.longrunning.Operations/ListOperations", list.encode_to_vec(), READ, Code::Ok),
        Row("google.longrunning.Operations/GetOperation", get.encode_to_vec(), READ, Code::NotFound),
        Row(
            "google.longrunning.Operations/WaitOperation",
            wait_operation.encode_to_vec(),
            READ,
            Code::NotFound,
        ),
        Row("google.longrunning.Operations/CancelOperation", cancel.encode_to_vec(), CANCEL, Code::NotFound),
        Row("google.longrunning.Operations/DeleteOperation", delete.encode_to_vec(), CANCEL, Code::NotFound),
    ]
}

fn other_rows() -> Vec<Row> {
    let hello = WorkerMessage { message: Some(worker_message::Message::Hello(Hello::default())) };
    let object = keda::ScaledObjectRef::default().encode_to_vec();
    let metrics = keda::GetMetricsRequest::default().encode_to_vec();
    let fetch = asset::FetchBlobRequest::default().encode_to_vec();
    let push = asset::PushBlobRequest::default().encode_to_vec();
    let invalid = Code::InvalidArgument;
    // Reflection is asked for the list of services: field 7 of the request, a text.
    let list = vec![0x3a, 1, b'*'];
    vec![
        Row("build.bazel.remote.execution.v2.Capabilities/GetCapabilities", vec![], ANY, Code::Ok),
        Row("build.bazel.remote.asset.v1.Fetch/FetchBlob", fetch.clone(), FETCH, invalid),
        Row("build.bazel.remote.asset.v1.Fetch/FetchDirectory", fetch, FETCH, invalid),
        Row("build.bazel.remote.asset.v1.Push/PushBlob", push.clone(), CACHE_WRITE, invalid),
        Row("build.bazel.remote.asset.v1.Push/PushDirectory", push, CACHE_WRITE, invalid),
        Row("google.devtools.build.v1.PublishBuildEvent/PublishLifecycleEvent", vec![], TELL, Code::Ok),
        Row("google.devtools.build.v1.PublishBuildEvent/PublishBuildToolEventStream", vec![], TELL, invalid),
        Row("croft.worker.v1.Workers/Work", hello.encode_to_vec(), WORK, invalid),
        Row("externalscaler.ExternalScaler/IsActive", object.clone(), SCALE, Code::Ok),
        Row("externalscaler.ExternalScaler/StreamIsActive", object.clone(), SCALE, Code::Ok),
        Row("externalscaler.ExternalScaler/GetMetricSpec", object, SCALE, Code::Ok),
        Row("externalscaler.ExternalScaler/GetMetrics", metrics, SCALE, invalid),
        Row("grpc.health.v1.Health/Check", vec![], Takes::Nothing, Code::Ok),
        Row("grpc.health.v1.Health/Watch", vec![], ANY, Code::Ok),
        Row("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", list.clone(), ANY, Code::Ok),
        Row("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", list, ANY, Code::Ok),
    ]
}

/// A request to a route: method, path, the route as the source has it, what it takes, and the status for whoever has that.
struct Route(Method, String, &'static str, Takes, u16);

fn cache_routes() -> Vec<Route> {
    let blob = Function::Sha256.hash(b"abc").hex();
    let result = Function::Sha256.hash(b"an action").hex();
    let (cas, ac) = (format!("/cas/{}", absent().hex()), format!("/ac/{}", absent().hex()));
    vec![
        Route(Method::GET, cas.clone(), "", READ, 404),
        Route(Method::HEAD, cas.clone(), "", READ, 404),
        Route(Method::PUT, format!("/cas/{blob}"), "", WRITE, 200),
        Route(Method::DELETE, cas, "", READ, 405),
        Route(Method::GET, ac.clone(), "", READ, 404),
        Route(Method::HEAD, ac, "", READ, 404),
        Route(Method::PUT, format!("/ac/{result}"), "", CACHE_WRITE, 400),
    ]
}

fn admin_routes() -> Vec<Route> {
    let operation = format!("/operations/{}", "0".repeat(32));
    let why = operation.clone() + "/why";
    let forget = format!("/ac/sha256/{}-{}", absent().hex(), absent().size());
    let blob = format!("/blobs/sha256/{}-{}", absent().hex(), absent().size());
    let route =
        |method: Method, path: &'static str, takes, code| Route(method, path.to_owned(), path, takes, code);
    vec![
        route(Method::GET, "/", LOOK, 200),
        route(Method::GET, "/workers", LOOK, 200),
        route(Method::GET, "/queue", LOOK, 200),
        route(Method::GET, "/operations", LOOK, 200),
        route(Method::GET, "/assets/style.css", LOOK, 200),
        route(Method::GET, "/assets/pages.js", LOOK, 200),
        route(Method::GET, "/livez", Takes::Nothing, 200),
        route(Method::GET, "/readyz", Takes::Nothing, 200),
        route(Method::GET, "/metrics", LOOK, 200),
        route(Method::GET, "/status.json", LOOK, 200),
        route(Method::POST, "/scrub", ADMIN, 200),
        Route(Method::DELETE, forget.clone(), "/ac/{*name}", ADMIN, 204),
        Route(Method::GET, why, "/operations/{*name}", LOOK, 404),
        Route(Method::GET, operation.clone(), "/operations/{*name}", READ, 404),
        Route(Method::GET, operation.clone() + "/inputs/a/why", "/operations/{*name}", READ, 404),
        Route(Method::GET, operation.clone() + "/outputs", "/operations/{*name}", READ, 404),
        Route(Method::GET, operation + "/stdout", "/operations/{*name}", READ, 404),
        route(Method::GET, "/invocations", LOOK, 200),
        Route(Method::GET, "/invocations/x".into(), "/invocations/{id}", LOOK, 404),
        Route(Method::GET, blob, "/blobs/{*name}", READ, 404),
        route(Method::GET, "/ac", LOOK, 200),
        Route(Method::GET, forget.clone(), "/ac/{*name}", READ, 404),
        route(Method::GET, "/storage", LOOK, 200),
        route(Method::GET, "/configuration", LOOK, 200),
        Route(Method::GET, "/workers/x".into(), "/workers/{key}", LOOK, 404),
        Route(Method::POST, "/workers/x/open".into(), "/workers/{key}/open", ADMIN, 404),
        Route(Method::POST, "/workers/x/cordon".into(), "/workers/{key}/cordon", ADMIN, 400),
        Route(Method::POST, "/workers/x/drain".into(), "/workers/{key}/drain", ADMIN, 404),
        route(Method::GET, "/audit", LOOK, 200),
        route(Method::POST, "/audit", ADMIN, 400),
        route(Method::GET, "/audit.json", LOOK, 200),
        Route(Method::GET, "/audit/7".into(), "/audit/{number}", LOOK, 404),
        route(Method::GET, "/no-such-page", LOOK, 404),
    ]
}

/// Tokens with one right each, one with none, and for each of the rows one with all the others.
fn doors() -> Doors {
    let mut doors = Doors::new().token("none", "", "");
    for right in RIGHTS {
        doors = doors.token(&format!("only-{right}"), right, "**");
    }
    for takes in [READ, WRITE, CACHE_WRITE, EXECUTE, FETCH, CANCEL, WORK, ADMIN, LOOK, SCALE] {
        let Takes::One(rights) = takes else { continue };
        let others: Vec<&str> = RIGHTS.into_iter().filter(|right| !rights.contains(right)).collect();
        doors = doors.token(&without(rights), &others.join(","), "**");
    }
    doors
}

fn without(rights: &[&str]) -> String {
    if rights.len() == RIGHTS.len() { "none".to_owned() } else { format!("all-but-{}", rights.join("-")) }
}

impl Takes {
    /// Who asks, and whether they get in.
    fn askers(self) -> Vec<(Option<String>, bool)> {
        match self {
            Self::Nothing => vec![(None, true), (Some("none".into()), true)],
            Self::One(rights) => {
                let mut askers = vec![(None, false), (Some(without(rights)), false)];
                askers.extend(rights.iter().map(|right| (Some(format!("only-{right}")), true)));
                askers
            }
        }
    }
}

#[tokio::test]
async fn every_rpc_is_for_those_who_have_the_right_and_for_nobody_else() {
    let doors = doors();
    let farm = doors.start(&[]);
    let public = farm.channel().await;
    let workers = Channel::from_shared(format!("http://{}", farm.workers)).unwrap().connect().await.unwrap();
    for Row(method, message, takes, code) in rows() {
        let is_of_workers = method.starts_with("croft.") || method.starts_with("externalscaler.");
        let channel = if is_of_workers { &workers } else { &public };
        for (token, gets_in) in takes.askers() {
            let bearer = token.as_ref().map(|token| doors.bearer(token).0);
            let found = call(channel, method, (bearer, message.clone())).await;
            let refused = if token.is_none() { Code::Unauthenticated } else { Code::PermissionDenied };
            assert_eq!(
                found.code(),
                if gets_in { code } else { refused },
                "{method} by {token:?}: {found:?}"
            );
            let names_it = found.message().contains(token.as_deref().unwrap_or("nobody"));
            assert!(gets_in || names_it, "{method} by {token:?}: {found:?}");
        }
        let wrong = Some(AsciiMetadataValue::from_static("Bearer croft_wrong"));
        let found = call(channel, method, (wrong, message)).await.code();
        let is_open = matches!(takes, Takes::Nothing);
        assert_eq!(found, if is_open { code } else { Code::Unauthenticated }, "{method} by a wrong token");
    }
}

#[test]
fn every_rpc_has_a_row() {
    let sets = [
        croft::proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let served: BTreeSet<String> = files
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let service_name = format!("{package}.{}", service.name());
                service.method.into_iter().map(move |method| format!("{service_name}/{}", method.name()))
            })
        })
        .collect();
    let tested: BTreeSet<String> = rows().into_iter().map(|row| row.0.to_owned()).collect();
    assert!(served.len() > 30, "{served:?}");
    assert_eq!(served, tested, "each RPC has a row, and each row is of an RPC");
}

#[tokio::test]
async fn every_http_route_is_for_those_who_have_the_right_and_for_nobody_else() {
    let doors = doors();
    let farm = doors.start(&[]);
    let farm: &Farm = &farm;
    let public = cache_routes().into_iter().map(|route| (&farm.public, route));
    let admin = admin_routes().into_iter().map(|route| (&farm.admin, route));
    croft::tls::install();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (address, Route(method, path, _, takes, code)) in public.chain(admin) {
        for (token, gets_in) in takes.askers() {
            let mut request =
                client.request(method.clone(), format!("http://{address}{path}")).header("croft-admin", "1");
            if method == Method::PUT {
                request = request.body("abc");
            }
            if method == Method::POST && path == "/audit" {
                request = request.body("no JSON");
            }
            if let Some(token) = &token {
                request = request.header("authorization", doors.bearer(token).0.to_str().unwrap());
            }
            let answer = request.send().await.unwrap();
            let refused = if token.is_none() { 401 } else { 403 };
            let found = answer.status().as_u16();
            assert_eq!(found, if gets_in { code } else { refused }, "{method} {path} by {token:?}");
            assert_eq!(found == 401, answer.headers().contains_key("www-authenticate"), "{method} {path}");
        }
    }
}

#[test]
fn every_route_of_the_admin_listener_has_a_row() {
    let sources = [
        include_str!("../../../src/web/mod.rs"),
        include_str!("../../../src/web/scheduler.rs"),
        include_str!("../../../src/web/audit.rs"),
        include_str!("../../../src/web/storage.rs"),
    ];
    let served: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()))
        .collect();
    let routes = admin_routes();
    let tested: BTreeSet<&str> =
        routes.iter().map(|route| route.2).filter(|route| *route != "/no-such-page").collect();
    assert!(served.len() > 10, "{served:?}");
    assert_eq!(served, tested, "each route has a row, and each row is of a route");
}

/// The status of a call with one message: that of its first answer, whatever kind of method it is.
async fn call(
    channel: &Channel,
    method: &str,
    (bearer, message): (Option<AsciiMetadataValue>, Vec<u8>),
) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(message));
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", bearer);
    }
    let path = format!("/{method}").parse().unwrap();
    match client.streaming(request, path, Plain).await {
        Ok(answer) => answer.into_inner().message().await.err().unwrap_or_else(|| Status::ok("")),
        Err(status) => status,
    }
}

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
