//! How fast a scrub goes, and when it stops.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::scrub::{Order, under_way};
use crate::error::Error;

/// A pause that is shorter than this is saved up for the next one.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// How soon a pass that nobody wants any more ends.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

/// Why a pass ends early.
pub(super) enum Halt {
    /// The store is dropped, or nobody waits for the pass any more.
    Stopped,
    /// Somebody wants a whole pass.
    Interrupted(Order),
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Lets a pass take its time, in which it listens for orders.
pub(super) struct Pace<'a> {
    orders: &'a Receiver<Order>,
    rate: Option<u64>,
    /// Whether somebody waits for the pass; `None` in the background.
    is_wanted: Option<&'a dyn Fn() -> bool>,
    /// When the bytes so far are paid for.
    due: Instant,
}

impl<'a> Pace<'a> {
    pub(super) fn in_the_background(orders: &'a Receiver<Order>, rate: u64) -> Self {
        Self { orders, rate: Some(rate), is_wanted: None, due: Instant::now() }
    }

    pub(super) fn ordered(
        orders: &'a Receiver<Order>,
        rate: Option<u64>,
        is_wanted: &'a dyn Fn() -> bool,
    ) -> Self {
        Self { orders, rate, is_wanted: Some(is_wanted), due: Instant::now() }
    }

    /// Waits until `bytes` more may be read.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), Halt> {
        if let Some(rate) = self.rate {
            // Time in which nothing could be read is not made up for.
            self.due = self.due.max(Instant::now() - PAUSE_MIN);
            self.due += Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        }
        loop {
            if self.is_wanted.is_some_and(|is_wanted| !is_wanted()) {
                return Err(Halt::Stopped);
            }
            let pause = self.due.saturating_duration_since(Instant::now());
            let is_paid = pause < PAUSE_MIN;
            match self.orders.recv_timeout(if is_paid { Duration::ZERO } else { pause.min(LISTEN_EVERY) }) {
                Ok(order) => self.hear(order)?,
                Err(RecvTimeoutError::Timeout) if is_paid => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Halt::Stopped),
            }
        }
    }

    fn hear(&self, order: Order) -> Result<(), Halt> {
        if self.is_wanted.is_none() {
            return Err(Halt::Interrupted(order));
        }
        // Whoever asked and is gone needs no answer.
        let _ = order.done.send(Err(under_way()));
        Ok(())
    }
}
