//! Capabilities, the CAS, trees, the action cache: the rules of REv2 that are easy to miss.

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::rev2::capabilities_client::CapabilitiesClient;
use croft::proto::rev2::{
    self, ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Directory, DirectoryNode, FileNode,
    GetActionResultRequest, GetCapabilitiesRequest, GetTreeRequest, OutputFile,
    batch_update_blobs_request::Request,
};
use prost::Message;
use tonic::Code;

use crate::client::Client;
use crate::farm::Farm;

#[tokio::test]
async fn capabilities_announce_2_0_to_2_12_and_all_that_is_offered() {
    let farm = Farm::start();
    let mut client = CapabilitiesClient::new(farm.channel().await);
    let answer = client.get_capabilities(GetCapabilitiesRequest::default()).await.unwrap().into_inner();
    let (low, high) = (answer.low_api_version.unwrap(), answer.high_api_version.unwrap());
    assert_eq!(((low.major, low.minor), (high.major, high.minor)), ((2, 0), (2, 12)));
    let cache = answer.cache_capabilities.unwrap();
    let functions = Function::ALL.map(|function| function.to_proto() as i32);
    assert_eq!((functions.len(), functions[0]), (10, rev2::digest_function::Value::Sha256 as i32));
    assert_eq!(cache.digest_functions, functions);
    assert!(cache.split_blob_support && cache.splice_blob_support);
    let parameters = cache.fast_cdc_2020_params.unwrap();
    assert_eq!((parameters.avg_chunk_size_bytes, parameters.seed), (512 << 10, 0));
    let zstd = [rev2::compressor::Value::Zstd as i32];
    assert_eq!(
        (&cache.supported_compressors[..], &cache.supported_batch_update_compressors[..]),
        (&zstd[..], &zstd[..])
    );
    assert!(cache.action_cache_update_capabilities.unwrap().update_enabled);
    assert!((3 << 20..=4 << 20).contains(&cache.max_batch_total_size_bytes));
    let execution = answer.execution_capabilities.unwrap();
    assert!(execution.exec_enabled);
    assert_eq!((execution.digest_function, execution.digest_functions), (functions[0], functions.to_vec()));
}

#[tokio::test]
async fn what_was_stored_is_found_and_read_in_both_functions() {
    let farm = Farm::start();
    for function in Function::ALL {
        let client = Client { function, ..Client::new(&farm).await };
        let blobs: Vec<Bytes> =
            [0_usize, 1, 100, 4096, 4097, 100_000].map(|size| vec![7; size].into()).into();
        let digests = client.put_all(blobs.clone()).await;
        let absent = function.hash(b"never stored");
        let mut asked = digests.clone();
        asked.extend([absent, absent]);
        assert_eq!(
            client.missing(&asked).await,
            [absent.to_proto()],
            "absent ones once, the empty blob never"
        );
        let request = BatchReadBlobsRequest {
            digests: asked.iter().map(Digest::to_proto).collect(),
            digest_function: function.to_proto().into(),
            ..Default::default()
        };
        let answer = client.cas.clone().batch_read_blobs(request).await.unwrap().into_inner();
        for (blob, response) in blobs.iter().zip(&answer.responses) {
            assert_eq!(response.data, blob);
            assert_eq!(response.status.as_ref().unwrap().code, 0);
        }
        assert_eq!(answer.responses.last().unwrap().status.as_ref().unwrap().code, Code::NotFound as i32);
    }
}

