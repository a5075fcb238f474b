//! Trouble that is made on purpose: each of the contract's metrics has the value that it must have, its alert fires, and it clears.
//!
//! The rules are ours but for their durations: what an operator waits minutes for takes seconds here.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use croft::proto::longrunning::CancelOperationRequest;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{ALERTS, LOOK_BACK, PATIENCE, POLL, Prometheus, action, begin, free_address, impatient};
use crate::client::{Client, pieces};
use crate::farm::Farm;

/// A little more than the threshold of slow requests.
const HELD: Duration = Duration::from_millis(5500);

/// The writes of the test.
const WRITES: &str = "method=\"ByteStream/Write\",code=\"Ok\"";

/// What is lost with one worker: over 5 minutes, 6 a minute.
const LOST: usize = 30;

/// A farm with one worker of its own, and who looks at it.
struct Trouble {
    farm: Farm,
    client: Client,
    prometheus: Prometheus,
}

impl Trouble {
    /// None when the machine has no Prometheus.
    async fn start() -> Option<Self> {
        let farm = Farm::start_with(&[
            ("CROFT_WORKERS__LISTEN", "127.0.0.1:0"),
            ("CROFT_SCHEDULER__UNSATISFIABLE_AFTER", "10m"),
            ("CROFT_SCHEDULER__ABANDON_AFTER", "10m"),
            ("CROFT_SCHEDULER__RECONNECT_WITHIN", "1s"),
        ]);
        let prometheus = Prometheus::start(&[&farm.admin], &impatient())?;
        let client = Client::new(&farm).await;
        Some(Self { farm, client, prometheus })
    }

    /// A worker of the pool `doomed` with room for all that is to be lost, once it is connected.
    async fn join(&self, data: &Path) -> Farm {
        let worker = Farm::start_in(
            data,
            &[
                ("CROFT_ROLES", "[\"worker\"]"),
                ("CROFT_WORKER__NAME", "doomed"),
                ("CROFT_WORKER__PROPERTIES", "{Pool=[\"doomed\"]}"),
                ("CROFT_WORKER__SLOTS", &LOST.to_string()),
                ("CROFT_WORKER__SCHEDULER", &format!("grpc://{}", self.farm.workers)),
                (
                    "CROFT_STORAGE__TIER",
                    &format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", self.farm.public),
                ),
            ],
        );
        self.prometheus.until_value("nativelink_worker_active_count", 2.0).await;
        worker
    }

    async fn cancel(&self, names: Vec<String>) {
        for name in names {
            self.client.operations.clone().cancel_operation(CancelOperationRequest { name }).await.unwrap();
        }
    }

    /// A write whose client takes its time. What comes back is how long it took the client.
    fn hold_a_write(&self) -> JoinHandle<Duration> {
        let client = self.client.clone();
        tokio::spawn(async move {
            let content = Bytes::from(vec![7; 300 << 10]);
            let name = format!("uploads/{}/blobs/{}", uuid::Uuid::new_v4(), client.function.hash(&content));
            let mut pieces = pieces(&name, &content, 0);
            let last = pieces.pop().unwrap();
            let slow = late_at_the_end(pieces, last);
            let start = Instant::now();
            client.bytes.clone().write(slow).await.unwrap();
            start.elapsed()
        })
    }

    async fn hits_are_3_of_10_and_then_more(&self) {
        let digest = self.client.put(vec![7; 1000]).await;
        for _ in 0..3 {
            self.client.read_blob(&digest).await.unwrap();
        }
        for number in 0..7u8 {
            self.client.read_blob(&self.client.function.hash(&[number])).await.unwrap_err();
        }
        self.prometheus.until_value("nativelink_cas_hit_rate", 0.3).await;
        self.prometheus.until("CroftLowHitRate", true).await;
        for _ in 0..20 {
            self.client.read_blob(&digest).await.unwrap();
        }
        self.prometheus.until_value("nativelink_cas_hit_rate", 23.0 / 30.0).await;
        self.prometheus.until("CroftLowHitRate", false).await;
    }

