//! One operation and all that belongs to it: `/operations/{id}`, its inputs, its outputs and what it prints.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::Extensions;
use axum::response::Response;
use maud::{Markup, html};

use crate::access::{Caller, Right};
use crate::builds::{Lookup, Record, State as Stand};
use crate::error::{Error, Kind, Result, shown};
use crate::proto::rev2::ActionResult;
use crate::proto::worker::output::Stream;
use crate::proto::{read_duration, worker::ResourceUsage};
use crate::scheduler::OperationId;
use crate::store::ActionKey;

use super::action::{self, Read};
use super::answer::{forgotten, page_or};
use super::content::{self, Content};
use super::folder::{self, Found};
use super::operations::{invocation, stand};
use super::page::{Section, copied, facts, page};
use super::printed::{self, Printed};
use super::query::Query;
use super::{Pages, missed, results, scheduler, text, timeline};

/// Entries of a directory on one page.
const ENTRIES_SHOWN: usize = 500;

/// What a page is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Operation(OperationId),
    Inputs(OperationId, String),
    Outputs(OperationId, String),
    Printed(OperationId, Stream),
}

impl Place {
    /// The place at a path that begins with an identifier; `None` when it is no such path.
    fn parse(path: &str) -> Option<Self> {
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let id = OperationId::parse(first)?;
        let (part, below) = rest.split_once('/').unwrap_or((rest, ""));
        Some(match (part, below) {
            ("", "") => Self::Operation(id),
            ("inputs", below) => Self::Inputs(id, below.to_owned()),
            ("outputs", below) => Self::Outputs(id, below.to_owned()),
            ("stdout", "") => Self::Printed(id, Stream::Stdout),
            ("stderr", "") => Self::Printed(id, Stream::Stderr),
            _ => return None,
        })
    }
}

pub(super) async fn show(
    State(pages): State<Pages>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    extensions: Extensions,
) -> Response {
    let place = Place::parse(&path);
    // Programs ask for it, with the identifier or with the name that clients have.
    if let (None, Some(name)) = (&place, path.strip_suffix("/why")) {
        return scheduler::explanation(&pages, name).await;
    }
    let unknown = || {
        let message = format!("`{}` is no operation: one is 32 hexadecimal digits", shown(&path));
        Error::new(Kind::NotFound, message)
    };
    let rendered = async {
        // Commands, inputs and outputs are what the right to read is about; an operator need not have it.
        Caller::of(&extensions).demand_everywhere(Right::Read)?;
        render(&pages, place.ok_or_else(unknown)?, query.as_deref()).await
    };
    page_or(Section::Operations, rendered.await)
}

async fn render(pages: &Pages, place: Place, query: Option<&str>) -> Result<Response> {
    match place {
        Place::Operation(id) => summary(pages, id).await,
        Place::Inputs(id, path) => inputs(pages, (id, &path), query).await,
        Place::Outputs(id, path) => outputs(pages, (id, &path), query).await,
        Place::Printed(id, stream) => printed::show(pages, (id, stream), query).await,
    }
}

/// The record of an operation.
///
/// # Errors
/// `NotFound` when it is not kept.
pub(super) fn record(pages: &Pages, id: OperationId) -> Result<Arc<Record>> {
    let unknown = || forgotten(&format!("operation `{id}`"), pages.builds.since());
    pages.builds.record(id).ok_or_else(unknown)
}

/// The result of an operation that has one: as it was answered, or as the action cache has it.
pub(super) async fn result(pages: &Pages, record: &Record) -> Option<ActionResult> {
    if let Some(result) = record.response.as_ref().and_then(|response| response.result.clone()) {
        return Some(result);
    }
    if !matches!(record.state, Stand::Succeeded | Stand::Cached) {
        return None;
    }
    let key = ActionKey { instance: Arc::clone(&record.instance), digest: record.action };
    pages.storage.result(&key).await.ok().flatten()
}