#[tokio::test]
async fn each_blob_of_a_batch_is_answered_for_itself() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let good = Function::Sha256.hash(b"good");
    let entry = |digest: Option<rev2::Digest>, data: &'static [u8], compressor| Request {
        digest,
        data: Bytes::from_static(data),
        compressor,
    };
    let requests = vec![
        entry(Some(good.to_proto()), b"good", 0),
        entry(Some(good.to_proto()), b"evil", 0),
        entry(Some(Function::Sha256.hash(b"12345").to_proto()), b"1234", 0),
        entry(None, b"x", 0),
        entry(Some(good.to_proto()), b"good", rev2::compressor::Value::Zstd as i32),
    ];
    let request = BatchUpdateBlobsRequest { requests, ..Default::default() };
    let answer = client.cas.clone().batch_update_blobs(request).await.unwrap().into_inner();
    let statuses: Vec<_> = answer.responses.iter().map(|response| response.status.clone().unwrap()).collect();
    let codes: Vec<i32> = statuses.iter().map(|status| status.code).collect();
    let invalid = Code::InvalidArgument as i32;
    assert_eq!(codes, [0, invalid, invalid, invalid, invalid]);
    let evil = Function::Sha256.hash(b"evil");
    assert!(
        statuses[1].message.contains(&good.hex()) && statuses[1].message.contains(&evil.hex()),
        "{statuses:?}"
    );
    assert!(statuses[2].message.contains("4 bytes"), "{statuses:?}");
    assert_eq!(client.read_blob(&good).await.unwrap(), b"good");
}

#[tokio::test]
async fn a_batch_above_the_limit_is_refused_and_one_at_it_is_taken() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let limit = 4 << 20;
    let batch = |size: usize| {
        let data = Bytes::from(vec![1; size]);
        let digest = Some(Function::Sha256.hash(&data).to_proto());
        BatchUpdateBlobsRequest {
            requests: vec![Request { digest, data, compressor: 0 }],
            ..Default::default()
        }
    };
    let at_limit = client.cas.clone().batch_update_blobs(batch(limit)).await.unwrap().into_inner();
    assert_eq!(at_limit.responses[0].status.as_ref().unwrap().code, 0);
    let above = client.cas.clone().batch_update_blobs(batch(limit + 1)).await.unwrap_err();
    assert_eq!(above.code(), Code::InvalidArgument);
    assert!(above.message().contains("ByteStream"), "{above:?}");
    let huge = rev2::Digest { hash: "a".repeat(64), size_bytes: i64::MAX };
    let request = BatchReadBlobsRequest { digests: vec![huge.clone(), huge], ..Default::default() };
    assert_eq!(client.cas.clone().batch_read_blobs(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_of_countless_blobs_is_refused_whole() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let requests = vec![Request::default(); 100_001];
    let update = BatchUpdateBlobsRequest { requests, ..Default::default() };
    let digest = rev2::Digest { hash: "a".repeat(64), size_bytes: 0 };
    let read = BatchReadBlobsRequest { digests: vec![digest; 100_001], ..Default::default() };
    for status in [
        client.cas.clone().batch_update_blobs(update).await.unwrap_err(),
        client.cas.clone().batch_read_blobs(read).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("100000"), "{status:?}");
    }
}

#[tokio::test]
async fn get_tree_sends_each_directory_once_in_pages_and_omits_missing_subtrees() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let leaf = Directory { files: vec![file("f", &Function::Sha256.hash(b"f"))], ..Directory::default() };
    let leaf_digest = client.put_message(&leaf).await;
    let absent = Function::Sha256.hash(b"no directory");
    let nodes = [("a", &leaf_digest), ("b", &leaf_digest), ("c", &absent)];
    let directories =
        nodes.map(|(name, digest)| DirectoryNode { name: name.into(), digest: Some(digest.to_proto()) });
    let root = Directory { directories: directories.into(), ..Directory::default() };
    let root_digest = client.put_message(&root).await;
    let request =
        GetTreeRequest { root_digest: Some(root_digest.to_proto()), page_size: 1, ..Default::default() };
    let mut pages = client.cas.clone().get_tree(request.clone()).await.unwrap().into_inner();
    let first = pages.message().await.unwrap().unwrap();
    let second = pages.message().await.unwrap().unwrap();
    assert_eq!(first.directories, [root]);
    assert_eq!(second.directories, std::slice::from_ref(&leaf));
    assert_eq!(second.next_page_token, "");
    assert!(pages.message().await.unwrap().is_none());
    let resumed = GetTreeRequest { page_token: first.next_page_token, ..request.clone() };
    let mut pages = client.cas.clone().get_tree(resumed).await.unwrap().into_inner();
    assert_eq!(pages.message().await.unwrap().unwrap().directories, [leaf]);
    let unknown = GetTreeRequest { root_digest: Some(absent.to_proto()), ..request };
    assert_eq!(client.cas.clone().get_tree(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_incomplete_result_does_not_exist() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let action = client.put(&b"stands for an action"[..]).await;
    let output = Function::Sha256.hash(b"output");
    let result = ActionResult {
        output_files: vec![OutputFile {
            path: "out".into(),
            digest: Some(output.to_proto()),
            ..OutputFile::default()
        }],
        ..ActionResult::default()
    };
    let get = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        inline_output_files: vec!["out".into()],
        ..Default::default()
    };
    client.put_result(&action, result.clone()).await.unwrap();
    assert_eq!(client.cache.clone().get_action_result(get.clone()).await.unwrap_err().code(), Code::NotFound);
    client.put(&b"output"[..]).await;
    let found = client.cache.clone().get_action_result(get.clone()).await.unwrap().into_inner();
    assert_eq!(found.output_files[0].contents, b"output", "inlined because it was asked for");
    let elsewhere = GetActionResultRequest { instance_name: "other".into(), ..get };
    let error = client.cache.clone().get_action_result(elsewhere).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "results belong to one instance");
}

