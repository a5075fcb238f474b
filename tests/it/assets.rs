//! Remote assets: what is pushed and what is fetched from a real server.

use std::time::Duration;

use croft::digest::{Digest, Function};
use croft::proto;
use croft::proto::asset::fetch_client::FetchClient;
use croft::proto::asset::push_client::PushClient;
use croft::proto::asset::{
    FetchBlobRequest, FetchBlobResponse, FetchDirectoryRequest, FetchDirectoryResponse, PushBlobRequest,
    PushDirectoryRequest, Qualifier,
};
use croft::proto::rev2;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::{Client, Inputs};
use crate::farm::Farm;
use crate::origin::{CONTENT, Origin, SECRET};

/// `sha256` of [`CONTENT`], and one of other content.
const SRI_WRONG: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// The stubs of the asset services of one farm.
pub(crate) struct Assets {
    fetch: FetchClient<Channel>,
    push: PushClient<Channel>,
}

impl Assets {
    async fn new(farm: &Farm) -> Self {
        let channel = farm.channel().await;
        Self { fetch: FetchClient::new(channel.clone()), push: PushClient::new(channel) }
    }

    async fn blob(&self, request: FetchBlobRequest) -> Result<FetchBlobResponse, Status> {
        Ok(self.fetch.clone().fetch_blob(request).await?.into_inner())
    }

    async fn get(&self, uri: &str, pairs: &[(&str, &str)]) -> FetchBlobResponse {
        self.blob(request(&[uri], pairs)).await.unwrap()
    }

    async fn directory(&self, request: FetchDirectoryRequest) -> Result<FetchDirectoryResponse, Status> {
        Ok(self.fetch.clone().fetch_directory(request).await?.into_inner())
    }

    async fn push(&self, request: PushBlobRequest) -> Result<(), Status> {
        self.push.clone().push_blob(request).await.map(|_| ())
    }
}

fn request(uris: &[&str], pairs: &[(&str, &str)]) -> FetchBlobRequest {
    FetchBlobRequest { uris: owned(uris), qualifiers: qualifiers(pairs), ..Default::default() }
}

fn owned(uris: &[&str]) -> Vec<String> {
    uris.iter().map(|uri| (*uri).to_owned()).collect()
}

fn qualifiers(pairs: &[(&str, &str)]) -> Vec<Qualifier> {
    pairs.iter().map(|(name, value)| Qualifier { name: (*name).into(), value: (*value).into() }).collect()
}

fn code(status: Option<&proto::Status>) -> Code {
    Code::from_i32(status.expect("every response has a status").code)
}

fn sri(content: &[u8]) -> String {
    use base64::Engine;
    let hash = Function::Sha256.hash(content);
    format!("sha256-{}", base64::engine::general_purpose::STANDARD.encode(hash.hash()))
}

fn timestamp(time: std::time::SystemTime) -> proto::Timestamp {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
    proto::Timestamp { seconds: since.as_secs().try_into().unwrap(), nanos: 0 }
}

async fn farm_for(origin: &Origin) -> (Farm, Assets) {
    let allowed = origin.allowed();
    let environment = [
        ("CROFT_ASSET__ALLOW", allowed.as_str()),
        ("CROFT_ASSET__ALLOW_PRIVATE", "true"),
        ("CROFT_ASSET__SIZE_MAX", "1 MiB"),
        // A farm does not take the way of its environment to an origin.
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:1"),
    ];
    let farm = Farm::start_with(&environment);
    let assets = Assets::new(&farm).await;
    (farm, assets)
}

#[tokio::test]
async fn a_fetched_blob_is_in_the_cas_and_is_not_fetched_twice() {
    let origin = Origin::start().await;
    let (farm, assets) = farm_for(&origin).await;
    let client = Client::new(&farm).await;
    let uri = origin.url("/file");
    let answer = assets.get(&uri, &[]).await;
    assert_eq!((code(answer.status.as_ref()), &answer.uri), (Code::Ok, &uri));
    let digest = Function::Sha256.hash(CONTENT.as_bytes());
    assert_eq!(answer.blob_digest, Some(digest.to_proto()));
    assert_eq!(answer.digest_function, i32::from(rev2::digest_function::Value::Sha256));
    assert_eq!(client.read_blob(&digest).await.unwrap(), CONTENT.as_bytes());
    assert_eq!(assets.get(&uri, &[]).await.blob_digest, answer.blob_digest);
    assert_eq!(origin.requests("/file").len(), 1);

    let mut blake3 = request(&[&uri], &[]);
    blake3.digest_function = rev2::digest_function::Value::Blake3.into();
    let answer = assets.blob(blake3).await.unwrap();
    assert_eq!(answer.blob_digest, Some(Function::Blake3.hash(CONTENT.as_bytes()).to_proto()));

    let twice = format!("{CONTENT}{CONTENT}");
    let answer = assets.get(&origin.url("/chunked"), &[]).await;
    assert_eq!(answer.blob_digest, Some(Function::Sha256.hash(twice.as_bytes()).to_proto()));
    assert_eq!(std::fs::read_dir(farm.data().join("fetch")).unwrap().count(), 0);
}