async fn summary(pages: &Pages, id: OperationId) -> Result<Response> {
    let record = record(pages, id)?;
    let (read, result) = tokio::join!(action::read(&pages.cas, &record.action), result(pages, &record));
    let reasons = match record.state.has_ended() {
        true => Vec::new(),
        false => scheduler::why(pages, id).await.ok().flatten().map_or_else(Vec::new, |why| why.reasons),
    };
    let missed = missed::show(pages, &record, &read).await;
    let mut printed = Vec::new();
    for stream in [Stream::Stdout, Stream::Stderr] {
        printed.push(Printed::of(pages, &record, (result.as_ref(), stream)).beginning(pages).await);
    }
    let body = html! {
        (about(&record))
        @if !reasons.is_empty() {
            h2 { "Why it is not done" }
            ul { @for reason in &reasons { li { (text::visible(reason)) } } }
        }
        (read.command_line())
        @for one in &printed { (one) }
        h2 { "Files" }
        (files(&record, &read, result.as_ref()))
        h2 { "Stages" }
        (timeline::stages_of(&record))
        h2 { "Resources" }
        (resources(record.usage.as_ref()))
        h2 { "Action cache" }
        p { "The key is " (key(&record)) "." }
        (missed)
        (read.surroundings())
    };
    Ok(page(Section::Operations, &title(&record), &body))
}

/// The key in the action cache, as a link where there should be a result under it.
fn key(record: &Record) -> Markup {
    let is_kept = match record.state {
        Stand::Cached => true,
        Stand::Succeeded => record.lookup != Lookup::Uncacheable,
        Stand::Queued | Stand::Executing | Stand::Failed | Stand::Error => false,
    };
    match is_kept {
        true => results::link(&record.instance, &record.action),
        false => text::digest(&record.action),
    }
}

/// The heading of a page about an operation.
pub(super) fn title(record: &Record) -> String {
    let what = format!("{} {}", record.client.mnemonic, record.client.target);
    let id = record.operation.to_string();
    match what.trim() {
        "" => format!("Operation {}", text::short(&id)),
        what => format!("{} ({})", text::visible(what), text::short(&id)),
    }
}

fn about(record: &Record) -> Markup {
    let attempt = record.lease.map_or(0, |lease| lease.attempt);
    html! {
        @if !record.message.is_empty() { p.bad { (text::visible(&record.message)) } }
        (facts(&[
            ("State", stand(record)),
            ("Begun", html! { (text::moment(record.begun)) " (" (text::ago(record.begun)) ")" }),
            ("Took", html! { (text::duration(record.duration())) }),
            ("Worker", html! { (text::or_dash(&record.worker)) @if attempt > 1 { " (attempt " (attempt) ")" } }),
            ("Invocation", invocation(record)),
            ("Identity", html! { (text::or_dash(&record.identity)) }),
            ("Instance", html! { (text::instance(&record.instance)) }),
            ("Operation", copied("operation", &record.operation.to_string())),
            ("Action", copied("action", &record.action.to_string())),
        ]))
    }
}

fn files(record: &Record, read: &Read, result: Option<&ActionResult>) -> Markup {
    let base = format!("/operations/{}", record.operation);
    html! {
        ul.row {
            @if read.input_root(record.action.function()).is_some() { li { a href={ (base) "/inputs" } { "Input tree" } } }
            @if result.is_some() { li { a href={ (base) "/outputs" } { "Outputs" } } }
        }
        @if let Some(result) = result { (action::result(result)) }
    }
}