    /// What is slow for the client is what is slow for the farm.
    async fn as_many_writes_are_slow_as_the_client_has_seen(&self, took: &[Duration]) {
        let slow = took.iter().filter(|took| took.as_secs() >= 5).count();
        assert!(slow >= 1, "{took:?}");
        self.prometheus.until("CroftSlowRequests", true).await;
        let all = format!("nativelink_request_duration_seconds_count{{{WRITES}}}");
        let fast = format!("nativelink_request_duration_seconds_bucket{{{WRITES},le=\"5\"}}");
        self.prometheus.until_value(&all, took.len() as f64).await;
        self.prometheus.until_value(&fast, (took.len() - slow) as f64).await;
    }

    async fn a_hundred_and_fifty_wait(&self) {
        const WAITING: usize = 150;
        let mut names = Vec::new();
        for number in 0..WAITING {
            let action = action(&self.client, &format!("echo {number}"), "nowhere").await;
            names.push(begin(&self.client, &action).await);
        }
        self.prometheus.until_value("nativelink_scheduler_queue_length", 150.0).await;
        self.prometheus.until("CroftQueueLong", true).await;
        self.cancel(names).await;
        self.prometheus.until_value("nativelink_scheduler_queue_length", 0.0).await;
        self.prometheus.until("CroftQueueLong", false).await;
    }

    /// A worker is killed with all that it runs, and comes back.
    async fn a_worker_is_lost(&self) {
        const FAILURES: &str = "nativelink_worker_execution_failures";
        let data = TempDir::new().unwrap();
        let mut worker = self.join(data.path()).await;
        self.prometheus.until("CroftFewWorkers", false).await;
        let mut names = Vec::new();
        for number in 0..LOST {
            let action = action(&self.client, &format!("sleep 36{number:02}"), "doomed").await;
            names.push(begin(&self.client, &action).await);
        }
        self.prometheus.until_value("croft_scheduler_running", LOST as f64).await;
        self.prometheus.until_value(FAILURES, 0.0).await;

        worker.kill();
        self.prometheus.until_value(FAILURES, LOST as f64).await;
        self.prometheus.until_value("nativelink_worker_active_count", 1.0).await;
        self.prometheus.until("CroftExecutionFailures", true).await;
        self.prometheus.until("CroftFewWorkers", true).await;

        self.cancel(names).await;
        drop(worker);
        let _worker = self.join(data.path()).await;
        self.prometheus.until("CroftFewWorkers", false).await;
        self.prometheus.until("CroftExecutionFailures", false).await;
        self.prometheus.until_value(FAILURES, LOST as f64).await;
    }
}

/// The messages of a write, the last of them late.
fn late_at_the_end<T: Send + 'static>(first: Vec<T>, last: T) -> impl futures_util::Stream<Item = T> {
    use futures_util::StreamExt;
    let late = async move {
        // It is the time itself that is to be measured.
        tokio::time::sleep(HELD).await;
        last
    };
    tokio_stream::iter(first).chain(futures_util::stream::once(late))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_of_the_contract_fires_in_its_trouble_and_clears() {
    let Some(trouble) = Trouble::start().await else { return };
    let prometheus = &trouble.prometheus;
    // A series that begins with its first event hides that event from rates.
    let start = Instant::now();
    trouble.client.write_blob(&Bytes::from_static(b"fast")).await.unwrap();
    let first = start.elapsed();
    prometheus.until_value(&format!("nativelink_request_duration_seconds_count{{{WRITES}}}"), 1.0).await;
    let held = trouble.hold_a_write();
    // The farm has one worker, and nothing waits or was read.
    prometheus.until_value("nativelink_worker_active_count", 1.0).await;
    prometheus.until("CroftFewWorkers", true).await;
    for quiet in ["CroftQueueLong", "CroftLowHitRate", "CroftSlowRequests", "CroftExecutionFailures"] {
        prometheus.until(quiet, false).await;
    }
    trouble.hits_are_3_of_10_and_then_more().await;
    trouble.as_many_writes_are_slow_as_the_client_has_seen(&[first, held.await.unwrap()]).await;
    trouble.a_hundred_and_fifty_wait().await;
    trouble.a_worker_is_lost().await;
    prometheus.until("CroftSlowRequests", false).await;
}

