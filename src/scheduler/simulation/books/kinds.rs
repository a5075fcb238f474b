//! What the worlds may see; a simulation in which one of these never happens proves little.

use crate::proto::rev2::ExecuteResponse;
use crate::scheduler::event::{Effect, Hedging, Refusal};

pub(in super::super) const KINDS: &[&str] = &[
    "first attempt",
    "later attempt",
    "kill",
    "settle",
    "report",
    "too many operations",
    "too many of an identity",
    "too many of an invocation",
    "hedge",
    "hedge started",
    "hedge won",
    "hedge lost",
    "forget",
    "not confirmed",
    "silent",
    "fault",
    "result",
    "cancelled",
    "abandoned",
    "unsatisfiable",
    "quarantined",
    "out of attempts",
    "goodbye",
    "storm",
    "cancel storm",
    "judged",
    "acknowledge",
    "keep",
    "erase",
    "restart",
    "records lost",
    "partition",
    "brought back",
    "taken over",
    "answer said again",
    "message of an old connection",
    "full outbox",
    "not back in time",
    "succeeded",
    "elsewhere",
    "nowhere else",
    "warm",
    "started where it is warm",
];

pub(super) fn kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::Start { lease, .. } if lease.attempt == 1 => "first attempt",
        Effect::Start { .. } => "later attempt",
        Effect::Warm { .. } => "warm",
        Effect::Kill { .. } => "kill",
        Effect::Settle { .. } => "settle",
        Effect::Report { update, .. } => {
            update.response.as_ref().map_or("report", |response| ending(response))
        }
        Effect::Refuse(Refusal::TooManyOperations) => "too many operations",
        Effect::Refuse(Refusal::TooManyOfIdentity) => "too many of an identity",
        Effect::Refuse(Refusal::TooManyOfInvocation) => "too many of an invocation",
        Effect::Refuse(Refusal::TooManyShapes) => "too many shapes",
        Effect::Forget { .. } => "forget",
        Effect::Drop { reason, .. } if reason.contains("kill") => "not confirmed",
        Effect::Drop { reason, .. } if reason.contains("silent") => "silent",
        Effect::Drop { reason, .. } if reason.contains("its name") => "succeeded",
        Effect::Drop { .. } => "not back in time",
        Effect::AttemptFailed { .. } => "fault",
        Effect::Judged { .. } => "judged",
        Effect::Hedge { hedging: Hedging::Started, .. } => "hedge started",
        Effect::Hedge { hedging: Hedging::Won, .. } => "hedge won",
        Effect::Hedge { hedging: Hedging::Lost, .. } => "hedge lost",
        Effect::Acknowledge { .. } => "acknowledge",
        Effect::Keep(_) => "keep",
        Effect::Erase(_) => "erase",
    }
}

fn ending(response: &ExecuteResponse) -> &'static str {
    let message = response.status.as_ref().map_or("", |status| status.message.as_str());
    let endings = [
        ("the client cancelled", "cancelled"),
        ("no client watched", "abandoned"),
        ("the action cannot run", "unsatisfiable"),
        ("the action is quarantined", "quarantined"),
        ("the farm failed", "out of attempts"),
    ];
    endings.iter().find(|(start, _)| message.starts_with(start)).map_or("result", |(_, ending)| ending)
}
