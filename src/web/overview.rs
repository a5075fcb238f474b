//! The farm at a glance: `/`, and for programs `/status.json`.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::builds::InvocationFilter;
use crate::scheduler::{Load, Overview};

use super::answer::{failed, json};
use super::chart::{Chart, figure};
use super::history::Lately;
use super::page::{Section, facts, page};
use super::{Pages, StorageStatus, TierStatus, invocations, scheduler, text};

/// Invocations that are listed.
const LATEST: usize = 8;

/// The page `/status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Why the farm takes no requests, a sentence each; empty when it does.
    pub unready: Vec<String>,
    /// None when the farm has just started.
    pub lately: Option<Lately>,
    pub storage: StorageStatus,
    /// None where this process schedules nothing.
    pub scheduler: Option<Overview>,
}

pub(super) async fn status(State(pages): State<Pages>) -> Response {
    match scheduler::overview(&pages).await {
        Ok(scheduler) => {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let unready = pages.readiness.reasons().lines().map(str::to_owned).collect();
            let (lately, storage) = (pages.history.lately(), pages.storage.status());
            json(&Status { version, unready, lately, storage, scheduler })
        }
        Err(error) => failed(&error),
    }
}

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    let load = scheduler::load(&pages).await.ok();
    let schedules = load.is_some();
    let tiers = pages.storage.status().tiers;
    let body = html! {
        (readiness(&pages.readiness.reasons()))
        @if let Some(load) = &load { div.now { (now(load)) } }
        h2 { (span(pages.history.span())) }
        div.charts { (charts(&pages, schedules)) }
        @if schedules { (latest(&pages)) }
        h2 { "Storage" }
        div.charts { @for tier in &tiers { (fill(tier)) } }
        p {
            "As text: " a href="/status.json" { "status.json" } ", " a href="/metrics" { "metrics" } ", "
            a href="/readyz" { "readyz" } "."
        }
    };
    page(Section::Overview, "Overview", &body)
}

fn readiness(reasons: &str) -> Markup {
    html! {
        @if reasons.is_empty() {
            p.good { "The farm is ready." }
        } @else {
            p.bad { "The farm takes no requests:" }
            ul { @for reason in reasons.lines() { li { (reason) } } }
        }
    }
}

fn now(load: &Load) -> Markup {
    let fleet = load.fleet;
    let oldest = Duration::try_from_secs_f64(load.oldest_seconds).unwrap_or_default();
    let marks = [(fleet.cordoned, "cordoned"), (fleet.draining, "draining"), (fleet.away, "away")];
    let actions = |count| text::counted(count, ("action", "actions"));
    facts(&[
        ("Waiting", html! { a href="/queue" { (actions(load.queued)) } }),
        ("Longest wait", html! { @if load.queued > 0 { (text::duration(oldest)) } @else { "–" } }),
        ("Running", html! { a href="/operations?state=executing" { (actions(load.running)) } }),
        (
            "Workers",
            html! {
                a href="/workers" { (text::count(fleet.open)) " open" }
                @for (count, mark) in marks { @if count > 0 { ", " span.warn { (text::count(count)) " " (mark) } } }
            },
        ),
    ])
}

/// Of what time the charts are.
fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => "Lately".to_owned(),
        seconds @ 1..60 => format!("The last {seconds} s"),
        seconds => format!("The last {}", text::duration(Duration::from_secs(seconds))),
    }
}

/// What people have come for most often.
fn latest(pages: &Pages) -> Markup {
    let filter = InvocationFilter { without: Some(audit::NAME), ..InvocationFilter::default() };
    let found = pages.builds.invocations(&filter, (0, LATEST));
    html! {
        h2 { "Latest invocations" }
        @if found.items.is_empty() { (invocations::how_to_begin()) } @else { (invocations::list(&found.items)) }
        @if found.total > LATEST { p { a href="/invocations" { "All " (text::count(found.total)) } } }
    }
}

fn charts(pages: &Pages, schedules: bool) -> Markup {
    let curves = pages.history.curves();
    // The cast saturates, and nothing is counted below zero.
    let count = |value: f64| text::count(value as u64);
    let rate = |value: f64| format!("{value:.1}/s");
    let part = |value: f64| text::percent(Some(value));
    html! {
        (curve("Action cache hit rate", curves.hit_rate, Some(1.0), part))
        @if schedules {
            (curve("Actions", curves.actions, None, rate))
            (curve("Queue", curves.queued, None, count))
            (curve("Running", curves.running, None, count))
        }
    }
}

fn curve(name: &str, values: Vec<Option<f64>>, top: Option<f64>, shown: impl Fn(f64) -> String) -> Markup {
    let known = || values.iter().flatten().copied();
    let unknown = || "–".to_owned();
    let latest = known().next_back().map_or_else(unknown, &shown);
    let largest = known().reduce(f64::max).map_or_else(unknown, &shown);
    figure(&Chart { name, latest, values, top, largest })
}

/// How full a tier is, as a bar.
pub(super) fn fill(tier: &TierStatus) -> Markup {
    let used = tier.used_bytes.unwrap_or(0);
    let part = tier.max_bytes.filter(|max| *max > 0).map(|max| used as f64 / max as f64);
    let spoken = match tier.max_bytes {
        Some(max) => format!("{} of {}", text::bytes(used), text::bytes(max)),
        None => text::bytes(used),
    };
    html! {
        figure {
            figcaption { a href="/storage" { (tier.name) } strong { (text::percent(part)) } }
            svg.bar viewBox="0 0 240 12" preserveAspectRatio="none" role="img" aria-label={ (tier.name) ": " (spoken) } {
                title { (tier.name) ": " (spoken) }
                rect.queued width="240" height="12" {}
                rect.execution width=(format!("{:.1}", 240.0 * part.unwrap_or(0.0).clamp(0.0, 1.0))) height="12" {}
            }
            span.quiet { (spoken) }
        }
    }
}
