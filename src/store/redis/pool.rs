//! The connections to Redis: a few, shared by all calls, made when needed and again when they break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, RedisResult, Value};

use super::Config;
use super::dial::Dialer;
use super::failure::{error_of, is_of_the_connection, is_outage};
use crate::error::{Error, Kind, Result};
use crate::store::health::Health;

/// Commands of all calls go over these. One is enough for Redis, which has one thread; more keep a small answer from waiting
/// behind a large one.
const CONNECTIONS: usize = 4;

/// Calls for the same thing: the connection may have been closed just before. All of ours can be made again without harm.
const ATTEMPTS_MAX: usize = 2;

type Connecting = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// The connections.
pub(super) struct Pool {
    dialer: Dialer,
    timeout: Duration,
    lanes: [Lane; CONNECTIONS],
    next: AtomicUsize,
    health: Arc<Health>,
}

/// The place of one connection.
#[derive(Default)]
struct Lane {
    slot: Mutex<Slot>,
}

/// All calls that find no connection wait for the same one.
#[derive(Default)]
struct Slot {
    /// Counts the connections, so that a broken one is thrown away once and not its successor.
    number: u64,
    connecting: Option<Connecting>,
}

impl Pool {
    /// # Errors
    /// As for [`Dialer::new`].
    pub(super) fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            dialer: Dialer::new(config)?,
            timeout: config.timeout,
            lanes: Default::default(),
            next: AtomicUsize::new(0),
            health: Arc::default(),
        })
    }

    /// Sends the commands together and gives the answer of each.
    ///
    /// # Errors
    /// `Unavailable` when Redis does not answer: at once while it is known to be away, else within the timeouts.
    pub(super) async fn run(&self, commands: &mut Pipeline) -> Result<Vec<Result<Value>>> {
        if !self.health.is_up() {
            return Err(Error::new(Kind::Unavailable, "redis is away; it is tried again soon"));
        }
        let commands = commands.ignore_errors();
        let mut result = self.attempt(commands).await;
        for _ in 1..ATTEMPTS_MAX {
            match &result {
                Err(error) if error.is_connection_dropped() && !error.is_connection_refusal() => {
                    result = self.attempt(commands).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        match result {
            Ok(answers) => Ok(answers.into_iter().map(|answer| answer.map_err(error_of)).collect()),
            Err(error) => {
                if is_outage(&error) {
                    let dialer = self.dialer.clone();
                    self.health.failed(move || answers(dialer.clone()));
                }
                Err(error_of(error))
            }
        }
    }

    async fn attempt(&self, commands: &Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[turn % CONNECTIONS];
        let (number, connecting) = lane.connection(|| self.connect());
        let answered = async {
            let mut connection = connecting.await?;
            // The connection bounds the wait for an answer, but not the wait for a place in its queue.
            let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
            tokio::time::timeout(self.timeout, commands.query_async(&mut connection))
                .await
                .unwrap_or_else(|_| Err(late()))
        };
        let result = answered.await;
        if result.as_ref().is_err_and(is_of_the_connection) {
            lane.discard(number);
        }
        result
    }

    fn connect(&self) -> Connecting {
        let dialer = self.dialer.clone();
        let connect = async move { dialer.connect().await };
        connect.boxed().shared()
    }
}

/// Whether Redis lets us in and answers.
async fn answers(dialer: Dialer) -> bool {
    let Ok(mut connection) = dialer.connect().await else {
        return false;
    };
    redis::cmd("PING").exec_async(&mut connection).await.is_ok()
}

impl Lane {
    /// The connection, or the attempt to make it.
    fn connection(&self, connect: impl FnOnce() -> Connecting) -> (u64, Connecting) {
        let mut slot = self.lock();
        if slot.connecting.is_none() {
            slot.number += 1;
        }
        let connecting = slot.connecting.get_or_insert_with(connect).clone();
        (slot.number, connecting)
    }

    fn discard(&self, number: u64) {
        let mut slot = self.lock();
        if slot.number == number {
            slot.connecting = None;
        }
    }

    /// A slot is consistent between any two of its steps, so a poisoned lock is as good as a clean one.
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
