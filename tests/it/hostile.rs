//! Clients that mean harm: the farm stays up, within its memory, and goes on serving the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::bytestream::WriteRequest;
use croft::proto::rev2::{Action, Directory, DirectoryNode, FindMissingBlobsRequest, GetTreeRequest};
use futures_util::{StreamExt, future, stream};
use http_body::Frame;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tower::ServiceExt;

use crate::client::{Client, Inputs, shell};
use crate::farm::{Farm, peak_memory};

/// What the farm may grow by while it is attacked; most of it is what its allocator keeps.
const GROWTH_MAX: u64 = 512 << 20;

/// Far more than a farm needs on a busy machine to see that a client floods it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How HTTP/2 begins: the preface, and settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// A farm that is to be attacked, and a client that is not to notice.
struct Attacked {
    farm: Farm,
    client: Client,
    memory: u64,
}

impl Attacked {
    async fn start() -> Self {
        let farm = Farm::start();
        let client = Client::new(&farm).await;
        client.put("before").await;
        Self { memory: peak_memory(&farm), farm, client }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.farm.public).await.unwrap()
    }

    /// The old client still has its connection, and a new one is let in.
    async fn survives(mut self) {
        assert!(self.farm.is_alive());
        self.client.put("after").await;
        let new = tokio::time::timeout(PATIENCE, Client::new(&self.farm)).await.expect("others are let in");
        tokio::time::timeout(PATIENCE, new.put("from another")).await.expect("others are served");
        let grown = peak_memory(&self.farm) - self.memory;
        assert!(grown < GROWTH_MAX, "{grown} bytes");
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The headers of a call, without compression (RFC 7541, sections 6.1 and 6.2.2).
fn headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    let path = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
    for (name, value) in [(":path", path), (":authority", "farm"), ("content-type", "application/grpc")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    block
}

/// Writes until the farm closes the connection, at most `pieces` times.
async fn is_closed(mut connection: TcpStream, pieces: impl Iterator<Item = Vec<u8>>) -> bool {
    let (mut reader, mut writer) = connection.split();
    let writing = async {
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                return true;
            }
        }
        false
    };
    let mut answer = Vec::new();
    let reading = reader.read_to_end(&mut answer);
    match future::select(std::pin::pin!(writing), std::pin::pin!(reading)).await {
        future::Either::Left((is_refused, reading)) => {
            is_refused || tokio::time::timeout(PATIENCE, reading).await.is_ok()
        }
        future::Either::Right(_) => true,
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    // Half of the farm's files are for connections, and this process needs some itself.
    let possible = limit.maximum.map_or(u64::MAX, |files| files / 2);
    let count = possible.saturating_sub(100).min(10_000);
    if count < 10_000 {
        eprintln!("only {count} connections: the system allows no more files");
    }
    let attacked = Attacked::start().await;
    let opening = (0..count).map(|_| attacked.connect());
    let _idle: Vec<TcpStream> = stream::iter(opening).buffer_unordered(64).collect().await;
    attacked.survives().await;
}

#[tokio::test]
async fn garbage_and_half_requests_cost_a_connection_each() {
    let attacked = Attacked::start().await;
    let garbage = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(move || (0..4096).map(|_| random.u8(..)).collect()).take(256)
    };
    for seed in 0..20 {
        assert!(is_closed(attacked.connect().await, garbage(seed)).await, "seed {seed}");
    }
    let mut slow = Vec::new();
    for half in
        [&b"GET /cas/0"[..], b"PUT /cas/00 HTTP/1.1\r\nContent-Length: 99\r\n", PREFACE, &PREFACE[..9]]
    {
        for _ in 0..100 {
            let mut connection = attacked.connect().await;
            connection.write_all(half).await.unwrap();
            slow.push(connection);
        }
    }
    attacked.survives().await;
}

#[tokio::test]
async fn floods_of_headers_end_the_connection() {
    let attacked = Attacked::start().await;
    // A header block that never ends, of which each part is one header.
    let part = [&[0, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'y'; 16_256]].concat();
    let start = [PREFACE, &frame(HEADERS, 0, 1, &headers())].concat();
    let endless = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &part), 4096);
    assert!(is_closed(attacked.connect().await, std::iter::once(start).chain(endless)).await);
    // Many blocks of one connection, each at once taken back.
    let taken_back = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
            .concat()
    };
    let storm = (0..1000).map(|burst| (100 * burst..100 * (burst + 1)).flat_map(taken_back).collect());
    let connection = attacked.connect().await;
    assert!(is_closed(connection, std::iter::once(PREFACE.to_vec()).chain(storm)).await);
    // One request with headers that are too large is refused alone.
    let mut client = attacked.client.clone();
    let mut request = tonic::Request::new(FindMissingBlobsRequest::default());
    client.cas.find_missing_blobs(FindMissingBlobsRequest::default()).await.unwrap();
    request.metadata_mut().insert("x-large", "y".repeat(64 << 10).parse().unwrap());
    client.cas.find_missing_blobs(request).await.unwrap_err();
    attacked.survives().await;
}

