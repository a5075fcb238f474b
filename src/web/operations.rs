//! The page `/operations`: what has run, runs and waits.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::builds::{Filter, OPERATIONS_MAX, Record, State as Stand};
use crate::error::{Error, Result, shown};

use super::answer::page_or;
use super::page::{Section, page, table};
use super::query::Query;
use super::{Pages, text};

/// Operations on one page: a screen or three.
const SHOWN: usize = 100;

pub(super) async fn show(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    page_or(Section::Operations, render(&pages, query.as_deref()))
}

fn render(pages: &Pages, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &["page", "q", "state"])?;
    let filter = Filter { state: state(&query)?, text: query.text("q").map(str::to_owned) };
    let paging = query.paging(SHOWN)?;
    let found = pages.builds.operations(&filter, paging.range());
    let body = html! {
        (form(&filter))
        @if found.total == 0 {
            p { "No operation matches." }
        } @else {
            p { (text::counted(found.total, ("operation", "operations"))) ", the latest first." }
            (list(found.items.iter().map(AsRef::as_ref)))
        }
        (paging.links(&query, found.total))
        p.quiet { "Listed is what was asked for since the farm started, at most the last " (text::count(OPERATIONS_MAX)) " operations." }
    };
    Ok(page(Section::Operations, "Operations", &body))
}

fn state(query: &Query) -> Result<Option<Stand>> {
    let Some(name) = query.text("state") else { return Ok(None) };
    let unknown = || {
        let known = Stand::ALL.map(Stand::name).join("`, `");
        Error::invalid(format!("`state` is `{}`, not one of `{known}`", shown(name)))
    };
    Stand::from_name(name).map(Some).ok_or_else(unknown)
}

fn form(filter: &Filter) -> Markup {
    html! {
        form method="get" action="/operations" role="search" {
            label { "State"
                select name="state" {
                    option value="" { "any" }
                    @for state in Stand::ALL {
                        option value=(state.name()) selected[filter.state == Some(state)] { (state.name()) }
                    }
                }
            }
            label { "Target, mnemonic or worker" input name="q" value=[filter.text.as_deref()] maxlength="200"; }
            button type="submit" { "Show" }
        }
    }
}

/// Operations as a table.
pub(super) fn list<'a>(records: impl Iterator<Item = &'a Record>) -> Markup {
    let head = ["Operation", "State", "Mnemonic", "Target", "Invocation", "Worker", "Begun", "Took"];
    table("Operations", &head, &html! { @for record in records { (row(record)) } })
}

fn row(record: &Record) -> Markup {
    let id = record.operation.to_string();
    html! {
        tr {
            td { a href={ "/operations/" (id) } { code { (text::short(&id)) } } }
            td { (stand(record)) }
            td { (text::visible(&record.client.mnemonic)) }
            td { (text::visible(&record.client.target)) }
            td { (invocation(record)) }
            td { (text::visible(&record.worker)) }
            td { (text::ago(record.begun)) }
            td.number { (text::duration(record.duration())) }
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
        @if !id.is_empty() { a href={ "/invocations/" (text::segment(id)) } { code { (text::visible(text::short(id))) } } }
    }
}
