//! What is pending, on the disk: a write is acknowledged when the journal has it.
//!
//! One thread writes, and commits what is waiting as a group. A record says which tier lacks which key; it names the tier, because
//! places in the list change. Forgetting is lazy: a record that comes back after a crash is one upload too many.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::super::name::Name;
use super::super::{ActionKey, Key};
use super::pending::{Fate, Job, Outcome, Pending, Record, Target};
use super::{Tier, WriteBack};
use crate::digest::{Digest, Function};
use crate::error::{Context, Error, Kind, Result};
use crate::index::{Batch, COMMIT_BYTES_MAX, COMMIT_OPERATIONS_MAX, Index, Origin};
use crate::tasks;

/// Requests that wait for the thread.
const REQUESTS_MAX: usize = 256;

/// Records of one request: a few requests fit into one commit.
const RECORDS_MAX: usize = COMMIT_OPERATIONS_MAX / 4;

/// Bytes of one record at most: a key with the longest instance name that makes sense. With this, the records of a request fit.
const RECORD_BYTES_MAX: usize = COMMIT_BYTES_MAX / RECORDS_MAX;

/// How long a removal waits for an upload of the same key: results take milliseconds, so one that takes this long hangs. Half of what
/// a write waits for its turn, so that writers behind a removal need not give up.
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(30);

const RECORD: u8 = b'p';

/// The queue that survives a crash. Dropping it waits for the last commit.
pub(super) struct Journal {
    pending: Arc<Pending>,
    names: Vec<String>,
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

enum Request {
    Add { targets: Vec<Target>, done: oneshot::Sender<Result<()>> },
    Forget(Target),
}

impl Journal {
    /// Opens the journal, which is made if it is not there, and takes up what it has. Blocks.
    ///
    /// # Errors
    /// As the index.
    pub(super) fn open(settings: WriteBack<'_>, tiers: &[Tier], pending: Pending) -> Result<Self> {
        let pending = Arc::new(pending);
        if let Some(parent) = settings.journal.parent() {
            std::fs::create_dir_all(parent).context(|| "make the directory of the journal")?;
        }
        let names: Vec<String> = tiers.iter().map(|tier| tier.name().to_owned()).collect();
        let writer = Writer {
            index: open(settings.journal)?,
            pending: pending.clone(),
            names: names.clone(),
            is_broken: false,
        };
        writer.restore()?;
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let thread =
            tasks::thread("journal", move || writer.run(receiver)).context(|| "start the journal")?;
        Ok(Self { pending, names, requests: Some(requests), thread: Some(thread) })
    }

    /// Remembers `targets` with their sizes. When it returns, a crash does not change that.
    ///
    /// # Errors
    /// `Exhausted` when too much is pending, `Unavailable` when the journal cannot be written. Some may be remembered then.
    pub(super) async fn add(&self, targets: &[(Target, u64)]) -> Result<()> {
        let is_long = |(target, _): &(Target, u64)| {
            record_key(&self.names, target).len() + encode(&target.key).len() > RECORD_BYTES_MAX / 2
        };
        if targets.iter().any(is_long) {
            return Err(Error::new(Kind::Exhausted, "a key is too long for the journal"));
        }
        for some in targets.chunks(RECORDS_MAX) {
            // From the entry to the request nothing waits: a writer that goes in between would leave entries that are never due.
            let place = self.requests().reserve().await.map_err(|_| stopped())?;
            self.pending.insert(some)?;
            let targets = some.iter().map(|(target, _)| target.clone()).collect();
            let (done, answer) = oneshot::channel();
            place.send(Request::Add { targets, done });
            answer.await.map_err(|_| stopped())??;
        }
        Ok(())
    }

    /// Forgets what is pending for `key`, after the uploads of it that are under way: what they write would come after the removal that
    /// this is for, and whoever was told meanwhile that it is there would rely on it.
    ///
    /// # Errors
    /// `Unavailable` after [`UPLOAD_WAIT_MAX`]; then nothing is forgotten.
    pub(super) async fn withdraw(&self, key: &Key) -> Result<()> {
        let late = |_| Error::new(Kind::Unavailable, "an upload of it to a slower tier does not end");
        let withdrawn = self.pending.withdraw(key, self.names.len());
        for target in timeout(UPLOAD_WAIT_MAX, withdrawn).await.map_err(late)? {
            // A record that stays is one upload too many.
            let _ = self.send(Request::Forget(target)).await;
        }
        Ok(())
    }

