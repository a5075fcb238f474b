//! Tests of the action cache: a hit is a promise.

use super::super::Memory;
use super::*;
use crate::proto::rev2::{
    ActionResult, Directory, DirectoryNode, FileNode, OutputDirectory, OutputFile, Tree,
};

struct Fixture {
    store: Arc<Memory>,
    cas: Cas,
    cache: ActionCache,
    key: ActionKey,
}

fn fixture(function: Function) -> Fixture {
    let store = Arc::new(Memory::new(1 << 20));
    let cas = Cas::new(Arc::new(Memory::new(1 << 20)));
    let cache = ActionCache::new(store.clone(), cas.clone());
    let key = ActionKey { instance: "main".into(), digest: function.hash(b"action") };
    Fixture { store, cas, cache, key }
}

fn file(digest: Digest) -> OutputFile {
    OutputFile { path: "out".to_owned(), digest: Some(digest.to_proto()), ..OutputFile::default() }
}

fn directory_of(file: Digest) -> Directory {
    let node = FileNode { name: "file".to_owned(), digest: Some(file.to_proto()), ..FileNode::default() };
    Directory { files: vec![node], ..Directory::default() }
}

/// A result that names one blob in each place that can name one, and those blobs.
fn full_result(function: Function) -> (ActionResult, Vec<Bytes>) {
    let leaf = |name: &str| Bytes::from(format!("content of {name}"));
    let (out, stdout, stderr) = (leaf("out"), leaf("stdout"), leaf("stderr"));
    let (in_root, in_child, in_directory) = (leaf("root"), leaf("child"), leaf("directory"));
    let child = directory_of(function.hash(&in_child));
    let tree = Tree { root: Some(directory_of(function.hash(&in_root))), children: vec![child] };
    let tree = Bytes::from(tree.encode_to_vec());
    let nested = Bytes::from(directory_of(function.hash(&in_directory)).encode_to_vec());
    let node = DirectoryNode { name: "nested".to_owned(), digest: Some(function.hash(&nested).to_proto()) };
    let root = Directory { directories: vec![node], ..Directory::default() };
    let root = Bytes::from(root.encode_to_vec());
    let result = ActionResult {
        output_files: vec![file(function.hash(&out))],
        stdout_digest: Some(function.hash(&stdout).to_proto()),
        stderr_digest: Some(function.hash(&stderr).to_proto()),
        output_directories: vec![OutputDirectory {
            path: "dir".to_owned(),
            tree_digest: Some(function.hash(&tree).to_proto()),
            root_directory_digest: Some(function.hash(&root).to_proto()),
            ..OutputDirectory::default()
        }],
        ..ActionResult::default()
    };
    (result, vec![out, stdout, stderr, in_root, in_child, in_directory, tree, nested, root])
}

#[tokio::test]
async fn a_result_with_any_one_blob_absent_is_a_miss() {
    for function in Function::ALL {
        let (result, blobs) = full_result(function);
        for left_out in 0..blobs.len() {
            let fixture = fixture(function);
            fixture.cache.put(&fixture.key, &result).await.unwrap();
            for (place, blob) in blobs.iter().enumerate() {
                if place != left_out {
                    fixture.cas.put_bytes(function, blob.clone()).await.unwrap();
                }
            }
            assert!(fixture.cache.get(&fixture.key).await.unwrap().is_none(), "blob {left_out}");
            let absent = absent_outputs(&fixture.cas, function, &result).await.unwrap();
            assert_eq!(absent, [function.hash(&blobs[left_out])]);
            fixture.cas.put_bytes(function, blobs[left_out].clone()).await.unwrap();
            assert_eq!(fixture.cache.get(&fixture.key).await.unwrap(), Some(result.clone()));
        }
    }
}

#[tokio::test]
async fn a_broken_entry_is_a_miss() {
    let fixture = fixture(Function::Sha256);
    let broken = Blob::Whole(Bytes::from_static(b"\xff\xff"));
    fixture.store.put(&Key::Action(fixture.key.clone()), broken).await.unwrap();
    assert!(fixture.cache.get(&fixture.key).await.unwrap().is_none());
    let no_digest = ActionResult { output_files: vec![OutputFile::default()], ..ActionResult::default() };
    fixture.cache.put(&fixture.key, &no_digest).await.unwrap();
    assert!(fixture.cache.get(&fixture.key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_tree_that_is_no_tree_is_a_miss_and_told_to_who_verifies() {
    let fixture = fixture(Function::Sha256);
    let tree = fixture.cas.put_bytes(Function::Sha256, Bytes::from_static(b"\xff")).await.unwrap();
    let directory = OutputDirectory { tree_digest: Some(tree.to_proto()), ..OutputDirectory::default() };
    let result = ActionResult { output_directories: vec![directory], ..ActionResult::default() };
    fixture.cache.put(&fixture.key, &result).await.unwrap();
    assert!(fixture.cache.get(&fixture.key).await.unwrap().is_none());
    let error = absent_outputs(&fixture.cas, Function::Sha256, &result).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[tokio::test]
async fn instances_and_functions_do_not_share_results() {
    let fixture = fixture(Function::Sha256);
    let result = ActionResult { exit_code: 1, ..ActionResult::default() };
    fixture.cache.put(&fixture.key, &result).await.unwrap();
    let digest = fixture.key.digest;
    let other_function = Digest::new(Function::Blake3, digest.hash(), digest.size());
    let other_size = Digest::new(Function::Sha256, digest.hash(), digest.size() + 1);
    for key in [
        ActionKey { instance: "other".into(), ..fixture.key.clone() },
        ActionKey { digest: other_function, ..fixture.key.clone() },
        ActionKey { digest: other_size, ..fixture.key.clone() },
    ] {
        assert!(fixture.cache.get(&key).await.unwrap().is_none(), "{key:?}");
    }
    assert_eq!(fixture.cache.get(&fixture.key).await.unwrap(), Some(result));
}
