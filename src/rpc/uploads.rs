//! Uploads that are under way, and those that broke off and wait for their client to go on.
//!
//! Each upload is a task that stores what comes through a channel; the request's handler only feeds it. So a handler that ends
//! early, or is dropped with its connection, loses nothing: the upload is parked and a later `Write` finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{mpsc, oneshot};

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::WriteRequest;
use crate::store::{Blob, Cas, Chunks};
use crate::tasks;

use super::resource;

/// Parked uploads that are kept. Each holds a temporary file, so they are worth a bound; one more drops none but is not kept itself.
const PARKED_MAX: usize = 1024;

/// How long an upload waits for its next piece: longer than any client's pause between retries.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// Pieces between the connection and the store, and the largest piece: together the bytes of one upload that wait for the store. It is
/// what a fast connection brings while the store's thread waits some milliseconds for its turn.
const PIECES_MAX: usize = 16;
const PIECE_BYTES_MAX: usize = 256 << 10;

/// The uploads of all clients.
#[derive(Debug, Default, Clone)]
pub struct Uploads {
    parked: Arc<Mutex<HashMap<resource::Write, Session>>>,
}

/// One upload in the hands of one request. Dropping it parks it.
#[derive(Debug)]
pub struct Upload {
    name: resource::Write,
    session: Option<Session>,
    uploads: Uploads,
}

#[derive(Debug)]
struct Session {
    committed: u64,
    sender: mpsc::Sender<Bytes>,
    stored: oneshot::Receiver<Result<()>>,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    Receiving,
    /// The store had the blob before we had sent it all, so the rest is not needed.
    Stored,
}

impl Uploads {
    /// Goes on with a parked upload, or begins a new one at offset 0.
    ///
    /// # Errors
    /// `Invalid` when the offset is not where the upload stands.
    pub fn begin(&self, cas: &Cas, name: &resource::Write, offset: i64) -> Result<Upload> {
        let parked = self.lock().remove(name);
        let session = match parked.filter(Session::is_alive) {
            _ if offset == 0 => Session::start(cas.clone(), name.digest),
            Some(session) if i64::try_from(session.committed) == Ok(offset) => session,
            other => {
                let committed = other.as_ref().map_or(0, |session| session.committed);
                self.park(name.clone(), other);
                return Err(Error::invalid(format!(
                    "write offset {offset}, but {committed} bytes are committed"
                )));
            }
        };
        Ok(Upload { name: name.clone(), session: Some(session), uploads: self.clone() })
    }

    /// How much of a parked upload is here, in bytes.
    pub fn committed(&self, name: &resource::Write) -> Option<u64> {
        self.lock().get(name).filter(|session| session.is_alive()).map(|session| session.committed)
    }

    fn park(&self, name: resource::Write, session: Option<Session>) {
        let Some(session) = session.filter(Session::is_alive) else { return };
        let mut parked = self.lock();
        parked.retain(|_, session| session.is_alive());
        // A handler whose connection died unnoticed may come late; what the client has sent since stays.
        let is_further = parked.get(&name).is_none_or(|other| other.committed < session.committed);
        if is_further && parked.len() < PARKED_MAX {
            parked.insert(name, session);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<resource::Write, Session>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    /// Bytes that are here, in all.
    pub fn committed(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.committed)
    }

    /// Whether nothing more is needed of the client.
    pub fn is_complete(&self) -> bool {
        let is_stored = self.session.as_ref().is_some_and(|session| session.state == State::Stored);
        is_stored || self.committed() == self.name.digest.size()
    }

    /// Whether `message` continues this upload.
    ///
    /// # Errors
    /// `Invalid` with what is wrong; the upload ends then, since its client is confused.
    pub fn check(&mut self, message: &WriteRequest) -> Result<()> {
        let problem = self.problem(message);
        if problem.is_some() {
            self.session = None;
        }
        problem.map_or(Ok(()), |problem| Err(Error::invalid(problem)))
    }

    fn problem(&self, message: &WriteRequest) -> Option<String> {
        let (committed, size) = (self.committed(), self.name.digest.size());
        if i64::try_from(committed) != Ok(message.write_offset) {
            return Some(format!(
                "write offset {}, but {committed} bytes are committed",
                message.write_offset
            ));
        }
        if !message.resource_name.is_empty()
            && resource::Write::parse(&message.resource_name).ok() != Some(self.name.clone())
        {
            return Some("the resource name changed within one write".to_owned());
        }
        let end = committed + message.data.len() as u64;
        if end > size {
            return Some(format!("blob {} has {size} bytes, but {end} were sent", self.name.digest));
        }
        if message.finish_write && end < size {
            return Some(format!(
                "blob {} has {size} bytes, but the write finished after {end}",
                self.name.digest
            ));
        }
        None
    }

    /// Hands a piece on to the store.
    ///
    /// # Errors
    /// What the store says of the blob.
    pub async fn send(&mut self, data: Bytes) -> Result<()> {
        let session = self.session.as_mut().expect("an upload that ended is not sent to");
        let size = data.len() as u64;
        let result = session.send(data).await;
        match result {
            Ok(()) => session.committed += size,
            Err(_) => self.session = None,
        }
        result
    }

    /// Waits until the blob is stored and returns its size in bytes.
    ///
    /// # Errors
    /// What the store says of the blob: a wrong hash, no room.
    pub async fn finish(mut self) -> Result<u64> {
        let session = self.session.take().expect("an upload that ended is not finished");
        drop(session.sender);
        if session.state == State::Receiving {
            outcome(session.stored).await?;
        }
        Ok(self.name.digest.size())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.uploads.park(self.name.clone(), self.session.take());
    }
}

impl Session {
    fn start(cas: Cas, digest: Digest) -> Self {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let (done, stored) = oneshot::channel();
        let blob = Blob::Stream { size: digest.size(), chunks: chunks(receiver) };
        tasks::spawn("upload", async move {
            // Nobody may be waiting for the answer: then the blob is stored all the same.
            let _ = done.send(cas.put(&digest, blob).await);
        });
        Self { committed: 0, sender, stored, state: State::Receiving }
    }

    async fn send(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() && self.state == State::Receiving {
            let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
            if self.sender.send(piece).await.is_err() {
                outcome(&mut self.stored).await?;
                self.state = State::Stored;
            }
        }
        Ok(())
    }

    fn is_alive(&self) -> bool {
        !self.sender.is_closed()
    }
}

async fn outcome(stored: impl Future<Output = Result<Result<()>, oneshot::error::RecvError>>) -> Result<()> {
    stored.await.map_err(|_| Error::new(Kind::Cancelled, "the farm is stopping"))?
}

/// The pieces of a channel as a blob's chunks; a client that falls silent ends them with an error, which frees what it held.
fn chunks(receiver: mpsc::Receiver<Bytes>) -> Chunks {
    stream::unfold(receiver, |mut receiver| async move {
        match tokio::time::timeout(IDLE_MAX, receiver.recv()).await {
            Ok(piece) => piece.map(|piece| (Ok(piece), receiver)),
            Err(_) => {
                receiver.close();
                let message = format!("the client sent nothing for {} s", IDLE_MAX.as_secs());
                Some((Err(Error::new(Kind::Timeout, message)), receiver))
            }
        }
    })
    .boxed()
}