    /// Tells how a job went.
    pub(super) async fn finish(&self, job: &Job, outcome: Outcome) -> Fate {
        let fate = self.pending.finish(job, outcome);
        if fate == Fate::Gone {
            let _ = self.send(Request::Forget(job.target.clone())).await;
        }
        fate
    }

    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Waits until nothing is pending, and does not wait before the next attempt at what failed.
    pub(super) async fn drained(&self) {
        self.pending.drained().await;
    }

    async fn send(&self, request: Request) -> Result<()> {
        self.requests().send(request).await.map_err(|_| stopped())
    }

    fn requests(&self) -> &mpsc::Sender<Request> {
        self.requests.as_ref().expect("it is taken only by drop")
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of a thread has ended the process.
            let _ = thread.join();
        }
    }
}

fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the journal is stopping")
}

fn open(path: &Path) -> Result<Index> {
    let (index, _) = Index::open(path)?;
    Ok(index)
}

/// The thread's state.
struct Writer {
    index: Index,
    pending: Arc<Pending>,
    names: Vec<String>,
    /// A commit failed: nothing can be written until the index is open again.
    is_broken: bool,
}

/// Requests that are committed together.
#[derive(Default)]
struct Group {
    batch: Batch,
    records: usize,
    added: Vec<Target>,
    answers: Vec<oneshot::Sender<Result<()>>>,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut group = Group::default();
            self.stage(first, &mut group);
            while group.records + RECORDS_MAX <= COMMIT_OPERATIONS_MAX
                && group.records * RECORD_BYTES_MAX <= COMMIT_BYTES_MAX - RECORDS_MAX * RECORD_BYTES_MAX
            {
                let Ok(next) = requests.try_recv() else { break };
                self.stage(next, &mut group);
            }
            self.commit(group);
        }
    }

    fn stage(&self, request: Request, group: &mut Group) {
        match request {
            Request::Add { targets, done } => {
                let mut is_complete = true;
                for target in targets {
                    match self.pending.record(&target) {
                        Some(record) => {
                            let key = record_key(&self.names, &target);
                            group.batch.insert(&key, record_value(&target.key, record));
                        }
                        None => is_complete = false,
                    }
                    group.records += 1;
                    group.added.push(target);
                }
                if is_complete {
                    group.answers.push(done);
                } else {
                    // It was withdrawn, uploaded, or lost with a commit that failed: only its writer can see to it that it is there.
                    let gone =
                        Error::new(Kind::Unavailable, "a pending write is gone before the journal had it");
                    let _ = done.send(Err(gone));
                }
            }
            Request::Forget(target) => {
                // It may be pending again since.
                if !self.pending.contains(&target) {
                    group.batch.remove(&record_key(&self.names, &target));
                    group.records += 1;
                }
            }
        }
    }

    fn commit(&mut self, group: Group) {
        let Group { batch, added, answers, .. } = group;
        let committed = self.repair().and_then(|()| self.index.commit(batch, || {}));
        match &committed {
            Ok(()) => self.pending.recorded(&added),
            Err(error) => {
                tracing::error!("the journal cannot be written: {}", error.chain());
                self.is_broken = true;
                self.pending.not_recorded(&added);
            }
        }
        for answer in answers {
            let again = || Error::new(Kind::Unavailable, "the journal cannot be written at present");
            // Whoever asked and is gone needs no answer.
            let _ = answer.send(if committed.is_ok() { Ok(()) } else { Err(again()) });
        }
    }

    fn repair(&mut self) -> Result<()> {
        if !self.is_broken {
            return Ok(());
        }
        let origin = self.index.reopen()?;
        if origin == Origin::New {
            self.record_all()?;
        }
        self.is_broken = false;
        Ok(())
    }

    /// Writes down all that is pending, into an index that is new.
    fn record_all(&self) -> Result<()> {
        for targets in self.pending.targets().chunks(RECORDS_MAX) {
            let mut batch = Batch::default();
            for target in targets {
                if let Some(record) = self.pending.record(target) {
                    batch.insert(&record_key(&self.names, target), record_value(&target.key, record));
                }
            }
            self.index.commit(batch, || {})?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        let places: HashMap<&str, usize> =
            self.names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
        let (mut from, mut orphans) = (vec![RECORD], 0_u64);
        while let Some((key, value)) = self.index.first(&from, RECORD)? {
            match (tier_of(&key).and_then(|name| places.get(name)), decode(&value)) {
                (Some(tier), Some((key, record))) => {
                    self.pending.restore(&Target { tier: *tier, key }, record);
                }
                // The tier may have another name by mistake, and come back.
                (None, Some(_)) => orphans += 1,
                (_, None) => {
                    let mut batch = Batch::default();
                    batch.remove(&key);
                    self.index.commit(batch, || {})?;
                }
            }
            from = [&key[..], &[0]].concat();
        }
        if orphans > 0 {
            tracing::warn!(
                writes = orphans,
                "pending writes wait for a tier that is not in the configuration"
            );
        }
        Ok(())
    }
}

