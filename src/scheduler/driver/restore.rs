//! What a start takes over: the journal's records, and the results of what ran to its end without the journal's knowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::super::id::ExecutionId;
use super::super::journal::{Change, Journal};
use super::super::record::{Pending, Record};
use super::super::task::{Stage, Update};
use super::super::{Claim, Settle};
use crate::error::Result;
use crate::proto::rev2::ExecuteResponse;
use crate::{metrics, tasks};

/// Results that are looked up at once.
const RECALLS_MAX: usize = 64;

/// How long a start may spend on looking results up; what is not known by then runs again, which is right as well, only slower.
const RECALL_PATIENCE: Duration = Duration::from_secs(30);

type Recalled = BTreeMap<ExecutionId, Arc<ExecuteResponse>>;

/// What the core begins with, and what of it is news to the journal.
#[derive(Default)]
pub(in super::super) struct Restored {
    pub(super) records: Vec<Record>,
    pub(super) changes: Vec<Change>,
}

impl Restored {
    /// Which worker held which lease, where it is known whose the worker was.
    pub(in super::super) fn claims(&self) -> Vec<Claim> {
        let claim = |record: &Record| match record {
            Record::Leased { owner, .. } if owner.is_empty() => None,
            Record::Leased { lease, worker, name, owner } => {
                let (name, owner) = (Arc::clone(name), Arc::clone(owner));
                Some(Claim { lease: *lease, worker: *worker, name, owner })
            }
            Record::Execution(_) | Record::Live { .. } | Record::Finished { .. } | Record::Worker { .. } => {
                None
            }
        };
        self.records.iter().filter_map(claim).collect()
    }
}

/// Loads the records and finishes what has a result already.
///
/// # Errors
/// When the journal cannot be read.
pub(in super::super) async fn restore(
    journal: &Arc<dyn Journal>,
    settle: &Arc<dyn Settle>,
) -> Result<Restored> {
    let journal = Arc::clone(journal);
    let records = tasks::blocking(move || journal.load()).await?;
    let recalled = recall(&records, settle).await;
    let restored = finish_recalled(records, &recalled);
    announce(&restored.records, recalled.len());
    Ok(restored)
}

/// The results of executions that a worker was given. It may have finished one, and only the journal was too late.
async fn recall(records: &[Record], settle: &Arc<dyn Settle>) -> Recalled {
    let leased = leased(records);
    let started = executions(records).filter(|pending| leased.contains(&pending.execution));
    let started: Vec<_> = started.map(|pending| (pending.execution, Arc::clone(&pending.task))).collect();
    let lookups = started.into_iter().map(|(execution, task)| {
        let settle = Arc::clone(settle);
        async move { settle.recall(&task).await.map(|response| (execution, Arc::new(response))) }
    });
    let mut lookups = std::pin::pin!(futures_util::stream::iter(lookups).buffer_unordered(RECALLS_MAX));
    let mut recalled = Recalled::new();
    let collect = async {
        while let Some(found) = lookups.next().await {
            recalled.extend(found);
        }
    };
    if tokio::time::timeout(RECALL_PATIENCE, collect).await.is_err() {
        tracing::warn!("results were not found in time; what has ended without notice runs again");
    }
    recalled
}

/// Replaces what is recorded of executions that have a result by finished operations.
fn finish_recalled(records: Vec<Record>, recalled: &Recalled) -> Restored {
    let finished: BTreeMap<ExecutionId, Arc<Update>> = executions(&records)
        .filter_map(|pending| {
            Some((pending.execution, last_word(pending, recalled.get(&pending.execution)?)))
        })
        .collect();
    let mut restored = Restored::default();
    let mut ended = Vec::new();
    for record in records {
        match &record {
            Record::Live { operation, execution } if finished.contains_key(execution) => {
                let update = Arc::clone(&finished[execution]);
                let record = Record::Finished { operation: *operation, update };
                restored.changes.push((record.key(), Some(record.clone())));
                restored.records.push(record);
            }
            Record::Execution(pending) if finished.contains_key(&pending.execution) => {
                ended.push(record.key())
            }
            Record::Leased { lease, .. } if finished.contains_key(&lease.execution) => {
                ended.push(record.key())
            }
            Record::Execution(_)
            | Record::Live { .. }
            | Record::Finished { .. }
            | Record::Leased { .. }
            | Record::Worker { .. } => restored.records.push(record),
        }
    }
    // An execution is erased after its operations are finished, so that each always has one or the other.
    restored.changes.extend(ended.into_iter().map(|key| (key, None)));
    restored
}

fn last_word(pending: &Pending, response: &Arc<ExecuteResponse>) -> Arc<Update> {
    Arc::new(Update {
        execution: pending.execution,
        stage: Stage::Completed,
        task: Arc::clone(&pending.task),
        queued_at: pending.queued_at,
        attempt: pending.attempts,
        metadata: None,
        response: Some(Arc::clone(response)),
    })
}

fn executions(records: &[Record]) -> impl Iterator<Item = &Pending> {
    records.iter().filter_map(|record| match record {
        Record::Execution(pending) => Some(pending.as_ref()),
        Record::Live { .. } | Record::Finished { .. } | Record::Leased { .. } | Record::Worker { .. } => None,
    })
}

fn leased(records: &[Record]) -> BTreeSet<ExecutionId> {
    let execution = |record: &Record| match record {
        Record::Leased { lease, .. } => Some(lease.execution),
        Record::Execution(_) | Record::Live { .. } | Record::Finished { .. } | Record::Worker { .. } => None,
    };
    records.iter().filter_map(execution).collect()
}

/// Tells operators what was taken over.
fn announce(records: &[Record], recalled: usize) {
    let leased = leased(records);
    let (running, queued): (Vec<_>, Vec<_>) =
        executions(records).partition(|pending| leased.contains(&pending.execution));
    let finished = records.iter().filter(|record| matches!(record, Record::Finished { .. })).count();
    let (queued, running) = (queued.len(), running.len());
    for (state, count) in [("queued", queued), ("running", running), ("finished", finished)] {
        metrics::JOURNAL_RESTORED.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    if !records.is_empty() {
        tracing::info!(queued, running, finished, recalled, "the scheduler goes on where it was");
    }
}
