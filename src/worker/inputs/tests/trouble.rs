//! The cache in trouble: builds that nobody waits for, names that are taken, disks that are full, many roots at once.

use super::*;

#[tokio::test]
async fn a_build_that_nobody_waits_for_ends() {
    let hanging = Function::Sha256.hash(b"x 150");
    let bench = Bench::over(Arc::new(Memory::new(SIZE)), Some(hanging));
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 200).await);
    let mut staged = Box::pin(inputs.stage(root));
    assert!(timeout(Duration::from_millis(100), &mut staged).await.is_err(), "it hangs");
    until(|| bench.names("layers").len() == 1).await;
    drop(staged);
    until(|| bench.names("layers").is_empty() && inputs.shared.ledger.account().used == 0).await;
}

/// A store that counts how much is read at once, and whose streams come only when all of them are read.
struct Fickle {
    inner: Memory,
    streamed: std::collections::HashSet<Digest>,
    barrier: Arc<tokio::sync::Barrier>,
    reading: AtomicUsize,
    most: AtomicUsize,
}

impl Fickle {
    fn new(streams: usize) -> Self {
        Self {
            inner: Memory::new(SIZE),
            streamed: Default::default(),
            barrier: Arc::new(tokio::sync::Barrier::new(streams)),
            reading: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Store for Fickle {
    async fn get(&self, key: &Key, range: RangeFrom<u64>) -> Result<Option<Blob>> {
        let reading = self.reading.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(reading, Ordering::Relaxed);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.reading.fetch_sub(1, Ordering::Relaxed);
        let blob = self.inner.get(key, range).await?;
        if !self.streamed.iter().any(|digest| *key == Key::Blob(*digest)) {
            return Ok(blob);
        }
        let Some(blob) = blob else { return Ok(None) };
        let (size, barrier) = (blob.size(), self.barrier.clone());
        let bytes = blob.into_bytes(size).await?;
        let chunk = async move {
            barrier.wait().await;
            Ok(bytes)
        };
        let chunks = futures_util::StreamExt::boxed(futures_util::stream::once(chunk));
        Ok(Some(Blob::Stream { size, chunks }))
    }

    async fn put(&self, key: &Key, blob: Blob) -> Result<()> {
        self.inner.put(key, blob).await
    }

    async fn missing(&self, keys: &[Key]) -> Result<Vec<Key>> {
        self.inner.missing(keys).await
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        self.inner.remove(key).await
    }
}

#[tokio::test]
async fn blobs_on_their_way_are_read_all_at_once_so_that_none_keeps_another_waiting() {
    const STREAMS: usize = 8;
    let mut store = Fickle::new(STREAMS);
    store.streamed = (0..STREAMS).map(|n| Function::Sha256.hash(format!("x {n}").as_bytes())).collect();
    let bench = Bench::over(Arc::new(store), None);
    let root = bench.root("x", STREAMS).await;
    let staged = timeout(Duration::from_secs(10), bench.open(SIZE).stage(root)).await;
    assert_eq!(bench.read(&staged.expect("in time").expect("staged"), "7"), "x 7");
}

#[tokio::test]
async fn many_roots_at_once_need_few_descriptors() {
    let store = Arc::new(Fickle::new(1));
    let bench = Bench::over(store.clone(), None);
    let inputs = bench.open(SIZE);
    let mut roots = Vec::new();
    for number in 0..16 {
        roots.push(bench.root(&format!("{number}"), 200).await);
    }
    let staged = futures_util::future::join_all(roots.into_iter().map(|root| inputs.stage(root))).await;
    assert!(staged.iter().all(Result::is_ok));
    let most = store.most.load(Ordering::Relaxed);
    // Each root reads its directory besides.
    assert!(most <= 256 + 16, "{most} blobs are open at once, of 1,024 descriptors");
}

#[tokio::test]
async fn a_tree_that_is_yet_to_be_deleted_does_not_keep_its_root_from_being_built() {
    let bench = Bench::new();
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 3).await);
    let name = Place::of(bench.served.path()).tree(&root, 4, 4 * ENTRY_BYTES);
    fs::create_dir(&name).expect("mkdir");
    let staged = inputs.stage(root).await.expect("staged");
    assert_eq!(bench.read(&staged, "2"), "x 2");
    drop(staged);
    assert!(inputs.shared.index.get(&root).is_some(), "it is kept, under another name");
}

/// A small file system of its own, as long as this is held.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None where nobody may mount.
    fn mount(path: &'a Path) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=3m").ok().map(|()| Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_disk_that_is_full_before_the_cache_is_gets_room_from_what_nobody_uses() {
    let bench = Bench::new();
    let Some(_disk) = SmallDisk::mount(bench.served.path()) else { return };
    let inputs = bench.open(SIZE);
    inputs.shared.has_deltas.store(false, Ordering::Relaxed);
    for word in ["a", "b", "c"] {
        let contents: Vec<String> = (0..100).map(|number| format!("{word} {number} {:20000}", "")).collect();
        inputs.warm(bench.root_of(&contents).await).await.expect("staged");
    }
}

#[tokio::test]
async fn of_too_many_trees_the_least_recently_used_go() {
    let bench = Bench::new();
    let inputs = bench.open(SIZE);
    inputs.shared.has_deltas.store(false, Ordering::Relaxed);
    let mut roots = Vec::new();
    for number in 0..20 {
        roots.push(bench.root(&format!("{number}"), 1).await);
        inputs.warm(roots[number]).await.expect("staged");
    }
    assert!(inputs.shared.index.evict_above(20).is_empty());
    assert_eq!(inputs.shared.index.evict_above(16).len(), 4 + 2);
    assert!(inputs.shared.index.get(&roots[5]).is_none() && inputs.shared.index.get(&roots[6]).is_some());
    until(|| bench.names("trees").len() == 14).await;
}

#[tokio::test]
async fn a_tree_that_was_made_twice_is_kept_once() {
    let bench = Bench::new();
    let (inputs, root) = (bench.open(SIZE), bench.root("x", 3).await);
    inputs.warm(root).await.expect("staged");
    let used = inputs.shared.ledger.account().used;
    let tree = Tree::whole(&inputs.shared.source, root).await.expect("read");
    let other = inputs.realise(Draft { root, tree, base: None }).await.expect("made");
    assert_eq!(inputs.shared.ledger.account().used, 2 * used);
    drop(other);
    until(|| bench.names("layers").is_empty() && inputs.shared.ledger.account().used == used).await;
    assert_eq!(bench.names("trees").len(), 1);
}
