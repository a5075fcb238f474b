//! Brings what is pending to the slower tiers: a few at a time, again and again until it works.

use std::sync::Arc;

use super::pending::{Fate, Job, Outcome};
use super::write::Copied;
use super::{Shared, journal};
use crate::error::Result;
use crate::metrics::STORE_PENDING_LOST;
use crate::tasks;

/// Uploads at a time.
const UPLOADS_MAX: usize = 16;

/// Starts the uploads, which end with the store.
pub(super) fn start(shared: &Arc<Shared>) {
    if shared.journal.is_none() {
        return;
    }
    for _ in 0..UPLOADS_MAX {
        let shared = shared.clone();
        tasks::spawn("upload to a slower tier", async move {
            let stop = shared.stop.clone();
            tokio::select! {
                () = run(&shared) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn run(shared: &Shared) {
    let Some(journal) = &shared.journal else { return };
    loop {
        let job = journal.pending().next().await;
        serve(shared, journal, &job).await;
    }
}

async fn serve(shared: &Shared, journal: &journal::Journal, job: &Job) {
    let tier = &shared.tiers[job.target.tier];
    let outcome = match upload(shared, job).await {
        Ok(true) => Outcome::Done,
        Ok(false) => {
            STORE_PENDING_LOST.inc();
            tracing::error!(tier = tier.name(), key = ?job.target.key, "a pending write is lost: no faster tier has it");
            Outcome::Lost
        }
        Err(error) => {
            tier.report("an upload failed and will be tried again", &error);
            Outcome::Failed
        }
    };
    if journal.finish(job, outcome).await == Fate::Withdrawn
        && let Err(error) = tier.remove(&job.target.key).await
    {
        tier.report("what was removed during its upload stays", &error);
    }
}

/// Uploads what the faster tiers have now; false when none has it.
async fn upload(shared: &Shared, job: &Job) -> Result<bool> {
    let (key, tier) = (&job.target.key, job.target.tier);
    match shared.copy_once(key, tier).await? {
        Copied::Done => Ok(true),
        Copied::Absent => Ok(false),
    }
}
