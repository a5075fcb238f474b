//! Input roots as layers of overlays: each is built once, shared by all actions that want it, and read-only to them.
//!
//! A root is a tree of links of its own, or, where it differs little from one that is there, a layer over that one. Trees get
//! their names when they are complete, so what has a name is right. A tree in use stays, whatever the CAS lets go.

mod directories;
mod files;
mod flights;
mod ground;
mod home;
mod index;
mod listing;
mod place;
mod staging;
#[cfg(test)]
mod tests;
pub(super) mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use self::directories::Directories;
use self::files::Files;
use self::flights::Flights;
use self::ground::Ground;
use self::home::{Home, Janitor, Ledger, Reservation};
use self::index::{Cached, Index, Votes};
pub(super) use self::listing::Listed;
use self::place::Place;
use self::staging::Staging;
use self::tree::{Reading, Tree};
use super::command::{Command, join};
use super::sandbox::Ownership;
use crate::digest::Digest;
use crate::error::{Context, Error, Kind, Result};
use crate::metrics::{WORKER_INPUT_EVICTIONS, WORKER_INPUTS};
use crate::store::Cas;
use crate::tasks;

/// How long building a root may take: a store that does not answer must not hold its actions for ever.
const BUILD_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a build waits for the deletion of what it displaces before it goes on without being kept.
const ROOM_MAX: Duration = Duration::from_secs(30);
/// A layer over another tree has at most this part of that tree's entries: an eighth costs an eighth of building in full, each time.
const DELTA_PART: usize = 8;
/// Or so many entries, which are made as fast as an action is started.
const DELTA_MIN: usize = 64;
/// How deep subdirectories are looked for that other trees have, and how many directories are read for that.
const VOTE_DEPTH: usize = 4;
const VOTE_READS_MAX: usize = 64;
/// What an entry counts at least, so that the limit in bytes is one on inodes, too: a block.
const ENTRY_BYTES: u64 = 4096;
/// Trees and layers that are kept, whatever their size: a build leaves one for nearly each of its actions, and each takes about a
/// KiB of memory and a directory.
const TREES_MAX: usize = 32_768;
/// Above this part of its size the cache lets go what nobody uses before somebody has to wait for that.
const HIGH_WATER: (u64, u64) = (15, 16);
/// And goes down to this part, so that it is not always at it.
const LOW_WATER: (u64, u64) = (7, 8);

/// The input roots of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Inputs {
    shared: Arc<Shared>,
}

struct Shared {
    source: Directories,
    /// The worker's directory, which the sandbox serves.
    served: PathBuf,
    index: Index,
    flights: Flights<Digest, Arc<Cached>>,
    files: Arc<Files>,
    ledger: Arc<Ledger>,
    janitor: Janitor,
    next: AtomicU64,
    /// Whether the file system takes what layers over other trees need.
    has_deltas: AtomicBool,
    /// There was no room for the last tree that was built: what nobody waits for would be built in vain, and on a disk that is full.
    is_cramped: AtomicBool,
}

/// An input root that is there as long as this is held.
#[derive(Clone)]
pub struct Staged {
    tree: Arc<Cached>,
    served: PathBuf,
}

/// A tree that is read and has its place.
struct Draft {
    root: Digest,
    tree: Tree,
    base: Option<Arc<Cached>>,
}

