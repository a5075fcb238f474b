//! One `bazel build` with all that it asked for: `/invocations/{id}`.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::SystemTime;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::builds::{Answer, Filter, Invocation, Lookup, Record, State as Stand};
use crate::digest::Digest;
use crate::error::{Result, shown};

use super::answer::{forgotten, page_or};
use super::invocations::{executed, is_own, took};
use super::operations::{filter, named, stand, state_field};
use super::page::{Section, copied, facts, page, table};
use super::query::Query;
use super::timeline::{end_of, waterfall};
use super::{Pages, results, text, told};

/// Actions in the list, and bars of the drawing, on one page.
const SHOWN: usize = 100;

/// The slowest, failures and misses that are listed.
const SOME: usize = 20;

/// Characters of a command in the heading; all of it stands below.
const TITLE_CHARS: usize = 60;

/// The keys by which the list and the drawing are paged; each is the place on the page, too.
const ACTIONS: &str = "actions";
const WATERFALL: &str = "waterfall";

/// What an invocation has asked for.
#[derive(Clone, Copy)]
enum Action<'a> {
    Operation(&'a Record),
    /// The client asked the action cache itself.
    Answer(&'a Answer),
}

impl Action<'_> {
    fn begun(self) -> SystemTime {
        match self {
            Self::Operation(record) => record.begun,
            Self::Answer(answer) => answer.at,
        }
    }
}

pub(super) async fn show(
    State(pages): State<Pages>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    page_or(Section::Invocations, render(&pages, &id, query.as_deref()))
}

fn render(pages: &Pages, id: &str, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &[ACTIONS, WATERFALL, told::TARGETS, told::TESTS, "q", "state"])?;
    let filter = filter(&query)?;
    let unknown = || forgotten(&format!("invocation `{}`", shown(id)), pages.builds.since());
    let (invocation, records) = pages.builds.invocation(id).ok_or_else(unknown)?;
    let mut answers = pages.builds.answers(id);
    let records: Vec<&Record> = records.iter().map(AsRef::as_ref).collect();
    // What was missed and then executed is among the operations.
    let executed: HashSet<Digest> = records.iter().map(|record| record.action).collect();
    answers.retain(|answer| answer.is_hit || !executed.contains(&answer.action));
    let wanted: Vec<&Record> = records.iter().copied().filter(|record| filter.admits(record)).collect();
    let misses = records.iter().filter(|record| record.lookup == Lookup::Absent);
    let misses = misses.map(|record| Action::Operation(record));
    let misses = misses.chain(answers.iter().filter(|answer| !answer.is_hit).map(Action::Answer)).collect();
    let body = html! {
        (about(&invocation))
        (contents(&invocation, &wanted))
        (told::about(&invocation))
        (failures(&invocation, &records))
        (told::show(&invocation, &query)?)
        (some(&invocation, "The slowest", slowest(&records)))
        (some(&invocation, "Not in the action cache", misses))
        (drawing(&wanted, &query)?)
        (actions(&invocation, (&wanted, &answers), (&filter, &query))?)
    };
    Ok(page(Section::Invocations, &title(&invocation), &body))
}

fn title(invocation: &Invocation) -> String {
    let id = text::visible(text::short(&invocation.id));
    match &invocation.told {
        _ if is_own(&invocation.id) => "Audits of the farm".to_owned(),
        Some(told) if !told.command.is_empty() => {
            format!("{} ({id})", text::visible(&text::brief(&told::command(told), TITLE_CHARS)))
        }
        Some(_) | None => format!("Invocation {id}"),
    }
}

fn about(invocation: &Invocation) -> Markup {
    html! {
        @if is_own(&invocation.id) {
            p { "Actions that the farm itself has run again; what came of it is among the " a href="/audit" { "audits" } "." }
        }
        (facts(&[
            ("Result", told::result(invocation)),
            ("Begun", html! { (text::moment(invocation.begun)) " (" (text::ago(invocation.begun)) ")" }),
            ("Took", took(invocation)),
            ("Who", html! { (text::or_dash(&told::who(invocation))) }),
            (
                "From the cache",
                html! { (text::counted(invocation.hits, ("action", "actions"))) " (" (text::percent(invocation.hit_rate())) ")" },
            ),
            (
                "Executed",
                html! {
                    (text::count(executed(invocation))) ": " (text::count(invocation.succeeded)) " succeeded, "
                    (text::count(invocation.failed)) " failed, " (text::count(invocation.errors)) " without a result"
                },
            ),
            ("Client", html! { (text::or_dash(&invocation.tool)) }),
            ("Identity", html! { (text::or_dash(&invocation.identity)) }),
            ("Instance", html! { (text::instance(&invocation.instance)) }),
            ("Invocation", copied("id", &text::visible(&invocation.id))),
        ]))
    }
}

/// Links to the parts of the page, which is long where much was built.
fn contents(invocation: &Invocation, records: &[&Record]) -> Markup {
    let told = invocation.told.as_deref();
    let parts = [
        (told.is_some(), told::TARGETS, "Targets"),
        (told.is_some_and(|told| told.tests.total.max(told.runs.total) > 0), told::TESTS, "Tests"),
        (records.iter().any(|record| record.state != Stand::Cached), WATERFALL, "Waterfall"),
        (true, ACTIONS, "All actions"),
    ];
    html! {
        nav aria-label="On this page" {
            ul.row { @for (is_there, id, name) in parts { @if is_there { li { a href={ "#" (id) } { (name) } } } } }
        }
    }
}

