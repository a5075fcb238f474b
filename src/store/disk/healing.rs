//! How the writer makes index and files agree again: it forgets what is gone, takes up what is there, and withdraws what is damaged.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, Location};
use super::files::{Form, sync_directory};
use super::quarantine;
use super::writer::Writer;
use crate::error::Result;
use crate::store::name::Name;

/// Files that the index may not know, few enough for one commit.
pub(super) struct Found {
    /// Their names and what they hold.
    pub(super) files: Vec<(Name, Location)>,
    /// The minute in which they count as used.
    pub(super) minute: u32,
}

/// A blob whose content is not what its digest says.
pub(super) struct Damaged {
    pub(super) name: Name,
    /// The entry that was looked at; `None` for a file that the index does not know.
    pub(super) entry: Option<Entry>,
    /// The file that was read, if the blob is in one, and its inode.
    pub(super) file: Option<(Form, Option<u64>)>,
}

impl Writer {
    pub(super) fn heal(&mut self, name: &Name) -> Result<()> {
        self.repair()?;
        let Some(entry) = self.shared.ledger.entry(name)? else { return Ok(()) };
        let Some(file) = entry.location.file() else { return Ok(()) };
        // A put may have come between the look of the reader and this one.
        if self.shared.files.read(name, file)?.is_some() {
            return Ok(());
        }
        tracing::warn!(blob = name.hex(), "a blob's file is gone or has another size; the blob is forgotten");
        self.forget(name, &entry)?;
        if let Some(file) = entry.location.file() {
            self.discard(name, file.form);
        }
        Ok(())
    }

    /// Files that the index does not know go as well, or a rebuilding or a scrub would bring them back.
    pub(super) fn remove(&mut self, name: &Name) -> Result<()> {
        self.repair()?;
        if let Some(entry) = self.shared.ledger.entry(name)? {
            self.forget(name, &entry)?;
        }
        Form::ALL.into_iter().for_each(|form| self.discard(name, form));
        Ok(())
    }

    /// Removes the file of `form` while the entry speaks of another place.
    pub(super) fn remove_superseded(&mut self, name: &Name, form: Form) -> Result<bool> {
        self.repair()?;
        let Some(entry) = self.shared.ledger.entry(name)? else { return Ok(false) };
        if entry.location.file().is_some_and(|file| file.form == form) {
            return Ok(false);
        }
        let discarded = self.shared.files.discard(name, form);
        let is_discarded = discarded.is_some();
        discarded.into_iter().for_each(|path| self.delete(path));
        Ok(is_discarded)
    }

    /// Takes the entry and leaves the file, if there is one.
    fn forget(&mut self, name: &Name, entry: &Entry) -> Result<()> {
        let mut draft = self.draft();
        draft.remove(name, entry);
        let shared = Arc::clone(&self.shared);
        let gate = shared.close_gate();
        shared.marks.forget(name);
        self.commit(draft, || drop(gate))
    }

    /// Takes up those files that are there and that the index does not know. Gives their number.
    pub(super) fn adopt(&mut self, found: &Found) -> Result<u64> {
        self.repair()?;
        let mut draft = self.draft_at(found.minute);
        let mut folders = BTreeSet::new();
        let mut adopted = 0;
        for (name, location) in &found.files {
            let Some(file) = location.file() else { continue };
            if draft.entry(&self.shared.ledger, name)?.is_none()
                && self.shared.files.read(name, file)?.is_some()
            {
                draft.insert(name, None, location.clone());
                folders.extend(self.shared.files.path(name, file.form).parent().map(Path::to_owned));
                adopted += 1;
            }
        }
        // Whoever named the files may have ended before the names were durable.
        folders.iter().try_for_each(|folder| sync_directory(folder))?;
        self.commit(draft, || {})?;
        Ok(adopted)
    }

    /// Ends the rebuilding, unless the index was lost again meanwhile and another one has begun.
    pub(super) fn finish_index(&mut self, rebuilding: u32) -> Result<()> {
        self.repair()?;
        if rebuilding != self.shared.rebuildings.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut draft = self.draft();
        draft.finish_index();
        self.commit(draft, || {})?;
        self.shared.is_rebuilding.store(false, Ordering::Release);
        Ok(())
    }

    pub(super) fn note_scrub(&mut self, note: Vec<u8>) -> Result<()> {
        self.repair()?;
        let mut draft = self.draft();
        draft.note_scrub(note);
        self.commit(draft, || {})
    }

    /// Forgets a damaged blob and keeps its bytes to be looked at, unless another copy has taken its place meanwhile.
    pub(super) fn withdraw(&mut self, damaged: &Damaged) -> Result<bool> {
        self.repair()?;
        let name = &damaged.name;
        let inode = |form| self.shared.files.inode(name, form);
        let is_same_file = damaged.file.is_none_or(|(form, read)| read.is_none() || inode(form) == read);
        let is_same = is_same_file && self.shared.ledger.entry(name)? == damaged.entry;
        if !is_same {
            return Ok(false);
        }
        tracing::error!(blob = name.hex(), "a stored blob is damaged and is withdrawn");
        if let Some(entry) = &damaged.entry {
            self.forget(name, entry)?;
        }
        let directory = self.shared.files.directory();
        let inline = damaged.entry.as_ref().map(|entry| &entry.location);
        let discarded = damaged.file.and_then(|(form, _)| self.shared.files.discard(name, form));
        let kept = match (inline, discarded) {
            (_, Some(path)) => quarantine::keep_file(directory, name, &path),
            (Some(Location::Inline(bytes)), None) => quarantine::keep_bytes(directory, name, bytes),
            (Some(Location::File { .. } | Location::Compressed { .. }) | None, None) => Ok(()),
        };
        if let Err(error) = kept {
            // What is in the way of keeping it is not in the way of having withdrawn it.
            tracing::warn!("keep a damaged blob: {}", error.chain());
        }
        Ok(true)
    }
}