#[tokio::test]
async fn a_result_with_a_tree_needs_all_that_the_tree_names() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let content = Function::Sha256.hash(b"deep");
    let child = Directory { files: vec![file("deep", &content)], ..Directory::default() };
    let child_digest = Function::Sha256.hash(&child.encode_to_vec());
    let node = DirectoryNode { name: "child".into(), digest: Some(child_digest.to_proto()) };
    let root = Directory { directories: vec![node], ..Directory::default() };
    let tree = client.put_message(&rev2::Tree { root: Some(root), children: vec![child] }).await;
    let directory =
        rev2::OutputDirectory { path: "d".into(), tree_digest: Some(tree.to_proto()), ..Default::default() };
    let result = ActionResult { output_directories: vec![directory], ..ActionResult::default() };
    let action = client.put(&b"another action"[..]).await;
    client.put_result(&action, result).await.unwrap();
    let get = GetActionResultRequest { action_digest: Some(action.to_proto()), ..Default::default() };
    assert_eq!(client.cache.clone().get_action_result(get.clone()).await.unwrap_err().code(), Code::NotFound);
    client.put(&b"deep"[..]).await;
    client.cache.clone().get_action_result(get).await.unwrap();
}

#[tokio::test]
async fn an_unknown_instance_is_answered_with_those_that_are_served() {
    let farm = Farm::start_with(&[("CROFT_INSTANCES", "[main,team/a]")]);
    let client = Client::new(&farm).await;
    let request =
        |name: &str| rev2::FindMissingBlobsRequest { instance_name: name.into(), ..Default::default() };
    client.cas.clone().find_missing_blobs(request("team/a")).await.unwrap();
    let error = client.cas.clone().find_missing_blobs(request("typo")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("`main`, `team/a`"), "{error:?}");
}

fn file(name: &str, digest: &Digest) -> FileNode {
    FileNode { name: name.into(), digest: Some(digest.to_proto()), ..FileNode::default() }
}

#[tokio::test]
async fn every_digest_function_is_served_and_inferred_where_the_protocol_says_so() {
    let farm = Farm::start();
    let content = Bytes::from(vec![7; 5000]);
    for function in Function::ALL {
        let mut client = Client::new(&farm).await;
        client.function = function;
        let digest = client.write_blob(&content).await.unwrap();
        let small = client.put(&b"small"[..]).await;
        assert_eq!(client.read_blob(&digest).await.unwrap(), content, "{function:?}");
        assert!(client.missing(&[digest, small]).await.is_empty(), "{function:?}");
        let unset =
            rev2::FindMissingBlobsRequest { blob_digests: vec![digest.to_proto()], ..Default::default() };
        let missing = client.cas.clone().find_missing_blobs(unset).await.unwrap().into_inner();
        assert_eq!(missing.missing_blob_digests.is_empty(), function.segment().is_none(), "{function:?}");
    }
}
