//! What a client has told of its invocation, on the page of that: how it was called and ended, its targets and its tests.

use maud::{Markup, html};

use crate::builds::{
    Cached, Completion, Invocation, Metrics, Outcome, Row, Rows, TargetName, TargetState, TestName,
    TestResult, TestStatus, Told, Verdicts,
};
use crate::error::Result;

use super::invocations::is_own;
use super::page::{facts, table};
use super::query::{Paging, Query};
use super::{blobs, text};

/// Rows of a table on one page.
const SHOWN: usize = 100;

/// The keys by which its tables are paged.
pub(super) const TARGETS: &str = "targets";
pub(super) const TESTS: &str = "tests";

/// How it was called and what the client made of it; how to have it told where it is not.
pub(super) fn about(invocation: &Invocation) -> Markup {
    html! {
        (beginning(invocation))
        @match &invocation.told {
            Some(told) => { (call(invocation, told)) (problems(told)) },
            None if invocation.is_told_forgotten() => {
                p.quiet { "Its targets and tests were forgotten to make room for those of later invocations." }
            }
            None if is_own(&invocation.id) || invocation.publisher.is_some() => {}
            None => p.quiet { "Of its targets and tests it tells with " code { "--bes_backend" } "." },
        }
    }
}

/// Its targets and its tests; nothing where they are not told.
pub(super) fn show(invocation: &Invocation, query: &Query) -> Result<Markup> {
    let paging = (query.paging_by(TARGETS, SHOWN)?, query.paging_by(TESTS, SHOWN)?);
    let Some(told) = &invocation.told else { return Ok(html! {}) };
    Ok(html! {
        (targets(told, (paging.0, query)))
        (tests(told, (paging.1, query)))
    })
}

/// That counts are too low.
fn beginning(invocation: &Invocation) -> Markup {
    html! {
        @if invocation.is_begun_elsewhere() {
            p.bad { "Its beginning is not known to this process: what the client told before is counted nowhere here." }
        }
    }
}

fn call(invocation: &Invocation, told: &Told) -> Markup {
    let publisher = invocation.publisher.as_deref().unwrap_or_default();
    html! {
        h2 { "Build" }
        (facts(&[
            ("Command", html! { code { (text::visible(&command(told))) } }),
            ("Actions", actions(told.metrics.as_ref())),
            ("Told by", html! { (text::or_dash(publisher)) }),
        ]))
        (lines("Options", told.options.iter().map(|option| html! { (text::visible(option)) })))
        (lines("Metadata", told.metadata.iter().map(|(name, value)| html! { (text::visible(name)) "=" (text::visible(value)) })))
    }
}

/// Who runs it and where, as it says itself; as it is known otherwise where it says nothing.
pub(super) fn who(invocation: &Invocation) -> String {
    let said = invocation.told.as_deref().map(|told| [told.workspace.user.as_str(), &told.workspace.host]);
    let said: Vec<&str> = said.into_iter().flatten().filter(|name| !name.is_empty()).collect();
    match (said.is_empty(), &*invocation.identity, &invocation.publisher) {
        (false, _, _) => said.join(" on "),
        (true, "", Some(publisher)) => publisher.to_string(),
        (true, identity, _) => identity.to_owned(),
    }
}

/// What the user has called, but for the options.
pub(super) fn command(told: &Told) -> String {
    format!("{} {}", told.command, text::command_line(&told.patterns))
}

/// How it ended, as the client says.
pub(super) fn result(invocation: &Invocation) -> Markup {
    let Some(told) = &invocation.told else {
        return match invocation.outcome() {
            Outcome::Failed => html! { span.bad { "actions failed" } },
            Outcome::Unknown | Outcome::UnderWay | Outcome::Succeeded => html! { "–" },
        };
    };
    html! {
        @match &told.exit {
            Some(exit) if exit.code == 0 => span.good { (text::visible(&exit.name)) },
            Some(exit) => span.bad { (text::visible(&exit.name)) " (" (exit.code) ")" },
            None if told.is_over => span.bad { "ended without a result" },
            None => span.quiet { "under way" },
        }
    }
}

fn actions(metrics: Option<&Metrics>) -> Markup {
    let Some(metrics) = metrics else { return html! { "–" } };
    html! {
        (text::count(metrics.actions_executed)) " executed of " (text::count(metrics.actions_created)) " created"
        @for (runner, count) in &metrics.runners { ", " (text::count(*count)) " " (text::visible(runner)) }
    }
}

