//! The list that the documentation recommends, on real servers: memory, disk, redis, s3.

use std::cell::Cell;

use bytesize::ByteSize;

use super::super::super::object::{self, Provider, Requests, S3};
use super::super::super::redis;
use super::super::super::servers::{BUCKET, Server};
use super::*;

/// The servers, and what keeps one case from seeing what another has stored.
struct Servers {
    redis: Server,
    s3: Server,
    cases: Cell<usize>,
}

impl Servers {
    fn start() -> Option<Self> {
        Some(Self { redis: Server::redis()?, s3: Server::s3()?, cases: Cell::new(0) })
    }

    /// The list for the next case.
    fn tiers(&self, directory: &Path) -> Vec<Tier> {
        let case = self.cases.replace(self.cases.get() + 1);
        let redis =
            redis::Config { prefix: format!("case-{case}:"), ..redis::Config::new(self.redis.endpoint()) };
        let key = directory.join("key");
        std::fs::write(&key, "any\n").unwrap();
        let requests = Requests { allow_http: true, prefix: format!("case-{case}"), ..Requests::default() };
        let s3 = S3 {
            bucket: BUCKET.to_owned(),
            endpoint: Some(self.s3.endpoint()),
            region: Some("us-east-1".to_owned()),
            access_key_id: Some("any".to_owned()),
            secret_access_key_file: Some(key),
            requests,
            ..S3::default()
        };
        let mut tiers = memory_and_disk(directory);
        assert_eq!(redis.blob_max, ByteSize::b(REMOTE_CACHE.blob_max));
        tiers.push(tier("redis", redis::open(&redis).unwrap(), REMOTE_CACHE));
        tiers.push(tier("s3", object::open(Provider::S3(&s3), &directory.join("state")).unwrap(), REMOTE));
        tiers
    }

    async fn keep_the_contract(&self, is_back: bool) {
        holds("memory, disk, redis, s3", |directory| self.tiers(directory), is_back).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_disk_redis_and_s3_that_write_through_keep_the_contract() {
    let Some(servers) = Servers::start() else { return };
    servers.keep_the_contract(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_disk_redis_and_s3_that_write_back_keep_the_contract() {
    let Some(servers) = Servers::start() else { return };
    servers.keep_the_contract(true).await;
}
