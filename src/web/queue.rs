//! The page `/queue`: what waits, and why.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use futures_util::future::{OptionFuture, join_all};
use maud::{Markup, html};

use crate::error::Result;
use crate::scheduler::view::pairs;
use crate::scheduler::{OperationId, Overview, QueueView};

use super::answer::{elsewhere, page_or};
use super::page::{Section, page, table};
use super::{Pages, scheduler, text};

/// Property sets of which the longest waiting action is explained: those at the top, where something is wrong.
const EXPLAINED_MAX: usize = 10;

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    page_or(Section::Queue, render(&pages).await)
}

async fn render(pages: &Pages) -> Result<Response> {
    let overview = scheduler::overview(pages).await?.ok_or_else(elsewhere)?;
    let explained = overview.queues.iter().enumerate().map(async |(rank, queue)| {
        let operation = queue.oldest_operation.as_ref().filter(|_| rank < EXPLAINED_MAX);
        let reasons = OptionFuture::from(operation.map(|operation| reasons(pages, operation))).await;
        (queue, reasons.unwrap_or_default())
    });
    let explained = join_all(explained).await;
    Ok(page(Section::Queue, "Queue", &body(&overview, &explained)))
}

/// Why the operation waits. It may have begun to run meanwhile, or the scheduler may be too busy to say.
async fn reasons(pages: &Pages, operation: &str) -> Vec<String> {
    let Some(id) = OperationId::parse(operation) else { return Vec::new() };
    scheduler::why(pages, id).await.ok().flatten().map_or_else(Vec::new, |why| why.reasons)
}

fn body(overview: &Overview, explained: &[(&QueueView, Vec<String>)]) -> Markup {
    let head = ["Properties", "Waiting", "Longest", "Able workers", "The longest waiting one, and why"];
    let rows = html! { @for (queue, reasons) in explained { (row(queue, reasons)) } };
    html! {
        @if overview.queues.is_empty() {
            p.good { "Nothing waits; " (running(overview)) "." }
        } @else {
            p {
                (text::counted(overview.queued, ("action waits", "actions wait"))) ", "
                (running(overview)) "."
            }
            (table("What waits, by platform properties", &head, &rows))
        }
        @if overview.queues_unlisted > 0 { p { "And " (overview.queues_unlisted) " more sets of properties." } }
    }
}

fn running(overview: &Overview) -> Markup {
    html! { a href="/operations?state=executing" { (text::counted(overview.running, ("action runs", "actions run"))) } }
}

fn row(queue: &QueueView, reasons: &[String]) -> Markup {
    let oldest = Duration::try_from_secs_f64(queue.oldest_seconds).unwrap_or_default();
    let others = reasons.iter().filter(|reason| Some(*reason) != queue.stranded.as_ref());
    html! {
        tr {
            td {
                @if queue.properties.is_empty() { span.quiet { "none" } } @else { code { (text::visible(&pairs(&queue.properties))) } }
            }
            td.number { (text::count(queue.queued)) }
            td.number { (text::duration(oldest)) }
            td.number { (text::count(queue.able_workers)) }
            td {
                @if let Some(operation) = &queue.oldest_operation {
                    a href={ "/operations/" (operation) } { code { (text::short(operation)) } }
                }
                @if let Some(stranded) = &queue.stranded { p.bad { (text::visible(stranded)) } }
                ul.plain { @for reason in others { li { (text::visible(reason)) } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_demand_is_text() {
        let queue = QueueView {
            properties: vec![("<script>".into(), "x".into())],
            queued: 3,
            oldest_seconds: 65.0,
            stranded: Some("no worker has <b>".into()),
            ..QueueView::default()
        };
        let overview = Overview { queued: 3, queues: vec![queue.clone()], ..Overview::default() };
        let body = body(&overview, &[(&queue, vec!["it has <img>".into()])]).into_string();
        for tag in ["<script>", "<img>", "<b>"] {
            assert!(!body.contains(tag), "{body}");
        }
        assert!(body.contains("1m 5s") && body.contains("no worker has &lt;b&gt;"), "{body}");
    }
}
