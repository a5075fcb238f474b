//! The processes that wait for a request, and how many there may be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::call::Key;
use super::process::Process;
use crate::tasks;

/// The processes of one worker.
pub(in crate::worker) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    idle_max: Duration,
    /// A permit for each process there is.
    places: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    is_closed: bool,
    next: u64,
    /// The one that has waited longest is the first.
    processes: Vec<Waiting>,
}

struct Waiting {
    number: u64,
    process: Process,
    timer: JoinHandle<()>,
}

/// What somebody with a request gets.
pub(super) enum Taken {
    Process(Box<Process>),
    /// The right to start one.
    Place(OwnedSemaphorePermit),
    Nothing,
}

impl Pool {
    /// Of at most `processes`, each of which ends when it has waited for `idle_max`.
    pub(in crate::worker) fn new(processes: u32, idle_max: Duration) -> Self {
        let places = Arc::new(Semaphore::new(processes as usize));
        Self { shared: Arc::new(Shared { idle_max, places, idle: Mutex::default() }) }
    }

    /// A process for `key` that waits, or a place for a new one, for which one of another key may have to go.
    pub(super) async fn take(&self, key: &Key) -> Taken {
        if let Some(process) = self.shared.take(|waiting| waiting.process.key == *key) {
            return Taken::Process(Box::new(process));
        }
        if let Some(place) = self.place() {
            return Taken::Place(place);
        }
        // The first is the one that has waited longest.
        if let Some(process) = self.shared.take(|_| true) {
            process.end().await;
        }
        self.place().map_or(Taken::Nothing, Taken::Place)
    }

    /// Lets a process wait for its next request, or ends it if there will be none.
    pub(super) async fn give(&self, process: Process) {
        let refused = if process.is_fresh() { self.shared.add(process) } else { Some(process) };
        if let Some(process) = refused {
            process.end().await;
        }
    }

    /// Ends all that wait, and those at work when they are given back.
    pub(in crate::worker) async fn close(&self) {
        let all = {
            let mut idle = self.shared.idle();
            idle.is_closed = true;
            std::mem::take(&mut idle.processes)
        };
        let ends = all.into_iter().map(|waiting| {
            waiting.timer.abort();
            waiting.process.end()
        });
        future::join_all(ends).await;
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.shared.places.clone().try_acquire_owned().ok()
    }
}

impl Shared {
    fn take(&self, is_wanted: impl Fn(&Waiting) -> bool) -> Option<Process> {
        let mut idle = self.idle();
        let position = idle.processes.iter().position(is_wanted)?;
        let Waiting { process, timer, .. } = idle.processes.remove(position);
        timer.abort();
        Some(process)
    }

    /// Gives the process back if the pool is closed.
    fn add(self: &Arc<Self>, process: Process) -> Option<Process> {
        let mut idle = self.idle();
        if idle.is_closed {
            return Some(process);
        }
        idle.next += 1;
        let number = idle.next;
        let (shared, idle_max) = (Arc::downgrade(self), self.idle_max);
        let timer = tasks::spawn("end an idle persistent worker", async move {
            tokio::time::sleep(idle_max).await;
            let expired = shared.upgrade().and_then(|shared| shared.expire(number));
            if let Some(process) = expired {
                process.end().await;
            }
        });
        idle.processes.push(Waiting { number, process, timer });
        None
    }

    /// Takes out the process of this number, whose timer this is called by.
    fn expire(&self, number: u64) -> Option<Process> {
        let mut idle = self.idle();
        let position = idle.processes.iter().position(|waiting| waiting.number == number)?;
        Some(idle.processes.remove(position).process)
    }

    /// Nothing panics while it holds this lock, and what it guards is valid at any time.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
