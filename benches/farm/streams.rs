//! Bulk transfer: large blobs through ByteStream, one and several at a time. Each stream has a blob of its own.

use bytes::Bytes;
use croft::digest::Function;
use croft::proto::bytestream::{ReadRequest, WriteRequest};
use futures_util::future::join_all;

use crate::client::{Client, pieces};
use crate::farm::Farm;
use crate::{Figure, Goal, Rounds, limits, median, rate};

/// What each stream carries.
const BLOB: usize = 64 << 20;

/// Streams of a round move up to 1 GiB, so a few rounds must do.
const ROUNDS_MAX: usize = 3;

/// How the bytes go over the wire.
#[derive(Clone, Copy)]
pub(crate) enum Wire {
    /// Noise, as it is.
    Plain,
    /// Words, which come down to about a third; the bytes that count are those before.
    Zstd,
}

/// What a client that writes many blobs would choose.
const LEVEL: i32 = 1;

impl Wire {
    fn read_name(self, content: &Bytes) -> String {
        match self {
            Self::Plain => format!("blobs/{}", Function::Sha256.hash(content)),
            Self::Zstd => format!("compressed-blobs/zstd/{}", Function::Sha256.hash(content)),
        }
    }

    fn write(self, content: &Bytes) -> Vec<WriteRequest> {
        let (upload, digest) = (uuid::Uuid::new_v4(), Function::Sha256.hash(content));
        match self {
            Self::Plain => pieces(&format!("uploads/{upload}/blobs/{digest}"), content, 0),
            Self::Zstd => {
                let compressed = Bytes::from(zstd::bulk::compress(content, LEVEL).unwrap());
                pieces(&format!("uploads/{upload}/compressed-blobs/zstd/{digest}"), &compressed, 0)
            }
        }
    }

    /// A blob's worth of content.
    fn content(self, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut content = vec![0; BLOB];
        random.fill(&mut content);
        if matches!(self, Self::Zstd) {
            let words: Vec<[u8; 8]> = (0..1024).map(|_| random.u64(..).to_be_bytes()).collect();
            content
                .chunks_exact_mut(8)
                .for_each(|place| place.copy_from_slice(random.choice(&words).unwrap()));
        }
        content
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Zstd => "zstd",
        }
    }
}

/// Blobs that differ in their first bytes only, which is enough to be different blobs.
fn contents(wire: Wire, count: usize, seed: u64) -> Vec<Bytes> {
    let first = wire.content(seed);
    let stamped = |number: usize| {
        let mut content = first.clone();
        content[..8].copy_from_slice(&number.to_be_bytes());
        Bytes::from(content)
    };
    (0..count).map(stamped).collect()
}

fn megabytes(streams: usize) -> f64 {
    (streams * BLOB) as f64 / 1e6
}

/// Reads as many blobs at the same time as there are streams.
pub(crate) async fn reads(rounds: Rounds, streams: usize, wire: Wire) -> Figure {
    let farm = Farm::start();
    let clients = join_all((0..streams).map(|_| Client::new(&farm))).await;
    let contents = contents(wire, streams, 1);
    for content in &contents {
        clients[0].write(Wire::Plain.write(content)).await.unwrap();
    }
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..rounds.0.min(ROUNDS_MAX) {
        let reads =
            clients.iter().zip(&contents).map(|(client, content)| drain(client, wire.read_name(content)));
        ours.push(rate(megabytes(streams), join_all(reads)).await);
        limit.push(limits::sockets(&contents) / 1e6);
    }
    Figure {
        name: format!("read 64 MiB blobs, {}, {streams} at once", wire.name()),
        ours: median(ours),
        limit: median(limit),
        limit_name: "raw TCP, as many",
        unit: "MB/s",
        goal: Goal::Shown,
    }
}

/// Reads without keeping, as the raw copy does.
async fn drain(client: &Client, resource_name: String) {
    let request = ReadRequest { resource_name, ..ReadRequest::default() };
    let mut chunks = client.bytes.clone().read(request).await.unwrap().into_inner();
    while let Some(chunk) = chunks.message().await.unwrap() {
        assert!(!chunk.data.is_empty());
    }
}

/// Writes as many blobs at the same time as there are streams, each answered when it is safe on the disk.
pub(crate) async fn writes(rounds: Rounds, streams: usize, wire: Wire) -> Figure {
    let farm = Farm::start();
    let clients = join_all((0..streams).map(|_| Client::new(&farm))).await;
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds.0.min(ROUNDS_MAX) {
        let contents = contents(wire, streams, 100 + round as u64);
        let messages: Vec<_> = contents.iter().map(|content| wire.write(content)).collect();
        let writes = clients.iter().zip(messages).map(|(client, messages)| async {
            client.write(messages).await.unwrap();
        });
        ours.push(rate(megabytes(streams), join_all(writes)).await);
        limit.push(limits::synced_files(farm.data(), &contents) / 1e6);
    }
    Figure {
        name: format!("write 64 MiB blobs, {}, {streams} at once", wire.name()),
        ours: median(ours),
        limit: median(limit),
        limit_name: "write + fdatasync, as many",
        unit: "MB/s",
        goal: Goal::Shown,
    }
}
