//! Tells a new index of the files that are there, while the store is already serving.
//!
//! A file's name is its digest and its length the size, so no content is read, and a compressed file has the size in its last bytes;
//! the time of its last change is when it was put. Blobs that were inlined are lost, which a cache may do. The index remembers that
//! it is unfinished, so the next start goes on. Until then whoever is about to say that a blob is absent looks for its file first.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc::WeakSender, oneshot};

use super::clock::minutes;
use super::compressed::content_size;
use super::entry::{INLINE_MAX, Location};
use super::files::Form;
use super::healing::Found;
use super::writer::{CHANGES_MAX, Request};
use super::{Disk, Shared};
use crate::error::{Context, Error, Result};
use crate::store::name::{Family, Name};
use crate::tasks;

/// Files that are taken up in one commit.
const FOUND_MAX: usize = CHANGES_MAX / 2;

/// When the index fails meanwhile, it is opened again; after this the files are told once more.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Starts the walk on a thread of its own. It ends by itself, early if the store is dropped.
pub(super) fn begin(shared: &Arc<Shared>) -> Result<()> {
    shared.is_rebuilding.store(true, Ordering::Release);
    let number = 1 + shared.rebuildings.fetch_add(1, Ordering::AcqRel);
    let (directory, requests) = (shared.files.directory().to_owned(), shared.requests.clone());
    let walk = move || match adopt_all(&directory, &requests, number) {
        Some(Ok(0)) | None => {}
        Some(Ok(files)) => tracing::info!(files, "the index was built from the files"),
        Some(Err(error)) => {
            tracing::error!("the index is not complete, the next start goes on: {}", error.chain());
        }
    };
    tasks::thread("disk-rebuild", walk).context(|| "start a thread for the index")?;
    Ok(())
}

/// The number of files taken up, or `None` when the store is gone.
fn adopt_all(directory: &Path, requests: &WeakSender<Request>, number: u32) -> Option<Result<u64>> {
    let mut adopted = 0;
    for family in Family::all() {
        for byte in 0..=u8::MAX {
            let mut files = match list(&directory.join(family.folder()).join(format!("{byte:02x}")), family) {
                Ok(files) => files,
                Err(error) => return Some(Err(error)),
            };
            files.sort_by_key(|file| file.minute);
            for some in files.chunks(FOUND_MAX) {
                adopted += adopt(some, requests)?;
            }
        }
    }
    requests.upgrade()?.blocking_send(Request::Rebuilt(number)).ok()?;
    Some(Ok(adopted))
}

/// Hands files to the writer until it has taken them; `None` when the store is gone.
fn adopt(files: &[Listed], requests: &WeakSender<Request>) -> Option<u64> {
    loop {
        let (done, answer) = oneshot::channel();
        let minute = files.last().map_or(0, |file| file.minute);
        let found =
            Found { files: files.iter().map(|file| (file.name, file.location.clone())).collect(), minute };
        requests.upgrade()?.blocking_send(Request::Adopt { found, done }).ok()?;
        match answer.blocking_recv().ok()? {
            Ok(adopted) => return Some(adopted),
            Err(error) => tracing::warn!("take up files: {}", error.chain()),
        }
        std::thread::sleep(RETRY_AFTER);
    }
}

/// A file in a folder of blobs.
pub(super) struct Listed {
    pub(super) name: Name,
    pub(super) location: Location,
    /// When it was written, in minutes since 1970.
    pub(super) minute: u32,
}

/// The files of a folder that can be blobs; none if there is no such folder.
pub(super) fn list(folder: &Path, family: Family) -> Result<Vec<Listed>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::from(error).context("list a folder of blobs")),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.context(|| "list a folder of blobs")?;
        files.extend(listed(&entry, family));
    }
    Ok(files)
}

fn listed(entry: &fs::DirEntry, family: Family) -> Option<Listed> {
    let file_name = entry.file_name();
    let (hash, form) = match file_name.to_str()?.strip_suffix(Form::Compressed.suffix()) {
        Some(hash) => (hash, Form::Compressed),
        None => (file_name.to_str()?, Form::Plain),
    };
    let name = Name::new(family, &hex::decode(hash).ok()?)?;
    // A file may go while its folder is listed.
    let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
    let now = SystemTime::now();
    // Not when it was modified: that is set to what the inputs of actions show.
    let stored = metadata.created().or_else(|_| metadata.modified());
    let minute = minutes(stored.unwrap_or(now).min(now));
    let location = location(&entry.path(), form, metadata.len())?;
    Some(Listed { name, location, minute })
}

/// What the index says of a blob's file of `stored` bytes; `None` if it cannot be one. Blocks.
fn location(path: &Path, form: Form, stored: u64) -> Option<Location> {
    let location = match form {
        Form::Plain => Location::File { size: stored },
        Form::Compressed => {
            let size = content_size(&File::open(path).ok()?, stored).ok()?;
            Location::Compressed { size, stored }
        }
    };
    (location.size() > INLINE_MAX).then_some(location)
}

/// The file that `name` has, in whatever form.
fn file_of(shared: &Shared, name: Name) -> Option<(Name, Location)> {
    let located = |form| {
        let path = shared.files.path(&name, form);
        let stored = fs::metadata(&path).ok()?.len();
        location(&path, form, stored)
    };
    Form::ALL.into_iter().find_map(located).map(|location| (name, location))
}

/// Has the index know the files of `names` that it does not know yet, because somebody asks for them.
pub(super) async fn take_up(disk: &Disk, names: Vec<Name>) -> Result<()> {
    let shared = disk.shared();
    let minute = shared.clock.minute();
    let files = move || Ok(names.into_iter().filter_map(|name| file_of(&shared, name)).collect::<Vec<_>>());
    let files = tasks::blocking(files).await?;
    for files in files.chunks(FOUND_MAX) {
        let found = Found { files: files.to_vec(), minute };
        disk.ask(|done| Request::Adopt { found, done }).await??;
    }
    Ok(())
}
