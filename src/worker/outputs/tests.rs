//! Tests of the collection of outputs, on plain directories.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::error::Kind;
use crate::worker::shelf::Shelf;

const TREE: Format = Format { is_tree: true, is_directory: false };

fn view(directory: &Path) -> OwnedFd {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("open")
}

fn output(path: &str, expected: Expected) -> Output {
    Output { name: path.into(), path: path.into(), expected }
}

async fn collect_from(cas: &Cas, directory: &Path, outputs: Vec<Output>) -> Result<rev2::ActionResult> {
    collect(cas, Function::Sha256, view(directory), (outputs, TREE)).await
}

#[tokio::test]
#[expect(deprecated, reason = "clients of REv2 2.0 read these fields")]
async fn each_kind_of_output_is_named_in_its_field() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    fs::write(root.join("file"), "content").expect("write");
    fs::write(root.join("tool"), "").expect("write");
    fs::set_permissions(root.join("tool"), Permissions::from_mode(0o755)).expect("chmod");
    symlink("/dangling", root.join("link")).expect("symlink");
    let outputs = ["file", "tool", "link", "missing", "file/below"].map(|path| output(path, Expected::Any));
    let mut outputs = Vec::from(outputs);
    outputs.push(output("link", Expected::File));
    let cas = Shelf::cas();
    let result = collect_from(&cas, root, outputs).await.expect("collected");
    let files: Vec<_> =
        result.output_files.iter().map(|file| (file.path.as_str(), file.is_executable)).collect();
    assert_eq!(files, [("file", false), ("tool", true)]);
    assert_eq!(result.output_symlinks.len(), 2);
    assert_eq!(result.output_file_symlinks[0].target, "/dangling");
    let digest = Function::Sha256.hash(b"content");
    assert_eq!(result.output_files[0].digest, Some(digest.to_proto()));
    assert_eq!(cas.read(&digest, 100).await.expect("read").expect("stored"), "content");
}

#[tokio::test]
async fn a_tree_names_equal_directories_once_and_parents_first() {
    let directory = tempfile::tempdir().expect("a directory");
    for path in ["out/b/same", "out/a/same", "out/a/deeper/same", "out/empty"] {
        fs::create_dir_all(directory.path().join(path)).expect("mkdir");
    }
    for path in ["out/b/same/x", "out/a/same/x", "out/a/deeper/same/x", "out/ä"] {
        fs::write(directory.path().join(path), "x").expect("write");
    }
    let cas = Shelf::cas();
    let format = Format { is_tree: true, is_directory: true };
    let outputs = (vec![output("out", Expected::Any)], format);
    let result = collect(&cas, Function::Sha256, view(directory.path()), outputs).await.expect("collected");
    let [output] = result.output_directories.as_slice() else { panic!("one directory") };
    assert!(output.is_topologically_sorted);
    let digest = Digest::from_proto(Function::Sha256, output.tree_digest.as_ref()).expect("a digest");
    let tree: rev2::Tree = cas.message(&digest).await.expect("read").expect("stored");
    let all: Vec<rev2::Directory> = tree.root.into_iter().chain(tree.children).collect();
    assert_eq!(all.len(), 5, "out, a, b (which is as deeper), empty and one `same`");
    let digests: Vec<_> =
        all.iter().map(|item| Function::Sha256.hash(&item.encode_to_vec()).to_proto()).collect();
    for (number, item) in all.iter().enumerate() {
        for node in &item.directories {
            let position = digests.iter().position(|digest| Some(digest) == node.digest.as_ref());
            assert!(position.expect("in the tree") > number, "{} comes after its parent", node.name);
        }
    }
    assert_eq!(output.root_directory_digest.as_ref(), Some(&digests[0]));
    let root = Digest::from_proto(Function::Sha256, output.root_directory_digest.as_ref()).expect("a digest");
    let stored: rev2::Directory = cas.message(&root).await.expect("read").expect("stored");
    assert_eq!(
        stored.directories.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["a", "b", "empty"]
    );
}

#[tokio::test]
async fn what_cannot_be_an_output_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    fs::create_dir(root.join("dir")).expect("mkdir");
    fs::write(root.join("file"), "").expect("write");
    symlink("/etc", root.join("out")).expect("symlink");
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("dir/pipe"), Mode::RUSR).expect("mkfifo");
    let cases = [
        ("dir", Expected::File, "output `dir` is a directory, not a file"),
        ("file", Expected::Directory, "output `file` is a file, not a directory"),
        ("out/passwd", Expected::Any, "output `out/passwd` lies behind a symbolic link"),
        ("dir/pipe", Expected::Any, "output `dir/pipe` is a named pipe"),
        ("dir", Expected::Any, "output `dir/pipe` is a named pipe"),
    ];
    for (path, expected, sentence) in cases {
        let error =
            collect_from(&Shelf::cas(), root, vec![output(path, expected)]).await.expect_err(sentence);
        assert_eq!(error.kind(), Kind::Precondition);
        assert!(error.to_string().contains(sentence), "{error}");
    }
}

#[tokio::test]
async fn a_link_out_of_the_tree_is_kept_as_a_link() {
    let directory = tempfile::tempdir().expect("a directory");
    symlink("/etc/passwd", directory.path().join("out")).expect("symlink");
    let shelf = Arc::new(Shelf::default());
    let cas = Cas::new(shelf.clone());
    let result =
        collect_from(&cas, directory.path(), vec![output("out", Expected::Any)]).await.expect("collected");
    assert_eq!(result.output_symlinks[0].target, "/etc/passwd");
    assert_eq!(shelf.puts.load(Ordering::Relaxed), 0, "nothing of the host is uploaded");
}

#[tokio::test]
async fn thousands_of_outputs_need_few_descriptors_and_are_uploaded_once() {
    const FILES: usize = 5_000;
    let directory = tempfile::tempdir().expect("a directory");
    for number in 0..FILES {
        fs::write(directory.path().join(number.to_string()), format!("{}", number / 2)).expect("write");
    }
    let shelf = Arc::new(Shelf::default());
    let cas = Cas::new(shelf.clone());
    let outputs = || (0..FILES).map(|number| output(&number.to_string(), Expected::Any)).collect();
    let watch = crate::tasks::spawn("watch", async {
        let mut most = 0;
        loop {
            most = most.max(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count));
            assert!(most < 400, "{most} descriptors are open");
            tokio::task::yield_now().await;
        }
    });
    let result = collect_from(&cas, directory.path(), outputs()).await.expect("collected");
    watch.abort();
    assert_eq!(result.output_files.len(), FILES);
    assert_eq!(shelf.puts.load(Ordering::Relaxed), FILES / 2);
    collect_from(&cas, directory.path(), outputs()).await.expect("collected");
    assert_eq!(shelf.puts.load(Ordering::Relaxed), FILES / 2, "what is there is not uploaded again");
}

#[tokio::test]
async fn a_file_larger_than_what_is_kept_in_memory_arrives_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(directory.path().join("large"), &content).expect("write");
    let cas = Shelf::cas();
    collect_from(&cas, directory.path(), vec![output("large", Expected::Any)]).await.expect("collected");
    let stored = cas.read(&Function::Sha256.hash(&content), u64::MAX).await.expect("read").expect("stored");
    assert_eq!(stored, content);
}
