//! Tells a new index of the files that are there, while the store is already serving.
//!
//! A file's name is its digest and its length the size, so no content is read; a compressed file has the size in its last bytes. Blobs that were inlined are lost, which a cache may do.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use tokio::sync::mpsc::WeakSender;

use super::compressed::content_size;
use super::entry::{INLINE_MAX, Location};
use super::files::Form;
use super::writer::{CHANGES_MAX, Request};
use crate::error::{Context, Result};
use crate::store::name::{Family, Name};
use crate::tasks;

/// Starts the walk on a thread of its own. It ends by itself, early if the store is dropped.
pub(super) fn begin(directory: &Path, requests: &WeakSender<Request>) -> Result<()> {
    let (directory, requests) = (directory.to_owned(), requests.clone());
    let walk = move || {
        let adopt = |family| adopt_family(&directory, family, &requests);
        let adopted: Option<u64> = Family::all().map(adopt).sum();
        match adopted {
            Some(0) | None => {}
            Some(files) => tracing::info!(files, "the index was built from the files"),
        }
    };
    tasks::thread("disk-rebuild", walk).context(|| "start a thread for the index")?;
    Ok(())
}

/// The number of files found, or `None` when the store is gone.
fn adopt_family(directory: &Path, family: Family, requests: &WeakSender<Request>) -> Option<u64> {
    let mut found = 0;
    for byte in 0..=u8::MAX {
        let folder = directory.join(family.folder()).join(format!("{byte:02x}"));
        let files: Vec<(Name, Location)> = list(&folder, family);
        found += files.len() as u64;
        for some in files.chunks(CHANGES_MAX / 2) {
            let requests = requests.upgrade()?;
            requests.blocking_send(Request::Adopt(some.to_vec())).ok()?;
        }
    }
    Some(found)
}

fn list(folder: &Path, family: Family) -> Vec<(Name, Location)> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("a folder of blobs cannot be listed: {error}");
            return Vec::new();
        }
    };
    entries.flatten().filter_map(|entry| describe(&entry, family)).collect()
}

/// What the index says of a blob's file; `None` for any other file.
fn describe(entry: &fs::DirEntry, family: Family) -> Option<(Name, Location)> {
    let file_name = entry.file_name();
    let (hash, form) = match file_name.to_str()?.strip_suffix(Form::Compressed.suffix()) {
        Some(hash) => (hash, Form::Compressed),
        None => (file_name.to_str()?, Form::Plain),
    };
    let name = Name::new(family, &hex::decode(hash).ok()?)?;
    let stored = entry.metadata().ok().filter(fs::Metadata::is_file)?.len();
    let location = match form {
        Form::Plain => Location::File { size: stored },
        Form::Compressed => {
            let size = content_size(&File::open(entry.path()).ok()?, stored).ok()?;
            Location::Compressed { size, stored }
        }
    };
    let is_large =
        matches!(location, Location::File { size } | Location::Compressed { size, .. } if size > INLINE_MAX);
    is_large.then_some((name, location))
}
