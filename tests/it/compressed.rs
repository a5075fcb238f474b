//! Blobs that are compressed on the wire: ByteStream and batches, good ones and bad ones.

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::bytestream::{QueryWriteStatusRequest, WriteRequest};
use croft::proto::rev2::batch_update_blobs_request::Request as Update;
use croft::proto::rev2::compressor::Value as Compressor;
use croft::proto::rev2::{BatchReadBlobsRequest, BatchUpdateBlobsRequest};
use tonic::Code;

use crate::client::Client;
use crate::farm::{Farm, peak_memory};

/// Memory that the farm may take for a bad upload, in bytes: some buffers, far less than what the upload inflates to.
const GROWTH_MAX: u64 = 64 << 20;

/// Half of it repeats, half does not.
fn content(size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(size as u64);
    let byte = |place: usize| if (place / 1000).is_multiple_of(2) { 7 } else { random.u8(..) };
    (0..size).map(byte).collect()
}

fn compress(content: &[u8]) -> Bytes {
    zstd::encode_all(content, 3).unwrap().into()
}

fn write_name(digest: &Digest) -> String {
    format!("uploads/{}/compressed-blobs/zstd/{digest}", uuid::Uuid::new_v4())
}

/// The messages of one compressed write: offsets count compressed bytes.
fn pieces(name: &str, frames: &Bytes, piece: usize) -> Vec<WriteRequest> {
    let starts = (0..frames.len().max(1)).step_by(piece);
    let message = |start: usize| {
        let end = frames.len().min(start + piece);
        WriteRequest {
            resource_name: name.to_owned(),
            write_offset: start as i64,
            finish_write: end == frames.len(),
            data: frames.slice(start..end),
        }
    };
    starts.map(message).collect()
}

#[tokio::test]
async fn compressed_and_plain_are_the_same_blob_from_any_offset() {
    let farm = Farm::start();
    for (function, size) in [
        (Function::Sha256, 0),
        (Function::Sha256, 1),
        (Function::Blake3, 3000),
        (Function::Sha256, 300_000),
        (Function::GitSha1, 5_000_000),
    ] {
        let client = Client { function, ..Client::new(&farm).await };
        let content = content(size);
        let (digest, frames) = (function.hash(&content), compress(&content));
        let committed = client.write(pieces(&write_name(&digest), &frames, 100_000)).await.unwrap();
        assert_eq!(committed, frames.len() as i64, "{size}");
        assert_eq!(client.read_blob(&digest).await.unwrap(), content);
        for offset in [0, size / 3, size] {
            let name = format!("compressed-blobs/zstd/{digest}");
            let read = client.read(&name, offset as i64, 0).await.unwrap();
            assert_eq!(zstd::decode_all(&read[..]).unwrap(), &content[offset..], "{size} from {offset}");
            assert!(size < 3000 || offset > 0 || read.len() < size * 3 / 4, "{} of {size}", read.len());
        }
    }
}

#[tokio::test]
async fn a_limit_on_a_compressed_read_is_refused() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = client.put(&b"abc"[..]).await;
    let error = client.read(&format!("compressed-blobs/zstd/{digest}"), 0, 1).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client.read(&format!("compressed-blobs/zstd/{digest}"), 4, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
}

#[tokio::test]
async fn an_upload_of_a_present_blob_ends_early_with_minus_one() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(2 << 20);
    let digest = client.write_blob(&content).await.unwrap();
    let name = write_name(&digest);
    let mut some = pieces(&name, &compress(&content), 100_000);
    some.truncate(2);
    assert_eq!(client.write(some).await.unwrap(), -1);
    let status = QueryWriteStatusRequest { resource_name: name };
    assert!(client.bytes.clone().query_write_status(status).await.unwrap().into_inner().complete);
}