/// The operations that ran, as many as one drawing has room for. What was cached takes no time.
fn drawing(records: &[&Record], query: &Query) -> Result<Markup> {
    let paging = query.paging_by(WATERFALL, SHOWN)?;
    let ran: Vec<&Record> = records.iter().copied().filter(|record| record.state != Stand::Cached).collect();
    let first = paging.skip().min(ran.len());
    let shown = &ran[first..ran.len().min(first + SHOWN)];
    let begin =
        shown.iter().map(|record| record.times.queued.unwrap_or(record.begun).min(record.begun)).min();
    let end = shown.iter().map(|record| end_of(record)).max();
    Ok(html! {
        @if let (Some(begin), Some(end)) = (begin, end) {
            h2 id=(WATERFALL) { "Waterfall" }
            p { "Executed operations " (text::count(first + 1)) " to " (text::count(first + shown.len())) " of " (text::count(ran.len())) "." }
            (waterfall("When the operations of this invocation waited and ran", shown, (begin, end)))
            (paging.links(query, ran.len()))
        }
    })
}

/// What failed, and how much more of that is counted than kept.
fn failures(invocation: &Invocation, records: &[&Record]) -> Markup {
    let kept: Vec<Action<'_>> = records
        .iter()
        .filter(|record| record.state.has_failed())
        .map(|record| Action::Operation(record))
        .collect();
    let forgotten = (invocation.failed + invocation.errors).saturating_sub(kept.len() as u64);
    html! {
        @if kept.is_empty() && forgotten > 0 { h2 { "Failures" } }
        (some(invocation, "Failures", kept))
        @if forgotten > 0 {
            p.bad { (text::counted(forgotten, ("failure is", "failures are"))) " counted and not kept any more." }
        }
    }
}

fn slowest<'a>(records: &[&'a Record]) -> Vec<Action<'a>> {
    let mut sorted: Vec<&Record> =
        records.iter().copied().filter(|record| record.state != Stand::Cached).collect();
    sorted.sort_by_key(|record| Reverse(record.execution().unwrap_or_else(|| record.duration())));
    sorted.into_iter().take(SOME).map(Action::Operation).collect()
}

/// A list with a heading, of at most [`SOME`]; nothing where it is empty.
fn some(invocation: &Invocation, heading: &str, actions: Vec<Action<'_>>) -> Markup {
    let more = actions.len().saturating_sub(SOME);
    html! {
        @if !actions.is_empty() {
            h2 { (heading) }
            (list(invocation, actions.into_iter().take(SOME)))
            @if more > 0 {
                p { "And " (text::count(more)) " more, " a href={ "#" (ACTIONS) } { "in the list of all" } "." }
            }
        }
    }
}

/// All of them in the order in which they were asked for, with what to search them by.
fn actions(
    invocation: &Invocation,
    (records, answers): (&[&Record], &[Answer]),
    (filter, query): (&Filter, &Query),
) -> Result<Markup> {
    let paging = query.paging_by(ACTIONS, SHOWN)?;
    let cached = records.iter().filter(|record| record.state == Stand::Cached).count();
    let hits = answers.iter().filter(|answer| answer.is_hit).count();
    let is_whole = invocation.hits <= (hits + cached) as u64;
    let answers = answers.iter().filter(|answer| filter.admits_answer(answer)).map(Action::Answer);
    let mut all: Vec<Action<'_>> =
        records.iter().map(|record| Action::Operation(record)).chain(answers).collect();
    // Both have come in this order already, so that this only puts them together.
    all.sort_by_key(|action| action.begun());
    let is_searched = *filter != Filter::default();
    Ok(html! {
        h2 id=(ACTIONS) { "All actions" }
        form method="get" action={ "#" (ACTIONS) } role="search" {
            (state_field(filter.state()))
            label { "Target, mnemonic, worker or digest" input name="q" value=[filter.text()] maxlength="200"; }
            button type="submit" { "Show" }
        }
        @if !all.is_empty() {
            p { (text::counted(all.len(), ("action", "actions"))) ", the first one first." }
            (list(invocation, all.iter().copied().skip(paging.skip()).take(SHOWN)))
        } @else if is_searched {
            p { "No action matches. " a href={ "?#" (ACTIONS) } { "Show all" } }
        } @else {
            p { "None is kept." }
        }
        @if invocation.operations_forgotten() > 0 {
            p.quiet { (text::counted(invocation.operations_forgotten(), ("operation has", "operations have"))) " made room for later ones." }
        }
        @if !is_whole && !is_searched { p.quiet { "It has had more from the cache; the latest of all invocations are kept." } }
        (paging.links(query, all.len()))
    })
}

fn list<'a>(invocation: &Invocation, actions: impl Iterator<Item = Action<'a>>) -> Markup {
    let head = ["State", "Target", "Mnemonic", "Worker", "Begun after", "Command ran", "Took"];
    let rows = html! { @for action in actions { (row(invocation, action)) } };
    table("Actions", &head, &rows)
}

fn row(invocation: &Invocation, action: Action<'_>) -> Markup {
    let after = action.begun().duration_since(invocation.begun).unwrap_or_default();
    html! {
        tr {
            @match action {
                Action::Operation(record) => {
                    td { (stand(record)) }
                    td { (named(record)) }
                    td { (text::visible(&record.client.mnemonic)) }
                    td { (text::visible(&record.worker)) }
                    td.number { (text::duration(after)) }
                    td.number { (record.execution().map_or_else(|| "–".to_owned(), text::duration)) }
                    td.number { (text::duration(record.duration())) }
                },
                Action::Answer(answer) => {
                    td { @if answer.is_hit { span.good { (Stand::Cached.name()) } } @else { "missed" } }
                    td { (results::link_as(&answer.instance, &answer.action, &answer.target)) }
                    td { (text::visible(&answer.mnemonic)) }
                    td {}
                    td.number { (text::duration(after)) }
                    td.number { "–" }
                    td.number { "–" }
                },
            }
        }
    }
}
