//! The tier over real servers: the program itself, found beside the test's executable.

use std::io::{BufRead, BufReader};
use std::ops::RangeFrom;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use prost::Message;
use tempfile::TempDir;

use super::{Config, Mode, open};
use crate::digest::{Digest, Function};
use crate::error::{Kind, Result};
use crate::proto::rev2::ActionResult;
use crate::store::contract::{Subject, holds};
use crate::store::{ActionKey, Blob, Key, RESULT_MAX, Store};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with data of its own. Dropping it kills it.
struct Server {
    program: PathBuf,
    child: Option<Child>,
    public: String,
    data: TempDir,
}

impl Server {
    /// `count` servers; `None` when the program is not built.
    fn start_all(count: usize) -> Option<Vec<Self>> {
        let program = std::env::current_exe().unwrap().parent()?.parent()?.join("croft");
        if !program.exists() {
            eprintln!("skipped: the program is not built (cargo build)");
            return None;
        }
        let start = |_| {
            let data = tempfile::tempdir().unwrap();
            let mut server =
                Self { program: program.clone(), child: None, public: "127.0.0.1:0".to_owned(), data };
            server.start();
            server
        };
        Some((0..count).map(start).collect())
    }

    /// Starts it, for the second time at the address that it had.
    fn start(&mut self) {
        let mut child = Command::new(&self.program)
            .env("CROFT_DATA", self.data.path())
            .env("CROFT_PUBLIC__LISTEN", &self.public)
            .env("CROFT_ADMIN__LISTEN", "127.0.0.1:0")
            .env("CROFT_LOG__FILTER", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        self.child = Some(child);
        let mut greeting = String::new();
        while !greeting.contains("Ctrl-C stops the farm") {
            assert!(output.read_line(&mut greeting).unwrap() > 0, "the server did not start: {greeting}");
        }
        let address = greeting.split("grpc://").nth(1).unwrap();
        self.public = address.split_whitespace().next().unwrap().to_owned();
        // Nobody reads on; a full pipe must not stop the server.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The server alone, as a store.
    fn alone(&self) -> Arc<dyn Store> {
        open(&config(std::slice::from_ref(self), Mode::Shards)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn config(servers: &[Server], mode: Mode) -> Config {
    let endpoints = servers.iter().map(|server| format!("http://{}", server.public)).collect();
    Config { connections: 2, ..Config::new(endpoints, mode) }
}

/// What the contract stores under assets, which the API does not have, goes as standard output of action results.
struct AssetsAsResults(Arc<dyn Store>);

fn disguised(key: &Key) -> Key {
    let Key::Asset(hash) = key else { return key.clone() };
    let digest = Digest::new(Function::Sha256, hash, 1);
    Key::Action(ActionKey { instance: "assets".into(), digest })
}

#[async_trait]
impl Store for AssetsAsResults {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let Key::Asset(_) = key else { return self.0.get(key, range).await };
        let Some(blob) = self.0.get(&disguised(key), 0..).await? else { return Ok(None) };
        let result = ActionResult::decode(blob.into_bytes(RESULT_MAX).await?).unwrap();
        Ok(Some(Blob::Whole(result.stdout_raw.into()).starting_at(range.start)?))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        let Key::Asset(_) = key else { return self.0.put(key, blob).await };
        let stdout_raw = blob.into_bytes(RESULT_MAX).await?.into();
        let result = ActionResult { stdout_raw, ..ActionResult::default() };
        self.0.put(&disguised(key), Blob::Whole(result.encode_to_vec().into())).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.0.missing(keys).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.0.remove(key).await
    }

    async fn size_of(&self, function: Function, hash: &[u8]) -> Result<Option<u64>> {
        self.0.size_of(function, hash).await
    }

    async fn put_all(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<()>> {
        self.0.put_all(blobs).await
    }
}

async fn holds_over(name: &str, count: usize, mode: Mode) {
    if Server::start_all(0).is_none() {
        return;
    }
    holds(name, async || {
        let servers = Server::start_all(count).expect("it was built a moment ago");
        let store = Arc::new(AssetsAsResults(open(&config(&servers, mode)).unwrap()));
        Subject { store, kept: Box::new(servers) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_keeps_the_contract() {
    holds_over("farm", 1, Mode::Shards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_shards_keep_the_contract() {
    holds_over("shards", 3, Mode::Shards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_keep_the_contract() {
    holds_over("replicas", 2, Mode::Replicas).await;
}

fn content(size: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

fn key_of(bytes: &Bytes) -> Key {
    Key::Blob(Function::Blake3.hash(bytes))
}

fn streamed(bytes: &Bytes) -> Blob {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Blob::Stream { size: bytes.len() as u64, chunks: stream::iter(pieces).boxed() }
}

async fn read(store: &dyn Store, key: &Key) -> Result<Option<Bytes>> {
    match store.get(key, 0..).await? {
        Some(blob) => Ok(Some(blob.into_bytes(1 << 30).await?)),
        None => Ok(None),
    }
}

/// Waits until `is_so`; a server that came back is tried again after a pause.
async fn wait_until(what: &str, is_so: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Blobs on both sides of what is sent in a batch, spooled, or copied from the first replica.
fn blobs(seed: u64) -> Vec<Bytes> {
    [100, 300_000, 3_000_000].into_iter().map(|size| content(size, seed + size as u64)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_is_told_by_whichever_server_has_the_blob() {
    let Some(mut servers) = Server::start_all(2) else { return };
    let stores = [Mode::Shards, Mode::Replicas].map(|mode| open(&config(&servers, mode)).unwrap());
    for (seed, store) in stores.iter().enumerate() {
        assert!(store.finds_by_hash().await);
        for seed in (0..10).map(|number| number + 100 * seed as u64) {
            let bytes = content(1000 + seed as usize, seed);
            let digest = Function::Sha256.hash(&bytes);
            assert_eq!(store.size_of(Function::Sha256, digest.hash()).await.unwrap(), None);
            store.put(&Key::Blob(digest), Blob::Whole(bytes.clone())).await.unwrap();
            let size = Some(bytes.len() as u64);
            assert_eq!(store.size_of(Function::Sha256, digest.hash()).await.unwrap(), size);
            assert_eq!(store.size_of(Function::Blake3, digest.hash()).await.unwrap(), None);
        }
    }
    let digest = Function::Sha256.hash(&content(1100, 100));
    servers[0].stop();
    assert_eq!(stores[1].size_of(Function::Sha256, digest.hash()).await.unwrap(), Some(1100));
    servers[1].stop();
    let error = stores[1].size_of(Function::Sha256, digest.hash()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(open(&config(&servers, Mode::Shards)).unwrap().finds_by_hash().await, "that cannot be found out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_down_is_unavailable_at_once_and_comes_back_by_itself() {
    let Some(mut servers) = Server::start_all(2) else { return };
    let store = open(&config(&servers, Mode::Shards)).unwrap();
    let blobs: Vec<Bytes> = (0..40).map(|seed| content(1000, seed)).collect();
    let keys: Vec<Key> = blobs.iter().map(key_of).collect();
    let batch = keys.iter().cloned().zip(blobs.iter().cloned()).collect();
    assert!(store.put_all(batch).await.iter().all(Result::is_ok));
    let there = servers[0].alone().missing(&keys).await.unwrap();
    assert!((5..35).contains(&there.len()), "the keys are not spread: {}", there.len());

    servers[0].stop();
    let start = Instant::now();
    for (key, bytes) in keys.iter().zip(&blobs) {
        match read(&*store, key).await {
            Ok(found) => assert!(there.contains(key) && found.unwrap() == bytes),
            Err(error) => assert!(!there.contains(key) && error.kind() == Kind::Unavailable, "{error}"),
        }
    }
    assert_eq!(store.missing(&keys).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    servers[0].start();
    wait_until("the shard is asked again", async || store.missing(&keys).await.is_ok()).await;
    assert!(store.missing(&keys).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_down_is_done_without_and_repaired_when_it_is_back() {
    let Some(mut servers) = Server::start_all(2) else { return };
    let all = open(&config(&servers, Mode::Replicas)).unwrap();
    let any = open(&Config { replicas_min: Some(1), ..config(&servers, Mode::Replicas) }).unwrap();
    let old = blobs(1);
    for bytes in &old {
        all.put(&key_of(bytes), streamed(bytes)).await.unwrap();
    }
    let old_keys: Vec<Key> = old.iter().map(key_of).collect();
    for server in &servers {
        assert!(
            server.alone().missing(&old_keys).await.unwrap().is_empty(),
            "a replica lacks what was stored"
        );
    }

    servers[1].stop();
    for bytes in &old {
        assert!(read(&*all, &key_of(bytes)).await.unwrap().unwrap() == bytes);
    }
    assert!(all.missing(&old_keys).await.unwrap().is_empty());
    let new = blobs(2);
    let absent = key_of(&content(10, 99));
    for bytes in &new {
        // Until the server is known to be away, a stream may be sent to it first.
        wait_until("it is stored", async || any.put(&key_of(bytes), streamed(bytes)).await.is_ok()).await;
        assert_eq!(all.put(&key_of(bytes), streamed(bytes)).await.unwrap_err().kind(), Kind::Unavailable);
        assert!(read(&*any, &key_of(bytes)).await.unwrap().unwrap() == bytes);
    }
    // With all replicas written, one that answers knows; with one written, the other may have it.
    assert!(read(&*all, &absent).await.unwrap().is_none());
    assert_eq!(read(&*any, &absent).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(any.missing(std::slice::from_ref(&absent)).await.unwrap(), [absent]);

    servers[1].start();
    let (keys, back): (Vec<Key>, _) = (new.iter().map(key_of).collect(), servers[1].alone());
    assert_eq!(back.missing(&keys).await.unwrap(), keys);
    wait_until("the replica is repaired", async || {
        assert!(any.missing(&keys).await.unwrap().is_empty());
        back.missing(&keys).await.unwrap().is_empty()
    })
    .await;

    servers.iter_mut().for_each(Server::stop);
    for store in [&all, &any] {
        assert_eq!(store.missing(&keys).await.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(read(&**store, &keys[0]).await.unwrap_err().kind(), Kind::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_finds_a_replica_without_a_blob_has_it_repaired() {
    let Some(servers) = Server::start_all(2) else { return };
    let store = open(&config(&servers, Mode::Replicas)).unwrap();
    let alone: Vec<_> = servers.iter().map(Server::alone).collect();
    for (bytes, holder) in blobs(3).iter().zip([0, 1, 0]) {
        let key = key_of(bytes);
        alone[holder].put(&key, Blob::Whole(bytes.clone())).await.unwrap();
        wait_until("the other replica has it", async || {
            assert!(read(&*store, &key).await.unwrap().unwrap() == bytes);
            alone[1 - holder].missing(std::slice::from_ref(&key)).await.unwrap().is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_killed_under_traffic_lose_nothing_that_was_acknowledged() {
    let Some(mut servers) = Server::start_all(2) else { return };
    let store = open(&config(&servers, Mode::Replicas)).unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let victim = round % 2;
        let puts = (0..30).map(|number| {
            let bytes =
                content(if number % 5 == 0 { 1_500_000 } else { 2_000 }, 1_000 * round as u64 + number);
            let store = Arc::clone(&store);
            async move { store.put(&key_of(&bytes), streamed(&bytes)).await.is_ok().then_some(bytes) }
        });
        let kill = async {
            tokio::task::yield_now().await;
            servers[victim].stop();
        };
        let (stored, ()) = tokio::join!(stream::iter(puts).buffer_unordered(8).collect::<Vec<_>>(), kill);
        acknowledged.extend(stored.into_iter().flatten());
        for bytes in &acknowledged {
            assert!(read(&*store, &key_of(bytes)).await.unwrap().unwrap() == bytes, "round {round}");
        }
        servers[victim].start();
        let bytes = content(10, round as u64);
        wait_until("writes go on", async || store.put(&key_of(&bytes), streamed(&bytes)).await.is_ok()).await;
        acknowledged.push(bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_keep_their_instance_and_assets_are_not_kept() {
    let Some(servers) = Server::start_all(1) else { return };
    let store = servers[0].alone();
    let digest = Function::Blake3.hash(b"action");
    let [mine, other] =
        ["mine", "other"].map(|instance| Key::Action(ActionKey { instance: instance.into(), digest }));
    let result = Bytes::from(ActionResult { exit_code: 3, ..ActionResult::default() }.encode_to_vec());
    store.put(&mine, Blob::Whole(result.clone())).await.unwrap();
    assert_eq!(read(&*store, &mine).await.unwrap().unwrap(), result);
    assert_eq!(store.missing(&[other.clone(), mine.clone()]).await.unwrap(), std::slice::from_ref(&other));
    assert_eq!(read(&*store, &other).await.unwrap(), None);
    let nonsense = Blob::Whole(Bytes::from_static(b"\xff\xff"));
    assert_eq!(store.put(&other, nonsense).await.unwrap_err().kind(), Kind::Invalid);

    let asset = Key::Asset([1; 32]);
    store.put(&asset, Blob::Whole(result)).await.unwrap();
    assert_eq!(store.missing(std::slice::from_ref(&asset)).await.unwrap(), std::slice::from_ref(&asset));
    assert_eq!(read(&*store, &asset).await.unwrap(), None);
    store.remove(&mine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_digests_of_two_functions_are_asked_in_few_calls() {
    let Some(servers) = Server::start_all(1) else { return };
    let store = servers[0].alone();
    let blobs: Vec<(Key, Bytes)> = (0..3_000_u32)
        .map(|number| {
            let bytes = Bytes::copy_from_slice(&number.to_le_bytes());
            (Key::Blob(Function::ALL[number as usize % 2].hash(&bytes)), bytes)
        })
        .collect();
    assert!(store.put_all(blobs.clone()).await.iter().all(Result::is_ok));
    let absent = (10_000..32_000_u32).map(|number| Key::Blob(Function::Sha256.hash(&number.to_le_bytes())));
    let absent: Vec<Key> = absent.collect();
    let mixed: Vec<Key> = blobs.iter().map(|(key, _)| key.clone()).chain(absent.clone()).collect();
    let start = Instant::now();
    assert_eq!(store.missing(&mixed).await.unwrap(), absent);
    eprintln!("25,000 digests asked in {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_does_not_hold_up_a_call() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let short = Duration::from_millis(200);
    let config =
        Config { timeout: short, connect_timeout: short, ..Config::new(vec![endpoint], Mode::Shards) };
    let start = Instant::now();
    let large = content(3_000_000, 1);
    for _ in 0..20 {
        let store = open(&config).unwrap();
        for _ in 0..3 {
            let kinds = [
                store.missing(&[key_of(&large)]).await.map(drop),
                store.get(&key_of(&large), 0..).await.map(drop),
                store.put(&key_of(&large), streamed(&large)).await,
            ];
            for kind in kinds.map(|result| result.unwrap_err().kind()) {
                assert_eq!(kind, Kind::Unavailable);
            }
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
