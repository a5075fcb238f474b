//! The cache as its users see it: what is built, shared, kept, evicted and found again.

mod trouble;

use std::fs;
use std::ops::RangeFrom;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use prost::Message;

use super::staging::BATCH_FILES;
use super::*;
use crate::digest::Function;
use crate::proto::rev2::{Directory, DirectoryNode, FileNode};
use crate::store::{Blob, Disk, DiskOptions, Key, Memory, Store};

const SIZE: u64 = 64 << 20;

/// A store whose blobs can be taken away, and which hangs on one of them.
struct Gate {
    inner: Arc<dyn Store>,
    reads: AtomicUsize,
    is_empty: AtomicBool,
    hangs_at: Option<Digest>,
}

#[async_trait]
impl Store for Gate {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.hangs_at.is_some_and(|digest| *key == Key::Blob(digest)) {
            std::future::pending::<()>().await;
        }
        if self.is_empty.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.inner.get(key, range).await
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.inner.put(key, blob).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        if self.is_empty.load(Ordering::Relaxed) {
            return Ok(keys.to_vec());
        }
        self.inner.missing(keys).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.inner.remove(key).await
    }
}

struct Bench {
    served: tempfile::TempDir,
    gate: Arc<Gate>,
}

impl Bench {
    fn new() -> Self {
        Self::over(Arc::new(Memory::new(SIZE)), None)
    }

    fn over(inner: Arc<dyn Store>, hangs_at: Option<Digest>) -> Self {
        let (reads, is_empty) = (AtomicUsize::new(0), AtomicBool::new(false));
        let gate = Arc::new(Gate { inner, reads, is_empty, hangs_at });
        Self { served: tempfile::tempdir().expect("a directory"), gate }
    }

    fn cas(&self) -> Cas {
        Cas::new(self.gate.clone())
    }

    fn open(&self, size: u64) -> Inputs {
        Inputs::open(self.cas(), self.served.path(), size, Ownership::Same).expect("opened")
    }

    fn empty(&self) {
        self.gate.is_empty.store(true, Ordering::Relaxed);
    }

    fn reads(&self) -> usize {
        self.gate.reads.load(Ordering::Relaxed)
    }

    /// A root of files `0` to `count - 1`, of which the content begins with `word`.
    async fn root(&self, word: &str, count: usize) -> Digest {
        let contents: Vec<String> = (0..count).map(|number| format!("{word} {number}")).collect();
        self.root_of(&contents).await
    }

    async fn root_of(&self, contents: &[String]) -> Digest {
        let mut files = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let digest = self.put(content.clone().into_bytes()).await;
            let name = format!("{number}");
            files.push(FileNode { name, digest: Some(digest.to_proto()), ..FileNode::default() });
        }
        self.put(Directory { files, ..Directory::default() }.encode_to_vec()).await
    }

    async fn put(&self, bytes: Vec<u8>) -> Digest {
        self.cas().put_bytes(Function::Sha256, bytes.into()).await.expect("stored")
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.served.path().join("inputs").join(folder)).expect("list");
        entries.map(|entry| entry.expect("list").file_name().to_string_lossy().into_owned()).collect()
    }

    fn read(&self, staged: &Staged, name: &str) -> String {
        let paths = staged.layers().into_iter().map(|layer| self.served.path().join(layer).join(name));
        let path = paths.into_iter().find(|path| path.exists()).expect("in some layer");
        fs::read_to_string(path).expect("readable")
    }
}

async fn until(mut is_reached: impl FnMut() -> bool) {
    let reached = async {
        while !is_reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(30), reached).await.expect("the state is reached");
}

#[tokio::test]
async fn a_warm_root_needs_nothing_of_the_store() {
    let bench = Bench::new();
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 100).await);
    inputs.warm(root).await.expect("staged");
    bench.empty();
    let before = bench.reads();
    let staged = inputs.stage(root).await.expect("warm");
    assert_eq!((bench.read(&staged, "99"), bench.reads()), ("x 99".into(), before));
}

#[tokio::test]
async fn a_root_that_differs_little_is_a_layer_and_one_that_differs_much_a_tree() {
    let bench = Bench::new();
    let inputs = bench.open(SIZE);
    let first = inputs.stage(bench.root("x", 1000).await).await.expect("staged");
    assert_eq!(first.layers().len(), 1);
    let mut contents: Vec<String> = (0..1000).map(|number| format!("x {number}")).collect();
    contents[500] = "changed".into();
    contents.truncate(990);
    let second = inputs.stage(bench.root_of(&contents).await).await.expect("staged");
    assert_eq!(second.layers().len(), 2);
    assert_eq!(second.layers()[1..], first.layers()[..]);
    assert_eq!((bench.read(&second, "500"), bench.read(&second, "501")), ("changed".into(), "x 501".into()));
    let upper = bench.served.path().join(&second.layers()[0]);
    assert_eq!(fs::read_dir(upper).expect("list").count(), 11, "one file and ten whiteouts");
    let third = inputs.stage(bench.root("y", 1000).await).await.expect("staged");
    assert_eq!(third.layers().len(), 1);
}