#[tokio::test]
async fn content_that_is_too_old_is_fetched_again() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let uri = origin.put("/moving", "one");
    let one = assets.get(&uri, &[]).await.blob_digest;
    origin.put("/moving", "two");
    let accept = |oldest| FetchBlobRequest { oldest_content_accepted: Some(oldest), ..request(&[&uri], &[]) };
    let now = std::time::SystemTime::now();
    let hour_ago = timestamp(now - Duration::from_secs(3600));
    assert_eq!(assets.blob(accept(hour_ago)).await.unwrap().blob_digest, one);
    let soon = timestamp(now + Duration::from_secs(3600));
    let two = assets.blob(accept(soon)).await.unwrap().blob_digest;
    assert_eq!(two, Some(Function::Sha256.hash(b"two").to_proto()));
    assert_eq!(assets.get(&uri, &[]).await.blob_digest, two);
    assert_eq!(origin.requests("/moving").len(), 2);
}

#[tokio::test]
async fn equal_fetches_at_the_same_time_are_one_request() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let uri = origin.url("/chunked");
    let uris = [uri.as_str()];
    let gets = (0..20).map(|_| assets.blob(request(&uris, &[])));
    for answer in futures_util::future::join_all(gets).await {
        assert_eq!(code(answer.unwrap().status.as_ref()), Code::Ok);
    }
    assert_eq!(origin.requests("/chunked").len(), 1);
}

#[tokio::test]
async fn content_is_what_its_checksum_says_and_then_known_wherever_it_is() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let right = sri(CONTENT.as_bytes());
    let answer = assets.get(&origin.url("/a"), &[("checksum.sri", SRI_WRONG)]).await;
    assert_eq!((code(answer.status.as_ref()), answer.blob_digest), (Code::Aborted, None));

    let several = format!("{SRI_WRONG} {right}");
    assert_eq!(
        code(assets.get(&origin.url("/a"), &[("checksum.sri", &several)]).await.status.as_ref()),
        Code::Ok
    );
    let digest = assets.get(&origin.url("/a"), &[("checksum.sri", &right)]).await.blob_digest;
    assert_eq!(digest, Some(Function::Sha256.hash(CONTENT.as_bytes()).to_proto()));

    let elsewhere = ["https://mirror.invalid/a", "http://10.0.0.1/a"];
    for uri in elsewhere {
        assert_eq!(assets.get(uri, &[("checksum.sri", &right)]).await.blob_digest, digest, "{uri}");
    }
    // Bazel's canonical id says for which version of a rule content counts.
    let other = [("checksum.sri", right.as_str()), ("bazel.canonical_id", "2")];
    assert_eq!(code(assets.get(elsewhere[0], &other).await.status.as_ref()), Code::PermissionDenied);
    assert_eq!(origin.requests("/a").len(), 3);
}

#[tokio::test]
async fn the_faults_of_an_origin_are_in_the_response() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    for (path, expected) in [
        ("/status/404", Code::NotFound),
        ("/status/410", Code::NotFound),
        ("/status/401", Code::PermissionDenied),
        ("/status/403", Code::PermissionDenied),
        ("/status/429", Code::ResourceExhausted),
        ("/status/500", Code::Unavailable),
        ("/status/504", Code::DeadlineExceeded),
        ("/status/204", Code::Aborted),
        ("/status/302", Code::Aborted),
        ("/loop", Code::Aborted),
        ("/endless", Code::ResourceExhausted),
    ] {
        let answer = assets.get(&origin.url(path), &[]).await;
        assert_eq!((code(answer.status.as_ref()), answer.uri), (expected, origin.url(path)), "{path}");
    }
    let large = origin.put("/large", vec![7; (1 << 20) + 1]);
    assert_eq!(code(assets.get(&large, &[]).await.status.as_ref()), Code::ResourceExhausted);
    let fits = origin.put("/fits", vec![7; 1 << 20]);
    assert_eq!(code(assets.get(&fits, &[]).await.status.as_ref()), Code::Ok);
    assert_eq!(code(assets.get("urn:uuid:nobody", &[]).await.status.as_ref()), Code::NotFound);
    // The first URI that can be fetched is the answer.
    let uris = [origin.url("/status/404"), origin.url("/file")];
    let answer = assets.blob(request(&uris.each_ref().map(String::as_str), &[])).await.unwrap();
    assert_eq!((code(answer.status.as_ref()), &answer.uri), (Code::Ok, &uris[1]));
}

