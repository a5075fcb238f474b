//! The CAS: bulk reads, durable bulk writes, batches of small blobs.

use std::ops::Range;

use bytes::Bytes;
use croft::digest::Function;
use croft::proto::bytestream::ReadRequest;
use futures_util::stream::{self, StreamExt};

use crate::client::Client;
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, limits, median, rate};

const LARGE: usize = 64 << 20;
const SMALL: usize = 1 << 10;

/// Blobs in one batch: 1 MiB of them.
pub(crate) const BATCH: usize = 1000;
const BATCHES: usize = 40;
const BATCHES_AT_ONCE: usize = 8;

/// Blobs of 2 KiB that are written one by one, and how many at a time; a client has five seconds for them.
const SINGLE: usize = 2 << 10;
const SINGLES: usize = 11_000;
const SINGLES_AT_ONCE: usize = 64;
const SINGLES_SECONDS: f64 = 5.0;

/// Small blobs that the store commits together; the limit is measured with the same group.
const GROUP: usize = 125;

fn content(size: usize, seed: u64) -> Bytes {
    let mut content = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content.into()
}

/// Reads one large blob again and again.
pub(crate) async fn reads(rounds: Rounds) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(LARGE, 1);
    let digest = client.write_blob(&content).await.unwrap();
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..rounds.0 {
        ours.push(rate(LARGE as f64 / 1e6, drain(&client, format!("blobs/{digest}"))).await);
        limit.push(limits::socket(&content) / 1e6);
    }
    Figure {
        name: "read a 64 MiB blob".into(),
        ours: median(ours),
        limit: median(limit),
        limit_name: "raw TCP",
        unit: "MB/s",
        goal: Goal::Ratio(0.5),
    }
}

/// Reads without keeping, as the raw copy does.
async fn drain(client: &Client, resource_name: String) {
    let request = ReadRequest { resource_name, ..ReadRequest::default() };
    let mut chunks = client.bytes.clone().read(request).await.unwrap().into_inner();
    let mut read = 0;
    while let Some(chunk) = chunks.message().await.unwrap() {
        read += chunk.data.len();
    }
    assert_eq!(read, LARGE);
}

/// Writes large blobs, each answered when it is safe on the disk.
pub(crate) async fn durable_writes(rounds: Rounds) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds.0 {
        let content = content(LARGE, 100 + round as u64);
        let name = format!("uploads/{round}/blobs/{}", Function::Sha256.hash(&content));
        let messages = crate::client::pieces(&name, &content, 0);
        ours.push(rate(LARGE as f64 / 1e6, async { client.write(messages).await.unwrap() }).await);
        limit.push(limits::synced_file(&farm.data().join(format!("limit-{round}")), &content) / 1e6);
    }
    Figure {
        name: "write a 64 MiB blob, durable".into(),
        ours: median(ours),
        limit: median(limit),
        limit_name: "write + fdatasync",
        unit: "MB/s",
        goal: Goal::Ratio(0.7),
    }
}

/// Writes many small blobs in batches, each answered when it is safe on the disk.
pub(crate) async fn batches(rounds: Rounds) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds.0.min(5) {
        ours.push(batch_rate(&client, round * BATCHES..(round + 1) * BATCHES).await);
        limit.push(limits::synced_groups(farm.data(), &content(SMALL, 0), BATCHES * BATCH, GROUP));
    }
    Figure {
        name: "1 KiB blobs by BatchUpdate, durable".into(),
        ours: median(ours),
        limit: median(limit),
        limit_name: "append, fdatasync per 125",
        unit: "/s",
        goal: Goal::Rate(20_000.0),
    }
}

/// How many small blobs in the batches with these numbers, none of which was before, are stored in a second.
pub(crate) async fn batch_rate(client: &Client, numbers: Range<usize>) -> f64 {
    let count = numbers.len() * BATCH;
    let batches: Vec<Vec<Bytes>> = numbers
        .map(|batch| {
            (0..BATCH).map(|blob| content(SMALL, 1_000_000 + (batch * BATCH + blob) as u64)).collect()
        })
        .collect();
    let puts = stream::iter(batches).map(|batch| client.put_all(batch)).buffer_unordered(BATCHES_AT_ONCE);
    rate(count as f64, puts.for_each(|_| std::future::ready(()))).await
}

/// Writes small blobs one by one through ByteStream, as clients without batches do.
pub(crate) async fn singles(rounds: Rounds) -> Figure {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds.0.min(3) {
        let seed = 10_000_000 + (round * SINGLES) as u64;
        let blobs: Vec<Bytes> = (0..SINGLES as u64).map(|blob| content(SINGLE, seed + blob)).collect();
        let put = |blob: Bytes| {
            let client = client.clone();
            async move { client.write_blob(&blob).await.unwrap() }
        };
        let puts = stream::iter(blobs).map(put).buffer_unordered(SINGLES_AT_ONCE);
        ours.push(rate(SINGLES as f64, puts.for_each(|_| std::future::ready(()))).await);
        limit.push(limits::synced_groups(farm.data(), &content(SINGLE, 0), SINGLES, SINGLES_AT_ONCE));
    }
    Figure {
        name: "2 KiB blobs by ByteStream, 64 at once".into(),
        ours: median(ours),
        limit: median(limit),
        limit_name: "append, fdatasync per 64",
        unit: "/s",
        goal: Goal::Rate(SINGLES as f64 / SINGLES_SECONDS),
    }
}
