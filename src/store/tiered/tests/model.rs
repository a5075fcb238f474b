//! The whole stack against a map: whatever fails, is evicted or crashes, what was acknowledged can be read.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use self::Step::{Ask, Crash, Evict, Get, Put, Remove};
use super::super::super::{Faulty, Rates};
use super::*;

/// Seeds that failed once.
const FAILED: &[u64] = &[2, 12, 25, 32, 33];

const STEPS: usize = 80;

/// The leaves, which outlive a crash of the store above them.
struct World {
    cache: Arc<Leaf>,
    disk: Arc<Leaf>,
    shared: Arc<Leaf>,
    record: Arc<Leaf>,
    pins: Pins,
    directory: TempDir,
    is_back: bool,
    seed: u64,
    random: fastrand::Rng,
}

/// What has to be there.
#[derive(Default)]
struct Model {
    /// The content of each blob that was acknowledged or reported present.
    promised: HashSet<Key>,
    /// What a result may be: the acknowledged value and those that were tried since.
    results: HashMap<Key, Vec<Option<Bytes>>>,
}

impl World {
    fn new(seed: u64, is_back: bool) -> Self {
        let (cache, disk, shared, record) = Default::default();
        let (pins, directory) = (Pins::default(), TempDir::new().unwrap());
        let random = fastrand::Rng::with_seed(seed);
        let leaves: [&Arc<Leaf>; 4] = [&cache, &disk, &shared, &record];
        leaves.iter().zip(seed..).for_each(|(leaf, seed)| leaf.be_slow(seed));
        Self { cache, disk, shared, record, pins, directory, is_back, seed, random }
    }

    /// Opens the store above leaves that fail at `rate`.
    fn open(&mut self, rate: f64) -> Verified {
        let rates = Rates { before: rate, after: rate, midstream: rate, short: rate };
        let mut faulty = |leaf: &Arc<Leaf>, rates| -> Arc<dyn Store> {
            Arc::new(Faulty::new(leaf.clone(), self.random.u64(..), rates))
        };
        // A cache that fails may keep an older result, so those with results have one that works.
        let cache = if self.seed.is_multiple_of(2) { Rates::default() } else { rates };
        let small = |traits| Traits { blob_max: 20_000, ..traits };
        let tiers = vec![
            tier("cache", faulty(&self.cache, cache), small(CACHE)),
            tier("disk", faulty(&self.disk, rates), LOCAL),
            tier("shared", faulty(&self.shared, cache), REMOTE_CACHE),
            tier("record", faulty(&self.record, rates), REMOTE),
        ];
        let tiered = match self.is_back {
            true => back(tiers, &self.directory.path().join("journal"), &self.pins),
            false => Tiered::open(tiers, None, self.pins.clone(), PATIENCE).unwrap(),
        };
        Verified::on_the_way_in(Arc::new(tiered))
    }

    /// Waits until nothing holds the leaves but the test.
    async fn crash(&self, store: Verified) {
        drop(store);
        until("the tasks of a store end", || Arc::strong_count(&self.record) == 1).await;
    }

    /// Where a blob is, for who looks into a failure.
    fn tell(&self, key: &Key) -> String {
        let leaves = [&self.cache, &self.disk, &self.shared, &self.record];
        let held = leaves.map(|leaf| leaf.holds(key).map(|bytes| bytes.len()));
        let is_pinned = self.pins.contains(&Name::from(key));
        format!("{:?} bytes; cache, disk, shared, record have {held:?}; pinned: {is_pinned}", key.size())
    }

    fn evict(&mut self) {
        for leaf in [&self.cache, &self.disk, &self.shared] {
            // Neither the order in a map nor what is pinned changes the numbers of the steps to come.
            let salt = self.random.u8(..);
            leaf.evict(&self.pins, |key| (Name::from(key).hash()[0] ^ salt).is_multiple_of(4));
        }
    }
}

/// A few blobs of each size that is treated differently, and results.
fn subjects(seed: u64) -> Vec<(Key, Bytes)> {
    let sizes = [10, 3000, 30_000, 70_000];
    let mut subjects: Vec<_> =
        sizes.into_iter().flat_map(|size| (0..2).map(move |n| content(size, seed * 100 + n))).collect();
    subjects.push(content(1_100_000, seed));
    if seed.is_multiple_of(2) {
        subjects.extend((0..3).map(|n| (Key::Asset([n; 32]), Bytes::new())));
    }
    subjects
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Put,
    Get,
    Ask,
    Remove,
    Evict,
    Crash,
}

/// How many keys there are, and how often which step comes.
struct Mix {
    subjects: usize,
    shares: [(Step, usize); 6],
}

/// Much is stored and read.
const USUAL: Mix =
    Mix { subjects: usize::MAX, shares: [(Put, 7), (Get, 7), (Ask, 3), (Remove, 1), (Evict, 1), (Crash, 1)] };