#[tokio::test]
async fn a_layer_over_a_layer_lies_over_its_tree() {
    let bench = Bench::new();
    let inputs = bench.open(SIZE);
    let mut contents: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let first = inputs.stage(bench.root_of(&contents).await).await.expect("staged");
    for number in 0..10 {
        contents[number] = "changed".into();
        let staged = inputs.stage(bench.root_of(&contents).await).await.expect("staged");
        assert_eq!(staged.layers()[1..], first.layers()[..]);
    }
}

#[tokio::test]
async fn a_toolchain_below_other_sources_is_found_again() {
    let bench = Bench::new();
    let inputs = bench.open(SIZE);
    let tools = bench.root("tool", 300).await;
    let mut layers = Vec::new();
    for word in ["a", "b", "c"] {
        let folder =
            |name: &str, digest: Digest| DirectoryNode { name: name.into(), digest: Some(digest.to_proto()) };
        let directories = vec![folder("src", bench.root(word, 20).await), folder("tools", tools)];
        let root = bench.put(Directory { directories, ..Directory::default() }.encode_to_vec()).await;
        layers.push(inputs.stage(root).await.expect("staged").layers());
        // What was used last is of no help.
        for number in 0..3 {
            inputs.warm(bench.root(&format!("{word} {number}"), 200).await).await.expect("staged");
        }
    }
    assert_eq!(layers.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2]);
    assert!(layers[1][1] == layers[0][0] && layers[2][1] == layers[0][0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_many_want_is_built_once_and_whoever_goes_leaves_it_to_the_others() {
    let bench = Bench::new();
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 300).await);
    let mut all: Vec<_> = (0..8).map(|_| Box::pin(inputs.stage(root))).collect();
    let begun = all.iter_mut().all(|one| futures_util::FutureExt::now_or_never(one).is_none());
    assert!(begun, "all wait for it");
    drop(all.remove(0));
    let staged = futures_util::future::join_all(all).await;
    let layers: Vec<_> = staged.into_iter().map(|staged| staged.expect("staged").layers()).collect();
    assert!(layers.iter().all(|one| *one == layers[0]));
    assert_eq!(bench.reads(), 301, "each blob is read once");
    assert_eq!((bench.names("trees").len(), bench.names("layers").len()), (1, 0));
}

#[tokio::test]
async fn all_that_is_missing_is_named_and_nothing_is_left_of_the_attempt() {
    let bench = Bench::new();
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 3).await);
    let gone = ["x 0", "x 2"].map(|content| Function::Sha256.hash(content.as_bytes()));
    for digest in gone {
        bench.gate.remove(&Key::Blob(digest)).await.expect("removed");
    }
    let mut missing = inputs.stage(root).await.err().expect("missing").missing().to_vec();
    missing.sort();
    let mut expected = gone.to_vec();
    expected.sort();
    assert_eq!(missing, expected);
    bench.root("x", 3).await;
    inputs.stage(root).await.expect("what was missing is there again");
}

#[tokio::test]
async fn what_is_in_use_stays_and_what_is_not_makes_room() {
    let bench = Bench::new();
    // Room for three trees of 21 entries.
    let inputs = bench.open(3 * 21 * ENTRY_BYTES + 100);
    let [a, b, c, d] = ["a", "b", "c", "d"];
    let mut roots = Vec::new();
    for word in [a, b, c, d] {
        // Large enough not to be a layer over another.
        roots.push(bench.root(word, 20).await);
    }
    inputs.shared.has_deltas.store(false, Ordering::Relaxed);
    let held = inputs.stage(roots[0]).await.expect("staged");
    inputs.warm(roots[1]).await.expect("staged");
    let other = inputs.stage(roots[2]).await.expect("staged");
    inputs.warm(roots[3]).await.expect("staged");
    assert_eq!(bench.read(&held, "19"), "a 19");
    assert_eq!(bench.read(&other, "19"), "c 19");
    assert!(inputs.shared.index.get(&roots[1]).is_none(), "the only one that nobody used");
    assert!(inputs.shared.ledger.account().used <= inputs.shared.ledger.limit());
    // All that could make room is in use: the action gets its inputs all the same, for itself.
    let last = inputs.stage(roots[3]).await.expect("staged");
    let private = inputs.stage(roots[1]).await.expect("staged");
    assert_eq!(bench.read(&private, "0"), "b 0");
    assert!(inputs.shared.index.get(&roots[1]).is_none());
    drop((held, other, last, private));
    until(|| bench.names("layers").is_empty() && bench.names("trash").is_empty()).await;
}