/// The tier's name with its length, and the name of what is stored.
fn record_key(names: &[String], target: &Target) -> Vec<u8> {
    let tier = names[target.tier].as_bytes();
    let length = u8::try_from(tier.len()).unwrap_or(u8::MAX);
    [&[RECORD, length], &tier[..usize::from(length)], Name::from(&target.key).as_bytes()].concat()
}

fn tier_of(key: &[u8]) -> Option<&str> {
    let (length, rest) = key.get(1..)?.split_first()?;
    std::str::from_utf8(rest.get(..usize::from(*length))?).ok()
}

fn record_value(key: &Key, record: Record) -> Vec<u8> {
    [&record.size.to_be_bytes()[..], &record.since.to_be_bytes()[..], &encode(key)].concat()
}

fn decode(value: &[u8]) -> Option<(Key, Record)> {
    let (size, rest) = value.split_first_chunk()?;
    let (since, key) = rest.split_first_chunk()?;
    let record = Record { size: u64::from_be_bytes(*size), since: u64::from_be_bytes(*since) };
    Some((decode_key(key)?, record))
}

const TAG_BLOB: u8 = 0;
const TAG_ACTION: u8 = 1;
const TAG_ASSET: u8 = 2;

fn encode(key: &Key) -> Vec<u8> {
    match key {
        Key::Blob(digest) => [&[TAG_BLOB][..], &encode_digest(digest)].concat(),
        Key::Action(ActionKey { instance, digest }) => {
            [&[TAG_ACTION][..], &encode_digest(digest), instance.as_bytes()].concat()
        }
        Key::Asset(hash) => [&[TAG_ASSET][..], hash].concat(),
    }
}

fn decode_key(bytes: &[u8]) -> Option<Key> {
    let (tag, rest) = bytes.split_first()?;
    match *tag {
        TAG_BLOB => decode_digest(rest).map(|(digest, _)| Key::Blob(digest)),
        TAG_ACTION => {
            let (digest, instance) = decode_digest(rest)?;
            Some(Key::Action(ActionKey { instance: std::str::from_utf8(instance).ok()?.into(), digest }))
        }
        TAG_ASSET => rest.try_into().ok().map(Key::Asset),
        _ => None,
    }
}

/// The function's number in the protocol, the size, the hash.
fn encode_digest(digest: &Digest) -> Vec<u8> {
    let function = i32::from(digest.function().to_proto());
    [&function.to_be_bytes()[..], &digest.size().to_be_bytes(), digest.hash()].concat()
}

fn decode_digest(bytes: &[u8]) -> Option<(Digest, &[u8])> {
    let (function, rest) = bytes.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let function = Function::from_proto(i32::from_be_bytes(*function)).ok()??;
    let (hash, rest) = rest.split_at_checked(function.hash_bytes())?;
    Some((Digest::new(function, hash, u64::from_be_bytes(*size)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_back() {
        let digest = Function::Blake3.hash(b"x");
        for instance in ["", "main", "a/b"] {
            let keys = [
                Key::Blob(digest),
                Key::Blob(Function::Sha256.hash(b"y")),
                Key::Action(ActionKey { instance: instance.into(), digest }),
                Key::Asset([7; 32]),
            ];
            for key in keys {
                let record = Record { size: 9, since: 1_700_000_000 };
                assert_eq!(decode(&record_value(&key, record)), Some((key, record)));
            }
        }
        assert_eq!(decode(b"short"), None);
    }
}
