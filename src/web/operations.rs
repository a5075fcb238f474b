//! The page `/operations`: what has run, runs and waits.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::builds::{Filter, OPERATIONS_MAX, Record, State as Stand};
use crate::error::Result;

use super::answer::page_or;
use super::invocations::{how_to_begin, is_own};
use super::page::{Section, choice, page, table};
use super::query::Query;
use super::{Pages, text};

/// Operations on one page: a screen or three.
const SHOWN: usize = 100;

pub(super) async fn show(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    page_or(Section::Operations, render(&pages, query.as_deref()))
}

fn render(pages: &Pages, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &["page", "q", "state"])?;
    let filter = filter(&query)?;
    let paging = query.paging(SHOWN)?;
    let found = pages.builds.operations(&filter, paging.range());
    let body = html! {
        (form(&filter))
        @if found.total > 0 {
            p { (text::counted(found.total, ("operation", "operations"))) ", the latest first." }
            (list(found.items.iter().map(AsRef::as_ref)))
        } @else if filter != Filter::default() {
            p { "No operation matches. " a href="/operations" { "Show all" } }
        } @else {
            (how_to_begin())
        }
        (paging.links(&query, found.total))
        p.quiet {
            "Listed is what was asked for since this process started or what its scheduler still knew then, at most the last " (text::count(OPERATIONS_MAX)) " operations, and older ones \
             that failed or have not ended. \
             What clients got from the action cache themselves stands with their " a href="/invocations" { "invocations" } "."
        }
    };
    Ok(page(Section::Operations, "Operations", &body))
}

/// What the query asks for by `state` and `q`.
///
/// # Errors
/// `Invalid` for a state that is none.
pub(super) fn filter(query: &Query) -> Result<Filter> {
    Ok(Filter::new(query.choice("state", &Stand::ALL, Stand::name)?, query.text("q")))
}

fn form(filter: &Filter) -> Markup {
    html! {
        form method="get" action="/operations" role="search" {
            (state_field(filter.state()))
            label { "Target, mnemonic, worker, digest or identifier" input name="q" value=[filter.text()] maxlength="200"; }
            button type="submit" { "Show" }
        }
    }
}

/// The field of a form that chooses a state.
pub(super) fn state_field(chosen: Option<Stand>) -> Markup {
    choice(("State", "state"), &Stand::ALL.map(Stand::name), chosen.map(Stand::name))
}

/// Operations as a table.
pub(super) fn list<'a>(records: impl Iterator<Item = &'a Record>) -> Markup {
    let head = ["State", "Target", "Mnemonic", "Worker", "Begun", "Took", "Invocation"];
    table("Operations", &head, &html! { @for record in records { (row(record)) } })
}

fn row(record: &Record) -> Markup {
    html! {
        tr {
            td { (stand(record)) }
            td { (named(record)) }
            td { (text::visible(&record.client.mnemonic)) }
            td { (text::visible(&record.worker)) }
            td { (text::ago(record.begun)) }
            td.number { (text::duration(record.duration())) }
            td { (invocation(record)) }
        }
    }
}

/// The link to an operation: its target, or its identifier where the client has told of none.
pub(super) fn named(record: &Record) -> Markup {
    let id = record.operation.to_string();
    let target = &*record.client.target;
    html! {
        a.words href={ "/operations/" (id) } {
            @if !target.is_empty() {
                (text::visible(target))
            } @else if is_own(&record.client.invocation) {
                "audit of " code { (text::short(&record.action.hex())) }
            } @else {
                code { (text::short(&id)) }
            }
        }
    }
}

/// The state, with the exit code of what failed.
pub(super) fn stand(record: &Record) -> Markup {
    let class = match record.state {
        Stand::Succeeded | Stand::Cached => "good",
        Stand::Failed | Stand::Error => "bad",
        Stand::Queued | Stand::Executing => "quiet",
    };
    html! {
        span class=(class) {
            (record.state.name())
            @if let (Stand::Failed, Some(code)) = (record.state, record.exit_code) { " (" (code) ")" }
        }
    }
}

/// The link to the invocation; the page of one that is forgotten says so.
pub(super) fn invocation(record: &Record) -> Markup {
    let id = &*record.client.invocation;
    html! {
        @if is_own(id) {
            a href={ "/invocations/" (id) } { "audit" }
        } @else if !id.is_empty() {
            a href={ "/invocations/" (text::segment(id)) } { code { (text::visible(text::short(id))) } }
        }
    }
}
