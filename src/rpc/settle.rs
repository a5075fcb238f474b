//! The server's own look at what a worker reports: outputs must be in the CAS, and only then the result is cached.

use std::sync::Arc;

use async_trait::async_trait;

use crate::audit::Auditor;
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::{Settle, Task};
use crate::status;
use crate::store::{ActionCache, ActionKey, Cas, absent_outputs};

/// Checks results and writes the action cache; workers never do.
pub struct Settler {
    cas: Cas,
    action_cache: ActionCache,
    auditor: Arc<Auditor>,
}

impl Settler {
    /// What is cached is told to `auditor`.
    pub fn new(cas: Cas, action_cache: ActionCache, auditor: Arc<Auditor>) -> Self {
        Self { cas, action_cache, auditor }
    }
}

#[async_trait]
impl Settle for Settler {
    async fn settle(&self, task: &Task, response: ExecuteResponse) -> Result<ExecuteResponse> {
        let is_ok = response.status.as_ref().is_none_or(|status| status.code == 0);
        let Some(result) = response.result.as_ref().filter(|_| is_ok) else {
            return Ok(response);
        };
        let absent = absent_outputs(&self.cas, task.action_digest.function(), result).await?;
        if let Some(first) = absent.first() {
            let message = format!(
                "the worker reported {} outputs that are not in the CAS, {first} first",
                absent.len()
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
        // A failed run may be a flaky one, and a cached failure would never be tried again.
        if result.exit_code == 0 && !task.do_not_cache {
            let key = key(task);
            // The run was good and its outputs are safe; without an entry it only runs again another time.
            match self.action_cache.put(&key, result).await {
                Ok(()) => self.auditor.noticed(&key),
                Err(error) => {
                    tracing::warn!(action = %key.digest, error = error.chain(), "a result was not cached");
                }
            }
        }
        Ok(response)
    }

    async fn recall(&self, task: &Task) -> Option<ExecuteResponse> {
        if task.do_not_cache {
            return None;
        }
        match self.action_cache.get(&key(task)).await {
            Ok(result) => result.map(|result| ExecuteResponse {
                result: Some(result),
                status: Some(status::ok()),
                ..ExecuteResponse::default()
            }),
            Err(error) => {
                tracing::warn!(action = %task.action_digest, error = error.chain(), "a result was not looked up");
                None
            }
        }
    }
}

fn key(task: &Task) -> ActionKey {
    ActionKey { instance: Arc::clone(&task.instance), digest: task.action_digest }
}
