//! The load: who submits what, and which workers are there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft::digest::{Digest, Function};
use croft::scheduler::bench::{Bare, Resolved};
use croft::scheduler::{Config, ExecutionId, Offer, OperationId, Platform, Task, WorkerId};

/// Pools of workers; each runs its part of the property sets.
const POOLS: usize = 10;
const SLOTS: u32 = 8;
const INVOCATIONS: usize = 100;
/// So many that none has more in the queue than one may.
const IDENTITIES: usize = 10;
const PRIORITIES: i32 = 5;

/// Trees of an input root, out of as many as are in use.
const NEIGHBOURS: usize = 4;
const TREES: u64 = 20_000;

/// Actions that are made ahead of each timed stretch, so that making them is not timed. So few that they are in the cache as those of a
/// client would be.
const BATCH: usize = 500;

pub(crate) struct Load {
    core: Bare,
    workers: usize,
    random: fastrand::Rng,
    platforms: Vec<(Arc<Platform>, Resolved)>,
    invocations: Vec<Arc<str>>,
    instance: Arc<str>,
    identities: Vec<Arc<str>>,
}

/// The time of an action in the stretch in the middle, and in the slowest one.
pub(crate) struct Cost {
    pub(crate) median: Duration,
    pub(crate) slowest: Duration,
}

struct Action {
    operation: OperationId,
    execution: ExecutionId,
    task: Task,
    set: usize,
}

impl Load {
    /// A core whose workers are all busy.
    pub(crate) fn new(workers: usize, sets: usize) -> Self {
        let config = Config { operations_max: 10_000_000, ..Config::default() };
        let mut core = Bare::new(config);
        let mut random = fastrand::Rng::with_seed(1);
        for number in 0..workers {
            core.join(offer(number, WorkerId::new(random.u128(..)))).unwrap();
        }
        let platforms = (0..sets).map(|set| Arc::new(platform(set)));
        let platforms = platforms.map(|platform| (Arc::clone(&platform), core.resolve(&platform).unwrap()));
        let mut load = Self {
            workers,
            platforms: platforms.collect(),
            core,
            random,
            invocations: (0..INVOCATIONS).map(|number| format!("invocation {number}").into()).collect(),
            instance: "main".into(),
            identities: (0..IDENTITIES).map(|number| format!("client {number}").into()).collect(),
        };
        // What fills one worker with demands may leave slots free, so "busy" is when something waits in every pool.
        let full = workers * SLOTS as usize;
        while load.core.running() + load.core.queued() < full {
            let action = load.action();
            load.submit(action);
        }
        load
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    pub(crate) fn slots(&self) -> u32 {
        SLOTS
    }

    pub(crate) fn queued(&self) -> usize {
        self.core.queued()
    }

    /// Submits until so many actions are queued.
    pub(crate) fn fill(&mut self, length: usize) {
        while self.core.queued() < length {
            let action = self.action();
            self.submit(action);
        }
    }

    /// The time that one action takes from its submission to its end, at the length that the queue has.
    pub(crate) fn time(&mut self, cycles: usize) -> Cost {
        let mut times = Vec::new();
        for _ in 0..cycles / BATCH {
            let batch: Vec<Action> = (0..BATCH).map(|_| self.action()).collect();
            let start = Instant::now();
            for action in batch {
                self.submit(action);
                assert!(self.core.finish());
            }
            times.push(start.elapsed() / u32::try_from(BATCH).unwrap());
        }
        times.sort();
        Cost { median: times[times.len() / 2], slowest: times[times.len() - 1] }
    }

    fn submit(&mut self, action: Action) {
        let resolved = &self.platforms[action.set].1;
        self.core.submit((action.operation, action.execution), action.task, resolved);
        self.core.visit(action.operation);
    }

    fn action(&mut self) -> Action {
        let random = &mut self.random;
        let set = random.usize(..self.platforms.len());
        let mut digest = |size| {
            let mut hash = [0; 32];
            random.fill(&mut hash);
            Digest::new(Function::Sha256, &hash, size)
        };
        let (action_digest, command, input_root) = (digest(100), digest(1_000), digest(200));
        let invocation = random.usize(..INVOCATIONS);
        let task = Task {
            instance: Arc::clone(&self.instance),
            action_digest,
            command,
            input_root,
            do_not_cache: false,
            timeout: Duration::from_secs(600),
            platform: Arc::clone(&self.platforms[set].0),
            priority: random.i32(0..PRIORITIES),
            invocation: Arc::clone(&self.invocations[invocation]),
            identity: Arc::clone(&self.identities[invocation % IDENTITIES]),
            neighbours: (0..NEIGHBOURS).map(|_| random.u64(..TREES)).collect(),
            trace: None,
        };
        let [operation, execution] = [random.u128(..), random.u128(..)];
        Action { operation: OperationId::new(operation), execution: ExecutionId::new(execution), task, set }
    }
}

fn pool(number: usize) -> (String, String) {
    ("Pool".to_owned(), format!("pool {}", number % POOLS))
}

/// Every other set demands a share of its worker, and no two are equal.
fn platform(set: usize) -> Platform {
    let amount = |name: &str, value: usize| (name.to_owned(), value.to_string());
    let mut properties = vec![pool(set), ("OSFamily".to_owned(), "linux".to_owned())];
    properties.push(amount("memory", (1 << 20) + set));
    if set.is_multiple_of(2) {
        properties.push(amount("cores", 1));
    }
    Platform::new(properties)
}

fn offer(number: usize, worker: WorkerId) -> Offer {
    let (name, value) = pool(number);
    let properties = BTreeMap::from([
        (name, vec![value]),
        ("OSFamily".to_owned(), vec!["linux".to_owned(), "Linux".to_owned()]),
        ("cores".to_owned(), vec!["8".to_owned()]),
        ("memory".to_owned(), vec![(16_u64 << 30).to_string()]),
    ]);
    Offer {
        worker,
        name: format!("worker {number}"),
        owner: "".into(),
        slots: SLOTS,
        properties,
        leases: Vec::new(),
    }
}