/// A farm with one disk of `size`, whose data and admin listener are those of the one before it.
fn with_a_disk(data: &Path, admin: &str, size: u64) -> Farm {
    let tier = format!("[{{kind=\"disk\",size=\"{size} B\"}}]");
    Farm::start_in(data, &[("CROFT_STORAGE__TIER", &tier), ("CROFT_ADMIN__LISTEN", admin)])
}

/// The bytes that the files of a directory take from the disk, without what is only kept free.
fn allocated(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated(&entry.path()),
        Ok(metadata) if entry.file_name() != "reserve" => 512 * metadata.blocks(),
        Ok(_) | Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Writes blobs until they take `bytes` of the disk. No two are the same, and none can be compressed.
async fn fill(client: &Client, bytes: u64) {
    const BLOB: usize = 256 << 10;
    for number in 0..bytes.div_ceil(BLOB as u64) {
        let words =
            (0..BLOB as u64 / 8).map(|word| (number << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        client.put(words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_95_percent_is_told_and_a_larger_one_is_not() {
    const SIZE: u64 = 64 << 20;
    let (data, admin) = (TempDir::new().unwrap(), free_address());
    let mut farm = with_a_disk(data.path(), &admin, SIZE);
    let Some(prometheus) = Prometheus::start(&[&admin], &impatient()) else { return };
    prometheus.until_value("croft_store_max_bytes{tier=\"disk\"}", SIZE as f64).await;
    prometheus.until("CroftStoreNearlyFull", false).await;

    let start = Instant::now();
    let client = Client::new(&farm).await;
    fill(&client, SIZE / 100 * 95 - allocated(&data.path().join("cas"))).await;
    prometheus.until("CroftStoreNearlyFull", true).await;
    loop {
        let told = prometheus.values("nativelink_store_size_bytes{tier=\"disk\"}").await;
        let there = allocated(&data.path().join("cas"));
        if let [told] = told[..]
            && (told - there as f64).abs() < SIZE as f64 / 100.0
        {
            assert!(told > 0.94 * SIZE as f64 && told < 0.97 * SIZE as f64, "{told}");
            break;
        }
        assert!(start.elapsed() < PATIENCE, "it says {told:?}, there are {there}");
        tokio::time::sleep(POLL).await;
    }

    farm.terminate();
    let _farm = with_a_disk(data.path(), &admin, 2 * SIZE);
    prometheus.until_value("croft_store_max_bytes{tier=\"disk\"}", 2.0 * SIZE as f64).await;
    prometheus.until("CroftStoreNearlyFull", false).await;
    let told = prometheus.values("nativelink_store_size_bytes{tier=\"disk\"}").await;
    assert!(matches!(told[..], [told] if told > 0.9 * SIZE as f64), "it has lost what it had: {told:?}");
}

#[test]
fn only_durations_are_other_than_an_operator_has_them() {
    let words = |rules: &str| {
        let is_duration = |word: &str| {
            let number = word.trim_end_matches(['s', 'm']);
            number.len() < word.len()
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let words = rules.split(|character: char| !character.is_ascii_alphanumeric());
        words.filter(|word| !is_duration(word)).map(str::to_owned).collect::<Vec<String>>()
    };
    let changed = impatient();
    assert_ne!(changed, ALERTS);
    assert_eq!(words(&changed), words(ALERTS));
    assert!(!changed.contains("m]") && changed.matches(LOOK_BACK).count() == ALERTS.matches("m]").count());
}
