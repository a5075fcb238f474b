//! ByteStream: offsets, limits, resumed and broken uploads.

use bytes::Bytes;
use croft::digest::Function;
use croft::proto::bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse, WriteRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::client::{Client, pieces};
use crate::farm::Farm;

/// Bytes that do not repeat, so that a piece in the wrong place is seen.
fn content(size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(size as u64);
    std::iter::repeat_with(|| random.u8(..)).take(size).collect()
}

#[tokio::test]
async fn blobs_of_all_sizes_come_back_from_any_offset() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for size in [0, 1, 4096, 4097, 256 << 10, (1 << 20) + 1, 5_000_000] {
        let content = content(size);
        let digest = client.write_blob(&content).await.unwrap();
        assert_eq!(client.read_blob(&digest).await.unwrap(), content);
        let name = format!("some/instance/blobs/{digest}");
        for (offset, limit) in [(size / 2, 0), (size / 3, 10), (size, 0), (0, size + 5), (size / 2, 300_000)]
        {
            let read = client.read(&name, offset as i64, limit as i64).await.unwrap();
            let end = if limit == 0 { size } else { size.min(offset + limit) };
            assert_eq!(read, &content[offset..end], "{size} from {offset}, {limit}");
        }
    }
}

#[tokio::test]
async fn a_blake3_blob_is_named_with_its_function() {
    let farm = Farm::start();
    let client = Client { function: Function::Blake3, ..Client::new(&farm).await };
    let content = content(100_000);
    let digest = client.write_blob(&content).await.unwrap();
    assert!(digest.to_string().starts_with("blake3/"));
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn reads_out_of_range_or_of_absent_blobs_say_so() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = client.put(&b"abc"[..]).await;
    let name = format!("blobs/{digest}");
    for (offset, limit, code) in
        [(-1, 0, Code::OutOfRange), (4, 0, Code::OutOfRange), (0, -1, Code::InvalidArgument)]
    {
        let error = client.read(&name, offset, limit).await.unwrap_err();
        assert_eq!(error.code(), code, "{offset} {limit}: {error:?}");
    }
    let absent = Function::Sha256.hash(b"absent");
    let error = client.read_blob(&absent).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains(&absent.hex()), "{error:?}");
    let other_size = format!("blobs/{}/{}", digest.hex(), 4);
    assert_eq!(client.read(&other_size, 0, 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_wrong_hash_or_size_stores_nothing() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for size in [100, 1_000_000] {
        let (right, mut wrong) = (content(size), content(size).to_vec());
        wrong[size - 1] ^= 1;
        let digest = Function::Sha256.hash(&right);
        let name = format!("uploads/u/blobs/{digest}");
        let error = client.write(pieces(&name, &wrong.into(), 0)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains(&digest.hex()), "{error:?}");
        for other in [content(size - 1), content(size + 1)] {
            let error = client.write(pieces(&name, &other, 0)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        }
        assert_eq!(client.missing(&[digest]).await.len(), 1);
    }
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_stood() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(3 << 20);
    let digest = Function::Sha256.hash(&content);
    let name = format!("uploads/4d2f/blobs/{digest}/some/file.name");
    let half = 1 << 20;
    let mut first = pieces(&name, &content.slice(..half), 0);
    first.last_mut().unwrap().finish_write = false;
    let committed = client.write(first).await.unwrap();
    assert_eq!(committed, half as i64);
    assert_eq!(
        status(&client, &name).await,
        QueryWriteStatusResponse { committed_size: committed, complete: false }
    );
    let gap = client.write(pieces(&name, &content, half + 7)).await.unwrap_err();
    assert_eq!(gap.code(), Code::InvalidArgument);
    assert!(gap.message().contains("1048576 bytes are committed"), "{gap:?}");
    assert_eq!(client.write(pieces(&name, &content, half)).await.unwrap(), content.len() as i64);
    assert!(status(&client, &name).await.complete);
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn an_upload_survives_its_connection() {
    let farm = Farm::start();
    let content = content(2 << 20);
    let digest = Function::Sha256.hash(&content);
    let name = format!("uploads/c0/blobs/{digest}");
    let lost = Client::new(&farm).await;
    let (sender, receiver) = mpsc::channel(1);
    let request =
        WriteRequest { resource_name: name.clone(), data: content.slice(..1000), ..Default::default() };
    sender.send(request).await.unwrap();
    let mut stub = lost.bytes.clone();
    let call = tokio::spawn(async move { stub.write(ReceiverStream::new(receiver)).await });
    let client = Client::new(&farm).await;
    // The connection is cut once the piece has arrived; it is seen when the upload is parked.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    call.abort();
    drop((lost, sender));
    let mut committed = 0;
    for _ in 0..500 {
        committed = status(&client, &name).await.committed_size;
        if committed > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(committed, 1000);
    client.write(pieces(&name, &content, 1000)).await.unwrap();
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn a_write_that_is_whole_is_stored_even_without_its_last_word() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(100_000);
    let digest = Function::Sha256.hash(&content);
    let mut messages = pieces(&format!("uploads/x/blobs/{digest}"), &content, 0);
    messages.last_mut().unwrap().finish_write = false;
    assert_eq!(client.write(messages).await.unwrap(), content.len() as i64);
    assert_eq!(client.read_blob(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn an_upload_of_a_present_blob_ends_early() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(1 << 20);
    let digest = client.write_blob(&content).await.unwrap();
    let mut some = pieces(&format!("uploads/x/blobs/{digest}"), &content, 0);
    some.truncate(1);
    assert_eq!(client.write(some).await.unwrap(), content.len() as i64);
}

#[tokio::test]
async fn equal_uploads_at_once_all_succeed() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = content(3 << 20);
    // The same upload name too: a retried upload may race with the one it replaces.
    let name = format!("uploads/same/blobs/{}", Function::Sha256.hash(&content));
    let writes = (0..8).map(|_| client.write(pieces(&name, &content, 0)));
    for committed in futures_util::future::join_all(writes).await {
        assert_eq!(committed.unwrap(), content.len() as i64);
    }
    assert_eq!(client.read_blob(&Function::Sha256.hash(&content)).await.unwrap(), content);
}

#[tokio::test]
async fn malformed_names_are_refused_with_the_form() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for name in ["", "blobs/xyz/3", "nonsense", &format!("blobs/{}/-1", "a".repeat(64))] {
        let error = client.read(name, 0, 0).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error:?}");
        let message = WriteRequest { resource_name: name.into(), finish_write: true, ..Default::default() };
        assert_eq!(client.write(vec![message]).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let brotli = format!("compressed-blobs/brotli/{}/3", "a".repeat(64));
    assert_eq!(client.read(&brotli, 0, 0).await.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(client.write(vec![]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn five_gigabytes_declared_and_ten_bytes_sent_harm_nobody() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    let name = format!("uploads/big/blobs/{}/{}", "ab".repeat(32), 5_u64 << 30);
    let message = WriteRequest {
        resource_name: name.clone(),
        data: Bytes::from_static(b"ten bytes!"),
        finish_write: true,
        ..Default::default()
    };
    let error = client.write(vec![message]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("finished after 10"), "{error:?}");
    assert_eq!(status(&client, &name).await.committed_size, 0);
    let left = std::fs::read_dir(farm.data().join("cas/tmp")).unwrap().count();
    assert!(farm.is_alive());
    assert!(left <= 1, "{left} temporary files are left");
}

async fn status(client: &Client, name: &str) -> QueryWriteStatusResponse {
    let request = QueryWriteStatusRequest { resource_name: name.into() };
    client.bytes.clone().query_write_status(request).await.unwrap().into_inner()
}
