//! Work that several want is done once: a task that none of them owns does it, and all of them wait for it. It ends with the last one
//! that waits.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::error::{Error, Kind, Result};
use crate::tasks;

type Work<T> = BoxFuture<'static, Result<T, Arc<Error>>>;
/// Work under way by what it makes, with a number of its own, so that one that ends forgets no other.
type Known<K, T> = HashMap<K, (u64, WeakShared<Work<T>>)>;

/// The work under way. There is at most as much of it as there are actions that wait.
pub(super) struct Flights<K, T> {
    known: Arc<Mutex<Known<K, T>>>,
    next: AtomicU64,
}

/// Has work forgotten when it ends, one way or the other.
struct Entry<K: Eq + Hash, T> {
    known: Arc<Mutex<Known<K, T>>>,
    key: K,
    number: u64,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { known: Arc::default(), next: AtomicU64::new(0) }
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// What `work` makes under `key`. If that is under way already, `work` is dropped. It goes on when this future is dropped, as
    /// long as somebody else waits for it.
    ///
    /// # Errors
    /// What the work returns, to each that waits for it.
    pub(super) async fn join<F>(&self, key: K, work: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.board(key, work).await.map_err(again)
    }

    fn board<F>(&self, key: K, work: F) -> Shared<Work<T>>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut known = lock(&self.known);
        if let Some(flight) = known.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flight = start(Entry { known: self.known.clone(), key: key.clone(), number }, work).shared();
        known.insert(key, (number, flight.downgrade().expect("nobody has polled it")));
        flight
    }
}

fn start<K, T, F>(entry: Entry<K, T>, work: F) -> Work<T>
where
    K: Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let staging = async move {
        let _entry = entry;
        work.await
    };
    let task = AbortOnDropHandle::new(tasks::spawn("stage inputs", staging.in_current_span()));
    async move {
        let ended = task.await;
        let stopping = |_| Error::new(Kind::Cancelled, "the farm is stopping");
        ended.map_err(stopping).and_then(|result| result).map_err(Arc::new)
    }
    .boxed()
}

impl<K: Eq + Hash, T> Drop for Entry<K, T> {
    fn drop(&mut self) {
        let mut known = lock(&self.known);
        if known.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            known.remove(&self.key);
        }
    }
}

/// The same error for one more of those that wait.
fn again(error: Arc<Error>) -> Error {
    if error.kind() == Kind::MissingInput {
        return Error::missing_input(error.missing().to_vec());
    }
    Error::new(error.kind(), error.public_message()).with_source(error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map is right between any two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::digest::{Digest, Function};

    #[tokio::test]
    async fn work_that_two_want_is_done_once_and_ends_with_the_last_of_them() {
        let (flights, begun) = (Flights::<u8, usize>::default(), Arc::new(AtomicUsize::new(0)));
        let go = Arc::new(Notify::new());
        let work = || {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                Ok(number)
            }
        };
        let mut first = Box::pin(flights.join(1, work()));
        let mut second = Box::pin(flights.join(1, work()));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(first);
        go.notify_one();
        assert_eq!(second.await.expect("done"), 0);
        go.notify_one();
        assert_eq!(flights.join(1, work()).await.expect("done"), 1, "what is done is not kept");
        assert!(flights.join(2, work()).now_or_never().is_none(), "nobody waits for it any more");
        while !lock(&flights.known).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn everybody_hears_of_all_that_is_missing() {
        let flights = Flights::<u8, ()>::default();
        let digests = [b"a", b"b"].map(|bytes| Function::Sha256.hash(bytes)).to_vec();
        let fail = |digests: Vec<Digest>| async move {
            tokio::task::yield_now().await;
            Err(Error::missing_input(digests))
        };
        let both = tokio::join!(flights.join(1, fail(digests.clone())), flights.join(1, fail(Vec::new())));
        for result in [both.0, both.1] {
            assert_eq!(result.expect_err("missing").missing(), digests);
        }
    }
}
