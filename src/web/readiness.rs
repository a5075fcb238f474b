//! Whether the farm takes requests, and why not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;

use super::Pages;

/// Why the farm does not take requests, if it does not; shared by those who know and the page that says so.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<BTreeMap<Unready, String>>>);

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unready {
    Starting,
    /// It was asked to stop, and finishes what runs.
    Stopping,
    /// It has a worker whose scheduler is elsewhere and does not hear it.
    Disconnected,
}

impl Unready {
    const fn sentence(self) -> &'static str {
        match self {
            Self::Starting => "it is starting",
            Self::Stopping => "it is stopping",
            Self::Disconnected => "the worker is not connected to its scheduler",
        }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        let starting = (Unready::Starting, Unready::Starting.sentence().to_owned());
        Self(Arc::new(Mutex::new(BTreeMap::from([starting]))))
    }
}

impl Readiness {
    /// Says whether `reason` holds.
    pub fn set(&self, reason: Unready, holds: bool) {
        self.explain(reason, holds.then(|| reason.sentence().to_owned()));
    }

    /// Says why `reason` holds, if it does, in a sentence for operators.
    pub fn explain(&self, reason: Unready, why: Option<String>) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => reasons.insert(reason, why),
            None => reasons.remove(&reason),
        };
    }

    /// One line for each reason; empty when there is none.
    pub(super) fn reasons(&self) -> String {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.values().map(|why| format!("{why}\n")).collect()
    }
}

/// For supervisors and balancers.
pub(super) async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    let reasons = pages.readiness.reasons();
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_a_line_until_none_holds() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reasons(), "it is starting\n");
        readiness.set(Unready::Disconnected, true);
        readiness.set(Unready::Stopping, true);
        assert_eq!(readiness.reasons().lines().count(), 3);
        for reason in [Unready::Starting, Unready::Disconnected, Unready::Stopping, Unready::Stopping] {
            readiness.set(reason, false);
        }
        assert_eq!(readiness.reasons(), "");
    }
}
