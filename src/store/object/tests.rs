//! Object storage against real servers: the contract, and what is special about buckets.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tempfile::TempDir;

use super::*;
use crate::digest::Function;
use crate::error::Kind;
use crate::metrics::CLOUD_REQUESTS;
use crate::store::contract::{Subject, holds};
use crate::store::servers::{AZURE_ACCOUNT, AZURE_KEY, BUCKET, Server};

/// Small enough that the contract's blobs go in pieces where the service takes small ones.
const SMALL: Sizes = Sizes { single_max: 200_000, part: 300_000, range: 100_000 };

const WAIT_MAX: Duration = Duration::from_secs(60);

/// A configuration that owns what [`Provider`] borrows.
#[derive(Clone)]
enum Config {
    S3(S3),
    Gcs(Gcs),
    Azure(Azure),
    Fs(Fs),
}

impl Config {
    fn provider(&self) -> Provider<'_> {
        match self {
            Self::S3(config) => Provider::S3(config),
            Self::Gcs(config) => Provider::Gcs(config),
            Self::Azure(config) => Provider::Azure(config),
            Self::Fs(config) => Provider::Fs(config),
        }
    }

    fn requests(&mut self) -> &mut Requests {
        match self {
            Self::S3(config) => &mut config.requests,
            Self::Gcs(config) => &mut config.requests,
            Self::Azure(config) => &mut config.requests,
            Self::Fs(config) => &mut config.requests,
        }
    }

    /// The tier opened, in a part of the bucket that nobody else uses; it keeps what it knows in `state`.
    fn open(&self, prefix: &str, state: &Path, sizes: Sizes) -> Object {
        let mut config = self.clone();
        let requests = config.requests();
        requests.prefix = prefix.to_owned();
        requests.existence_max = 10_000.try_into().unwrap();
        Object::open(config.provider(), state, sizes).unwrap()
    }
}

fn s3(server: &Server, name: &str, key: &Path) -> Config {
    std::fs::write(key, "any\n").unwrap();
    let requests = Requests { allow_http: true, ..Requests::default() };
    Config::S3(S3 {
        name: Some(name.to_owned()),
        bucket: BUCKET.to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some("us-east-1".to_owned()),
        access_key_id: Some("any".to_owned()),
        secret_access_key_file: Some(PathBuf::from(key)),
        requests,
        ..S3::default()
    })
}

fn gcs(server: &Server, name: &str) -> Config {
    Config::Gcs(Gcs {
        name: Some(name.to_owned()),
        bucket: BUCKET.to_owned(),
        endpoint: Some(server.endpoint()),
        skip_signature: true,
        ..Gcs::default()
    })
}

fn azure(server: &Server, name: &str, key: &Path) -> Config {
    std::fs::write(key, format!("{AZURE_KEY}\n")).unwrap();
    Config::Azure(Azure {
        name: Some(name.to_owned()),
        container: BUCKET.to_owned(),
        account: AZURE_ACCOUNT.to_owned(),
        endpoint: Some(server.endpoint()),
        account_key_file: Some(PathBuf::from(key)),
        ..Azure::default()
    })
}

/// Runs `test` with each service that can be had.
async fn on_each_cloud(name: &str, test: impl AsyncFn(Config)) {
    let directory = TempDir::new().unwrap();
    if let Some(server) = Server::s3() {
        test(s3(&server, &format!("s3-{name}"), &directory.path().join("secret"))).await;
    }
    if let Some(server) = Server::gcs() {
        test(gcs(&server, &format!("gcs-{name}"))).await;
    }
    if let Some(server) = Server::azure() {
        test(azure(&server, &format!("azure-{name}"), &directory.path().join("key"))).await;
    }
}

async fn contract_holds(config: Config, sizes: Sizes) {
    let number = std::cell::Cell::new(0);
    let fresh = async || {
        let state = TempDir::new().unwrap();
        number.set(number.get() + 1);
        let store = config.open(&format!("contract/{}", number.get()), state.path(), sizes);
        Subject { store: Arc::new(store), kept: Box::new(state) }
    };
    holds(config.provider().label(), fresh).await;
}

