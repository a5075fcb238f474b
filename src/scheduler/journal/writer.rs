//! The thread that commits, and the queue before it.
//!
//! While one group is on its way to the medium, the next one gathers. Changes of one key in one group become one: a group is
//! committed whole, so no start can see that a state in between is missing.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::super::record::{Record, RecordKey};
use super::{Change, GROUP_BYTES_MAX, Journal, codec};
use crate::error::{Context, Error, Result};
use crate::{metrics, tasks};

/// Changes that wait for the thread before the driver takes no new submissions: some seconds of the highest load, and some ten
/// megabytes. What is in hand goes on and adds a few changes for each operation, so it bounds what comes on top.
const WAITING_MAX: usize = 100_000;

/// How far the thread is.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Progress {
    /// How many changes are durable, counted from the start in the order in which they were handed over.
    pub(in super::super) durable: u64,
    /// Why nothing more will be.
    pub(in super::super) failure: Option<Arc<Error>>,
}

/// The way to the thread. Dropping it lets the thread commit what waits, and end.
pub(in super::super) struct Writer {
    queue: Arc<Queue>,
    progress: watch::Receiver<Progress>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// The changes that were handed over and are not committed. Apart from them, so that looking at it waits for nobody.
    backlog: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    changes: VecDeque<Change>,
    is_closed: bool,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(in super::super) fn start(journal: Arc<dyn Journal>) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let (sender, progress) = watch::channel(Progress::default());
        let committer = Committer { journal, queue: Arc::clone(&queue), rest: VecDeque::new(), sender };
        tasks::thread("journal", move || committer.run()).context(|| "start the journal's thread")?;
        Ok(Self { queue, progress })
    }

    /// Hands over changes, in their order. Does not wait.
    pub(in super::super) fn append(&self, changes: &mut Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.queue.backlog.fetch_add(changes.len(), Ordering::Relaxed);
        metrics::JOURNAL_PENDING.add(gauge(changes.len()));
        self.queue.lock().changes.extend(changes.drain(..));
        self.queue.arrived.notify_one();
    }

    /// Whether so much waits that nothing new should be begun.
    pub(in super::super) fn is_full(&self) -> bool {
        self.queue.backlog.load(Ordering::Relaxed) >= WAITING_MAX
    }

    /// Waits until the thread is further than this said before. Dropping the future loses nothing.
    pub(in super::super) async fn progress(&mut self) -> Progress {
        // The sender lives as long as the thread, and a thread that ends early has panicked, which ends the process.
        let _ = self.progress.changed().await;
        self.progress.borrow_and_update().clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.arrived.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, once there is something; `None` when nothing will come any more.
    fn take(&self) -> Option<VecDeque<Change>> {
        let is_idle = |waiting: &mut Waiting| waiting.changes.is_empty() && !waiting.is_closed;
        let mut waiting =
            self.arrived.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let changes = mem::take(&mut waiting.changes);
        (!changes.is_empty()).then_some(changes)
    }
}

/// The thread's state.
struct Committer {
    journal: Arc<dyn Journal>,
    queue: Arc<Queue>,
    /// What was taken from the queue and is not in a group yet.
    rest: VecDeque<Change>,
    sender: watch::Sender<Progress>,
}

impl Committer {
    fn run(mut self) {
        while let Some(group) = self.next_group() {
            let length = group.length;
            if let Err(error) = self.commit(group) {
                tracing::error!("the journal cannot be written: {}", error.chain());
                self.sender.send_modify(|progress| progress.failure = Some(Arc::new(error)));
                return;
            }
            self.queue.backlog.fetch_sub(length, Ordering::Relaxed);
            metrics::JOURNAL_PENDING.sub(gauge(length));
            self.sender.send_modify(|progress| progress.durable += length as u64);
        }
    }

    fn next_group(&mut self) -> Option<Group> {
        if self.rest.is_empty() {
            self.rest = self.queue.take()?;
        }
        let mut group = Group::default();
        while let Some(change) = self.rest.front() {
            let weight = codec::weight(change.1.as_ref());
            if !group.has_room(weight) {
                break;
            }
            group.add(self.rest.pop_front().expect("it was looked at"), weight);
        }
        Some(group)
    }

    fn commit(&self, group: Group) -> Result<()> {
        let changes: Vec<Change> = group.changes.into_iter().collect();
        let start = Instant::now();
        if !changes.is_empty() {
            self.journal.commit(&changes)?;
        }
        metrics::JOURNAL_COMMIT.observe(start.elapsed().as_secs_f64());
        metrics::JOURNAL_RECORDS.inc_by(changes.len() as u64);
        metrics::JOURNAL_BYTES.inc_by(group.bytes as u64);
        Ok(())
    }
}

fn gauge(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Changes that are committed together.
#[derive(Default)]
struct Group {
    changes: HashMap<RecordKey, Option<Record>>,
    /// How many went in.
    length: usize,
    bytes: usize,
}

impl Group {
    /// A change of any size has room in an empty group.
    fn has_room(&self, weight: usize) -> bool {
        self.length == 0 || self.bytes + weight <= GROUP_BYTES_MAX
    }

    fn add(&mut self, (key, record): Change, weight: usize) {
        self.length += 1;
        self.bytes += weight;
        self.changes.insert(key, record);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::super::id::{ExecutionId, OperationId};
    use super::*;

    fn live(operation: u128, execution: u128) -> Record {
        Record::Live { operation: OperationId::new(operation), execution: ExecutionId::new(execution) }
    }

    fn kept(record: Record) -> Change {
        (record.key(), Some(record))
    }

    fn group(changes: Vec<Change>) -> Group {
        let mut group = Group::default();
        for change in changes {
            group.add(change, 1);
        }
        group
    }

    #[test]
    fn the_last_change_of_a_key_counts() {
        let group =
            group(vec![kept(live(1, 1)), kept(live(2, 1)), kept(live(1, 2)), (live(2, 1).key(), None)]);
        assert_eq!(group.length, 4);
        let changes: BTreeMap<_, _> = group.changes.into_iter().collect();
        assert_eq!(changes.into_values().collect::<Vec<_>>(), [Some(live(1, 2)), None]);
    }

    #[test]
    fn a_group_is_bounded_but_takes_any_first_change() {
        let mut group = Group::default();
        assert!(group.has_room(2 * GROUP_BYTES_MAX));
        group.add(kept(live(1, 1)), GROUP_BYTES_MAX);
        assert!(!group.has_room(1) && group.has_room(0));
    }
}
