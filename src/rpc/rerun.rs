//! Runs an action again for an audit: last in line, on another worker, and without the action cache.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::audit::{self, Rerun};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::{Action, ExecuteResponse};
use crate::proto::worker::PERSISTENT_KEY;
use crate::scheduler::{Stage, Watch};
use crate::store::ActionKey;

use super::Farm;
use super::execution::Asker;

/// Everything else is more urgent (REv2: lower is sooner).
const PRIORITY: i32 = i32::MAX;

/// How long an action may wait for a worker: a farm that is busy for that long has better things to do.
const START_MAX: Duration = Duration::from_secs(30 * 60);

#[async_trait]
impl Rerun for Farm {
    async fn rerun(&self, key: &ActionKey, avoided: &str) -> Result<ExecuteResponse> {
        let absent = || Error::missing_input(vec![key.digest]);
        let action = self.cas.message::<Action>(&key.digest).await?.ok_or_else(absent)?;
        let asker = Asker { invocation: audit::NAME.to_owned(), identity: audit::NAME.to_owned() };
        let mut task = self.task(key.clone(), &action, (asker, PRIORITY)).await?;
        // Such a task shares no run with a client's, and its result is not written to the action cache.
        task.do_not_cache = true;
        // What a tool keeps in memory from one action to the next is what an audit must not repeat.
        task.platform = Arc::new(task.platform.without(PERSISTENT_KEY));
        let watch = match avoided {
            "" => self.scheduler.submit(task).await?,
            avoided => self.scheduler.submit_elsewhere(task, avoided.into()).await?,
        };
        finish(watch).await
    }
}

/// Follows an execution to its end. What runs is bounded by its own timeout; what waits, by [`START_MAX`].
async fn finish(mut watch: Watch) -> Result<ExecuteResponse> {
    let mut update = watch.current();
    loop {
        if let Some(response) = &update.response {
            return Ok(ExecuteResponse::clone(response));
        }
        let next = match update.stage {
            Stage::Queued => tokio::time::timeout(START_MAX, watch.next()).await.map_err(|_| late())?,
            Stage::Executing | Stage::Completed => watch.next().await,
        };
        let stopping = || Error::new(Kind::Unavailable, "the farm is stopping");
        update = next.ok_or_else(stopping)?;
    }
}

fn late() -> Error {
    let minutes = START_MAX.as_secs() / 60;
    Error::new(Kind::Timeout, format!("no worker was free for it within {minutes} minutes"))
}
