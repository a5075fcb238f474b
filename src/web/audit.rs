//! Audits as an operator asks for them and sees them, as JSON and as a page.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::audit::{Auditor, Audits, Outcome, Report};
use crate::error::{Error, Kind, Result};

use super::Pages;
use super::answer::{elsewhere, failed, json, refused};
use super::page::{Section, page, table};
use super::storage::parse_action;
use super::text::{ago, count, segment, short, visible};

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
        .route("/audit", get(show).post(ask))
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

async fn show(State(pages): State<Pages>) -> Response {
    match pages.auditor() {
        Ok(auditor) => page(Section::Audits, "Audits", &render(&auditor.audits())),
        Err(error) => refused(Section::Audits, &error),
    }
}

impl Pages {
    fn auditor(&self) -> Result<&Auditor> {
        self.auditor.as_deref().ok_or_else(elsewhere)
    }
}

fn render(audits: &Audits) -> Markup {
    let head = ["Outcome", "Action", "Command", "Workers", "Ended", "What differs"];
    let rows = html! { @for report in audits.reports.iter().take(REPORTS_SHOWN_MAX) { (row(report)) } };
    html! {
        p { "Actions that were run again to see whether they give the same outputs, the latest first." }
        p { (count(audits.waiting)) " waiting, " (count(audits.running)) " running. As JSON: " a href="/audit.json" { "all reports" } "." }
        @if audits.reports.is_empty() {
            p.quiet { "There is no report. To audit ten results: " code { "croft audit --sample 10" } }
        } @else {
            (table("Reports of audits", &head, &rows))
        }
    }
}

fn row(report: &Report) -> Markup {
    let class = match report.outcome {
        Outcome::Same => "good",
        Outcome::Differs => "bad",
        Outcome::Failed => "warn",
    };
    let action = format!("{} {}", report.instance, report.action);
    let ended = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(report.ended_seconds));
    html! {
        tr {
            td { span class=(class) { (report.outcome.name()) } }
            td {
                a href={ "/operations?q=" (segment(&report.action)) } {
                    code title=(visible(action.trim())) { (visible(short(&report.action))) }
                }
            }
            td { code { (visible(&report.command)) } }
            td { (visible(&report.first_worker)) ", " (visible(&report.second_worker)) }
            td { @if let Some(ended) = ended { (ago(ended)) } }
            td {
                @for one in &report.differences { (visible(&one.to_string())) br; }
                @if report.unlisted > 0 { "and " (report.unlisted) " more" br; }
                (visible(&report.failure))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Change, Difference, Location};

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
        let page = render(&Audits { waiting: 1, running: 0, reports: vec![report] }).into_string();
        assert!(page.contains("href=\"/operations?q=ab%2F1\""), "{page}");
        for tag in ["<script>", "<b>", "<img>", "<i>"] {
            assert!(!page.contains(tag), "{page}");
        }
        assert!(
            page.contains(
                "&lt;script&gt;: other content, line 3: `&lt;b&gt;`, then `&amp;'&quot;`<br>and 2 more"
            ),
            "{page}"
        );
    }
}
