//! One fetch for all who want the same at the same time. It goes on when those who asked are gone: the next one finds what it fetched.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::Failure;
use crate::error::{Error, Kind};
use crate::store::Asset;
use crate::tasks;

/// Fetches that are under way or wait for their turn: each is a task and a few KiB.
const FLIGHTS_MAX: usize = 1024;

type Outcome = Result<Asset, Failure>;

/// The fetches that are under way.
#[derive(Clone, Default)]
pub(super) struct Flights {
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    flights: HashMap<[u8; 32], Flight>,
    /// Tells a flight from a later one under the same key.
    started: u64,
}

struct Flight {
    number: u64,
    since: SystemTime,
    outcome: Shared<BoxFuture<'static, Outcome>>,
}

/// When the flight that serves must have begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    pub(super) now: SystemTime,
    pub(super) oldest: Option<SystemTime>,
}

impl Flights {
    /// The outcome of the flight under `key`: the one under way if it began late enough, else that of `fetch`.
    pub(super) async fn join<F>(&self, key: [u8; 32], since: Since, fetch: F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let outcome = self.running(key, since, fetch)?;
        outcome.await
    }

    fn running<F>(
        &self,
        key: [u8; 32],
        since: Since,
        fetch: F,
    ) -> Result<Shared<BoxFuture<'static, Outcome>>, Failure>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut running = self.lock();
        if let Some(flight) = running.flights.get(&key)
            && since.oldest.is_none_or(|oldest| flight.since >= oldest)
        {
            return Ok(flight.outcome.clone());
        }
        if running.flights.len() >= FLIGHTS_MAX {
            let message = format!("{FLIGHTS_MAX} fetches are under way already");
            return Err(Failure::of_farm(Error::new(Kind::Exhausted, message)));
        }
        running.started += 1;
        let number = running.started;
        let outcome = self.start(key, number, fetch);
        let flight = Flight { number, since: since.now, outcome: outcome.clone() };
        running.flights.insert(key, flight);
        Ok(outcome)
    }

    fn start<F>(&self, key: [u8; 32], number: u64, fetch: F) -> Shared<BoxFuture<'static, Outcome>>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let flights = self.clone();
        let task = tasks::spawn("fetch", async move {
            let outcome = fetch.await;
            flights.end(key, number);
            outcome
        });
        let outcome = task.map(|ended| {
            ended.unwrap_or_else(|_| {
                Err(Failure::of_farm(Error::new(Kind::Cancelled, "the farm is stopping")))
            })
        });
        outcome.boxed().shared()
    }

    fn end(&self, key: [u8; 32], number: u64) {
        let mut running = self.lock();
        if running.flights.get(&key).is_some_and(|flight| flight.number == number) {
            running.flights.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // The map is consistent between any two steps that can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;
    use crate::digest::{Digest, Function};

    fn asset() -> Asset {
        Asset { digest: Digest::empty(Function::Sha256), since: SystemTime::UNIX_EPOCH, expires: None }
    }

    fn at(seconds: u64, oldest: Option<u64>) -> Since {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Since { now: time(seconds), oldest: oldest.map(time) }
    }

    #[tokio::test]
    async fn equal_fetches_are_one_and_survive_those_who_asked() {
        let (flights, runs, go) =
            (Flights::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let fetch = || {
            let (runs, go) = (runs.clone(), go.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                Ok(asset())
            }
        };
        let first = flights.running([1; 32], at(10, None), fetch()).unwrap();
        drop(flights.join([1; 32], at(20, None), fetch()));
        let second = flights.running([1; 32], at(20, Some(10)), fetch()).unwrap();
        drop(first);
        go.notify_one();
        assert_eq!(second.await.unwrap(), asset());
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flights.lock().flights.is_empty());
    }

    #[tokio::test]
    async fn a_flight_that_began_too_early_serves_nobody_who_wants_newer_content() {
        let (flights, go) = (Flights::default(), Arc::new(Notify::new()));
        let waiting = go.clone();
        let old = flights.running([1; 32], at(10, None), async move {
            waiting.notified().await;
            Err(Failure::of_origin(Error::new(Kind::NotFound, "old")))
        });
        let new = flights.join([1; 32], at(20, Some(11)), async { Ok(asset()) }).await;
        assert_eq!(new.unwrap(), asset());
        go.notify_one();
        assert!(old.unwrap().await.is_err());
        assert!(flights.lock().flights.is_empty());
    }
}
