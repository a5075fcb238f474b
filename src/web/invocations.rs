//! The runs of clients: `/invocations`, and one `bazel build` with all that it had executed at `/invocations/{id}`.

use std::cmp::Reverse;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::builds::{Invocation, Lookup, Record, State as Stand};
use crate::error::{Error, Kind, Result, shown};

use super::answer::page_or;
use super::operations::list;
use super::page::{Section, facts, page, table};
use super::query::Query;
use super::timeline::{end_of, waterfall};
use super::{Pages, text, told};

/// Invocations, and operations of one, on one page.
const SHOWN: usize = 100;

/// Bars of one drawing: those of the operations that are on the page.
const BARS_MAX: usize = SHOWN;

/// The slowest that are listed.
const SLOWEST: usize = 20;

pub(super) async fn show_all(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    page_or(Section::Invocations, render_all(&pages, query.as_deref()))
}

fn render_all(pages: &Pages, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &["page"])?;
    let paging = query.paging(SHOWN)?;
    let found = pages.builds.invocations(paging.range());
    let head = [
        "Invocation",
        "Command",
        "Result",
        "Client",
        "Identity",
        "Begun",
        "Hit rate",
        "Executed",
        "Failed",
        "Failed tests",
    ];
    let body = html! {
        p { (text::counted(found.total, ("invocation", "invocations"))) ", the latest first." }
        (table("Invocations", &head, &html! { @for invocation in &found.items { (row(invocation)) } }))
        (paging.links(&query, found.total))
    };
    Ok(page(Section::Invocations, "Invocations", &body))
}

fn row(invocation: &Invocation) -> Markup {
    let told = invocation.told.as_deref();
    let who = match (&*invocation.identity, &invocation.publisher) {
        ("", Some(publisher)) => publisher,
        (_, _) => &invocation.identity,
    };
    html! {
        tr {
            td { a href={ "/invocations/" (text::segment(&invocation.id)) } { code { (text::visible(&invocation.id)) } } }
            td { @if let Some(told) = told { code { (text::visible(&shown(&told::command(told)))) } } }
            td { (told::result(invocation)) }
            td { (text::visible(&invocation.tool)) }
            td { (text::visible(who)) }
            td { (text::ago(invocation.begun)) }
            td.number { (text::percent(invocation.hit_rate())) }
            td.number { (text::count(invocation.executed)) }
            td.number { span class=[(invocation.failed + invocation.errors > 0).then_some("bad")] { (text::count(invocation.failed + invocation.errors)) } }
            td.number { @if let Some(told) = told { (told.tests.bad) " of " (told.tests.total) } }
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
    let query = Query::parse(query, &["page", told::TARGETS, told::TESTS])?;
    let paging = query.paging(SHOWN)?;
    let unknown =
        || Error::new(Kind::NotFound, format!("invocation `{}` is not known, or not any more", shown(id)));
    let (invocation, records) = pages.builds.invocation(id).ok_or_else(unknown)?;
    let records: Vec<&Record> = records.iter().map(AsRef::as_ref).collect();
    let told = told::show(&invocation, &query)?;
    let body = html! {
        (about(&invocation))
        (told)
        (some("Failures", records.iter().copied().filter(|record| is_failure(record))))
        (drawing(&records, paging.skip() / SHOWN))
        (some("The slowest", slowest(&records).into_iter()))
        (some("Not from the cache", records.iter().copied().filter(|record| record.lookup == Lookup::Absent)))
        h2 { "All operations" }
        p { (text::count(records.len())) " are kept, the first one first." }
        (list(records.iter().copied().skip(paging.skip()).take(SHOWN)))
        (paging.links(&query, records.len()))
    };
    let title = format!("Invocation {}", text::visible(text::short(id)));
    Ok(page(Section::Invocations, &title, &body))
}

fn about(invocation: &Invocation) -> Markup {
    let took = invocation.last.duration_since(invocation.begun).unwrap_or_default();
    facts(&[
        ("Invocation", html! { code { (text::visible(&invocation.id)) } }),
        ("Client", html! { (text::visible(&invocation.tool)) }),
        ("Identity", html! { (text::visible(&invocation.identity)) }),
        ("Instance", html! { (text::instance(&invocation.instance)) }),
        ("First request", text::moment(invocation.begun)),
        ("Last request after", html! { (text::duration(took)) }),
        (
            "From the cache",
            html! { (text::counted(invocation.hits, ("action", "actions"))) " (" (text::percent(invocation.hit_rate())) ")" },
        ),
        (
            "Executed",
            html! {
                (invocation.executed) ": " (invocation.succeeded) " succeeded, " (invocation.failed) " failed, "
                (invocation.errors) " without a result"
            },
        ),
    ])
}

/// The operations of one stretch: as many as one drawing has room for.
fn drawing(records: &[&Record], page: usize) -> Markup {
    let first = (page * SHOWN).min(records.len());
    let shown = &records[first..records.len().min(first + BARS_MAX)];
    let begin =
        shown.iter().map(|record| record.times.queued.unwrap_or(record.begun).min(record.begun)).min();
    let end = shown.iter().map(|record| end_of(record)).max();
    html! {
        @if let (Some(begin), Some(end)) = (begin, end) {
            h2 { "Waterfall" }
            p { "Operations " (first + 1) " to " (first + shown.len()) " of " (records.len()) "." }
            (waterfall("When the operations of this invocation waited and ran", shown, (begin, end)))
        }
    }
}

fn is_failure(record: &Record) -> bool {
    matches!(record.state, Stand::Failed | Stand::Error)
}

fn slowest<'a>(records: &[&'a Record]) -> Vec<&'a Record> {
    let mut sorted: Vec<&Record> =
        records.iter().copied().filter(|record| record.state != Stand::Cached).collect();
    sorted.sort_by_key(|record| Reverse(record.execution().unwrap_or_else(|| record.duration())));
    sorted.truncate(SLOWEST);
    sorted
}

/// A list with a heading, of at most [`SLOWEST`]; nothing where it is empty.
fn some<'a>(heading: &str, records: impl Iterator<Item = &'a Record>) -> Markup {
    let all: Vec<&Record> = records.collect();
    html! {
        @if !all.is_empty() {
            h2 { (heading) }
            (list(all.iter().copied().take(SLOWEST)))
            @if all.len() > SLOWEST { p { "And " (all.len() - SLOWEST) " more, in the list of all." } }
        }
    }
}
