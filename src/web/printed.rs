//! What a command prints: from memory while it runs, from its result when it has ended.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use maud::{Markup, html};

use crate::builds::{Record, State};
use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::ActionResult;
use crate::proto::worker::output::Stream;
use crate::scheduler::OperationId;

use super::content::Content;
use super::operation::{record, result, title};
use super::page::{Section, page};
use super::query::Query;
use super::{Pages, terminal};

/// Bytes on the page of an operation; the rest has a page of its own.
const BEGINNING_BYTES: usize = 16 << 10;

/// What stands above the text of a command that runs.
const FOLLOWED: &str = "It runs; what it prints appears here.";

/// The same of one that has printed as much as is kept of it while it runs.
const CUT: &str = "It runs; of what it prints only this beginning is here until it has ended.";

/// The last offset that can be asked for.
const OFFSET_MAX: u64 = 1 << 50;

/// One stream of an operation.
pub(super) struct Printed<'a> {
    record: &'a Record,
    stream: Stream,
    /// None while it runs, or where there is none.
    content: Option<Content>,
    /// What is in memory of it from `offset` on, as far as it fits on one page; empty where nothing is.
    memory: Bytes,
    offset: u64,
    /// Memory has all that it will have.
    is_cut: bool,
}

impl<'a> Printed<'a> {
    pub(super) fn of(
        pages: &Pages,
        record: &'a Record,
        (result, stream): (Option<&ActionResult>, Stream),
    ) -> Self {
        let content = result.and_then(|result| content_of(record, result, stream));
        let lease = record.lease.filter(|_| content.is_none());
        let is_cut = lease.is_some_and(|lease| pages.logs.is_cut(lease, stream));
        let printed = Self { record, stream, content, memory: Bytes::new(), offset: 0, is_cut };
        printed.at(pages, 0)
    }

    fn at(self, pages: &Pages, offset: u64) -> Self {
        let lease = self.record.lease.filter(|_| self.content.is_none());
        let memory = lease.and_then(|lease| pages.logs.read(lease, self.stream, offset)).unwrap_or_default();
        Self { memory, offset, ..self }
    }

    fn name(&self) -> &'static str {
        name(self.stream)
    }

    /// Its beginning, for the page of the operation.
    pub(super) async fn beginning(&self, pages: &Pages) -> Markup {
        let address = format!("/operations/{}/{}", self.record.operation, self.name());
        let size = self.content.as_ref().map_or(self.memory.len() as u64, Content::size);
        let beginning = match &self.content {
            Some(content) => content.read(&pages.cas, (0, BEGINNING_BYTES)).await,
            None => Ok(self.memory.clone()),
        };
        html! {
            h2 { (heading(self.stream)) }
            @match beginning {
                Err(error) => p.warn { (error.public_message()) },
                Ok(text) if text.is_empty() && self.record.state != State::Executing => p.quiet { "Nothing." },
                Ok(text) => { (self.text(&address, &text)) },
            }
            @if size > BEGINNING_BYTES as u64 { p { a href=(address) { "All of it" } } }
        }
    }

    /// The text, which the script goes on with while the command runs.
    fn text(&self, address: &str, text: &[u8]) -> Markup {
        let is_live = self.record.state == State::Executing;
        let attempt = self.record.lease.map_or(0, |lease| lease.attempt);
        let note = if self.is_cut { CUT } else { FOLLOWED };
        let end = self.offset + text.len() as u64;
        html! {
            @if is_live {
                p aria-live="polite" { (note) }
                pre tabindex="0" data-follow={ (address) "?raw=1" } data-offset=(end) data-attempt=(attempt) data-followed=(FOLLOWED) data-cut=(CUT) { (terminal::show(text)) }
                noscript { p { a href={ (address) "?offset=" (end) } { "What follows" } } }
            } @else {
                pre tabindex="0" { (terminal::show(text)) }
            }
        }
    }
}

/// The page of a stream; with `download` all of it as a file, with `raw` what there is from `offset` on, for the script.
pub(super) async fn show(
    pages: &Pages,
    (id, stream): (OperationId, Stream),
    query: Option<&str>,
) -> Result<Response> {
    let query = Query::parse(query, &["offset", "download", "raw"])?;
    let record = record(pages, id)?;
    let result = result(pages, &record).await;
    let offset = query.number("offset", OFFSET_MAX)?.unwrap_or(0);
    let printed = Printed::of(pages, &record, (result.as_ref(), stream)).at(pages, offset);
    if query.text("raw").is_some() {
        return printed.raw(pages).await;
    }
    let body = match &printed.content {
        Some(content) if query.text("download").is_some() => {
            return content.download(&pages.cas, &format!("{}-{id}.txt", name(stream))).await;
        }
        Some(content) => content.view(&pages.cas, &query).await?,
        None if record.state.has_ended() && printed.memory.is_empty() && offset == 0 => {
            return Err(Error::new(
                Kind::NotFound,
                "it has printed nothing here, or that is not kept any more",
            ));
        }
        None => printed.text(&format!("/operations/{id}/{}", name(stream)), &printed.memory),
    };
    let body = html! {
        p { a href={ "/operations/" (id) } { (title(&record)) } }
        (body)
    };
    Ok(page(Section::Operations, heading(stream), &body))
}

impl Printed<'_> {
    /// A piece as it is, with what the script needs to go on.
    async fn raw(&self, pages: &Pages) -> Result<Response> {
        let piece = match &self.content {
            Some(content) if self.offset >= content.size() => Bytes::new(),
            Some(content) => content.read(&pages.cas, (self.offset, super::content::PIECE_BYTES)).await?,
            None => self.memory.clone(),
        };
        let state = match (self.record.state.has_ended(), self.is_cut) {
            (true, _) => "ended",
            (false, true) => "cut",
            (false, false) => "running",
        };
        let attempt = self.record.lease.map_or(0, |lease| lease.attempt);
        let mut response = ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], piece).into_response();
        response.headers_mut().insert("croft-state", HeaderValue::from_static(state));
        response.headers_mut().insert("croft-attempt", HeaderValue::from(attempt));
        Ok(response)
    }
}

fn content_of(record: &Record, result: &ActionResult, stream: Stream) -> Option<Content> {
    let (raw, digest) = match stream {
        Stream::Stdout => (&result.stdout_raw, &result.stdout_digest),
        Stream::Stderr => (&result.stderr_raw, &result.stderr_digest),
    };
    if !raw.is_empty() {
        return Some(Content::Inline(Bytes::copy_from_slice(raw)));
    }
    let digest = digest.as_ref()?;
    Some(Content::Blob(Digest::from_proto(record.action.function(), Some(digest)).ok()?))
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

fn heading(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "Standard output",
        Stream::Stderr => "Standard error",
    }
}