fn resources(usage: Option<&ResourceUsage>) -> Markup {
    let Some(usage) = usage else { return html! { p.quiet { "The worker has told of none." } } };
    let time = |span: &Option<crate::proto::Duration>| {
        let span = span.as_ref().and_then(read_duration);
        html! { (span.map_or_else(|| "–".to_owned(), text::duration)) }
    };
    let amount = |bytes: u64| html! { @if bytes == 0 { "–" } @else { (text::bytes(bytes)) } };
    facts(&[
        ("Processor time", time(&usage.cpu_time)),
        ("Largest process", amount(usage.peak_memory_bytes)),
        ("Memory of all", amount(usage.peak_group_memory_bytes)),
        ("Processes", html! { @if usage.peak_processes == 0 { "–" } @else { (usage.peak_processes) } }),
        ("Held back by its cores", time(&usage.throttled_time)),
        ("Waited for a core", time(&usage.cpu_pressure)),
        ("Waited for memory", time(&usage.memory_pressure)),
        ("Waited for a disk", time(&usage.io_pressure)),
    ])
}

async fn inputs(pages: &Pages, (id, path): (OperationId, &str), query: Option<&str>) -> Result<Response> {
    let record = record(pages, id)?;
    let gone = || Error::new(Kind::NotFound, "the action is not in the CAS any more");
    let read = action::read(&pages.cas, &record.action).await;
    let root = read.input_root(record.action.function()).ok_or_else(gone)?;
    let found = folder::input(&pages.cas, root, path).await?;
    browse(pages, (&record, "inputs", path), (found, query)).await
}

async fn outputs(pages: &Pages, (id, path): (OperationId, &str), query: Option<&str>) -> Result<Response> {
    let record = record(pages, id)?;
    let none = || Error::new(Kind::NotFound, "the operation has no result, or it is not kept any more");
    let result = result(pages, &record).await.ok_or_else(none)?;
    let found = folder::output(&pages.cas, (record.action.function(), &result), path).await?;
    browse(pages, (&record, "outputs", path), (found, query)).await
}

/// A directory as a list, a file as text or as a download, a link with its target.
async fn browse(
    pages: &Pages,
    (record, kind, path): (&Record, &str, &str),
    (found, query): (Found, Option<&str>),
) -> Result<Response> {
    let query = Query::parse(query, &content::KEYS)?;
    let base = format!("/operations/{}/{kind}", record.operation);
    let body = match found {
        Found::File(digest) if query.text("download").is_some() => {
            return Content::Blob(digest).download(&pages.cas, path).await;
        }
        Found::File(digest) => Content::Blob(digest).view(&pages.cas, &query).await?,
        Found::Link(target) => html! { p { "A symbolic link to " code { (text::visible(&target)) } } },
        Found::Folder(directory) => {
            let here = if path.is_empty() { base.clone() } else { format!("{base}/{}", text::path(path)) };
            folder::list(&directory, here.trim_end_matches('/'), (query.paging(ENTRIES_SHOWN)?, &query))
        }
    };
    let tree = if kind == "inputs" { "Input tree" } else { "Outputs" };
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(tree);
    let body = html! {
        nav aria-label="Path" {
            a href={ "/operations/" (record.operation) } { (title(record)) } " / "
            (folder::trail((&base, tree), path))
        }
        (body)
    };
    Ok(page(Section::Operations, &text::visible(name), &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_about_one_thing() {
        let digits = "0".repeat(31) + "1";
        let id = OperationId::new(1);
        for (rest, place) in [
            ("", Place::Operation(id)),
            ("/", Place::Operation(id)),
            ("/inputs", Place::Inputs(id, String::new())),
            ("/inputs/a/why", Place::Inputs(id, "a/why".into())),
            ("/outputs/a b/c", Place::Outputs(id, "a b/c".into())),
            ("/stdout", Place::Printed(id, Stream::Stdout)),
            ("/stderr", Place::Printed(id, Stream::Stderr)),
        ] {
            assert_eq!(Place::parse(&format!("{digits}{rest}")).unwrap(), place, "{rest}");
        }
        let others = ["x", "x/inputs", &format!("{digits}/why"), &format!("{digits}/stdout/x")];
        for other in others.map(str::to_owned).into_iter().chain([format!("team/operations/{digits}/why")]) {
            assert_eq!(Place::parse(&other), None, "{other}");
        }
    }
}
