//! Tells a new index of the files that are there, while the store is already serving.
//!
//! A file's name is its digest and its length the size, so nothing is read. Blobs that were inlined are lost, which a cache may do.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tokio::sync::mpsc::WeakSender;

use super::entry::INLINE_MAX;
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
        let files: Vec<(Name, u64)> = list(&folder, family);
        found += files.len() as u64;
        for some in files.chunks(CHANGES_MAX / 2) {
            let requests = requests.upgrade()?;
            requests.blocking_send(Request::Adopt(some.to_vec())).ok()?;
        }
    }
    Some(found)
}

fn list(folder: &Path, family: Family) -> Vec<(Name, u64)> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("a folder of blobs cannot be listed: {error}");
            return Vec::new();
        }
    };
    let file = |entry: fs::DirEntry| {
        let hash = hex::decode(entry.file_name().as_encoded_bytes()).ok()?;
        let size = entry.metadata().ok().filter(fs::Metadata::is_file)?.len();
        Name::new(family, &hash).filter(|_| size > INLINE_MAX).map(|name| (name, size))
    };
    entries.flatten().filter_map(file).collect()
}
