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
    // Nobody has told of an action that no worker has taken.
    let waiting = || (record.state == State::Queued).then_some(record.begun);
    [
        ("queued", (times.queued.or_else(waiting), times.worker.0)),
        ("inputs", times.inputs),
        ("execution", times.execution),
        ("outputs", times.outputs),
    ]
}

/// The stages of one operation as a drawing, and as a table with the same numbers.
pub(super) fn stages_of(record: &Record) -> Markup {
    let known = durations(record, SystemTime::now());
    let rows = html! {
        @for (name, took, is_over) in &known {
            tr { td { (name) } td.number { (text::duration(*took)) @if !is_over { " so far" } } }
        }
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

/// How long each stage took that has begun, and whether it is over; one that goes on has lasted until `now`.
fn durations(record: &Record, now: SystemTime) -> Vec<(&'static str, Duration, bool)> {
    let begun = stages(record).into_iter().filter_map(|(name, (begin, end))| Some((name, begin?, end)));
    let known = begun.filter(|(_, _, end)| end.is_some() || !record.state.has_ended());
    let lasted = known.map(|(name, begin, end)| {
        let took = end.unwrap_or(now).duration_since(begin).unwrap_or_default();
        (name, took, end.is_some())
    });
    lasted.collect()
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
            svg.wide viewBox={ "0 0 " (WIDTH) " " (height) } role="group" aria-label=(title) {
                title { (title) }
                @for (index, record) in records.iter().enumerate() {
                    @let y = ROW * index as f64;
                    // The keyboard reaches the same operations in the lists, without a hundred stops on the way.
                    a href={ "/operations/" (record.operation) } tabindex="-1" {
                        title { (told(record)) }
                        text x="0" y=(format!("{:.1}", y + 13.0)) { (name(record)) }
                        @for stage in bars(record) { @if let Some(bar) = bar(y, stage) { (bar) } }
                    }
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
    let failed = record.state.has_failed();
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
        // What a lost worker has begun and not ended is over when the operation is.
        .map(|(name, (begin, end))| (name, (begin, end.or(record.ended))))
        .map(|(name, span)| (if failed && name == "execution" { "bad" } else { name }, span))
        .collect()
}

/// What is beside the bars of an operation: as much of its name as there is room for.
fn name(record: &Record) -> String {
    text::visible(&text::brief(&whole_name(record), NAME_CHARS)).into_owned()
}

fn whole_name(record: &Record) -> String {
    let name = format!("{} {}", record.client.mnemonic, record.client.target);
    if name.trim().is_empty() { record.operation.to_string() } else { name.trim().to_owned() }
}

/// What the bars of an operation say, for whoever points at them.
fn told(record: &Record) -> String {
    let stages = durations(record, SystemTime::now());
    let stages: Vec<String> =
        stages.iter().map(|(name, took, _)| format!("{name} {}", text::duration(*took))).collect();
    let stages = if stages.is_empty() { text::duration(record.duration()) } else { stages.join(", ") };
    format!("{}: {}, {stages}", text::visible(&whole_name(record)), record.state.name())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::builds::{Asked, Builds, Lookup, Times};
    use crate::proto::rev2::RequestMetadata;
    use crate::scheduler::{OperationId, Task};

    fn record(state: State, times: Times) -> Record {
        let builds = Builds::default();
        let (operation, task) = (OperationId::new(1), Task::example("action"));
        let client =
            RequestMetadata { target_id: "//".to_owned() + &"long/".repeat(40), ..Default::default() };
        let asked = Asked {
            operation,
            instance: &task.instance,
            action: task.action_digest,
            identity: "",
            client: &client,
        };
        builds.begin(&asked, Lookup::Absent);
        let mut record = Arc::unwrap_or_clone(builds.record(operation).unwrap());
        (record.state, record.times) = (state, times);
        record
    }

    #[test]
    fn the_stage_that_goes_on_has_lasted_until_now() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = Times {
            queued: Some(at(1)),
            worker: (Some(at(3)), None),
            inputs: (Some(at(3)), Some(at(4))),
            execution: (Some(at(4)), None),
            outputs: (None, None),
        };
        let seconds = Duration::from_secs;
        let running = record(State::Executing, times);
        let known =
            [("queued", seconds(2), true), ("inputs", seconds(1), true), ("execution", seconds(5), false)];
        assert_eq!(durations(&running, at(9)), known);
        let table = stages_of(&running).into_string();
        assert!(table.contains("<td>execution</td>") && table.contains(" so far</td>"), "{table}");
        // A worker that was lost told of the beginning of a stage and not of its end.
        assert_eq!(durations(&record(State::Error, times), at(9)), known[..2]);

        let waiting = record(State::Queued, Times::default());
        let known = durations(&waiting, waiting.begun + seconds(7));
        assert_eq!(known, [("queued", seconds(7), false)]);
    }

    #[test]
    fn long_names_are_cut_beside_the_bars_and_whole_for_whoever_points_at_them() {
        let long = record(State::Cached, Times::default());
        assert_eq!(name(&long).chars().count(), NAME_CHARS + 1);
        assert!(name(&long).ends_with('…') && told(&long).contains(&*long.client.target), "{}", told(&long));
        assert!(told(&long).contains(": cached, "), "{}", told(&long));
    }
}
