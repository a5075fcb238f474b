//! Brings what is pending to the slower tiers: a few at a time, again and again until it works.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::pending::{Fate, Job, Outcome};
use super::read::Walk;
use super::{Shared, journal};
use crate::error::{Error, Kind, Result};
use crate::metrics::STORE_PENDING_LOST;
use crate::tasks;

/// Uploads at a time.
const UPLOADS_MAX: usize = 16;

/// An upload that is slower than this hangs.
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// What every upload may take beside its bytes.
const UPLOAD_TIME_MIN: Duration = Duration::from_secs(60);

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
    let mut walk = Walk::new(shared, key);
    let Some((from, blob)) = walk.down(0..tier, 0).await? else {
        return walk.absent::<()>().map(|_| false);
    };
    let limit = UPLOAD_TIME_MIN + Duration::from_secs(blob.size() / BYTES_PER_SECOND_MIN);
    let late = |_| Error::new(Kind::Timeout, "an upload takes too long");
    let uploaded = timeout(limit, shared.tiers[tier].fill(key, blob)).await.map_err(late)?;
    if let Err(error) = &uploaded
        && matches!(error.kind(), Kind::Invalid | Kind::Corrupt)
    {
        // The copy is damaged. Perhaps the next tier has another.
        shared.discard(from, key).await;
    }
    uploaded.map(|()| true)
}
