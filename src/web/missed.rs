//! Why an action was not in the cache: what it has otherwise than the action of the same name before it.

use maud::{Markup, html};

use crate::builds::{Lookup, Record};

use super::Pages;
use super::action::{self, Read};

/// Earlier operations that are compared. A target may have one action of a mnemonic for each of its files, so the latest need not be the
/// one with the same outputs.
const COMPARED_MAX: usize = 16;

/// The sentence about the look-up, and what differs from the last action with the same instance, target, mnemonic and outputs.
pub(super) async fn show(pages: &Pages, record: &Record, read: &Read) -> Markup {
    let before = match record.lookup {
        Lookup::Absent => last_alike(pages, record, read).await,
        Lookup::Hit | Lookup::Skipped | Lookup::Uncacheable | Lookup::Unknown => None,
    };
    html! {
        p { (record.lookup.sentence()) "." }
        @if let Some((operation, differences)) = &before {
            p {
                a href={ "/operations/" (operation) } { "The operation before it" }
                " with the same target, mnemonic and outputs "
                @if differences.is_empty() {
                    "was the same action; its result was not kept, because it failed, or it is gone since."
                } @else {
                    "had another " (differences.join(", another ")) "."
                }
            }
        }
    }
}

async fn last_alike(pages: &Pages, record: &Record, read: &Read) -> Option<(String, Vec<&'static str>)> {
    for other in pages.builds.alike(record, COMPARED_MAX) {
        if other.action == record.action {
            return Some((other.operation.to_string(), Vec::new()));
        }
        let earlier = action::read(&pages.cas, &other.action).await;
        if read.has_outputs_of(&earlier) {
            return Some((other.operation.to_string(), read.differences(&earlier)));
        }
    }
    None
}