#[tokio::test]
async fn a_slow_origin_meets_the_timeout() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    for path in ["/never", "/stalls"] {
        let timeout = Some(proto::Duration { seconds: 0, nanos: 200_000_000 });
        let url = origin.url(path);
        let slow = FetchBlobRequest { timeout, ..request(&[&url], &[]) };
        let answer = assets.blob(slow).await.unwrap();
        assert_eq!(code(answer.status.as_ref()), Code::DeadlineExceeded, "{path}");
    }
}

#[tokio::test]
async fn only_allowed_origins_are_asked_and_redirects_lead_to_no_other() {
    let origin = Origin::start().await;
    let only = format!("[\"{}\"]", origin.url("/"));
    let environment = [("CROFT_ASSET__ALLOW", only.as_str()), ("CROFT_ASSET__ALLOW_PRIVATE", "true")];
    let farm = Farm::start_with(&environment);
    let assets = Assets::new(&farm).await;
    assert_eq!(code(assets.get(&origin.url("/to//file"), &[]).await.status.as_ref()), Code::Ok);
    for uri in [
        format!("http://localhost:{}/file", origin.port),
        format!("http://127.0.0.1.evil.invalid:{}/file", origin.port),
        "http://127.0.0.1/file".into(),
        origin.url("/to/LOCALHOST/file"),
        origin.url("/to/http:%2F%2F169.254.169.254/latest").replace("%2F", "/"),
    ] {
        let answer = assets.get(&uri, &[]).await;
        assert_eq!(code(answer.status.as_ref()), Code::PermissionDenied, "{uri}: {:?}", answer.status);
    }
    assert_eq!(origin.requests("/file").len(), 1);
}

#[tokio::test]
async fn private_addresses_are_refused_even_of_allowed_origins() {
    let origin = Origin::start().await;
    let allowed = origin.allowed();
    let farm = Farm::start_with(&[("CROFT_ASSET__ALLOW", &allowed)]);
    let assets = Assets::new(&farm).await;
    for uri in [origin.url("/file"), format!("http://localhost:{}/file", origin.port)] {
        let answer = assets.get(&uri, &[]).await;
        assert_eq!(code(answer.status.as_ref()), Code::PermissionDenied, "{uri}: {:?}", answer.status);
    }
    assert!(origin.requests("/file").is_empty());
}

