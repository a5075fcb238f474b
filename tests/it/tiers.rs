//! Several tiers under the real binary: a slow one that is away, and what happens when the farm is killed meanwhile.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use croft::digest::Digest;
use tonic::Code;

use crate::client::Client;
use crate::farm::Farm;
use crate::servers::{BUCKET, Server};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// An S3 tier at `endpoint`, as the value of `storage.tier` has it.
fn s3(endpoint: &str, data: &Path) -> String {
    let key = data.join("key");
    std::fs::write(&key, "any\n").unwrap();
    let key = key.display();
    format!(
        "{{kind=\"s3\",bucket=\"{BUCKET}\",endpoint=\"{endpoint}\",region=\"us-east-1\",allow_http=true,\
         access_key_id=\"any\",secret_access_key_file=\"{key}\"}}"
    )
}

fn start(data: &Path, tiers: &[String], write: &str) -> Farm {
    let tiers = format!("[{}]", tiers.join(","));
    Farm::start_in(data, &[("CROFT_STORAGE__TIER", &tiers), ("CROFT_STORAGE__WRITE", write)])
}

/// The address of nobody: a port that was free a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    format!("127.0.0.1:{}", listener.local_addr().unwrap().port())
}

fn content(number: usize, size: usize) -> Bytes {
    number.to_le_bytes().into_iter().cycle().take(size).collect::<Vec<u8>>().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_that_was_acknowledged_before_a_kill_arrives_when_the_bucket_is_back() {
    let Some(mut server) = Server::s3() else { return };
    server.stop();
    let data = tempfile::tempdir().unwrap();
    let disk = "{kind=\"disk\",size=\"256MiB\"}".to_owned();
    let tiers = [disk, s3(&server.endpoint(), data.path())];
    let mut stored: Vec<(Digest, Bytes)> = Vec::new();
    for round in 0..3 {
        let mut farm = start(data.path(), &tiers, "back");
        let client = Client::new(&farm).await;
        let digests: Vec<Digest> = stored.iter().map(|(digest, _)| *digest).collect();
        assert!(client.missing(&digests).await.is_empty(), "round {round}");
        let small: Vec<Bytes> = (0..100).map(|number| content(round * 1_000 + number + 1, 500)).collect();
        stored.extend(client.put_all(small.clone()).await.into_iter().zip(small));
        let large = content(round * 1_000 + 500, 3_000_000);
        stored.push((client.write_blob(&large).await.unwrap(), large));
        farm.kill();
    }
    server.start();
    let _farm = start(data.path(), &tiers, "back");
    // Another farm knows only what is in the bucket.
    let elsewhere = tempfile::tempdir().unwrap();
    let reader = start(elsewhere.path(), &[s3(&server.endpoint(), elsewhere.path())], "through");
    let client = Client::new(&reader).await;
    let digests: Vec<Digest> = stored.iter().map(|(digest, _)| *digest).collect();
    let deadline = Instant::now() + PATIENCE;
    while !client.missing(&digests).await.is_empty() {
        assert!(Instant::now() < deadline, "some writes do not arrive");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (digest, content) in &stored {
        assert!(client.read_blob(digest).await.unwrap() == *content, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_whose_remote_tiers_are_away_starts_and_says_unavailable() {
    let data = tempfile::tempdir().unwrap();
    let redis = format!("{{kind=\"redis\",url=\"redis://{}\"}}", nobody());
    let tiers = [redis, s3(&format!("http://{}", nobody()), data.path())];
    let mut farm = start(data.path(), &tiers, "through");
    assert_eq!(farm.page("/readyz").await.0, 200);
    let client = Client::new(&farm).await;
    let digest = client.function.hash(b"never stored");
    let error = client.read_blob(&digest).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let error = client.write_blob(&content(1, 100)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(farm.terminate().success());
}