/// Lines that few look at.
fn lines(heading: &str, lines: impl ExactSizeIterator<Item = Markup>) -> Markup {
    html! {
        @if lines.len() > 0 {
            details {
                summary { (heading) " (" (lines.len()) ")" }
                ul { @for line in lines { li { code { (line) } } } }
            }
        }
    }
}

fn problems(told: &Told) -> Markup {
    html! {
        @if !told.problems.is_empty() {
            h2 { "Problems" }
            ul { @for problem in &told.problems { li.bad { (text::visible(problem)) } } }
        }
    }
}

fn targets(told: &Told, (paging, query): (Paging, &Query)) -> Markup {
    let (skip, limit) = paging.range();
    let rows = told.targets.failures_first().skip(skip).take(limit);
    let rows = html! { @for (name, target) in rows { (target_row(told, name, target)) } };
    html! {
        h2 id=(TARGETS) { "Targets" }
        (count(&told.targets))
        @if !told.targets.is_empty() {
            (table("Targets", &["Target", "State", "Tests", "Kind", "Configuration"], &rows))
        }
        (paging.links(query, told.targets.len()))
    }
}

fn target_row(told: &Told, name: &TargetName, target: &TargetState) -> Markup {
    let class = match target.end {
        Completion::Failed | Completion::Aborted => "bad",
        Completion::Built => "good",
        Completion::Pending | Completion::Skipped => "quiet",
    };
    html! {
        tr {
            td { (target_name(name)) }
            td { span class=(class) { (target.end.name()) } @if !target.why.is_empty() { " " (text::visible(&target.why)) } }
            td { @if let Some(status) = target.tests { (test_status(status)) } }
            td { (text::visible(&target.kind)) }
            td { (text::visible(told.configuration(&name.configuration))) }
        }
    }
}

/// With a link to what the farm did for it.
fn target_name(name: &TargetName) -> Markup {
    html! {
        a.words href={ "?q=" (text::segment(&name.label)) "#actions" } { code { (text::visible(&name.label)) } }
        @if !name.aspect.is_empty() { " with " (text::visible(&name.aspect)) }
    }
}

fn tests(told: &Told, (paging, query): (Paging, &Query)) -> Markup {
    let (skip, limit) = paging.range();
    let rows = told.runs.failures_first().skip(skip).take(limit);
    let rows = html! { @for (name, test) in rows { (test_row(name, test)) } };
    html! {
        @if told.tests.total.max(told.runs.total) > 0 {
            h2 id=(TESTS) { "Tests" }
            p {
                (text::count(told.tests.total)) ", of which " (text::count(told.tests.bad)) " failed" (flaky(&told.tests)) "; "
                (text::counted(told.runs.total, ("attempt", "attempts"))) "."
                @if told.runs.len() < told.runs.total { " Only " (text::count(told.runs.len())) " are kept." }
            }
            (table("Tests", &["Test", "Result", "Run", "Shard", "Attempt", "Took", "Cached", "Log"], &rows))
            (paging.links(query, told.runs.len()))
        }
    }
}

/// How many tests passed only when they were tried again.
pub(super) fn flaky(tests: &Verdicts) -> Markup {
    html! { @if tests.flaky > 0 { ", " (text::count(tests.flaky)) " flaky" } }
}

fn test_row(name: &TestName, test: &TestResult) -> Markup {
    let cached = match test.cached {
        Cached::No => "",
        Cached::Locally => "by the client",
        Cached::Remotely => "by a farm",
    };
    html! {
        tr {
            td { (target_name(&name.target)) }
            td { (test_status(test.status)) }
            td.number { (name.run) }
            td.number { (name.shard) }
            td.number { (name.attempt) }
            td.number { (test.took.map_or_else(|| "–".to_owned(), text::duration)) }
            td { (cached) }
            td { @if let Some(log) = &test.log { (blobs::link(log, "log")) } }
        }
    }
}

fn test_status(status: TestStatus) -> Markup {
    let class = match status {
        TestStatus::Passed => "good",
        TestStatus::Flaky => "warn",
        TestStatus::Unknown => "quiet",
        TestStatus::TimedOut
        | TestStatus::Failed
        | TestStatus::Incomplete
        | TestStatus::RemoteFailure
        | TestStatus::NotBuilt
        | TestStatus::NotRun => "bad",
    };
    html! { span class=(class) { (status.name()) } }
}

fn count<K: Ord, V: Row>(rows: &Rows<K, V>) -> Markup {
    html! {
        p {
            (text::count(rows.total)) ", of which " (text::count(rows.bad)) " failed."
            @if rows.len() < rows.total { " Only " (text::count(rows.len())) " are kept." }
        }
    }
}