#[tokio::test]
async fn an_upload_that_broke_off_begins_again() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(2 << 20);
    let digest = Function::Sha256.hash(&content);
    let (name, frames) = (write_name(&digest), compress(&content));
    let mut some = pieces(&name, &frames, 100_000);
    some.truncate(2);
    assert_eq!(client.write(some.clone()).await.unwrap(), 0);
    let status = QueryWriteStatusRequest { resource_name: name.clone() };
    let status = client.bytes.clone().query_write_status(status).await.unwrap().into_inner();
    assert_eq!((status.committed_size, status.complete), (0, false));
    let error = client.write(some.split_off(1)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    client.write(pieces(&name, &frames, 100_000)).await.unwrap();
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn what_is_damaged_cut_off_or_of_another_size_is_refused() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for size in [3000, 3_000_000] {
        let content = content(size);
        let (digest, frames) = (Function::Sha256.hash(&content), compress(&content));
        let other = Digest::new(Function::Sha256, digest.hash(), size as u64 + 1);
        let mut garbage = frames.to_vec();
        garbage.extend_from_slice(b"garbage");
        let mut damaged = frames.to_vec();
        damaged[size / 4] ^= 0x40;
        for (why, digest, frames) in [
            ("cut off", digest, frames.slice(..frames.len() - 1)),
            ("not zstd", digest, Bytes::from_static(b"these are not frames")),
            ("trailing", digest, garbage.into()),
            ("damaged", digest, damaged.into()),
            ("too short", other, frames.clone()),
        ] {
            let error = client.write(pieces(&write_name(&digest), &frames, 50_000)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{why}, {size}: {error:?}");
        }
        assert_eq!(client.missing(&[digest]).await.len(), 1);
        client.write(pieces(&write_name(&digest), &frames, 50_000)).await.unwrap();
    }
}

#[tokio::test]
async fn a_small_frame_that_inflates_to_a_gigabyte_is_refused_in_constant_memory() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    client.put(&b"warm"[..]).await;
    let before = peak_memory(&farm);
    let bomb: Bytes = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 1).unwrap().into();
    assert!(bomb.len() < 128 << 10, "{}", bomb.len());
    for size in [100, 300_000, 20 << 20] {
        let digest = Digest::new(Function::Sha256, &[7; 32], size);
        let error = client.write(pieces(&write_name(&digest), &bomb, 1 << 20)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    let update = |size| BatchUpdateBlobsRequest {
        requests: vec![Update {
            digest: Some(Digest::new(Function::Sha256, &[7; 32], size).to_proto()),
            data: bomb.clone(),
            compressor: Compressor::Zstd.into(),
        }],
        ..Default::default()
    };
    let answer = client.cas.clone().batch_update_blobs(update(1000)).await.unwrap().into_inner();
    assert_eq!(answer.responses[0].status.as_ref().unwrap().code, Code::InvalidArgument as i32);
    let error = client.cas.clone().batch_update_blobs(update(1 << 30)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "what it says it becomes is over the limit of a batch");
    let grown = peak_memory(&farm) - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes");
}

#[tokio::test]
async fn frames_without_content_do_not_go_on_for_ever() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = Digest::new(Function::Sha256, &[7; 32], 300_000);
    let empty = compress(b"");
    let frames: Bytes = empty.repeat((1 << 20) / empty.len()).into();
    let error = client.write(pieces(&write_name(&digest), &frames, 100_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("its compressed form has more"), "{error:?}");
}

#[tokio::test]
async fn batches_take_and_give_both_forms() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let blobs = [content(10_000), Bytes::from_static(b"tiny"), content(999_000)];
    let digests = blobs.each_ref().map(|blob| Function::Sha256.hash(blob));
    let update = |place: usize, data: Bytes, compressor: Compressor| Update {
        digest: Some(digests[place].to_proto()),
        data,
        compressor: compressor.into(),
    };
    let requests = vec![
        update(0, compress(&blobs[0]), Compressor::Zstd),
        update(1, blobs[1].clone(), Compressor::Identity),
        update(2, compress(&blobs[2]), Compressor::Zstd),
        update(2, blobs[2].clone(), Compressor::Zstd),
        update(2, blobs[2].clone(), Compressor::Brotli),
    ];
    let request = BatchUpdateBlobsRequest { requests, ..Default::default() };
    let answer = client.cas.clone().batch_update_blobs(request).await.unwrap().into_inner();
    let codes = answer.responses.iter().map(|response| response.status.as_ref().unwrap().code);
    assert_eq!(codes.collect::<Vec<_>>(), [0, 0, 0, 3, 3]);
    for accepted in [vec![], vec![Compressor::Zstd.into()], vec![Compressor::Brotli.into()]] {
        let request = BatchReadBlobsRequest {
            digests: digests.iter().map(Digest::to_proto).collect(),
            acceptable_compressors: accepted.clone(),
            ..Default::default()
        };
        let answer = client.cas.clone().batch_read_blobs(request).await.unwrap().into_inner();
        let is_compressed = |response: &croft::proto::rev2::batch_read_blobs_response::Response| {
            response.compressor == i32::from(Compressor::Zstd)
        };
        let compressed: Vec<bool> = answer.responses.iter().map(is_compressed).collect();
        let pays = accepted == [i32::from(Compressor::Zstd)];
        assert_eq!(compressed, [pays, false, pays], "what is too small to gain stays plain");
        for (blob, response) in blobs.iter().zip(answer.responses) {
            let plain = if is_compressed(&response) {
                zstd::decode_all(&response.data[..]).unwrap()
            } else {
                response.data.to_vec()
            };
            assert_eq!(plain, *blob);
        }
    }
}
