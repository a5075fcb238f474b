//! The runs of clients: `/invocations`.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::audit;
use crate::builds::{Invocation, InvocationFilter, Outcome};
use crate::error::Result;

use super::answer::page_or;
use super::page::{Section, choice, page, table};
use super::query::Query;
use super::{Pages, text, told};

/// Invocations on one page.
const SHOWN: usize = 100;

/// Characters of a command in the list.
const COMMAND_CHARS: usize = 100;

/// The key by which the farm's own are listed, too, and its value.
const OWN: (&str, &str) = ("audits", "shown");

pub(super) async fn show(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    page_or(Section::Invocations, render(&pages, query.as_deref()))
}

fn render(pages: &Pages, query: Option<&str>) -> Result<Response> {
    let query = Query::parse(query, &["page", "q", "outcome", OWN.0])?;
    let filter = InvocationFilter {
        outcome: query.choice("outcome", &Outcome::ALL, Outcome::name)?,
        text: query.text("q").map(str::to_owned),
        without: query.text(OWN.0).is_none().then_some(audit::NAME),
    };
    let paging = query.paging(SHOWN)?;
    let found = pages.builds.invocations(&filter, paging.range());
    let is_searched = filter.outcome.is_some() || filter.text.is_some();
    let body = html! {
        (form(&filter))
        @if found.total > 0 {
            p { (text::counted(found.total, ("invocation", "invocations"))) ", the latest first." }
            (list(&found.items))
        } @else if is_searched {
            p { "No invocation matches. " a href="/invocations" { "Show all" } }
        } @else {
            (how_to_begin())
        }
        (paging.links(&query, found.total))
        @if filter.without.is_some() && pages.builds.has_invocation(audit::NAME) {
            p.quiet { "What the farm itself runs again for audits is not listed; " a href={ "?" (OWN.0) "=" (OWN.1) } { "show it" } "." }
        }
    };
    Ok(page(Section::Invocations, "Invocations", &body))
}

fn form(filter: &InvocationFilter) -> Markup {
    html! {
        form method="get" action="/invocations" role="search" {
            (choice(("Result", "outcome"), &Outcome::ALL.map(Outcome::name), filter.outcome.map(Outcome::name)))
            label { "Command, user, host, metadata or identifier" input name="q" value=[filter.text.as_deref()] maxlength="200"; }
            @if filter.without.is_none() { input type="hidden" name=(OWN.0) value=(OWN.1); }
            button type="submit" { "Show" }
        }
    }
}

/// What to do where nothing was built yet.
pub(super) fn how_to_begin() -> Markup {
    html! {
        p {
            "Nothing is listed here since this process started. Bazel has actions executed with "
            code { "--remote_executor=grpc://…" } ", and tells of targets and tests with "
            code { "--bes_backend=grpc://…" } "; the address is " code { "public.listen" } " of the "
            a href="/configuration" { "configuration" } "."
        }
    }
}

/// Invocations as a table.
pub(super) fn list(invocations: &[Invocation]) -> Markup {
    let head = [
        "Result",
        "Invocation",
        "Who",
        "Begun",
        "Took",
        "Hit rate",
        "Executed",
        "Failed",
        "Failed tests",
        "Client",
    ];
    table("Invocations", &head, &html! { @for invocation in invocations { (row(invocation)) } })
}

fn row(invocation: &Invocation) -> Markup {
    let told = invocation.told.as_deref();
    let failed = invocation.failed + invocation.errors;
    html! {
        tr {
            td { (told::result(invocation)) }
            td { (link(invocation)) }
            td { (text::visible(&told::who(invocation))) }
            td { (text::ago(invocation.begun)) }
            td.number { (took(invocation)) }
            td.number { (text::percent(invocation.hit_rate())) }
            td.number { (text::count(executed(invocation))) }
            td.number { span class=[(failed > 0).then_some("bad")] { (text::count(failed)) } }
            td.number {
                @if let Some(tests) = told.map(|told| &told.tests).filter(|tests| tests.total > 0) {
                    span class=[(tests.bad > 0).then_some("bad")] { (text::count(tests.bad)) " of " (text::count(tests.total)) }
                    (told::flaky(tests))
                }
            }
            td { (text::visible(&invocation.tool)) }
        }
    }
}

/// The link to an invocation: what was called, if that is told, and how it begins.
fn link(invocation: &Invocation) -> Markup {
    let address = format!("/invocations/{}", text::segment(&invocation.id));
    let id = text::visible(text::short(&invocation.id));
    html! {
        @if is_own(&invocation.id) {
            a href=(address) { "audits of the farm" }
        } @else if let Some(told) = invocation.told.as_deref().filter(|told| !told.command.is_empty()) {
            a.words href=(address) { code { (text::visible(&text::brief(&told::command(told), COMMAND_CHARS))) } }
            " " code.quiet { (id) }
        } @else {
            a href=(address) { code { (id) } }
        }
    }
}

/// Whether the invocation of this name is what the farm runs again for audits; no client is let in under it.
pub(super) fn is_own(id: &str) -> bool {
    id == audit::NAME
}

/// From its beginning to its end, as far as that is known.
pub(super) fn took(invocation: &Invocation) -> Markup {
    let told = invocation.told.as_deref();
    let begun = told.and_then(|told| told.begun).unwrap_or(invocation.begun);
    let end = told.and_then(|told| told.ended).unwrap_or(invocation.last);
    html! {
        (text::duration(end.duration_since(begun).unwrap_or_default()))
        @if invocation.outcome() == Outcome::UnderWay { " when last heard of" }
    }
}

/// Actions that ran. Those of audits have no beginning that counts.
pub(super) fn executed(invocation: &Invocation) -> u64 {
    invocation.executed.max(invocation.succeeded + invocation.failed + invocation.errors)
}
