//! The page `/workers`: who runs actions, and what an operator may say of them.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use crate::error::Result;
use crate::scheduler::{Availability, Overview, RunningView, WorkerView};

use super::answer::{elsewhere, page_or};
use super::page::{Section, page, table};
use super::{Pages, scheduler, text};

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    page_or(Section::Workers, render(&pages).await)
}

async fn render(pages: &Pages) -> Result<Response> {
    let overview = scheduler::overview(pages).await?.ok_or_else(elsewhere)?;
    Ok(page(Section::Workers, "Workers", &body(&overview)))
}

fn body(overview: &Overview) -> Markup {
    let head = ["Worker", "State", "Slots", "Properties", "Runs", "Change"];
    let rows = html! { @for worker in &overview.workers { (row(worker)) } };
    html! {
        @if overview.workers.is_empty() {
            p.warn { "No worker is connected." }
        } @else {
            (table("Workers", &head, &rows))
        }
        @if overview.workers_unlisted > 0 { p { "And " (text::count(overview.workers_unlisted)) " more." } }
        p.quiet { "A cordoned worker stays connected and starts nothing; a draining one ends what it runs and leaves." }
    }
}

fn row(worker: &WorkerView) -> Markup {
    html! {
        tr id={ "worker-" (worker.id) } {
            td {
                a href={ "/operations?q=" (text::segment(&worker.name)) } { (text::visible(&worker.name)) }
                br;
                a.quiet href={ "/workers/" (worker.id) } { code { (text::short(&worker.id)) } }
            }
            td { (state(worker)) }
            td.number { (worker.slots_used) " of " (worker.slots) }
            td { ul.plain { @for (name, value) in &worker.properties { li { code { (text::visible(name)) "=" (text::visible(value)) } } } } }
            td { ul.plain { @for one in &worker.running { li { (running(one)) } } } }
            td { (change(worker)) }
        }
    }
}

fn state(worker: &WorkerView) -> Markup {
    html! {
        @if !worker.is_connected { span.bad { "away" } }
        @match &worker.availability {
            Availability::Open => { @if worker.is_connected { span.good { "open" } } },
            Availability::Cordoned { reason } => { " " span.warn { "cordoned" } (because(reason)) },
            Availability::Draining { reason } => { " " span.warn { "draining" } (because(reason)) },
        }
    }
}

fn because(reason: &str) -> Markup {
    html! { @if !reason.is_empty() { ": " (text::visible(reason)) } }
}

fn running(one: &RunningView) -> Markup {
    let since = Duration::try_from_secs_f64(one.seconds).unwrap_or_default();
    html! {
        @match &one.operation {
            Some(operation) => a href={ "/operations/" (operation) } { code { (text::short(operation)) } },
            None => span.quiet { "is being killed" },
        }
        " for " (text::duration(since))
        @if one.attempt > 1 { ", attempt " (one.attempt) }
    }
}

/// Forms that the script sends. Without it they are hidden, and there is `croft worker`.
fn change(worker: &WorkerView) -> Markup {
    let form = |mark: &str, label: &str, has_reason: bool| {
        html! {
            form hidden data-method="POST" data-url={ "/workers/" (worker.id) "/" (mark) } {
                @if has_reason {
                    label { "Reason" input name="reason" required[mark == "cordon"] maxlength="200"; }
                }
                button type="submit" { (label) span.quiet { " " (text::visible(&worker.name)) } }
                output {}
            }
        }
    };
    html! {
        @if worker.availability == Availability::Open {
            details { summary { "Take out" } (form("cordon", "Cordon", true)) (form("drain", "Drain", true)) }
        } @else {
            (form("open", "Open", false))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_say_is_text() {
        let worker = WorkerView {
            id: "0".repeat(32),
            name: "<script>".into(),
            availability: Availability::Cordoned { reason: "<img>".into() },
            is_connected: false,
            slots: 2,
            slots_used: 1,
            properties: vec![("<b>".into(), "&".into())],
            running: vec![RunningView { operation: None, action: None, attempt: 2, seconds: 1.0 }],
        };
        let body = body(&Overview { workers: vec![worker], ..Overview::default() }).into_string();
        for tag in ["<script>", "<img>", "<b>"] {
            assert!(!body.contains(tag), "{body}");
        }
        for text in ["&lt;b&gt;=&amp;", "cordoned", "away", "1 of 2", "attempt 2"] {
            assert!(body.contains(text), "{text}: {body}");
        }
    }
}