impl Inputs {
    /// Opens the cache of at most `size` bytes in `served`, the directory that the sandbox serves. Deletes what was not complete
    /// when the last worker there ended; keeps what was, if this machine has not started anew since. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn open(cas: Cas, served: &Path, size: u64, ownership: Ownership) -> Result<Self> {
        let place = Place::prepare(served, ownership)?;
        let files = Files::open(place.files(), place.temporary(), ownership)
            .context(|| "open the files of the input cache")?;
        let files = Arc::new(files);
        let ledger = Ledger::new(size);
        let janitor = Janitor::start(place.trash(), files.clone())?;
        let index = Index::default();
        for (root, entries, bytes) in place.listed()? {
            let path = place.tree(&root, entries, bytes);
            let home = Home::new(path, Some(ledger.recognise(bytes)), janitor.clone());
            home.keep();
            let tree = Arc::new(Cached { root, home, base: None, entries });
            if !index.insert(tree.clone(), Vec::new()) {
                tree.home.let_go();
            }
        }
        let shared = Shared {
            source: Directories::new(cas),
            served: served.to_owned(),
            index,
            flights: Flights::default(),
            files,
            ledger,
            janitor,
            next: AtomicU64::new(0),
            has_deltas: AtomicBool::new(true),
            is_cramped: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The layers that show `root`. Built if they are not there; whoever else wants them meanwhile waits for the same.
    ///
    /// # Errors
    /// `MissingInput` with all blobs that are absent and needed; `Invalid` for a malformed tree; what CAS and file system report.
    pub async fn stage(&self, root: Digest) -> Result<Staged> {
        let tree = match self.shared.index.get(&root) {
            Some(tree) => {
                WORKER_INPUTS.with_label_values(&["hit"]).inc();
                tree
            }
            None => self.shared.flights.join(root, self.clone().build(root)).await?,
        };
        Ok(Staged { tree, served: self.shared.served.clone() })
    }

    /// Has `root` staged for an action to come. It stays as long as the cache has room for it; where it has none, nothing is staged.
    ///
    /// # Errors
    /// As [`Inputs::stage`].
    pub async fn warm(&self, root: Digest) -> Result<()> {
        if self.shared.is_cramped.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.stage(root).await.map(drop)
    }

    async fn build(self, root: Digest) -> Result<Arc<Cached>> {
        // Between a look at the index and this, another build may have ended.
        if let Some(tree) = self.shared.index.get(&root) {
            WORKER_INPUTS.with_label_values(&["hit"]).inc();
            return Ok(tree);
        }
        let late = |_| Error::new(Kind::Timeout, "staging the inputs took too long");
        let built =
            timeout(BUILD_MAX, self.build_with_room(root)).await.map_err(late).and_then(|built| built);
        let outcome = match &built {
            Ok(tree) if tree.base.is_some() => "delta",
            Ok(tree) if tree.home.cost() == 0 => "private",
            Ok(_) => "built",
            Err(_) => "failed",
        };
        WORKER_INPUTS.with_label_values(&[outcome]).inc();
        built
    }

    /// A disk may be full before the cache is: others write there, too. Then what nobody uses goes, and it is tried once more.
    async fn build_with_room(&self, root: Digest) -> Result<Arc<Cached>> {
        match self.build_somehow(root).await {
            Err(error) if matches!(os_error(&error), Some(libc::ENOSPC | libc::EDQUOT)) => {
                tracing::warn!(
                    error = error.chain(),
                    "no input tree stays that nobody uses: the disk is full"
                );
                self.empty().await;
                self.build_somehow(root).await
            }
            built => built,
        }
    }

    async fn build_somehow(&self, root: Digest) -> Result<Arc<Cached>> {
        if self.shared.has_deltas.load(Ordering::Relaxed)
            && let Some(draft) = self.delta(root).await?
        {
            match self.realise(draft).await {
                // The file system does not have what a layer over another tree needs.
                Err(error) if !matches!(os_error(&error), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
                    return Err(error);
                }
                Ok(tree) => return Ok(tree),
                Err(error) => {
                    let why = error.chain();
                    tracing::warn!(
                        error = why,
                        "input trees share nothing: the worker's file system refuses that"
                    );
                    self.shared.has_deltas.store(false, Ordering::Relaxed);
                }
            }
        }
        let tree = Tree::whole(&self.shared.source, root).await?;
        self.realise(Draft { root, tree, base: None }).await
    }

    /// What `root` needs over a tree that is there, if there is one that it differs little from.
    async fn delta(&self, root: Digest) -> Result<Option<Draft>> {
        for base in self.bases(root).await? {
            let entries_max = (base.entries / DELTA_PART).max(DELTA_MIN);
            match Tree::difference(&self.shared.source, root, base.root, entries_max).await? {
                Reading::Tree(tree) => return Ok(Some(Draft { root, tree, base: Some(base) })),
                Reading::TooLarge | Reading::NoBase => {}
            }
        }
        Ok(None)
    }

    /// Trees that share subdirectories with `root`, or were used last.
    async fn bases(&self, root: Digest) -> Result<Vec<Arc<Cached>>> {
        let mut votes = Votes::new();
        let mut level = vec![(String::new(), root)];
        let mut reads = 0;
        for _ in 0..VOTE_DEPTH {
            let mut next = Vec::new();
            for (path, digest) in level {
                reads += 1;
                if reads > VOTE_READS_MAX {
                    break;
                }
                // What is absent or wrong is told by who reads all of it.
                let Some(directory) = self.shared.source.get(&digest).await.ok().flatten() else { continue };
                for node in &directory.directories {
                    let below = Digest::from_proto(root.function(), node.digest.as_ref());
                    let Ok(below) = below else { continue };
                    let path = join(&path, &node.name);
                    if !self.shared.index.vote(index::mark(&path, &below), &mut votes) {
                        next.push((path, below));
                    }
                }
            }
            level = next;
        }
        Ok(self.shared.index.bases(&root, &votes))
    }

    /// Makes a tree of a draft: reserves its room, stages it aside and gives it its name.
    async fn realise(&self, draft: Draft) -> Result<Arc<Cached>> {
        let Draft { root, tree, base } = draft;
        // They were found a moment ago, which is why they are still there; room may take longer.
        let cas = self.shared.source.cas();
        let pinned = cas.pin(tree.files.iter().map(|file| &file.digest));
        let reservation = self.reserve(cost(&tree)).await;
        let is_shared = reservation.is_some();
        self.shared.is_cramped.store(!is_shared, Ordering::Relaxed);
        let entries = base.as_ref().map_or(tree.len(), |base| base.entries);
        let marks = if base.is_none() { index::marks(&tree.directories) } else { Vec::new() };
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let home = self.make_home(number, reservation).await?;
        let staging = Staging { directory: home.path().to_owned(), files: self.shared.files.clone() };
        staging.stage(cas, tree).await?;
        drop(pinned);
        let home = match is_shared && base.is_none() {
            true => {
                let path = Place::of(&self.shared.served).tree(&root, entries, home.cost());
                tasks::blocking(move || home.rename(path).context(|| "publish an input tree")).await?
            }
            false => home,
        };
        let tree = Arc::new(Cached { root, home, base, entries });
        if is_shared {
            tree.home.keep();
            // A build that was given up may have come to its end all the same.
            if !self.shared.index.insert(tree.clone(), marks) {
                tree.home.let_go();
            }
        }
        Ok(tree)
    }

    async fn make_home(&self, number: u64, reservation: Option<Reservation>) -> Result<Home> {
        let path = Place::of(&self.shared.served).layer(number);
        let janitor = self.shared.janitor.clone();
        tasks::blocking(move || {
            std::fs::create_dir(&path).context(|| "make a directory for inputs")?;
            Ok(Home::new(path, reservation, janitor))
        })
        .await
    }

    /// Room for `bytes` in the cache, for which others may have to go; `None` if it cannot be had.
    async fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let ledger = &self.shared.ledger;
        if bytes > ledger.limit() {
            return None;
        }
        let attempt = async {
            loop {
                let mut room = std::pin::pin!(ledger.room.notified());
                // From here on no room that is given back is missed.
                room.as_mut().enable();
                if let Some(reservation) = ledger.reserve(bytes) {
                    self.keep_room();
                    return Some(reservation);
                }
                let low = part(ledger.limit(), LOW_WATER);
                self.evict((ledger.account().staying() + bytes).saturating_sub(low));
                if ledger.account().leaving == 0 {
                    return None;
                }
                room.await;
            }
        };
        timeout(ROOM_MAX, attempt).await.ok().flatten()
    }

