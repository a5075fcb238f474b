//! Blobs as lists of chunks: `SplitBlob` and `SpliceBlob`.

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::rev2::chunking_function::Value as Chunking;
use croft::proto::rev2::{self, SpliceBlobRequest, SplitBlobRequest, SplitBlobResponse};
use tonic::{Code, Status};

use crate::client::Client;
use crate::farm::Farm;

fn content(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(size as u64).fill(&mut bytes);
    bytes.into()
}

async fn split(client: &Client, digest: &Digest) -> Result<SplitBlobResponse, Status> {
    let request = SplitBlobRequest {
        blob_digest: Some(digest.to_proto()),
        digest_function: client.function.to_proto().into(),
        ..Default::default()
    };
    client.cas.clone().split_blob(request).await.map(tonic::Response::into_inner)
}

async fn splice(
    client: &Client,
    blob: Option<&Digest>,
    chunks: &[rev2::Digest],
) -> Result<rev2::Digest, Status> {
    let request = SpliceBlobRequest {
        blob_digest: blob.map(Digest::to_proto),
        chunk_digests: chunks.to_vec(),
        digest_function: client.function.to_proto().into(),
        ..Default::default()
    };
    let answer = client.cas.clone().splice_blob(request).await?;
    Ok(answer.into_inner().blob_digest.unwrap())
}

#[tokio::test]
async fn a_blob_is_the_concatenation_of_its_chunks_which_are_stored() {
    let farm = Farm::start();
    for function in [Function::Sha256, Function::Blake3] {
        let client = Client { function, ..Client::new(&farm).await };
        let content = content(6 << 20);
        let digest = client.write_blob(&content).await.unwrap();
        let answer = split(&client, &digest).await.unwrap();
        assert_eq!(answer.chunking_function, i32::from(Chunking::FastCdc2020));
        assert!(answer.chunk_digests.len() > 3, "{answer:?}");
        let mut joined = Vec::new();
        for chunk in &answer.chunk_digests {
            let chunk = Digest::from_proto(function, Some(chunk)).unwrap();
            joined.extend(client.read_blob(&chunk).await.unwrap());
        }
        assert!(joined == content, "{function:?}");
        assert_eq!(split(&client, &digest).await.unwrap(), answer, "splitting again gives the same");
    }
}

#[tokio::test]
async fn a_small_blob_is_its_own_chunk_and_an_absent_one_is_not_found() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for size in [0, 1, (2 << 20) - 1] {
        let digest = client.write_blob(&content(size)).await.unwrap();
        assert_eq!(split(&client, &digest).await.unwrap().chunk_digests, [digest.to_proto()], "{size}");
    }
    for size in [1000, 3 << 20] {
        let absent = Digest::new(Function::Sha256, &[7; 32], size);
        assert_eq!(split(&client, &absent).await.unwrap_err().code(), Code::NotFound);
    }
    let huge = Digest::new(Function::Sha256, &[7; 32], 1 << 50);
    assert_eq!(split(&client, &huge).await.unwrap_err().code(), Code::InvalidArgument);
    let unset = SplitBlobRequest::default();
    assert_eq!(client.cas.clone().split_blob(unset).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn chunks_are_spliced_to_the_blob_that_they_give_and_no_other() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(3_000_000);
    let (digest, parts) =
        (Function::Sha256.hash(&content), [0..1_000_000, 1_000_000..1_000_010, 1_000_010..3_000_000]);
    let mut chunks = Vec::new();
    for part in parts {
        chunks.push(Function::Sha256.hash(&content[part]).to_proto());
    }
    chunks.insert(1, Digest::empty(Function::Sha256).to_proto());
    let error = splice(&client, Some(&digest), &chunks).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(chunks.iter().filter(|chunk| error.message().contains(&chunk.hash)).count() == 3, "{error:?}");
    for part in [0..1_000_000, 1_000_000..1_000_010, 1_000_010..3_000_000] {
        client.write_blob(&content.slice(part)).await.unwrap();
    }
    let mut swapped = chunks.clone();
    swapped.swap(0, 3);
    for (why, blob, chunks) in [
        ("another order", Some(&digest), &swapped[..]),
        ("a chunk too few", Some(&digest), &chunks[1..]),
        ("no digest", None, &chunks[..]),
        ("no chunks", Some(&digest), &[]),
    ] {
        let error = splice(&client, blob, chunks).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{why}: {error:?}");
    }
    assert_eq!(client.missing(&[digest]).await.len(), 1);
    for _ in 0..2 {
        assert_eq!(splice(&client, Some(&digest), &chunks).await.unwrap(), digest.to_proto());
    }
    assert!(client.read_blob(&digest).await.unwrap() == content);
    let many = vec![Digest::empty(Function::Sha256).to_proto(); 140_000];
    let error = splice(&client, Some(&Digest::empty(Function::Sha256)), &many).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
}
