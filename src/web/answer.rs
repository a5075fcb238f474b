//! What is answered to operators and their programs, and the only place here that makes an HTTP status of an error.

use std::time::SystemTime;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::html;
use serde::Serialize;

use crate::error::{Error, Kind, Result};

use super::page::{self, Section};
use super::text;

/// A value as JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    let text =
        serde_json::to_string_pretty(value).expect("our own types have text keys and no infinite numbers");
    ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

/// A value as JSON, or why there is none.
pub(super) fn json_or(result: Result<impl Serialize>) -> Response {
    match result {
        Ok(value) => json(&value),
        Err(error) => failed(&error),
    }
}

/// A page, or one that says why there is none.
pub(super) fn page_or(section: Section, result: Result<Response>) -> Response {
    result.unwrap_or_else(|error| refused(section, &error))
}

/// Why a program does not get what it asks for, as a line of text.
pub(super) fn failed(error: &Error) -> Response {
    record(error);
    (code_of(error.kind()), error.public_message() + "\n").into_response()
}

/// Why a person does not get what they ask for, as a page.
pub(super) fn refused(section: Section, error: &Error) -> Response {
    record(error);
    let code = code_of(error.kind());
    let title = match code {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::BAD_REQUEST => "That is no valid address",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "Not allowed",
        _ => "That did not work",
    };
    let body = html! {
        p.bad { (error.public_message()) }
        p { "On to: " a href=(section.path()) { (section.name()) } }
    };
    (code, page::page(section, title, &body)).into_response()
}

/// The log gets the whole chain when the fault is ours, the operator our own sentences.
fn record(error: &Error) {
    if matches!(error.kind(), Kind::Bug | Kind::Corrupt) {
        tracing::error!(error = error.chain(), "a request of an operator failed by our fault");
    }
}

/// Why this process knows nothing of what only a scheduler knows.
pub(super) fn elsewhere() -> Error {
    let message = "this process schedules nothing; ask the admin listener of the one that does";
    Error::new(Kind::Unsupported, message)
}

/// Why nothing is known of what an address names, to which somebody may have been led by what a client has printed.
pub(super) fn forgotten(what: &str, since: SystemTime) -> Error {
    let since = text::moment_in_words(since);
    let message = format!(
        "{what} is not known: this process keeps what happened since {since}, and of that the latest; of what was before only what the scheduler still knew"
    );
    Error::new(Kind::NotFound, message)
}

fn code_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid | Kind::OutOfRange => StatusCode::BAD_REQUEST,
        Kind::Precondition | Kind::MissingInput => StatusCode::PRECONDITION_FAILED,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Exists | Kind::Aborted => StatusCode::CONFLICT,
        Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable | Kind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Corrupt | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
