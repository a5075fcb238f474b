//! What the writer puts: small blobs alone and in batches, files of 5 KiB and 1 MiB, and results that replace each other.
//!
//! All content follows from a number, so that the test knows what must be there.

use std::io::Write;

use futures_util::future::join_all;

use super::super::*;
use crate::digest::Function;

/// Puts at the same time, of each kind.
const BLOB_LANES: u64 = 4;
const BATCH_LANES: u64 = 1;
const RESULT_LANES: u64 = 2;

const BATCH: u64 = 40;

/// Results that are replaced again and again, by each lane.
const RESULTS: u64 = 3;

/// More than any round comes to.
const PUTS_MAX: u64 = 1 << 20;

/// One put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Put {
    Blob {
        number: u64,
        is_small: bool,
    },
    /// Versions of a result only grow.
    Result {
        slot: u64,
        version: u64,
    },
}

impl Put {
    pub(super) fn content(self) -> Bytes {
        let (seed, size) = match self {
            Self::Blob { number, is_small } => (number, blob_size(number, is_small)),
            Self::Result { slot, version } => {
                (slot << 56 | version, [200, 3_000, 9_000, 9_000, 70_000][version as usize % 5])
            }
        };
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        if seed % 3 == 0 {
            bytes.iter_mut().for_each(|byte| *byte %= 4);
        }
        // No two have the same content.
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Bytes::from(bytes)
    }

    /// The result that `content` is.
    pub(super) fn of_result(content: &[u8]) -> Self {
        let seed = u64::from_be_bytes(*content.first_chunk().expect("a result has a number"));
        Self::Result { slot: seed >> 56, version: seed & ((1 << 56) - 1) }
    }

    pub(super) fn key(self, content: &[u8]) -> Key {
        match self {
            Self::Blob { .. } => Key::Blob(Function::Sha256.hash(content)),
            Self::Result { slot, .. } => Key::Asset([slot as u8; 32]),
        }
    }

    pub(super) fn parse(words: &str) -> Option<Self> {
        let (kind, numbers) = words.split_once(' ')?;
        let (first, second) = numbers.split_once(' ')?;
        let (first, second) = (first.parse().ok()?, second.parse().ok()?);
        match kind {
            "blob" => Some(Self::Blob { number: first, is_small: second == 1 }),
            "result" => Some(Self::Result { slot: first, version: second }),
            _ => None,
        }
    }
}

impl std::fmt::Display for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blob { number, is_small } => write!(f, "blob {number} {}", u8::from(*is_small)),
            Self::Result { slot, version } => write!(f, "result {slot} {version}"),
        }
    }
}

fn blob_size(number: u64, is_small: bool) -> usize {
    let mut random = fastrand::Rng::with_seed(!number);
    match random.u8(..100) {
        0..75 => random.usize(16..=INLINE_MAX as usize),
        _ if is_small => 100,
        75..90 => 5 << 10,
        _ => 1 << 20,
    }
}

/// Puts until it is killed.
pub(super) async fn run(disk: &Disk, round: u32) {
    // The test harness has begun a line.
    say("");
    let first = u64::from(round) * PUTS_MAX;
    let blobs = (0..BLOB_LANES).map(|lane| write_blobs(disk, first + lane));
    let batches = (BLOB_LANES..BLOB_LANES + BATCH_LANES).map(|lane| write_batches(disk, first + lane));
    let results = (0..RESULT_LANES).map(|lane| write_results(disk, lane, first));
    tokio::join!(join_all(blobs), join_all(batches), join_all(results));
}

fn numbers(first: u64) -> impl Iterator<Item = u64> {
    (first..first + PUTS_MAX).step_by((BLOB_LANES + BATCH_LANES) as usize)
}

async fn write_blobs(disk: &Disk, first: u64) {
    for number in numbers(first) {
        write(disk, Put::Blob { number, is_small: false }).await;
    }
}

async fn write_results(disk: &Disk, lane: u64, first: u64) {
    for version in first..first + PUTS_MAX {
        write(disk, Put::Result { slot: lane * RESULTS + version % RESULTS, version }).await;
    }
}

async fn write(disk: &Disk, put: Put) {
    let content = put.content();
    say(&format!("begin {put}"));
    disk.put(&put.key(&content), Blob::Whole(content)).await.unwrap();
    say(&format!("done {put}"));
}

async fn write_batches(disk: &Disk, first: u64) {
    let puts: Vec<Put> = numbers(first).map(|number| Put::Blob { number, is_small: true }).collect();
    for puts in puts.chunks(BATCH as usize) {
        let tell = |what: &str| puts.iter().map(|put| format!("{what} {put}")).collect::<Vec<_>>().join("\n");
        say(&tell("begin"));
        let contents = puts.iter().map(|put| (put.content(), put));
        let batch = contents.map(|(content, put)| (put.key(&content), content)).collect();
        disk.put_all(batch).await.into_iter().for_each(Result::unwrap);
        say(&tell("done"));
    }
}

/// One write to the pipe, so that a line is told in full or not at all.
fn say(lines: &str) {
    let mut output = std::io::stdout().lock();
    output.write_all(format!("{lines}\n").as_bytes()).unwrap();
    output.flush().unwrap();
}