/// A few keys that come and go, so that what is done beside the answers meets what is asked for.
const RESTLESS: Mix =
    Mix { subjects: 3, shares: [(Put, 5), (Get, 2), (Ask, 6), (Remove, 4), (Evict, 2), (Crash, 1)] };

impl Mix {
    fn step(&self, random: &mut fastrand::Rng) -> Step {
        let steps = self.shares.iter().flat_map(|(step, share)| std::iter::repeat_n(*step, *share));
        random.choice(steps.collect::<Vec<_>>()).unwrap()
    }
}

async fn run(seed: u64, is_back: bool, mix: &Mix) {
    let mut world = World::new(seed, is_back);
    let mut subjects = subjects(seed);
    world.random.shuffle(&mut subjects);
    subjects.truncate(mix.subjects);
    let mut model = Model::default();
    let mut store = world.open(0.05);
    for step in 0..STEPS {
        let (key, bytes) = subjects[world.random.usize(..subjects.len())].clone();
        match mix.step(&mut world.random) {
            Put => put(&store, &mut model, (key, bytes), (step, &mut world.random)).await,
            Get => get(&store, &model, &key, &bytes).await,
            Ask => missing(&store, &mut model, &subjects, &world).await,
            Remove => remove(&store, &mut model, &key).await,
            Evict => world.evict(),
            Crash => {
                world.crash(store).await;
                store = world.open(0.05);
            }
        }
    }
    world.crash(store).await;
    let store = world.open(0.0);
    world.evict();
    for (key, bytes) in &subjects {
        get(&store, &model, key, bytes).await;
    }
    let promised: Vec<Key> = model.promised.iter().cloned().collect();
    assert_eq!(store.missing(&promised).await.unwrap(), [], "what was promised is missing");
}

async fn put(
    store: &dyn Store,
    model: &mut Model,
    (key, bytes): (Key, Bytes),
    (step, random): (usize, &mut fastrand::Rng),
) {
    if let Key::Blob(_) = key {
        let is_stored = match random.u8(..3) {
            0 => store.put(&key, Blob::Whole(bytes)).await.is_ok(),
            1 => store.put(&key, streamed(&bytes)).await.is_ok(),
            _ => store.put_all(vec![(key.clone(), bytes)]).await.iter().all(Result::is_ok),
        };
        if is_stored {
            model.promised.insert(key);
        }
        return;
    }
    let value = Bytes::from(format!("value {step}"));
    let possible = model.results.entry(key.clone()).or_insert_with(|| vec![None]);
    match store.put(&key, Blob::Whole(value.clone())).await {
        Ok(()) => *possible = vec![Some(value)],
        Err(_) => possible.push(Some(value)),
    }
}

async fn get(store: &dyn Store, model: &Model, key: &Key, bytes: &Bytes) {
    // An error is an answer, too: something fails in every call.
    let Ok(read) = read(store, key).await else { return };
    match key {
        Key::Blob(_) => {
            assert!(
                read.is_some() || !model.promised.contains(key),
                "a blob of {} bytes is lost",
                bytes.len()
            );
            assert!(read.is_none_or(|read| read == *bytes), "wrong bytes");
        }
        Key::Action(_) | Key::Asset(_) => {
            let possible = model.results.get(key).cloned().unwrap_or_else(|| vec![None]);
            assert!(possible.contains(&read), "{read:?} is none of {possible:?}");
        }
    }
}

async fn missing(store: &dyn Store, model: &mut Model, subjects: &[(Key, Bytes)], world: &World) {
    let keys: Vec<Key> =
        subjects.iter().map(|(key, _)| key.clone()).filter(|key| matches!(key, Key::Blob(_))).collect();
    let Ok(missing) = store.missing(&keys).await else { return };
    for key in &keys {
        if missing.contains(key) {
            assert!(!model.promised.contains(key), "what was promised is missing: {}", world.tell(key));
        } else {
            model.promised.insert(key.clone());
        }
    }
}

async fn remove(store: &dyn Store, model: &mut Model, key: &Key) {
    let removed = store.remove(key).await;
    model.promised.remove(key);
    if let Some(possible) = model.results.get_mut(key) {
        match removed {
            Ok(()) => *possible = vec![None],
            Err(_) => possible.push(None),
        }
    }
}

async fn seeds(seeds: impl IntoIterator<Item = u64>, is_back: bool, mix: &Mix) {
    for seed in seeds {
        let ran = AssertUnwindSafe(run(seed, is_back, mix)).catch_unwind().await;
        assert!(ran.is_ok(), "seed {seed} failed, write back: {is_back}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_what_is_written_through_is_found() {
    seeds(FAILED.iter().copied().chain(0..200), false, &USUAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_what_is_written_back_is_found() {
    seeds(FAILED.iter().copied().chain(0..40), true, &USUAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_while_it_is_written_back_is_found_when_it_was_promised() {
    seeds(0..40, true, &RESTLESS).await;
}