#[tokio::test]
async fn a_message_of_a_gibibyte_is_refused_when_it_is_announced() {
    let attacked = Attacked::start().await;
    let announced = [&[0_u8][..], &(1_u32 << 30).to_be_bytes(), &[0; 1000]].concat();
    let never_ends = stream::iter([Ok::<_, tonic::Status>(Frame::data(Bytes::from(announced)))]);
    let body = http_body_util::StreamBody::new(never_ends.chain(stream::pending()));
    let path = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    let request = http::Request::post(format!("http://{}{path}", attacked.farm.public))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(body))
        .unwrap();
    let answer = tokio::time::timeout(PATIENCE, attacked.farm.channel().await.oneshot(request)).await;
    let status = tonic::Status::from_header_map(answer.unwrap().unwrap().headers()).unwrap();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    attacked.survives().await;
}

#[tokio::test]
async fn directories_without_a_bottom_are_refused() {
    const DEPTH: usize = 10_000;
    let attacked = Attacked::start().await;
    let client = &attacked.client;
    let (mut child, mut blobs) = (Function::Sha256.hash(b""), vec![Bytes::new()]);
    for _ in 0..DEPTH {
        let node = DirectoryNode { name: "d".into(), digest: Some(child.to_proto()) };
        let bytes = Bytes::from(Directory { directories: vec![node], ..Default::default() }.encode_to_vec());
        child = Function::Sha256.hash(&bytes);
        blobs.push(bytes);
    }
    client.put_all(blobs).await;
    let request = GetTreeRequest { root_digest: Some(child.to_proto()), ..Default::default() };
    let mut pages = client.cas.clone().get_tree(request).await.unwrap().into_inner();
    let mut directories = 0;
    while let Some(page) = pages.message().await.unwrap() {
        directories += page.directories.len();
    }
    assert_eq!(directories, DEPTH + 1, "depth alone harms nobody who does not recurse");
    let refusal = execute(client, &child).await;
    assert!(refusal.contains("longer than"), "{refusal}");
    // A directory cannot have its own digest, but its hash with another size looks as if it had.
    let alias = Digest::new(Function::Sha256, child.hash(), child.size() + 1);
    let node = DirectoryNode { name: "d".into(), digest: Some(alias.to_proto()) };
    let root = client.put_message(&Directory { directories: vec![node], ..Default::default() }).await;
    let refusal = execute(client, &root).await;
    assert!(refusal.contains(&alias.to_string()), "{refusal}");
    attacked.survives().await;
}

/// Runs an action with this input root, which must fail, and gives the reason.
async fn execute(client: &Client, root: &Digest) -> String {
    let change = |action: &mut Action| action.input_root_digest = Some(root.to_proto());
    let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
    let status = client.execute(client.request(&action)).await.unwrap().status.unwrap();
    assert_ne!(status.code, 0);
    format!("{} {:?}", status.message, status.details)
}

/// The first byte of a blob that has more, and then nothing.
async fn begin(client: Client, number: usize) -> Option<Code> {
    let resource_name = format!(
        "uploads/{number}/blobs/{}/1000000",
        hex::encode(Function::Sha256.hash(&number.to_le_bytes()).hash())
    );
    let first = WriteRequest { resource_name, data: Bytes::from_static(b"x"), ..Default::default() };
    let messages = stream::iter([first]).chain(stream::pending());
    let writing = client.bytes.clone().write(messages).await;
    writing.err().map(|status| status.code())
}

#[tokio::test]
async fn unfinished_uploads_have_a_bound() {
    // Above what the farm takes at a time, and several times what it parks. From the first refusal on, each further attempt is as the one
    // before: a million of them would show no more and take a debug build many minutes.
    const AT_ONCE: usize = 3000;
    const CONNECTIONS: usize = 2;
    const ROUNDS: usize = 5;
    let attacked = Attacked::start().await;
    let refused = Arc::new(AtomicUsize::new(0));
    for round in 0..ROUNDS {
        let mut open = Vec::new();
        for connection in 0..CONNECTIONS {
            let client = Client::new(&attacked.farm).await;
            for number in 0..AT_ONCE {
                let number = (round * CONNECTIONS + connection) * AT_ONCE + number;
                let (client, refused) = (client.clone(), Arc::clone(&refused));
                open.push(tokio::spawn(async move {
                    let is_refused = begin(client, number).await == Some(Code::ResourceExhausted);
                    refused.fetch_add(usize::from(is_refused), Ordering::Relaxed);
                }));
            }
        }
        // The refused ones are over; of the others, none ever is.
        let all = future::join_all(open.iter_mut());
        let _ = tokio::time::timeout(Duration::from_secs(3), all).await;
        open.iter().for_each(|upload| upload.abort());
        let temporary = std::fs::read_dir(attacked.farm.data().join("cas/tmp")).unwrap().count();
        assert!(temporary <= 5000, "{temporary} temporary files");
    }
    assert!(refused.load(Ordering::Relaxed) > 0, "all were taken");
    let content: Bytes = vec![7; 3 << 20].into();
    let kept = attacked.client.write_blob(&content).await.unwrap();
    assert_eq!(attacked.client.read_blob(&kept).await.unwrap(), content);
    attacked.survives().await;
}
