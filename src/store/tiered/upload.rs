//! Brings what is pending to the slower tiers: a few at a time, again and again until it works.

use std::sync::Arc;

use super::Shared;
use super::journal::Journal;
use super::pending::{Fate, Job, Outcome};
use super::write::Copied;
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
        tasks::spawn("upload to a slower tier", async move { run(&shared).await });
    }
}

async fn run(shared: &Shared) {
    let Some(journal) = &shared.journal else { return };
    loop {
        // What an upload came to is noted in any case, so that it is not done again at the next start.
        let done = tokio::select! {
            done = next(shared, journal) => done,
            () = shared.stop.cancelled() => return,
        };
        note(shared, journal, done).await;
    }
}

async fn next(shared: &Shared, journal: &Journal) -> (Job, Outcome) {
    let job = journal.pending().next().await;
    let tier = &shared.tiers[job.target.tier];
    let outcome = match upload(shared, &job).await {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Lost,
        Err(error) => {
            tier.report("an upload failed and will be tried again", &error);
            Outcome::Failed
        }
    };
    (job, outcome)
}

async fn note(shared: &Shared, journal: &Journal, (job, outcome): (Job, Outcome)) {
    let tier = &shared.tiers[job.target.tier];
    match (journal.finish(&job, outcome).await, outcome) {
        (Fate::Gone, Outcome::Lost) => {
            STORE_PENDING_LOST.inc();
            let key = &job.target.key;
            tracing::error!(tier = tier.name(), ?key, "a pending write is lost: no faster tier has it");
        }
        (Fate::Gone | Fate::Again, _) => {}
    }
}

/// Uploads what the faster tiers have now; false when none has it.
async fn upload(shared: &Shared, job: &Job) -> Result<bool> {
    let (key, tier) = (&job.target.key, job.target.tier);
    match shared.copy_once(key, tier).await? {
        Copied::Done => Ok(true),
        // It may have arrived before a crash that kept the journal from forgetting it.
        Copied::Absent => {
            let asked = [key.clone()];
            let missing = shared.tiers[tier].missing_in_time(&asked, shared.patience.answer).await?;
            Ok(missing.is_empty())
        }
    }
}