#[tokio::test]
async fn a_tree_below_a_layer_in_use_stays() {
    let bench = Bench::new();
    let inputs = bench.open(2 * 201 * ENTRY_BYTES);
    let mut contents: Vec<String> = (0..150).map(|number| number.to_string()).collect();
    inputs.warm(bench.root_of(&contents).await).await.expect("staged");
    contents[0] = "changed".into();
    let held = inputs.stage(bench.root_of(&contents).await).await.expect("staged");
    assert_eq!(held.layers().len(), 2);
    for word in ["a", "b", "c", "d"] {
        inputs.warm(bench.root(word, 150).await).await.expect("staged");
    }
    assert_eq!(bench.read(&held, "149"), "149");
}

#[tokio::test]
async fn files_are_shared_with_the_disk_and_copies_among_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(directory.path(), DiskOptions::new(SIZE)).expect("opened");
    let bench = Bench::over(Arc::new(disk), None);
    let (large, small) = (bench.put(vec![b'x'; 100_000]).await, bench.put(b"small".to_vec()).await);
    let file = |name: &str, digest: Digest, is_executable| FileNode {
        name: name.into(),
        digest: Some(digest.to_proto()),
        is_executable,
        node_properties: None,
    };
    let mut layers = Vec::new();
    let inputs = bench.open(SIZE);
    inputs.shared.has_deltas.store(false, Ordering::Relaxed);
    for name in ["one", "two"] {
        let files = vec![file(name, small, false), file("large", large, false), file("tool", large, true)];
        let root = bench.put(Directory { files, ..Directory::default() }.encode_to_vec()).await;
        layers.push(inputs.stage(root).await.expect("staged").layers().remove(0));
    }
    let stat =
        |layer: &str, name: &str| fs::metadata(bench.served.path().join(layer).join(name)).expect("stat");
    let inode = |layer: usize, name: &str| stat(&layers[layer], name).ino();
    assert_eq!((inode(0, "large"), inode(0, "tool")), (inode(1, "large"), inode(1, "tool")));
    assert_eq!(inode(0, "one"), inode(1, "two"));
    // The store's name, and one in each tree.
    assert_eq!((stat(&layers[0], "large").nlink(), stat(&layers[0], "tool").nlink()), (3, 3));
    for name in ["one", "large", "tool"] {
        assert_eq!(stat(&layers[0], name).mtime(), tree::TIME.tv_sec, "{name}");
    }
}

#[tokio::test]
async fn a_worker_that_was_killed_finds_what_was_complete() {
    let bench = Bench::new();
    let root = bench.root("x", 200).await;
    let inputs = bench.open(SIZE);
    inputs.warm(root).await.expect("staged");
    let used = inputs.shared.ledger.account().used;
    drop(inputs);
    bench.empty();
    let inputs = bench.open(SIZE);
    let staged = inputs.stage(root).await.expect("warm");
    assert_eq!(bench.read(&staged, "7"), "x 7");
    assert_eq!(inputs.shared.ledger.account().used, used);
}

#[tokio::test]
async fn a_build_that_was_cut_short_leaves_nothing_after_the_next_start() {
    let hanging = Function::Sha256.hash(b"x 150");
    let bench = Bench::over(Arc::new(Memory::new(SIZE)), Some(hanging));
    let root = bench.root("x", 200).await;
    let inputs = bench.open(SIZE);
    let mut staged = std::pin::pin!(inputs.stage(root));
    assert!(timeout(Duration::from_millis(200), &mut staged).await.is_err(), "it hangs");
    // All is placed but the batch that has the one that hangs.
    let placed =
        || bench.names("layers").pop().map_or(0, |layer| bench.names(&format!("layers/{layer}")).len());
    until(|| placed() == 200 - BATCH_FILES).await;
    // As after a kill, nobody tidies up: the build still hangs.
    let again = Bench { served: bench.served, gate: Bench::over(bench.gate.inner.clone(), None).gate };
    let inputs = again.open(SIZE);
    assert_eq!((again.names("layers").len(), again.names("temporary").len()), (0, 0));
    assert_eq!(again.read(&inputs.stage(root).await.expect("staged"), "150"), "x 150");
}

#[tokio::test]
async fn a_file_that_cannot_be_linked_more_often_gets_another_copy() {
    let bench = Bench::new();
    let inputs = bench.open(2 << 30);
    // One more than ext4 allows of links to one inode; the copy's own name is one, too.
    const FILES: usize = 65_001;
    let digest = bench.put(b"often".to_vec()).await;
    let file = |number: usize| FileNode {
        name: number.to_string(),
        digest: Some(digest.to_proto()),
        ..FileNode::default()
    };
    let root = Directory { files: (0..FILES).map(file).collect(), ..Directory::default() };
    let root = bench.put(root.encode_to_vec()).await;
    let staged = inputs.stage(root).await.expect("staged");
    assert_eq!(bench.read(&staged, &(FILES - 1).to_string()), "often");
}
