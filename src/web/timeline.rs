//! When the stages of operations were, as bars beside each other.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use crate::builds::{Record, Span, State};

use super::page::table;
use super::text;

/// The size of a drawing in its own units.
const WIDTH: f64 = 1000.0;
const ROW: f64 = 18.0;
/// Where the bars begin; names stand before.
const LEFT: f64 = 330.0;

/// Characters of a name beside a bar.
const NAME_CHARS: usize = 48;

/// A stage: its name, which is its class in the style, and when it was.
type Stage = (&'static str, Span);

fn stages(record: &Record) -> [Stage; 4] {
    let times = &record.times;
    [
        ("queued", (times.queued, times.worker.0)),
        ("inputs", times.inputs),
        ("execution", times.execution),
        ("outputs", times.outputs),
    ]
}

/// The stages of one operation as a drawing, and as a table with the same numbers.
pub(super) fn stages_of(record: &Record) -> Markup {
    let known: Vec<(&str, Duration)> = stages(record)
        .into_iter()
        .filter_map(|(name, (begin, end))| Some((name, end?.duration_since(begin?).unwrap_or_default())))
        .collect();
    let rows = html! {
        @for (name, took) in &known { tr { td { (name) } td.number { (text::duration(*took)) } } }
    };
    html! {
        @if known.is_empty() {
            p.quiet { "No worker has told of its stages." }
        } @else {
            (waterfall("Stages of this operation", &[record], (record.times.queued.unwrap_or(record.begun), end_of(record))))
            (table("Stages", &["Stage", "Took"], &rows))
        }
    }
}

/// When the last thing that is known of an operation was; now while it goes on.
pub(super) fn end_of(record: &Record) -> SystemTime {
    if !record.state.has_ended() {
        return SystemTime::now();
    }
    let last = stages(record).into_iter().filter_map(|(_, (_, end))| end).max();
    last.max(record.ended).unwrap_or_else(SystemTime::now)
}

/// One row of bars for each operation, from `begin` to `end`.
pub(super) fn waterfall(title: &str, records: &[&Record], (begin, end): (SystemTime, SystemTime)) -> Markup {
    let whole = end.duration_since(begin).unwrap_or_default();
    let scale = (WIDTH - LEFT) / whole.as_secs_f64().max(0.001);
    let height = ROW * records.len() as f64 + 16.0;
    let place = |time: SystemTime| {
        LEFT + (time.duration_since(begin).unwrap_or_default().as_secs_f64() * scale).min(WIDTH - LEFT)
    };
    let bar = |y: f64, (class, (from, to)): Stage| {
        let (from, to) = (place(from?), place(to.unwrap_or(end)));
        Some(html! {
            rect class=(class) x=(format!("{from:.1}")) y=(format!("{:.1}", y + 3.0)) width=(format!("{:.1}", (to - from).max(1.0))) height=(ROW - 6.0) {}
        })
    };
    html! {
        // A narrow screen scrolls it sideways, as tables, because names beside bars must stay legible.
        div.table tabindex="0" role="region" aria-label=(title) {
            svg.wide viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label=(title) {
                title { (title) }
                @for (index, record) in records.iter().enumerate() {
                    @let y = ROW * index as f64;
                    text x="0" y=(format!("{:.1}", y + 13.0)) { (name(record)) }
                    @for stage in bars(record) { @if let Some(bar) = bar(y, stage) { (bar) } }
                }
                line.axis x1=(LEFT) x2=(WIDTH) y1=(height - 14.0) y2=(height - 14.0) {}
                text x=(LEFT) y=(height - 2.0) { "0" }
                text x=(WIDTH) y=(height - 2.0) text-anchor="end" { (text::duration(whole)) }
            }
        }
        p.quiet { "From left to right: waiting in grey, inputs in blue, execution in green, outputs in violet; what failed is red." }
    }
}

/// The stages; where none is known, one bar from begin to end.
fn bars(record: &Record) -> Vec<Stage> {
    let known: Vec<Stage> = stages(record).into_iter().filter(|(_, (begin, _))| begin.is_some()).collect();
    let failed = matches!(record.state, State::Failed | State::Error);
    if known.len() < 2 {
        let class = match record.state {
            State::Failed | State::Error => "bad",
            State::Cached => "cached",
            State::Queued => "queued",
            State::Executing | State::Succeeded => "rest",
        };
        return vec![(class, (Some(record.begun), record.ended))];
    }
    known
        .into_iter()
        .map(|(name, span)| (if failed && name == "execution" { "bad" } else { name }, span))
        .collect()
}

fn name(record: &Record) -> String {
    let name = format!("{} {}", record.client.mnemonic, record.client.target);
    let name = if name.trim().is_empty() { record.operation.to_string() } else { name };
    let shown: String = name.trim().chars().take(NAME_CHARS).collect();
    text::visible(&shown).into_owned()
}
