//! Hashes files and uploads those that the CAS lacks, in batches, so that memory and descriptors do not grow with their number.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::OFlags;

use super::scan;
use crate::digest::{Digest, Function};
use crate::error::{Context, Error, Kind, Result};
use crate::store::{Blob, Cas};
use crate::tasks;

/// Files that are hashed, asked for and uploaded together.
const BATCH_FILES: usize = 256;
/// Batches of one action at a time: one is hashed while another is uploaded.
const BATCHES_MAX: usize = 2;
/// Files up to this size stay in memory between hashing and upload: at most 8 MiB for an action's two batches.
const KEPT_BYTES: u64 = 16 * 1024;
/// Larger files of one batch that are uploaded at the same time; each holds a descriptor.
const UPLOADS_MAX: usize = 4;
/// Bytes of one output. A file with a hole can claim any size for nothing, and hashing it would keep a thread for ever.
const FILE_BYTES_MAX: u64 = 64 << 30;
/// The piece in which files are read for hashing.
const BUFFER_BYTES: usize = 128 * 1024;

/// A file that has been hashed, with its content if it is small.
struct Hashed {
    path: String,
    digest: Digest,
    content: Option<Bytes>,
}

/// Uploads the files at `paths` below `view`; answers with their digests, in order.
pub(super) async fn upload_outputs(
    cas: &Cas,
    function: Function,
    view: &Arc<OwnedFd>,
    paths: Vec<String>,
) -> Result<Vec<Digest>> {
    let mut batches = Vec::new();
    let mut paths = paths.into_iter().peekable();
    while paths.peek().is_some() {
        batches.push(paths.by_ref().take(BATCH_FILES).collect::<Vec<_>>());
    }
    stream::iter(batches)
        .map(|batch| upload_batch(cas, function, view, batch))
        .buffered(BATCHES_MAX)
        .try_concat()
        .await
}

async fn upload_batch(
    cas: &Cas,
    function: Function,
    view: &Arc<OwnedFd>,
    paths: Vec<String>,
) -> Result<Vec<Digest>> {
    let hashing = view.clone();
    let files = tasks::blocking(move || {
        let hash = |path: String| {
            let hashed = hash_output(&hashing, function, &path).context(|| format!("hash output `{path}`"));
            hashed.map(|(digest, content)| Hashed { path, digest, content })
        };
        paths.into_iter().map(hash).collect::<Result<Vec<_>>>()
    })
    .await?;
    let digests: Vec<Digest> = files.iter().map(|file| file.digest).collect();
    let distinct: HashMap<Digest, Hashed> = files.into_iter().map(|file| (file.digest, file)).collect();
    let asked: Vec<Digest> = distinct.keys().copied().collect();
    let missing = cas.missing(&asked).await.context(|| "look for outputs in the CAS")?;
    let missing: HashSet<Digest> = missing.into_iter().collect();
    let (small, large): (Vec<_>, Vec<_>) = distinct
        .into_values()
        .filter(|file| missing.contains(&file.digest))
        .partition(|file| file.content.is_some());
    put_small(cas, small.into_iter().filter_map(|file| Some((file.digest, file.content?))).collect()).await?;
    stream::iter(large)
        .map(|file| put_large(cas, view.clone(), file))
        .buffer_unordered(UPLOADS_MAX)
        .try_collect::<()>()
        .await?;
    Ok(digests)
}

async fn put_large(cas: &Cas, view: Arc<OwnedFd>, file: Hashed) -> Result<()> {
    let Hashed { path, digest, .. } = file;
    let opened = tasks::blocking(move || {
        let opened = scan::open(&view, &path, OFlags::empty());
        opened.context(|| format!("open output `{path}`"))
    })
    .await?;
    let blob = Blob::File { file: Arc::new(File::from(opened)), offset: 0, size: digest.size() };
    cas.put(&digest, blob).await.context(|| format!("upload {digest}"))
}

async fn put_small(cas: &Cas, blobs: Vec<(Digest, Bytes)>) -> Result<()> {
    if blobs.is_empty() {
        return Ok(());
    }
    let results = cas.put_all(blobs).await;
    results.into_iter().try_for_each(|result| result.context(|| "upload small outputs"))
}

/// Uploads those of `blobs` that the CAS lacks.
pub(in crate::worker) async fn upload_messages(cas: &Cas, blobs: Vec<(Digest, Bytes)>) -> Result<()> {
    let mut blobs = blobs.into_iter().peekable();
    while blobs.peek().is_some() {
        let batch: Vec<_> = blobs.by_ref().take(BATCH_FILES).collect();
        let digests: Vec<Digest> = batch.iter().map(|(digest, _)| *digest).collect();
        let missing = cas.missing(&digests).await.context(|| "look for outputs in the CAS")?;
        let missing: HashSet<Digest> = missing.into_iter().collect();
        put_small(cas, batch.into_iter().filter(|(digest, _)| missing.contains(digest)).collect()).await?;
    }
    Ok(())
}

/// Uploads one open file, which nobody writes to any more; `None` if it is empty.
///
/// # Errors
/// What the file system and the CAS report.
pub(in crate::worker) async fn upload_file(
    cas: &Cas,
    function: Function,
    file: File,
) -> Result<Option<Digest>> {
    // Most commands print nothing, and asking for the size costs less than a thread.
    if file.metadata().context(|| "look at what the command printed")?.len() == 0 {
        return Ok(None);
    }
    let file = Arc::new(file);
    let hashing = file.clone();
    let (digest, content) =
        tasks::blocking(move || hash(&hashing, function).context(|| "hash what the command printed")).await?;
    if cas.missing(&[digest]).await?.is_empty() {
        return Ok(Some(digest));
    }
    let blob = content.map_or(Blob::File { file, offset: 0, size: digest.size() }, Blob::Whole);
    cas.put(&digest, blob).await.context(|| format!("upload {digest}"))?;
    Ok(Some(digest))
}

fn hash_output(view: &OwnedFd, function: Function, path: &str) -> Result<(Digest, Option<Bytes>)> {
    hash(&File::from(scan::open(view, path, OFlags::empty())?), function)
}

/// Hashes a file from its start; keeps the content of a small one.
fn hash(file: &File, function: Function) -> Result<(Digest, Option<Bytes>)> {
    let size = file.metadata()?.len();
    if size > FILE_BYTES_MAX {
        let message = format!("an output has {size} bytes; the limit is {FILE_BYTES_MAX}");
        return Err(Error::new(Kind::Precondition, message));
    }
    if size <= KEPT_BYTES {
        let mut content = Vec::with_capacity(usize::try_from(size).expect("small"));
        // One byte more than allowed is enough to see that the file was longer than it said.
        Positioned { file, position: 0 }.take(KEPT_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 <= KEPT_BYTES {
            return Ok((function.hash(&content), Some(content.into())));
        }
    }
    let mut hasher = function.hasher(size);
    // What grows while it is read is cut, and then has another size than it was stored under.
    let mut reader = Positioned { file, position: 0 }.take(size);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((hasher.finish(), None)),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Reads without moving the file's own position, which the command's descriptor shares.
struct Positioned<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, self.position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    self.position += *result.as_ref().unwrap_or(&0) as u64;
                    return result;
                }
            }
        }
    }
}
