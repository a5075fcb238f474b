//! How fast the disk is; run by hand: `cargo test --release --lib store::disk::speed -- --ignored --nocapture`.
//!
//! The store lies in the directory named by `CROFT_SPEED_DIRECTORY`, else in that of temporary files.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::digest::Function;
use crate::store::Verified;

const MIB: usize = 1 << 20;
const BLOBS: u64 = 40_000;

fn content(size: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

fn key_of(bytes: &Bytes) -> Key {
    Key::Blob(Function::Sha256.hash(bytes))
}

fn report(what: &str, count: u64, since: Instant) {
    let elapsed = since.elapsed();
    println!("{what}: {elapsed:?}, {:.0}/s", count as f64 / elapsed.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; it proves nothing about right or wrong"]
async fn speed() {
    let directory = std::env::var_os("CROFT_SPEED_DIRECTORY").map_or_else(std::env::temp_dir, Into::into);
    let directory = TempDir::new_in(directory).unwrap();
    let disk = Disk::open(&directory.path().join("cas"), Options::new(20 << 30)).unwrap();
    let disk: Arc<dyn Store> = Arc::new(Verified::new(Arc::new(disk)));
    for round in 0..4 {
        large(&disk, directory.path(), round).await;
    }
    for in_flight in [64, 256, 1000] {
        singles(&disk, in_flight).await;
    }
    for at_once in [1, 4, 16] {
        batches(&disk, at_once).await;
    }
    lookups(&disk).await;
}

async fn large(disk: &Arc<dyn Store>, directory: &Path, round: u64) {
    let bytes = content(64 * MIB, round);
    // A new file each time: one that is written over finds its pages and blocks ready.
    let (plain, path) = (bytes.clone(), directory.join(format!("plain{round}")));
    let start = Instant::now();
    let write = move || {
        let mut file = File::create(path)?;
        plain.chunks(MIB).try_for_each(|piece| file.write_all(piece))?;
        Ok(file.sync_data()?)
    };
    tasks::blocking(write).await.unwrap();
    let plain = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let key = key_of(&bytes);
    let hash = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let chunks = stream::iter((0..256).map(move |i| Ok(bytes.slice(i * MIB / 4..(i + 1) * MIB / 4)))).boxed();
    disk.put(&key, Blob::Stream { size: 64 * MIB as u64, chunks }).await.unwrap();
    let ours = start.elapsed().as_secs_f64();
    let ratio = plain / ours;
    println!("64 MiB: hash {hash:.3} s, write and sync {plain:.3} s, put {ours:.3} s, ratio {ratio:.2}");
}

async fn singles(disk: &Arc<dyn Store>, in_flight: usize) {
    let blobs: Vec<Bytes> = (0..BLOBS).map(|n| content(1024, in_flight as u64 * 1_000_000 + n)).collect();
    let start = Instant::now();
    let put = |bytes: Bytes| {
        let disk = Arc::clone(disk);
        async move { disk.put(&key_of(&bytes), Blob::Whole(bytes)).await.unwrap() }
    };
    stream::iter(blobs).map(put).buffer_unordered(in_flight).collect::<Vec<()>>().await;
    report(&format!("puts of 1 KiB, {in_flight} in flight"), BLOBS, start);
}

async fn batches(disk: &Arc<dyn Store>, at_once: usize) {
    let blobs = (0..BLOBS).map(|n| content(1024, at_once as u64 * 777_000_000 + n));
    let blobs: Vec<(Key, Bytes)> = blobs.map(|bytes| (key_of(&bytes), bytes)).collect();
    let batches: Vec<Vec<(Key, Bytes)>> = blobs.chunks(1000).map(<[_]>::to_vec).collect();
    let start = Instant::now();
    let put = |batch| disk.put_all(batch);
    let results: Vec<_> = stream::iter(batches).map(put).buffer_unordered(at_once).concat().await;
    assert!(results.iter().all(Result::is_ok));
    report(&format!("puts of 1 KiB in batches of 1,000, {at_once} at once"), BLOBS, start);
}

async fn lookups(disk: &Arc<dyn Store>) {
    let seed = |n| if n % 2 == 0 { 64_000_000 + n } else { n };
    let keys: Vec<Key> = (0..10_000).map(|n| key_of(&content(1024, seed(n)))).collect();
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(disk.missing(&keys).await.unwrap().len(), 5_000);
        report("missing() of 10,000, half of them absent", 10_000, start);
    }
    let start = Instant::now();
    for key in keys.iter().step_by(2) {
        assert!(disk.get(key, 0..).await.unwrap().is_some());
    }
    report("gets of 1 KiB, one after the other", 5_000, start);
}

/// The entries of `a_million_entries`, and the bytes that each has inlined.
const ENTRIES: u64 = 1_000_000;
const INLINED: usize = 200;

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// The size of an index is given by `CROFT_SPEED_ENTRIES` and `CROFT_SPEED_INLINED`; it stays in `CROFT_SPEED_DIRECTORY`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; it proves nothing about right or wrong"]
async fn a_million_entries() {
    let (entries, inlined) =
        (number_from("CROFT_SPEED_ENTRIES", ENTRIES), number_from("CROFT_SPEED_INLINED", INLINED as u64));
    let directory = std::env::var_os("CROFT_SPEED_DIRECTORY").map_or_else(std::env::temp_dir, Into::into);
    let directory = directory.join(format!("croft-{entries}-{inlined}"));
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        fill(&directory.join("index"), entries, inlined as usize);
    }
    let start = Instant::now();
    let disk = Disk::open(&directory, Options::new(100 << 30)).unwrap();
    println!("open: {:?}, {} MiB resident", start.elapsed(), resident_mib());
    let keys = |offset| (0..10_000).map(|n| numbered(offset + n * (entries / 10_000))).collect();
    let (present, absent): (Vec<Key>, Vec<Key>) = (keys(0), keys(10 * entries));
    for round in 0..3 {
        let start = Instant::now();
        assert_eq!(disk.missing(&absent).await.unwrap().len(), absent.len());
        report("missing() of 10,000, all absent", 10_000, start);
        let start = Instant::now();
        assert!(disk.missing(&present).await.unwrap().is_empty());
        report("missing() of 10,000, all present", 10_000, start);
        println!("round {round}: {} MiB resident", resident_mib());
    }
    let start = Instant::now();
    let scrubbed = disk.scrub(None).await.unwrap();
    report(&format!("a scrub of {} MB", scrubbed.bytes / 1_000_000), scrubbed.blobs, start);
    println!("after it: {} MiB resident", resident_mib());
}

/// The bytes are not those of the digest: nothing here looks at them but the scrub, which takes assets as they are.
fn numbered(number: u64) -> Key {
    Key::Asset(*Function::Sha256.hash(&number.to_be_bytes()).hash().first_chunk().unwrap())
}

fn fill(index: &Path, entries: u64, inlined: usize) {
    let start = Instant::now();
    let (ledger, _) = Ledger::open(index).unwrap();
    let (mut totals, mut sequence, mut next) = (ledger.totals().unwrap(), 0, 0);
    // As many as the store commits at once, or what no power cut would spare, which is faster.
    let each = number_from("CROFT_SPEED_COMMIT", writer::CHANGES_MAX as u64);
    while next < entries {
        sequence += 1;
        let mut draft = ledger::Draft::new(totals, 1_000_000 + sequence as u32 / 100, sequence);
        for number in next..entries.min(next + each) {
            let name = Name::from(&numbered(number));
            draft.insert(&name, None, Location::Inline(content(inlined, number)));
        }
        next += each;
        totals = ledger.commit(draft, || {}).unwrap();
    }
    let mut draft = ledger::Draft::new(totals, 0, 0);
    draft.finish_index();
    ledger.commit(draft, || {}).unwrap();
    report("entries written", entries, start);
    println!("the index takes {} MiB, {} MiB resident", ledger.index_bytes() >> 20, resident_mib());
}
