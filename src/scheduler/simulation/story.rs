//! The words in which a failing world is told.

use super::actions::action_number;
use crate::scheduler::event::{Effect, Event};
use crate::scheduler::task::Outcome;

pub(super) fn describe(event: &Event) -> String {
    match event {
        Event::Submit(one) => format!(
            "Submit {:?} {:?} action {} priority {} of {}",
            one.operation,
            one.execution,
            action_number(&one.task),
            one.task.priority,
            one.task.invocation
        ),
        Event::Restore(records) => format!("Restore {} records", records.len()),
        Event::WorkerJoined { worker, name, capacity, leases, .. } => {
            format!("WorkerJoined {worker:?} {name} with {leases:?} {capacity:?}")
        }
        Event::Finished { worker, lease, outcome } => match outcome {
            Outcome::Response(_) => format!("Finished {worker:?} {lease:?} with a response"),
            Outcome::Fault(_) | Outcome::Killed => format!("Finished {worker:?} {lease:?} {outcome:?}"),
        },
        Event::Settled { lease, result } => format!("Settled {lease:?} ok: {}", result.is_ok()),
        Event::Progress { worker, lease, .. } => format!("Progress {worker:?} {lease:?}"),
        Event::Watched { .. } | Event::Unwatched { .. } | Event::Cancel { .. } | Event::Delete { .. } => {
            format!("{event:?}")
        }
        Event::WorkerAway { .. }
        | Event::WorkerLeft { .. }
        | Event::Mark { .. }
        | Event::Heartbeat { .. }
        | Event::Tick
        | Event::Stop => {
            format!("{event:?}")
        }
    }
}

pub(super) fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::Start { worker, lease, task } => {
            format!("Start {worker:?} {lease:?} action {}", action_number(task))
        }
        Effect::Warm { worker, execution, .. } => format!("Warm {worker:?} {execution:?}"),
        Effect::Settle { lease, .. } => format!("Settle {lease:?}"),
        Effect::Report { operation, update } => {
            let end = update.response.as_ref().map(|response| &response.status);
            format!(
                "Report {operation:?} {:?} {}",
                update.stage,
                end.map_or(String::new(), |s| format!("{s:?}"))
            )
        }
        Effect::Kill { .. } | Effect::Refuse(_) | Effect::Forget { .. } => format!("{effect:?}"),
        Effect::Drop { .. } | Effect::AttemptFailed { .. } | Effect::Judged { .. } => format!("{effect:?}"),
        Effect::Hedge { .. } => format!("{effect:?}"),
        Effect::Acknowledge { .. } | Effect::Erase(_) => format!("{effect:?}"),
        Effect::Keep(record) => format!("Keep {:?}", record.key()),
    }
}