fn content(size: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

fn key_of(bytes: &Bytes) -> Key {
    Key::Blob(Function::Sha256.hash(bytes))
}

/// Requests of one kind so far.
fn count(config: &Config, kind: &str) -> u64 {
    CLOUD_REQUESTS.with_label_values(&[config.provider().label(), kind]).get()
}

fn count_all(config: &Config) -> u64 {
    ["put", "get", "head", "copy", "delete", "part"].iter().map(|kind| count(config, kind)).sum()
}

async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not after {WAIT_MAX:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn read(store: &Object, key: &Key) -> Option<Bytes> {
    let blob = store.get(key, 0..).await.unwrap()?;
    Some(blob.into_bytes(1 << 30).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract() {
    let Some(server) = Server::s3() else { return };
    let directory = TempDir::new().unwrap();
    contract_holds(s3(&server, "s3-contract", &directory.path().join("secret")), Sizes::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs_keeps_the_contract() {
    let Some(server) = Server::gcs() else { return };
    contract_holds(gcs(&server, "gcs-contract"), Sizes::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_keeps_the_contract() {
    let Some(server) = Server::azure() else { return };
    let directory = TempDir::new().unwrap();
    contract_holds(azure(&server, "azure-contract", &directory.path().join("key")), Sizes::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_in_small_pieces_keeps_the_contract() {
    let Some(server) = Server::azure() else { return };
    let directory = TempDir::new().unwrap();
    contract_holds(azure(&server, "azure-pieces", &directory.path().join("key")), SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fs_keeps_the_contract() {
    for sizes in [Sizes::default(), SMALL] {
        let directory = TempDir::new().unwrap();
        let config = Config::Fs(Fs { path: directory.path().to_owned(), ..Fs::default() });
        contract_holds(config, sizes).await;
        let left = std::fs::read_dir(directory.path().join("tmp")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "temporary files are left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_hash_with_a_wrong_size_finds_nothing_and_costs_nothing() {
    let directory = TempDir::new().unwrap();
    let config = Config::Fs(Fs { path: directory.path().join("fs"), ..Fs::default() });
    let store = config.open("", &directory.path().join("state"), Sizes::default());
    let bytes = content(1_000, 1);
    let digest = Function::Sha256.hash(&bytes);
    store.put(&Key::Blob(digest), Blob::Whole(bytes.clone())).await.unwrap();
    for wrong in [1, 999, 1_001, 2_000] {
        let wrong = Key::Blob(crate::digest::Digest::new(Function::Sha256, digest.hash(), wrong));
        for start in [0, 1] {
            assert!(store.get(&wrong, start..).await.unwrap().is_none());
        }
        // The existence memory knows the right one at this point.
        assert_eq!(store.missing(std::slice::from_ref(&wrong)).await.unwrap(), [wrong]);
    }
    let beyond = Key::Blob(crate::digest::Digest::new(Function::Sha256, digest.hash(), 2_000));
    assert!(store.get(&beyond, 1_500..).await.unwrap().is_none());
    assert!(read(&store, &Key::Blob(digest)).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_to_exist_costs_no_request() {
    on_each_cloud("known", async |config| {
        let state = TempDir::new().unwrap();
        let store = config.open("known", state.path(), Sizes::default());
        let blobs: Vec<Bytes> = (0..50).map(|seed| content(1_000, seed)).collect();
        let keys: Vec<Key> = blobs.iter().map(key_of).collect();
        for (key, bytes) in keys.iter().zip(&blobs) {
            store.put(key, Blob::Whole(bytes.clone())).await.unwrap();
        }
        let before = count_all(&config);
        assert_eq!(store.missing(&keys).await.unwrap(), []);
        assert_eq!(count_all(&config), before);

        let cold = config.open("known", TempDir::new().unwrap().path(), Sizes::default());
        assert_eq!(cold.missing(&keys).await.unwrap(), []);
        assert_eq!(count(&config, "head") - before + count_all(&config) - count(&config, "head"), 50);
        let before = count_all(&config);
        assert_eq!(cold.missing(&keys).await.unwrap(), []);
        assert_eq!(count_all(&config), before);

        cold.remove(&keys[0]).await.unwrap();
        assert_eq!(cold.missing(&keys).await.unwrap(), [keys[0].clone()]);
        // The other one learns of it when it reads.
        assert!(read(&store, &keys[0]).await.is_none());
        assert_eq!(store.missing(&keys).await.unwrap(), [keys[0].clone()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_digests_are_asked_for_once() {
    let Some(server) = Server::gcs() else { return };
    let config = gcs(&server, "gcs-ten-thousand");
    let state = TempDir::new().unwrap();
    let store = config.open("many", state.path(), Sizes::default());
    let keys: Vec<Key> =
        (0..10_000_u32).map(|number| key_of(&Bytes::copy_from_slice(&number.to_le_bytes()))).collect();
    let start = Instant::now();
    assert_eq!(store.missing(&keys).await.unwrap().len(), 10_000);
    eprintln!("10,000 absent digests, asked for: {:?}", start.elapsed());
    assert_eq!(count(&config, "head"), 10_000);

    let until = store.clock.now() + 1_000;
    keys.iter().for_each(|key| store.existence.learn(key, until));
    let start = Instant::now();
    assert_eq!(store.missing(&keys).await.unwrap(), []);
    eprintln!("10,000 known digests: {:?}", start.elapsed());
    assert_eq!(count(&config, "head"), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_gone_is_unavailable_and_nothing_is_absent() {
    let Some(mut server) = Server::gcs() else { return };
    let config = gcs(&server, "gcs-gone");
    let state = TempDir::new().unwrap();
    let store = config.open("gone", state.path(), Sizes::default());
    let blob = content(1_000, 1);
    store.put(&key_of(&blob), Blob::Whole(blob.clone())).await.unwrap();
    server.stop();
    let keys: Vec<Key> =
        (0..10_000_u32).map(|number| key_of(&Bytes::copy_from_slice(&number.to_le_bytes()))).collect();
    assert_eq!(store.missing(&keys).await.unwrap_err().kind(), Kind::Unavailable);
    let error = store.get(&key_of(&blob), 0..).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.public_message().contains("gcs-gone"), "{error}");
    assert!(!error.public_message().contains("127.0.0.1"), "{error}");
    assert_eq!(
        store.put(&key_of(&blob), Blob::Whole(blob.clone())).await.unwrap_err().kind(),
        Kind::Unavailable
    );
    assert_eq!(store.remove(&keys[0]).await.unwrap_err().kind(), Kind::Unavailable);
    server.start();
    assert_eq!(read(&store, &key_of(&blob)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_when_it_is_old_becomes_young() {
    on_each_cloud("old", async |config| {
        let state = TempDir::new().unwrap();
        let store = config.open("old", state.path(), Sizes::default());
        let blob = content(100_000, 1);
        let keys = [key_of(&blob), Key::Asset([7; 32])];
        for key in &keys {
            store.put(key, Blob::Whole(blob.clone())).await.unwrap();
            store.clock.advance_days(61);
            let before = store.bucket.find(&Name::from(key)).await.unwrap().unwrap();
            // The service tells whole seconds.
            let second = store.clock.now();
            wait_until("the next second", || store.clock.now() > second + 1).await;
            assert_eq!(read(&store, key).await.unwrap(), blob);
            assert_eq!(store.missing(std::slice::from_ref(key)).await.unwrap(), []);
            wait_until("refreshed", || store.refresher.is_idle()).await;
            let after = store.bucket.find(&Name::from(key)).await.unwrap().unwrap();
            let copies = count(&config, "copy");
            assert!(
                after.modified > before.modified,
                "{}: {key:?}, {copies} copies: {before:?}, {after:?}",
                config.provider().label()
            );
            assert_eq!(read(&store, key).await.unwrap(), blob);
            wait_until("refreshed", || store.refresher.is_idle()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_is_about_to_delete_is_absent_until_it_is_sent_again() {
    let Some(server) = Server::gcs() else { return };
    let mut config = gcs(&server, "gcs-expiring");
    if let Config::Gcs(Gcs { lifecycle, .. }) = &mut config {
        lifecycle.colder_after = Age::Never;
    }
    let state = TempDir::new().unwrap();
    let store = config.open("expiring", state.path(), Sizes::default());
    let blob = content(1_000, 1);
    let key = key_of(&blob);
    store.put(&key, Blob::Whole(blob.clone())).await.unwrap();
    store.clock.advance_days(363);
    let found = store.bucket.find(&Name::from(&key)).await.unwrap().unwrap();
    assert!(matches!(store.policy.judge(found.modified, store.clock.now()), Verdict::Ageing { .. }));
    store.clock.advance_days(1);
    assert_eq!(store.missing(std::slice::from_ref(&key)).await.unwrap(), std::slice::from_ref(&key));
    assert_eq!(read(&store, &key).await.unwrap(), blob);
    wait_until("refreshed", || store.refresher.is_idle()).await;
    store.put(&key, Blob::Whole(blob)).await.unwrap();
    assert_eq!(store.missing(std::slice::from_ref(&key)).await.unwrap(), []);
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_go_in_parts_and_come_in_ranges_in_bounded_memory() {
    const SIZE: usize = 96 << 20;
    const PIECE: usize = 1 << 20;
    let directory = TempDir::new().unwrap();
    let servers = [Server::s3(), Server::azure()];
    let configs = servers.iter().flatten().map(|server| match server.endpoint().contains(AZURE_ACCOUNT) {
        true => azure(server, "azure-large", &directory.path().join("key")),
        false => s3(server, "s3-large", &directory.path().join("secret")),
    });
    // No two pieces are equal: each begins elsewhere in the same random bytes.
    let random = content(2 * PIECE, 1);
    let piece = |number: usize| random.slice(number * 7919..number * 7919 + PIECE);
    for config in configs {
        let state = TempDir::new().unwrap();
        let store = config.open("large", state.path(), Sizes::default());
        let label = config.provider().label().to_owned();
        let pieces: Vec<_> = (0..SIZE / PIECE).map(|number| Ok(piece(number))).collect();
        let key = Key::Blob(crate::digest::Digest::new(Function::Sha256, &[5; 32], SIZE as u64));
        let before = resident();
        let start = Instant::now();
        store
            .put(&key, Blob::Stream { size: SIZE as u64, chunks: stream::iter(pieces).boxed() })
            .await
            .unwrap();
        let written = start.elapsed();
        assert!(count(&config, "part") >= 12, "{label}");
        for parallel in [true, false] {
            let reads = store.bucket.shared.parallel_reads.clone();
            let held = (!parallel).then(|| reads.try_acquire_many_owned(8).unwrap());
            let start = Instant::now();
            let mut chunks = store.get(&key, 0..).await.unwrap().unwrap().into_chunks();
            let mut at = 0;
            while let Some(mut chunk) = chunks.try_next().await.unwrap() {
                while !chunk.is_empty() {
                    let head = chunk.split_to(chunk.len().min(PIECE - at % PIECE));
                    assert!(
                        head == piece(at / PIECE).slice(at % PIECE..at % PIECE + head.len()),
                        "{label}: at {at}"
                    );
                    at += head.len();
                }
            }
            assert_eq!(at, SIZE, "{label}");
            let (took, grown) = (start.elapsed(), resident().saturating_sub(before) >> 20);
            eprintln!(
                "{label}: 96 MiB written in {written:?}, read (parallel: {parallel}) in {took:?}, +{grown} MiB"
            );
            assert!(grown < 90, "{label}: {grown} MiB more in memory");
            drop(held);
        }
        let rest = store.get(&key, SIZE as u64 - 9..).await.unwrap().unwrap().into_bytes(100).await.unwrap();
        assert_eq!(rest, piece(SIZE / PIECE - 1).slice(PIECE - 9..), "{label}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_is_aborted() {
    let Some(server) = Server::s3() else { return };
    let state = TempDir::new().unwrap();
    let config = s3(&server, "s3-dropped", &state.path().join("secret"));
    let store = config.open("dropped", state.path(), Sizes::default());
    let key = Key::Blob(crate::digest::Digest::new(Function::Sha256, &[6; 32], 64 << 20));
    let chunks =
        stream::iter((0..30).map(|seed| Ok(content(1 << 20, seed)))).chain(stream::pending()).boxed();
    let put = store.put(&key, Blob::Stream { size: 64 << 20, chunks });
    let begun = wait_until("parts are sent", || count(&config, "part") >= 3);
    tokio::select! {
        result = put => panic!("it ended: {result:?}"),
        () = begun => {}
    }
    let all = bucket::UPLOAD_MEMORY_KIB;
    wait_until("given up", || store.bucket.shared.upload_memory.available_permits() == all).await;
    assert!(read(&store, &key).await.is_none());
    let uploads = format!("{}/{BUCKET}?uploads", server.endpoint());
    let listing = reqwest::get(uploads).await.unwrap().text().await.unwrap();
    assert!(!listing.contains("<UploadId>"), "{listing}");
}

/// Figures for `docs/decisions/0009-one-object-a-blob.md`; run by hand.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn small_objects_a_second() {
    on_each_cloud("speed", async |config| {
        let state = TempDir::new().unwrap();
        for parallel in [1, 8, 64] {
            let store = config.open(&format!("speed/{parallel}"), state.path(), Sizes::default());
            let total = 1_000;
            let blobs: Vec<Bytes> = (0..total).map(|seed| content(1_024, seed)).collect();
            let keys: Vec<Key> = blobs.iter().map(key_of).collect();
            let start = Instant::now();
            stream::iter(keys.iter().zip(&blobs))
                .map(|(key, blob)| store.put(key, Blob::Whole(blob.clone())))
                .buffer_unordered(parallel)
                .try_collect::<Vec<()>>()
                .await
                .unwrap();
            let put = start.elapsed();
            let start = Instant::now();
            stream::iter(&keys)
                .map(|key| read(&store, key))
                .buffer_unordered(parallel)
                .collect::<Vec<_>>()
                .await;
            let rate = |time: Duration| total as f64 / time.as_secs_f64();
            let label = config.provider().label();
            eprintln!(
                "{label}, {parallel} at a time: {:.0} puts/s, {:.0} gets/s",
                rate(put),
                rate(start.elapsed())
            );
        }
    })
    .await;
}