#[tokio::test]
async fn headers_reach_the_origin_that_they_are_for_and_no_other() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let uri = origin.url("/secret");
    let secret = [("http_header:Authorization", SECRET)];
    assert_eq!(code(assets.get(&uri, &secret).await.status.as_ref()), Code::Ok);
    // What one client's secret opened is not open to one without it.
    assert_eq!(code(assets.get(&uri, &[]).await.status.as_ref()), Code::PermissionDenied);
    let own = [("http_header:Authorization", "wrong"), ("http_header_url:1:Authorization", SECRET)];
    let missing = origin.url("/status/404");
    let other = origin.url("/secret/other");
    let answer = assets.blob(request(&[&missing, &other], &own)).await.unwrap();
    assert_eq!(code(answer.status.as_ref()), Code::Ok);
    assert_eq!(origin.requests("/status/404")[0]["authorization"], "wrong");

    let away = origin.url("/to/LOCALHOST/landing");
    assert_eq!(code(assets.get(&away, &secret).await.status.as_ref()), Code::Ok);
    assert!(origin.requests("/landing")[0].get("authorization").is_none());
    let home = origin.url("/to//home");
    assert_eq!(code(assets.get(&home, &secret).await.status.as_ref()), Code::Ok);
    assert_eq!(origin.requests("/home")[0]["authorization"], SECRET);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_invalid() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let uri = origin.url("/file");
    let negative = Some(proto::Duration { seconds: -1, nanos: 0 });
    for bad in [
        request(&[], &[]),
        request(&[""], &[]),
        request(&[&uri], &[("a", "1"), ("a", "2")]),
        request(&[&uri], &[("checksum.sri", "md5-xyz")]),
        FetchBlobRequest { timeout: negative, ..request(&[&uri], &[]) },
        FetchBlobRequest { digest_function: 99, ..request(&[&uri], &[]) },
    ] {
        assert_eq!(assets.blob(bad.clone()).await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    let git = [("vcs.branch", "main"), ("resource_type", "application/x-git")];
    let status = assets.blob(request(&[&uri], &git)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations.len(), 2);
    assert_eq!(violations[0].field, "qualifiers.name");
    assert_eq!(violations[0].description, "\"vcs.branch\" not supported");
    assert!(origin.requests("/file").is_empty());
}

#[tokio::test]
async fn what_is_pushed_is_known_by_each_of_its_names_until_it_expires() {
    let farm = Farm::start();
    let (assets, client) = (Assets::new(&farm).await, Client::new(&farm).await);
    let digest = client.put("pushed").await;
    let uris = ["https://example.com/a", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"];
    let commit = [("vcs.commit", "abc"), ("vcs.branch", "main")];
    let push = |digest: &Digest| PushBlobRequest {
        uris: owned(&uris),
        qualifiers: qualifiers(&commit),
        blob_digest: Some(digest.to_proto()),
        ..Default::default()
    };
    assets.push(push(&digest)).await.unwrap();
    for uri in uris {
        let reversed = [commit[1], commit[0]];
        let answer = assets.get(uri, &reversed).await;
        assert_eq!((answer.blob_digest, answer.expires_at), (Some(digest.to_proto()), None));
        let unknown = assets.blob(request(&[uri], &commit[..1])).await.unwrap_err();
        assert_eq!(unknown.code(), Code::InvalidArgument);
    }
    assert_eq!(code(assets.get(uris[0], &[]).await.status.as_ref()), Code::PermissionDenied);

    let later = timestamp(std::time::SystemTime::now() + Duration::from_secs(3600));
    assets.push(PushBlobRequest { expire_at: Some(later), ..push(&digest) }).await.unwrap();
    assert_eq!(assets.get(uris[0], &commit).await.expires_at, Some(later));
    let past = proto::Timestamp { seconds: 1, nanos: 0 };
    assets.push(PushBlobRequest { expire_at: Some(past), ..push(&digest) }).await.unwrap();
    assert_eq!(assets.blob(request(&uris, &commit)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_push_names_only_what_is_in_the_cas() {
    let farm = Farm::start();
    let (assets, client) = (Assets::new(&farm).await, Client::new(&farm).await);
    let (here, absent) = (client.put("here").await, Function::Sha256.hash(b"absent"));
    let push = |digest: &Digest| PushBlobRequest {
        uris: owned(&["urn:x"]),
        blob_digest: Some(digest.to_proto()),
        ..Default::default()
    };
    let status = assets.push(push(&absent)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.get_details_precondition_failure().unwrap().violations.len(), 1);
    let references = PushBlobRequest {
        references_blobs: vec![here.to_proto(), absent.to_proto()],
        references_directories: vec![absent.to_proto()],
        ..push(&here)
    };
    let status = assets.push(references).await.unwrap_err();
    assert_eq!(status.get_details_precondition_failure().unwrap().violations.len(), 2);
    let lie = PushBlobRequest { qualifiers: qualifiers(&[("checksum.sri", SRI_WRONG)]), ..push(&here) };
    assert_eq!(assets.push(lie).await.unwrap_err().code(), Code::InvalidArgument);
    let truth = sri(b"here");
    let honest = PushBlobRequest { qualifiers: qualifiers(&[("checksum.sri", &truth)]), ..push(&here) };
    assets.push(honest).await.unwrap();
}

#[tokio::test]
async fn a_pushed_directory_is_whole() {
    let farm = Farm::start();
    let (assets, client) = (Assets::new(&farm).await, Client::new(&farm).await);
    let whole = client.put_inputs(&Inputs::default().file("a", "content of a")).await;
    let absent = rev2::FileNode {
        name: "b".into(),
        digest: Some(Function::Sha256.hash(b"absent").to_proto()),
        ..Default::default()
    };
    let broken = client.put_message(&rev2::Directory { files: vec![absent], ..Default::default() }).await;
    let push = |root: &Digest| PushDirectoryRequest {
        uris: owned(&["urn:tree"]),
        root_directory_digest: Some(root.to_proto()),
        ..Default::default()
    };
    let mut stub = assets.push.clone();
    assert_eq!(stub.push_directory(push(&broken)).await.unwrap_err().code(), Code::FailedPrecondition);
    stub.push_directory(push(&whole)).await.unwrap();
    let request = FetchDirectoryRequest { uris: owned(&["urn:tree"]), ..Default::default() };
    let answer = assets.directory(request).await.unwrap();
    assert_eq!(answer.root_directory_digest, Some(whole.to_proto()));
    // A blob of the same URI is another asset.
    assert_eq!(code(assets.get("urn:tree", &[]).await.status.as_ref()), Code::NotFound);
}

/// An archive as a release page offers it: one directory with a program in it, and bytes that hardly pack.
fn release() -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_000).collect();
    for (path, content, mode) in [("v1/bin/run", b"program".as_slice(), 0o755), ("v1/noise", &noise, 0o644)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        builder.append_data(&mut header, path, content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn tree_request(uri: &str, pairs: &[(&str, &str)]) -> FetchDirectoryRequest {
    FetchDirectoryRequest { uris: owned(&[uri]), qualifiers: qualifiers(pairs), ..Default::default() }
}

#[tokio::test]
async fn an_archive_becomes_a_directory_and_is_fetched_once() {
    let origin = Origin::start().await;
    let (farm, assets) = farm_for(&origin).await;
    let client = Client::new(&farm).await;
    let archive = release();
    let uri = origin.put("/v1.tar.gz", archive.clone());
    let sum = sri(&archive);
    let checked = ("checksum.sri", sum.as_str());
    let answer = assets.directory(tree_request(&uri, &[checked])).await.unwrap();
    assert_eq!(code(answer.status.as_ref()), Code::Ok, "{:?}", answer.status);
    let root = answer.root_directory_digest.unwrap();

    let part = assets.directory(tree_request(&uri, &[checked, ("directory", "v1/bin")])).await.unwrap();
    let digest = part.root_directory_digest.as_ref();
    let digest = Digest::from_proto(Function::Sha256, digest).unwrap();
    let bin: rev2::Directory =
        prost::Message::decode(client.read_blob(&digest).await.unwrap().as_slice()).unwrap();
    assert_eq!((bin.files[0].name.as_str(), bin.files[0].is_executable), ("run", true));
    assert_eq!(bin.files[0].digest, Some(Function::Sha256.hash(b"program").to_proto()));

    let again = assets.directory(tree_request(&uri, &[checked])).await.unwrap();
    assert_eq!(again.root_directory_digest, Some(root));
    assert_eq!(origin.requests("/v1.tar.gz").len(), 1);
    assert_eq!(std::fs::read_dir(farm.data().join("fetch")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_no_archive_to_unpack_is_told_in_the_response() {
    let origin = Origin::start().await;
    let (_farm, assets) = farm_for(&origin).await;
    let archive = release();
    let good = origin.put("/good.tgz", archive.clone());
    let bomb = origin.put("/bomb.tar.zst", zstd::encode_all(vec![0; 64 << 20].as_slice(), 1).unwrap());
    let wrong_sum = [("checksum.sri", SRI_WRONG)];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Code);
    let cases: [Case<'_>; 6] = [
        (&origin.url("/page"), &[], Code::Aborted),
        (&origin.url("/status/404"), &[], Code::NotFound),
        (&good, &[("directory", "v2")], Code::NotFound),
        (&good, &[("resource_type", "application/zip")], Code::Aborted),
        (&good, &wrong_sum, Code::Aborted),
        ("https://elsewhere.invalid/x.zip", &[], Code::PermissionDenied),
    ];
    for (uri, pairs, expected) in cases {
        let answer = assets.directory(tree_request(uri, pairs)).await.unwrap();
        assert_eq!(code(answer.status.as_ref()), expected, "{uri} {pairs:?}: {:?}", answer.status);
        assert_eq!(answer.root_directory_digest, None);
    }
    // Sixty-four million zeros are an empty archive: it ends where it begins.
    let answer =
        assets.directory(tree_request(&bomb, &[("resource_type", "application/zstd")])).await.unwrap();
    assert_eq!(answer.root_directory_digest, Some(Function::Sha256.hash(b"").to_proto()));
    let git = tree_request(&good, &[("resource_type", "application/x-git"), ("vcs.commit", "abc")]);
    assert_eq!(assets.directory(git).await.unwrap_err().code(), Code::InvalidArgument);
}
