//! How the writer writes down which blobs were used, some at a time, so that no put waits for it.
//!
//! A use is in memory for up to two generations of marks before it is written: this is what a crash loses of the order of use
//! and of leases. An orderly end loses nothing.

use super::USE_GRAIN_MINUTES;
use super::writer::{CHANGES_MAX, Writer};
use crate::error::Result;

/// Names of one commit: each may get a place in the queue and a minute.
const NAMES_MAX: usize = CHANGES_MAX / 2;

impl Writer {
    /// Begins a new generation of marks, and to write down the uses of the one before the last.
    pub(super) fn rotate_marks(&mut self) {
        self.marks_rotated = self.shared.clock.minute();
        self.shared.marks.rotate();
        self.is_noting = true;
    }

    /// One step of that. After a failure the next rotation goes on.
    pub(super) fn note_some_uses(&mut self) {
        self.is_noting = false;
        self.report("note the use of blobs", |it| {
            it.is_noting = it.note_uses()?;
            Ok(())
        });
    }

    /// Before the end: whatever was used is written down.
    pub(super) fn note_all_uses(&mut self) {
        self.shared.marks.rotate();
        self.shared.marks.rotate();
        self.is_noting = true;
        while self.is_noting {
            self.note_some_uses();
        }
    }

    /// False when nothing is left to write down.
    fn note_uses(&mut self) -> Result<bool> {
        let names = self.shared.marks.leaving(NAMES_MAX);
        if names.is_empty() {
            return Ok(false);
        }
        self.repair()?;
        let mut draft = self.draft();
        for name in &names {
            let Some(entry) = self.shared.ledger.entry(name)? else { continue };
            // A use is written down only when the last one is long ago: each costs space in the index.
            if self.shared.ledger.last_use(name, &entry)? + USE_GRAIN_MINUTES <= draft.minute() {
                draft.note_use(name);
            }
        }
        self.commit(draft, || {})?;
        self.shared.marks.let_go(&names);
        Ok(true)
    }
}
