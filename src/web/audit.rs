//! Audits as an operator asks for them and sees them, as JSON and as a page.

use std::fmt::Write;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use crate::audit::{Auditor, Audits, Report};
use crate::error::{Error, Kind, Result};

use super::{Pages, elsewhere, failed, json, parse_action};

/// Bytes of a request: as many names of actions as may wait.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Reports on the page: more than anybody reads. The JSON has all.
const REPORTS_SHOWN_MAX: usize = 200;

/// What is to be audited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditRequest {
    /// Actions as `INSTANCE/FUNCTION/HASH-SIZE`, without the instance where it has no name.
    pub actions: Vec<String>,
    /// How many of the results to take beside, that were cached since the farm started.
    pub sample: usize,
}

/// The numbers of the audits that a request has asked for; `/audit/{number}` tells of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNumbers {
    pub numbers: Vec<u64>,
}

pub(super) fn routes() -> Router<Pages> {
    Router::new()
        .route("/audit", get(page).post(ask))
        .route("/audit.json", get(all))
        .route("/audit/{number}", get(one))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

async fn ask(State(pages): State<Pages>, body: Bytes) -> Response {
    match pages.auditor().and_then(|auditor| accept(auditor, &body)) {
        Ok(numbers) => json(&AuditNumbers { numbers }),
        Err(error) => failed(&error),
    }
}

fn accept(auditor: &Auditor, body: &[u8]) -> Result<Vec<u64>> {
    let form = r#"the body is not {"actions": ["INSTANCE/FUNCTION/HASH-SIZE", …], "sample": NUMBER}"#;
    let request: AuditRequest =
        serde_json::from_slice(body).map_err(|error| Error::invalid(form).with_source(error))?;
    let keys = request.actions.iter().map(|name| parse_action(name)).collect::<Result<_>>()?;
    auditor.ask(keys, request.sample)
}

async fn all(State(pages): State<Pages>) -> Response {
    match pages.auditor() {
        Ok(auditor) => json(&auditor.audits()),
        Err(error) => failed(&error),
    }
}

async fn one(State(pages): State<Pages>, Path(number): Path<u64>) -> Response {
    let unknown = || Error::new(Kind::NotFound, format!("there is no audit {number}, or no more"));
    match pages.auditor().and_then(|auditor| auditor.progress(number).ok_or_else(unknown)) {
        Ok(progress) => json(&progress),
        Err(error) => failed(&error),
    }
}

async fn page(State(pages): State<Pages>) -> Response {
    match pages.auditor() {
        Ok(auditor) => {
            let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
            (html, render(&auditor.audits())).into_response()
        }
        Err(error) => failed(&error),
    }
}

impl Pages {
    fn auditor(&self) -> Result<&Auditor> {
        self.auditor.as_deref().ok_or_else(elsewhere)
    }
}

fn render(audits: &Audits) -> String {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Croft: audits</title></head><body>\n\
         <h1>Audits</h1>\n<p>Actions that were run again to see whether they give the same outputs.</p>\n",
    );
    let shown = audits.reports.len().min(REPORTS_SHOWN_MAX);
    // Writing into a string does not fail.
    let _ = writeln!(
        page,
        "<p>{} wait, {} run; the latest {shown} reports:</p>\n<table>\n<tr><th>outcome</th><th>action</th>\
         <th>command</th><th>workers</th><th>what differs</th></tr>",
        audits.waiting, audits.running
    );
    for report in audits.reports.iter().take(REPORTS_SHOWN_MAX) {
        page += &row(report);
    }
    page + "</table>\n</body></html>\n"
}

fn row(report: &Report) -> String {
    let mut found: Vec<String> = report.differences.iter().map(|one| escape(&one.to_string())).collect();
    if report.unlisted > 0 {
        found.push(format!("and {} more", report.unlisted));
    }
    if !report.failure.is_empty() {
        found.push(escape(&report.failure));
    }
    format!(
        "<tr><td>{}</td><td><code>{}</code></td><td><code>{}</code></td><td>{}, {}</td><td>{}</td></tr>\n",
        report.outcome.name(),
        escape(&format!("{} {}", report.instance, report.action)),
        escape(&report.command),
        escape(&report.first_worker),
        escape(&report.second_worker),
        found.join("<br>")
    )
}

/// Text of clients and of what they build, as text in a page.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Change, Difference, Location, Outcome};

    #[test]
    fn what_actions_write_is_text_on_the_page() {
        let location = Location::Text { line: 3, before: "<b>".into(), again: "&'\"".into() };
        let difference =
            Difference { path: "<script>".into(), change: Change::Content, location: Some(location) };
        let report = Report {
            number: 1,
            instance: "main".into(),
            action: "ab/1".into(),
            command: "echo <img>".into(),
            outcome: Outcome::Differs,
            first_worker: "<i>".into(),
            second_worker: "b".into(),
            differences: vec![difference],
            unlisted: 2,
            failure: String::new(),
            ended_seconds: 0,
        };
        let page = render(&Audits { waiting: 1, running: 0, reports: vec![report] });
        for tag in ["<script>", "<b>", "<img>", "<i>"] {
            assert!(!page.contains(tag), "{page}");
        }
        assert!(
            page.contains(
                "&lt;script&gt;: other content, line 3: `&lt;b&gt;`, then `&amp;&#39;&quot;`<br>and 2 more"
            ),
            "{page}"
        );
    }
}
