//! The cache over plain HTTP, as Bazel with `--remote_cache=http://…` and curl speak it.

use std::process::Command;

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::rev2::{ActionResult, OutputFile};
use prost::Message;
use reqwest::{Method, RequestBuilder, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::Client;
use crate::farm::Farm;
use crate::foreign;

/// A client that keeps its connections.
struct Http {
    client: reqwest::Client,
    root: String,
}

impl Http {
    fn new(farm: &Farm) -> Self {
        // Another test of this process may have done it before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { client: reqwest::Client::new(), root: format!("http://{}", farm.public) }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.root))
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn put(&self, path: &str, content: impl Into<reqwest::Body>) -> (u16, String) {
        let response = self.request(Method::PUT, path).body(content).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn code(&self, path: &str) -> u16 {
        self.get(path).await.status().as_u16()
    }
}

fn content(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(size as u64).fill(&mut bytes);
    bytes.into()
}

fn result(digest: &Digest) -> ActionResult {
    let output = OutputFile { path: "out".into(), digest: Some(digest.to_proto()), ..OutputFile::default() };
    ActionResult { output_files: vec![output], ..ActionResult::default() }
}

#[tokio::test]
async fn blobs_come_back_over_http_and_grpc_whoever_stored_them() {
    let farm = Farm::start();
    let (http, grpc) = (Http::new(&farm), Client::new(&farm).await);
    for size in [0, 1, 4096, 100_000, 5_000_000] {
        let content = content(size);
        for function in [Function::Sha256, Function::Sha1, Function::Sha512] {
            let digest = function.hash(&content);
            let path = format!("/cas/{}", digest.hex());
            if size > 0 {
                assert_eq!(http.code(&path).await, 404);
            }
            for _ in 0..2 {
                assert_eq!(http.put(&path, content.clone()).await, (200, String::new()));
            }
            let got = http.get(&path).await;
            assert_eq!(got.headers()["content-length"], size.to_string());
            assert_eq!(got.bytes().await.unwrap(), content);
            assert_eq!(grpc.read_blob(&digest).await.unwrap(), content);
            assert_eq!(http.get(&format!("/some/instance{path}")).await.bytes().await.unwrap(), content);
        }
    }
    let other = grpc.put(&b"from gRPC"[..]).await;
    assert_eq!(http.get(&format!("/cas/{}", other.hex())).await.text().await.unwrap(), "from gRPC");
}

#[tokio::test]
async fn wrong_content_is_refused_with_the_reason_and_not_stored() {
    let farm = Farm::start();
    let http = Http::new(&farm);
    for size in [3, 1_000_000] {
        let right = Function::Sha256.hash(&content(size));
        let mut wrong = content(size).to_vec();
        wrong[size / 2] ^= 1;
        let path = format!("/cas/{}", right.hex());
        let (code, text) = http.put(&path, wrong).await;
        assert_eq!(code, 400);
        assert!(text.contains(&right.hex()), "{text}");
        assert_eq!(http.code(&path).await, 404);
    }
}

#[tokio::test]
async fn what_is_no_request_of_the_protocol_is_told_so() {
    let farm = Farm::start_with(&[("CROFT_INSTANCES", "[main]")]);
    let http = Http::new(&farm);
    let hash = Function::Sha256.hash(b"x").hex();
    for (method, path, expected) in [
        (Method::GET, "/".to_owned(), 404),
        (Method::GET, format!("/other/cas/{hash}"), 404),
        (Method::GET, "/main/cas/xyz".to_owned(), 400),
        (Method::GET, format!("/main/cas/{}", hash.to_uppercase()), 400),
        (Method::GET, format!("/main/ac/{hash}"), 404),
        (Method::HEAD, format!("/main/cas/{hash}"), 404),
        (Method::POST, format!("/main/cas/{hash}"), 405),
        (Method::DELETE, format!("/main/ac/{hash}"), 405),
    ] {
        let response = http.request(method.clone(), &path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{method} {path}");
        assert!(method == Method::HEAD || !response.text().await.unwrap().is_empty());
    }
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
    let (code, _) = http.put(&format!("/main/cas/{hash}"), reqwest::Body::wrap_stream(stream)).await;
    assert_eq!(code, 411, "the length of a chunked body is not known before its end");
}

#[tokio::test]
async fn ranges_and_heads() {
    let farm = Farm::start();
    let http = Http::new(&farm);
    let content = content(1_000_000);
    let path = format!("/cas/{}", Function::Sha256.hash(&content).hex());
    http.put(&path, content.clone()).await;
    let head = http.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-length"]),
        (200, &"1000000".parse().unwrap())
    );
    assert!(head.bytes().await.unwrap().is_empty());
    for (range, expected) in
        [("bytes=10-19", 10..20), ("bytes=300000-", 300_000..1_000_000), ("bytes=-7", 999_993..1_000_000)]
    {
        let part = http.request(Method::GET, &path).header("range", range).send().await.unwrap();
        assert_eq!(part.status().as_u16(), 206);
        let place = format!("bytes {}-{}/1000000", expected.start, expected.end - 1);
        assert_eq!(part.headers()["content-range"], place);
        assert_eq!(part.bytes().await.unwrap(), content[expected]);
    }
    let beyond = http.request(Method::GET, &path).header("range", "bytes=1000000-").send().await.unwrap();
    assert_eq!(
        (beyond.status().as_u16(), &beyond.headers()["content-range"]),
        (416, &"bytes */1000000".parse().unwrap())
    );
    let several = http.request(Method::GET, &path).header("range", "bytes=0-1,5-6").send().await.unwrap();
    assert_eq!((several.status().as_u16(), several.bytes().await.unwrap().len()), (200, content.len()));
}

#[tokio::test]
async fn a_result_is_found_while_its_outputs_are_there_and_in_its_instance_only() {
    let farm = Farm::start();
    let (http, grpc) = (Http::new(&farm), Client::new(&farm).await);
    let output = Function::Sha256.hash(b"output");
    let bytes = result(&output).encode_to_vec();
    let path = format!("/main/ac/{}", Function::Sha256.hash(b"action").hex());
    assert_eq!(http.put(&path, bytes.clone()).await.0, 200);
    assert_eq!(http.code(&path).await, 404, "its output is not there");
    grpc.put(&b"output"[..]).await;
    assert_eq!(http.get(&path).await.bytes().await.unwrap(), bytes);
    let head = http.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], bytes.len().to_string());
    assert_eq!(http.code(&path.replace("main", "other")).await, 404);
    let (code, text) = http.put(&path, &b"\xff\xff\xff\xff"[..]).await;
    assert_eq!(code, 400);
    assert!(text.contains("not an action result"), "{text}");
    // A client that has sent all of it by then might not see the answer, so this one waits for it.
    let mut connection = tokio::net::TcpStream::connect(&farm.public).await.unwrap();
    let request = format!("PUT {path} HTTP/1.1\r\nHost: farm\r\nContent-Length: {}\r\n\r\n", (32 << 20) + 1);
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    connection.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    assert_eq!(http.get(&path).await.bytes().await.unwrap(), bytes, "what was refused replaced nothing");
}

#[tokio::test]
async fn any_value_is_a_result_when_the_configuration_says_so() {
    let farm = Farm::start_with(&[("CROFT_HTTP__VALIDATE_RESULTS", "false")]);
    let http = Http::new(&farm);
    let path = format!("/ac/{}", Function::Sha256.hash(b"key").hex());
    for value in [&b"\xff\xff any bytes"[..], b"others", b""] {
        assert_eq!(http.put(&path, value).await.0, 200);
        assert_eq!(http.get(&path).await.bytes().await.unwrap(), value);
    }
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let farm = Farm::start();
    let hash = Function::Sha256.hash(b"x").hex();
    let mut connection = tokio::net::TcpStream::connect(&farm.public).await.unwrap();
    for _ in 0..3 {
        for request in [
            format!("PUT /cas/{hash} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"),
            format!("HEAD /cas/{hash} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ] {
            connection.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(connection.read_u8().await.unwrap());
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        }
    }
}

#[tokio::test]
async fn a_put_that_breaks_off_stores_nothing_and_harms_nobody() {
    let mut farm = Farm::start();
    let http = Http::new(&farm);
    let hash = Function::Sha256.hash(&content(9_000_000)).hex();
    let mut connection = tokio::net::TcpStream::connect(&farm.public).await.unwrap();
    let head = format!("PUT /cas/{hash} HTTP/1.1\r\nHost: farm\r\nContent-Length: 9000000\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&content(1_000_000)).await.unwrap();
    drop(connection);
    assert_eq!(http.code(&format!("/cas/{hash}")).await, 404);
    assert_eq!(http.put(&format!("/cas/{hash}"), content(9_000_000)).await.0, 200);
    assert!(farm.is_alive());
}

#[test]
fn curl_uploads_and_downloads() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let farm = Farm::start();
    let directory = tempfile::tempdir().unwrap();
    let (file, copy) = (directory.path().join("blob"), directory.path().join("copy"));
    // Above 1 MiB, curl sends `Expect: 100-continue` and waits.
    let content = content(3_000_000);
    std::fs::write(&file, &content).unwrap();
    let url = format!("http://{}/cas/{}", farm.public, Function::Sha256.hash(&content).hex());
    for arguments in [["--upload-file".as_ref(), file.as_os_str()], ["--output".as_ref(), copy.as_os_str()]] {
        let done = Command::new("curl").args(["--silent", "--fail", &url]).args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    assert!(std::fs::read(copy).unwrap() == content);
}

#[tokio::test]
async fn a_web_page_is_refused() {
    let farm = Farm::start();
    let http = Http::new(&farm);
    let digest = Function::Sha256.hash(b"planted");
    let put = http.request(Method::PUT, &format!("/cas/{}", digest.hex())).body("planted");
    let call = http
        .request(Method::POST, "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult")
        .header("content-type", "application/grpc")
        .body(vec![0; 5]);
    for request in [put, call] {
        let answer = request.header("origin", "http://evil.example").send().await.unwrap();
        assert_eq!(answer.status(), 403);
    }
    assert_eq!(http.code(&format!("/cas/{}", digest.hex())).await, 404);
}

/// A farm whose blobs are in a small memory and on the server at `far`.
fn in_front_of(far: &str) -> Farm {
    let memory = "{kind=\"memory\",size=\"1MiB\"}";
    let tiers = format!("[{memory},{{kind=\"farm\",endpoints=[\"http://{far}\"]}}]");
    Farm::start_with(&[("CROFT_STORAGE__TIER", &tiers)])
}

#[tokio::test]
async fn what_was_put_is_read_back_from_a_farm_that_keeps_it_in_another() {
    let far = Farm::start();
    let near = in_front_of(&far.public);
    let http = Http::new(&near);
    // The memory takes the small ones, and too little of it to keep all of them.
    let sizes = [0, 1, 3000, 70_000, 5_000_000].into_iter().chain(40_000..40_040);
    let put: Vec<(String, Bytes)> = sizes
        .map(|size| (format!("/cas/{}", Function::Sha256.hash(&content(size)).hex()), content(size)))
        .collect();
    for (path, content) in &put {
        if !content.is_empty() {
            assert_eq!(http.code(path).await, 404);
        }
        for _ in 0..2 {
            assert_eq!(http.put(path, content.clone()).await, (200, String::new()));
        }
    }
    for (path, content) in &put {
        let head = http.request(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], content.len().to_string());
        assert!(http.get(path).await.bytes().await.unwrap() == *content, "{} bytes", content.len());
    }
    let result = result(&Function::Sha256.hash(&put[2].1)).encode_to_vec();
    let path = format!("/ac/{}", Function::Sha256.hash(b"action").hex());
    assert_eq!(http.put(&path, result.clone()).await, (200, String::new()));
    assert_eq!(http.get(&path).await.bytes().await.unwrap(), result);
}

#[tokio::test]
async fn a_farm_in_front_of_a_server_that_finds_no_blob_by_its_hash_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It speaks gRPC and nothing else.
    let (_, service) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let near = in_front_of(&address);
    let http = Http::new(&near);
    let path = format!("/cas/{}", Function::Sha256.hash(&content(3000)).hex());
    let (code, text) = http.put(&path, content(3000)).await;
    assert_eq!(code, 501);
    assert!(text.contains("use gRPC"), "{text}");
    assert_eq!(http.code(&path).await, 501, "it is not known to be absent");
}

#[tokio::test]
async fn what_a_slower_tier_has_and_does_not_find_by_its_hash_is_stored_nearer() {
    let address = foreign::start().await;
    let disk = "{kind=\"disk\",size=\"64MiB\"}";
    let tiers = format!("[{disk},{{kind=\"farm\",endpoints=[\"http://{address}\"]}}]");
    let near = Farm::start_with(&[("CROFT_STORAGE__TIER", &tiers)]);
    let http = Http::new(&near);
    let path = format!("/cas/{}", Function::Sha256.hash(&content(3000)).hex());
    assert_eq!(http.put(&path, content(3000)).await, (200, String::new()));
    assert_eq!(http.get(&path).await.bytes().await.unwrap(), content(3000));
}