    /// Lets trees go before somebody has to wait for that.
    fn keep_room(&self) {
        let ledger = &self.shared.ledger;
        let (limit, staying) = (ledger.limit(), ledger.account().staying());
        if staying > part(limit, HIGH_WATER) {
            self.evict(staying - part(limit, LOW_WATER));
        }
        self.let_go(self.shared.index.evict_above(TREES_MAX));
    }

    /// Lets go of all trees that nobody uses, and waits for their deletion as long as for any.
    async fn empty(&self) {
        let ledger = &self.shared.ledger;
        self.evict(u64::MAX);
        let gone = async {
            loop {
                let mut room = std::pin::pin!(ledger.room.notified());
                room.as_mut().enable();
                if ledger.account().leaving == 0 {
                    return;
                }
                room.await;
            }
        };
        // If it takes longer, the next attempt says what is wrong.
        let _ = timeout(ROOM_MAX, gone).await;
    }

    /// Lets go of trees with so many bytes, if there are such that nobody uses.
    fn evict(&self, bytes: u64) {
        self.let_go(self.shared.index.evict(bytes));
    }

    fn let_go(&self, gone: Vec<Arc<Cached>>) {
        WORKER_INPUT_EVICTIONS.inc_by(gone.len() as u64);
        if !gone.is_empty() {
            // Dropping them takes a rename for each; it goes on without anybody waiting for it.
            drop(tasks::blocking(move || {
                drop(gone);
                Ok(())
            }));
        }
    }
}

impl Staged {
    /// Makes what `command` needs to exist in the empty directory `top`, a layer of its own; whether there is any such thing. Blocks.
    ///
    /// # Errors
    /// `Invalid` when the working directory is absent or an output lies below something that is no directory.
    pub(super) fn complete(&self, command: &Command, top: &Path, ownership: Ownership) -> Result<bool> {
        Ground::new(self.paths().map(Path::to_owned).collect()).complete(command, top, ownership)
    }

    /// The layers, the uppermost first, relative to the directory that the sandbox serves.
    pub fn layers(&self) -> Vec<String> {
        let relative = |path: &Path| {
            let path = path.strip_prefix(&self.served).expect("all trees are in the served directory");
            path.to_str().expect("we gave all names below it").to_owned()
        };
        self.paths().map(relative).collect()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let base = self.tree.base.as_ref().map(|base| base.home.path());
        [self.tree.home.path()].into_iter().chain(base)
    }
}

/// What a tree may take on the disk, as if nothing else had a link to its files.
fn cost(tree: &Tree) -> u64 {
    let files =
        tree.files.iter().map(|file| file.digest.size().next_multiple_of(ENTRY_BYTES).max(ENTRY_BYTES));
    let others = tree.directories.len() + tree.symlinks.len() + tree.whiteouts.len();
    files.fold(others as u64 * ENTRY_BYTES, u64::saturating_add)
}

fn part(whole: u64, (above, below): (u64, u64)) -> u64 {
    whole / below * above
}

/// What the system calls the cause, if it was the system's.
fn os_error(error: &Error) -> Option<i32> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}
