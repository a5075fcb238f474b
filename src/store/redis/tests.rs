//! The tier over a real server.

use std::io::Write;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use futures_util::future::BoxFuture;

use super::*;
use crate::digest::Function;
use crate::store::contract::{Subject, holds};
use crate::store::servers::Server;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(server: &Server) -> Config {
    Config { blob_max: ByteSize::mib(16), ..Config::new(server.endpoint()) }
}

fn store(server: &Server) -> Arc<dyn Store> {
    open(&config(server)).unwrap()
}

/// Talks to the server beside the store.
async fn command<T: redis::FromRedisValue>(server: &Server, command: &redis::Cmd) -> T {
    let client = redis::Client::open(server.endpoint()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    command.query_async(&mut connection).await.unwrap()
}

async fn configure(server: &Server, key: &str, value: &str) {
    let _: () = command(server, redis::cmd("CONFIG").arg("SET").arg(key).arg(value)).await;
}

/// A figure of `INFO`.
async fn figure(server: &Server, name: &str) -> u64 {
    let text: String = command(server, redis::cmd("INFO").arg("stats")).await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().parse().unwrap()
}

/// All keys of the server and the milliseconds that each has left.
async fn keys_with_time_left(server: &Server) -> Vec<(Vec<u8>, i64)> {
    let keys: Vec<Vec<u8>> = command(server, redis::cmd("KEYS").arg("*")).await;
    let mut found = Vec::new();
    for key in keys {
        let left = command(server, redis::cmd("PTTL").arg(&key)).await;
        found.push((key, left));
    }
    found
}

fn blob(number: u32) -> (Key, Bytes) {
    let bytes = Bytes::from(number.to_le_bytes().repeat(50));
    (Key::Blob(Function::Sha256.hash(&bytes)), bytes)
}

async fn read(store: &dyn Store, key: &Key, start: u64) -> Option<Bytes> {
    let blob = store.get(key, start..).await.unwrap()?;
    Some(blob.into_bytes(1 << 30).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_contract() {
    let Some(server) = Server::redis() else { return };
    let checked = std::cell::Cell::new(0);
    let check = async || {
        let keys = keys_with_time_left(&server).await;
        assert!(keys.iter().all(|(_, left)| *left > 0), "a key without an end: {keys:?}");
        checked.set(checked.get() + keys.len());
    };
    let fresh = async || {
        check().await;
        let () = command(&server, &redis::cmd("FLUSHALL")).await;
        Subject { store: store(&server), kept: Box::new(()) }
    };
    holds("redis", fresh).await;
    check().await;
    assert!(checked.get() > 700, "{} keys were looked at", checked.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_an_end_and_every_use_puts_it_off() {
    let Some(server) = Server::redis() else { return };
    let store = store(&server);
    let day = Duration::from_secs(24 * 3600).as_millis() as i64;
    let batch: Vec<(Key, Bytes)> = (0..10).map(blob).collect();
    assert!(store.put_all(batch.clone()).await.iter().all(Result::is_ok));
    let asset = Key::Asset([1; 32]);
    store.put(&asset, Blob::Whole(Bytes::from_static(b"asset"))).await.unwrap();
    store.put(&blob(11).0, Blob::Whole(blob(11).1)).await.unwrap();
    let keys = keys_with_time_left(&server).await;
    assert_eq!(keys.len(), 12);
    assert!(keys.iter().all(|(name, left)| name.starts_with(b"croft:") && *left > 6 * day), "{keys:?}");

    let names: Vec<Vec<u8>> = keys.into_iter().map(|(name, _)| name).collect();
    let uses: [for<'a> fn(&'a dyn Store) -> BoxFuture<'a, ()>; 4] = [
        |store| Box::pin(async { assert!(read(store, &blob(3).0, 0).await.is_some()) }),
        |store| Box::pin(async { assert!(read(store, &blob(3).0, 7).await.is_some()) }),
        |store| Box::pin(async { assert!(store.missing(&[blob(3).0]).await.unwrap().is_empty()) }),
        |store| Box::pin(async { store.put(&blob(3).0, Blob::Whole(blob(3).1)).await.unwrap() }),
    ];
    for call in uses {
        for name in &names {
            let _: i64 = command(&server, redis::cmd("PEXPIRE").arg(name).arg(100_000)).await;
        }
        call(&*store).await;
        let keys = keys_with_time_left(&server).await;
        assert_eq!(keys.iter().filter(|(_, left)| *left > 6 * day).count(), 1, "{keys:?}");
        assert!(keys.iter().all(|(_, left)| *left > 0), "{keys:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_digests_is_asked_in_few_round_trips() {
    let Some(server) = Server::redis() else { return };
    let store = store(&server);
    let present: Vec<(Key, Bytes)> = (0..5_000).map(blob).collect();
    let before = figure(&server, "total_reads_processed").await;
    assert!(store.put_all(present.clone()).await.iter().all(Result::is_ok));
    let reads = figure(&server, "total_reads_processed").await - before;
    assert!(reads < 500, "{reads} reads for 5,000 blobs");

    let mixed: Vec<Key> = (0..10_000).map(|number| blob(number).0).collect();
    let before = figure(&server, "total_reads_processed").await;
    let start = Instant::now();
    let missing = store.missing(&mixed).await.unwrap();
    eprintln!("10,000 digests asked in {:?}", start.elapsed());
    assert_eq!(missing, mixed[5_000..]);
    let reads = figure(&server, "total_reads_processed").await - before;
    assert!(reads < 500, "{reads} reads for 10,000 digests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_another_length_is_absent_and_removed() {
    let Some(server) = Server::redis() else { return };
    let store = store(&server);
    let (key, bytes) = blob(1);
    let name = [b"croft:", Name::from(&key).as_bytes()].concat();
    for (start, damaged) in
        [(0, &bytes[..100]), (7, &bytes[..100]), (0, &[&bytes[..], b"x"].concat()), (7, b"")]
    {
        let () = command(&server, redis::cmd("SET").arg(&name).arg(damaged).arg("EX").arg(100)).await;
        assert_eq!(store.missing(std::slice::from_ref(&key)).await.unwrap(), std::slice::from_ref(&key));
        assert!(read(&*store, &key, start).await.is_none());
        assert_eq!(keys_with_time_left(&server).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_of_a_wrong_size_does_not_harm_the_right_blob() {
    let Some(server) = Server::redis() else { return };
    let store = store(&server);
    let (key, bytes) = blob(1);
    store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
    let Key::Blob(digest) = &key else { panic!("it is a blob") };
    let wrong = Key::Blob(Digest::new(digest.function(), digest.hash(), digest.size() + 1));
    assert!(read(&*store, &wrong, 0).await.is_none());
    assert!(read(&*store, &wrong, 5).await.is_none());
    assert_eq!(store.missing(std::slice::from_ref(&wrong)).await.unwrap(), [wrong]);
    assert_eq!(read(&*store, &key, 0).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_over_the_limit_is_refused_before_it_is_read() {
    let Some(server) = Server::redis() else { return };
    let store = open(&Config { blob_max: ByteSize::kib(1), ..config(&server) }).unwrap();
    let digest = Digest::new(Function::Sha256, &[1; 32], 1 << 40);
    let chunks = stream::once(async { panic!("it is read") }).boxed();
    let error = store.put(&Key::Blob(digest), Blob::Stream { size: 1 << 40, chunks }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    let large = Bytes::from(vec![1; 1025]);
    let batch = vec![blob(1), (Key::Blob(Function::Sha256.hash(&large)), large.clone()), blob(2)];
    let results = store.put_all(batch).await;
    assert!(results[0].is_ok() && results[2].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().kind(), Kind::Exhausted);
    let huge = Key::Blob(digest);
    assert!(store.get(&huge, 0..).await.unwrap().is_none());
    assert_eq!(store.missing(&[blob(1).0, huge.clone(), blob(2).0]).await.unwrap(), [huge]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_exhausted_and_still_read() {
    let Some(server) = Server::redis() else { return };
    let store = store(&server);
    let (key, bytes) = blob(1);
    store.put(&key, Blob::Whole(bytes.clone())).await.unwrap();
    configure(&server, "maxmemory", "1").await;
    let error = store.put(&blob(2).0, Blob::Whole(blob(2).1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted, "{}", error.chain());
    let results = store.put_all(vec![blob(3), blob(4)]).await;
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().kind() == Kind::Exhausted));
    assert_eq!(read(&*store, &key, 0).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_without_it_and_the_right_one_is_read_from_its_file() {
    let Some(server) = Server::redis() else { return };
    configure(&server, "requirepass", "hunter2").await;
    let with_password = |password: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{password}").unwrap();
        let store = open(&Config { password_file: Some(file.path().to_owned()), ..config(&server) });
        (store.unwrap(), file)
    };
    for (store, secret) in [(store(&server), "hunter2"), (with_password("hunter3").0, "hunter3")] {
        for _ in 0..3 {
            let error = store.missing(&[blob(1).0]).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(error.chain().contains("password_file"), "{}", error.chain());
            assert!(!error.chain().contains(secret));
        }
    }
    let (store, _file) = with_password("hunter2");
    store.put(&blob(1).0, Blob::Whole(blob(1).1)).await.unwrap();
    assert_eq!(read(&*store, &blob(1).0, 0).await.unwrap(), blob(1).1);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_calls_fail_at_once_and_later_go_on() {
    let Some(mut server) = Server::redis() else { return };
    let store = store(&server);
    for round in 0..3 {
        let traffic = stream::iter(0..400_u32).map(|number| {
            let (store, (key, bytes)) = (store.clone(), blob(1000 * round + number));
            async move {
                let put = store.put(&key, Blob::Whole(bytes.clone())).await;
                let outcomes = [
                    put.map(drop),
                    store.missing(std::slice::from_ref(&key)).await.map(drop),
                    store.get(&key, 0..).await.map(drop),
                ];
                outcomes.into_iter().filter_map(Result::err).for_each(|error| {
                    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
                });
            }
        });
        let stopped = async {
            tokio::task::yield_now().await;
            server.stop();
        };
        tokio::join!(traffic.buffer_unordered(16).for_each(async |()| {}), stopped);
        let start = Instant::now();
        for number in 0..100 {
            let error = store.get(&blob(number).0, 0..).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Unavailable);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        server.start();
        let (start, (key, bytes)) = (Instant::now(), blob(round));
        while store.put(&key, Blob::Whole(bytes.clone())).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "it does not come back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(read(&*store, &key, 0).await.unwrap(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_says_nothing_does_not_hold_up_a_call() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let short = Duration::from_millis(200);
    let store = open(&Config { timeout: short, connect_timeout: short, ..Config::new(url) }).unwrap();
    let start = Instant::now();
    for number in 0..50 {
        let error = store.missing(&[blob(number).0]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_pipeline_holds_what_it_may_and_no_blob_is_left_out() {
    let sizes = [10, PIPELINE_BYTES_MAX, 10, 300_000, 200_000, 100_000, 2 * PIPELINE_BYTES_MAX];
    let groups = grouped(sizes.into_iter().enumerate());
    assert_eq!(groups, [vec![0], vec![1], vec![2, 3, 4], vec![5], vec![6]]);
}
