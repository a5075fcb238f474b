//! Work that several want is done once: a task that none of them owns does it, and all of them wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::error::{Error, Kind, Result};
use crate::tasks;

type Flight<T> = Shared<BoxFuture<'static, Result<T, Arc<Error>>>>;

/// The work under way, by what it makes. There is as much of it as there are actions that wait, and what they left behind when they
/// were killed, which ends by its own time limit.
pub(super) struct Flights<K, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// What `work` makes under `key`. If that is under way already, `work` is dropped. It goes on when this future is dropped.
    ///
    /// # Errors
    /// What the work returns, to each that waits for it.
    pub(super) async fn join<F>(&self, key: K, work: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let flight = lock(&self.flights).entry(key.clone()).or_insert_with(|| self.start(key, work)).clone();
        flight.await.map_err(again)
    }

    fn start<F>(&self, key: K, work: F) -> Flight<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let flights = self.flights.clone();
        let task = tasks::spawn("stage inputs", async move {
            let result = work.await;
            lock(&flights).remove(&key);
            result
        });
        async move {
            let ended = task.await;
            let stopping = |_| Error::new(Kind::Cancelled, "the farm is stopping");
            ended.map_err(stopping).and_then(|result| result).map_err(Arc::new)
        }
        .boxed()
        .shared()
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
    async fn work_that_two_want_is_done_once_and_outlives_the_first() {
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
        assert!(flights.join(1, work()).now_or_never().is_none(), "the first who wanted it has gone");
        let second = flights.join(1, work());
        go.notify_one();
        assert_eq!(second.await.expect("done"), 0);
        go.notify_one();
        assert_eq!(flights.join(1, work()).await.expect("done"), 1, "what is done is not kept");
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
