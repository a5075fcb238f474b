//! The page `/storage`: what each tier holds and how it is used.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::overview::fill;
use super::page::{Section, page, table};
use super::{Pages, StorageStatus, TierStatus, text};

pub(super) async fn show(State(pages): State<Pages>) -> Response {
    page(Section::Storage, "Storage", &body(&pages.storage.status()))
}

fn body(status: &StorageStatus) -> Markup {
    let head =
        ["Tier", "Kind", "Used", "Hit rate", "Hits", "Misses", "Read", "Written", "Evictions", "Errors"];
    html! {
        p { "The tiers, fast to slow." }
        div.charts { @for tier in &status.tiers { (fill(tier)) } }
        h2 { "Since the farm started" }
        (table("Tiers", &head, &html! { @for tier in &status.tiers { (row(tier)) } }))
        @if let Some(writes) = status.pending_writes {
            p { (text::counted(writes, ("write", "writes"))) " (" (text::bytes(status.pending_bytes.unwrap_or(0))) ") on their way to slower tiers." }
        }
        p.quiet { "To verify what is stored: " code { "croft scrub" } }
    }
}

fn row(tier: &TierStatus) -> Markup {
    let reads = tier.hits + tier.misses;
    let rate = (reads > 0).then(|| tier.hits as f64 / reads as f64);
    let unknown = || "–".to_owned();
    html! {
        tr {
            td { (tier.name) }
            td { (tier.kind) }
            td.number { (tier.used_bytes.map_or_else(unknown, text::bytes)) }
            td.number { (text::percent(rate)) }
            td.number { (text::count(tier.hits)) }
            td.number { (text::count(tier.misses)) }
            td.number { (text::bytes(tier.read_bytes)) }
            td.number { (text::bytes(tier.written_bytes)) }
            td.number { (tier.evictions.map_or_else(unknown, text::count)) }
            td.number { span class=[(tier.errors > 0).then_some("bad")] { (text::count(tier.errors)) } }
        }
    }
}
