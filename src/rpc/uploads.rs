//! Uploads that are under way, and those that broke off and wait for their client to go on.
//!
//! Each upload is a task that stores what comes through a channel; the request's handler only feeds it. So a handler that ends
//! early, or is dropped with its connection, loses nothing: the upload is parked and a later `Write` finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};
use tracing::Instrument;

use crate::error::{Error, Kind, Result};
use crate::proto::bytestream::WriteRequest;
use crate::store::{Blob, Cas, Chunks, zstandard};
use crate::tally::{Share, Tally};
use crate::tasks;

use super::resource::{self, Form};

/// Parked uploads that are kept. Each holds a temporary file, so they are worth a bound; one more drops none but is not kept itself.
const PARKED_MAX: usize = 1024;

/// Uploads that are under way or parked. Each is a task, and a temporary file as soon as something of it has come: a few times what all
/// clients of a large farm have open at once, and a part of the files that the system allows a service.
const OPEN_MAX: usize = 4096;

/// Those of one identity, or without one of an address: more than one client needs, and a fourth is left for the others.
const OPEN_OF_ONE_MAX: u32 = (OPEN_MAX / 4 * 3) as u32;

/// How long an upload waits for its next piece: longer than any client's pause between retries.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// Pieces between the connection and the store, and the largest piece: together the bytes of one upload that wait for the store. It is
/// what a fast connection brings while the store's thread waits some milliseconds for its turn.
const PIECES_MAX: usize = 16;
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Bytes of all uploads together that wait for the store: a thousand uploads at once must not cost a thousand times the above when
/// the disk is slower than the network.
const WAITING_BYTES_MAX: usize = 256 << 20;
static WAITING: Semaphore = Semaphore::const_new(WAITING_BYTES_MAX);

/// A piece on its way to the store, and its room among those that wait.
type Piece = (Bytes, SemaphorePermit<'static>);

/// The uploads of all clients.
#[derive(Debug, Clone)]
pub struct Uploads {
    parked: Arc<Mutex<HashMap<resource::Write, Session>>>,
    /// Places for more.
    places: Arc<Semaphore>,
    shares: Arc<Tally<String>>,
}

/// The place of an upload among all, and among those of whose it is; within this process nobody's.
#[derive(Debug)]
pub(super) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: Option<Share<String>>,
}

/// One upload in the hands of one request. Dropping it parks it.
#[derive(Debug)]
pub struct Upload {
    name: resource::Write,
    /// The name as the client wrote it, which it may repeat with every message.
    text: String,
    session: Option<Session>,
    uploads: Uploads,
}

#[derive(Debug)]
struct Session {
    _place: Place,
    /// Bytes that have come, in the form that they have on the wire.
    position: u64,
    sender: mpsc::Sender<Piece>,
    stored: oneshot::Receiver<Result<()>>,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    Receiving,
    /// The store had the blob before we had sent it all, so the rest is not needed.
    Stored,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::with_places(OPEN_MAX, OPEN_OF_ONE_MAX)
    }
}

impl Uploads {
    /// At most `places` at a time, and so many of one account.
    fn with_places(places: usize, of_one: u32) -> Self {
        Self { parked: Arc::default(), places: Arc::new(Semaphore::new(places)), shares: Tally::new(of_one) }
    }

    /// Goes on with a parked upload, or begins a new one of `account` at offset 0, as the `first` message says.
    ///
    /// # Errors
    /// `Invalid` when the offset is not where the upload stands, `Exhausted` when too many others are under way.
    pub fn begin(
        &self,
        cas: &Cas,
        (name, account): (resource::Write, String),
        first: &WriteRequest,
    ) -> Result<Upload> {
        let offset = first.write_offset;
        let parked = self.lock().remove(&name);
        let session = match parked.filter(Session::is_alive) {
            parked if offset == 0 => {
                drop(parked);
                Session::start(cas.clone(), &name, self.place(account)?)
            }
            Some(session) if i64::try_from(session.position) == Ok(offset) => session,
            other => {
                let committed = other.as_ref().map_or(0, |session| session.position);
                self.park(name, other);
                return Err(misplaced(offset, committed));
            }
        };
        let text = first.resource_name.clone();
        Ok(Upload { name, text, session: Some(session), uploads: self.clone() })
    }

    /// How much of a parked upload is here, in bytes.
    pub fn committed(&self, name: &resource::Write) -> Option<u64> {
        self.lock().get(name).filter(|session| session.is_alive()).map(|session| session.position)
    }

    /// A place for a new upload of `account`, if need be that of a parked one: its client may never come back.
    ///
    /// # Errors
    /// `Exhausted` when there is none.
    pub(super) fn place(&self, account: String) -> Result<Place> {
        let of_one = match account.as_str() {
            "" => None,
            _ => Some(self.shares.take(account).ok_or_else(|| {
                let max = self.shares.each_max();
                Error::new(
                    Kind::Exhausted,
                    format!("you have {max} uploads under way and may have no more at a time"),
                )
            })?),
        };
        let take = || Arc::clone(&self.places).try_acquire_owned().ok();
        let place = take().or_else(|| {
            let mut parked = self.lock();
            let name = parked.keys().next()?.clone();
            parked.remove(&name)?;
            take()
        });
        let full = || {
            Error::new(Kind::Exhausted, "as many uploads are under way as the server takes; try again later")
        };
        Ok(Place { _of_all: place.ok_or_else(full)?, _of_one: of_one })
    }

    fn park(&self, name: resource::Write, session: Option<Session>) {
        // A compressed upload has no place where it could go on: its offset counts compressed bytes, that of the next one others.
        let is_resumable = name.form == Form::Plain;
        let Some(session) = session.filter(|session| is_resumable && session.is_alive()) else { return };
        let mut parked = self.lock();
        parked.retain(|_, session| session.is_alive());
        // A handler whose connection died unnoticed may come late; what the client has sent since stays.
        let is_further = parked.get(&name).is_none_or(|other| other.position < session.position);
        if is_further && parked.len() < PARKED_MAX {
            parked.insert(name, session);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<resource::Write, Session>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    pub fn name(&self) -> &resource::Write {
        &self.name
    }

    /// Bytes of the blob that are here and need not be sent again.
    pub fn committed(&self) -> u64 {
        match self.name.form {
            Form::Plain => self.position(),
            Form::Zstd => 0,
        }
    }

    /// Whether nothing more is needed of the client.
    pub fn is_complete(&self) -> bool {
        self.is_stored() || (self.name.form == Form::Plain && self.position() == self.name.digest.size())
    }

    /// Whether the store had the blob before all of it had come.
    pub fn is_stored(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.state == State::Stored)
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// `Invalid` when the message does not continue this upload, which ends it, since its client is confused; and what the store
    /// says of the blob.
    pub async fn take(&mut self, message: WriteRequest) -> Result<()> {
        let sent = match self.check(&message) {
            Ok(()) => self.session_mut().send(message.data).await,
            refused @ Err(_) => refused,
        };
        if sent.is_err() {
            self.session = None;
        }
        sent
    }

    /// Waits until the store wants no more, which is when it has the blob already or refuses it.
    ///
    /// # Errors
    /// What the store says of the blob.
    pub async fn settled(&mut self) -> Result<()> {
        let settled = self.session_mut().settled().await;
        if settled.is_err() {
            self.session = None;
        }
        settled
    }

    /// Waits until the blob is stored and returns the size that the client is told.
    ///
    /// # Errors
    /// What the store says of the blob: a wrong hash, no room.
    pub async fn finish(mut self) -> Result<i64> {
        let session = self.session.take().expect("an upload that ended is not finished");
        drop(session.sender);
        if session.state == State::Receiving {
            outcome(session.stored).await?;
        }
        Ok(match session.state {
            State::Receiving => to_wire(session.position),
            State::Stored => not_needed(&self.name),
        })
    }

    fn position(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.position)
    }

    fn session_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("an upload that ended is not used")
    }

    fn check(&self, message: &WriteRequest) -> Result<()> {
        if !message.resource_name.is_empty() && message.resource_name != self.text {
            return Err(Error::invalid("the resource name changed within one write"));
        }
        check(&self.name, self.position(), message)
    }
}

/// Whether `message` may follow the first `position` bytes of an upload.
///
/// # Errors
/// `Invalid` with what is wrong.
pub(super) fn check(name: &resource::Write, position: u64, message: &WriteRequest) -> Result<()> {
    if i64::try_from(position) != Ok(message.write_offset) {
        return Err(misplaced(message.write_offset, position));
    }
    let (digest, size, end) = (name.digest, name.digest.size(), position + message.data.len() as u64);
    let problem = match name.form {
        Form::Plain if end > size => format!("blob {digest} has {size} bytes, but {end} were sent"),
        Form::Plain if message.finish_write && end < size => {
            format!("blob {digest} has {size} bytes, but the write finished after {end}")
        }
        Form::Zstd if end > zstandard::compressed_max(size) => {
            format!("blob {digest} has {size} bytes, but its compressed form has more than {end}")
        }
        Form::Plain | Form::Zstd => return Ok(()),
    };
    Err(Error::invalid(problem))
}

fn misplaced(offset: i64, committed: u64) -> Error {
    Error::invalid(format!("write offset {offset}, but {committed} bytes are committed"))
}

/// What the client is told of an upload that the farm did not need to its end (REv2, `ContentAddressableStorage`).
pub(super) fn not_needed(name: &resource::Write) -> i64 {
    match name.form {
        Form::Plain => to_wire(name.digest.size()),
        Form::Zstd => -1,
    }
}

/// A size for a message.
pub(super) fn to_wire(size: u64) -> i64 {
    i64::try_from(size).expect("the size of a digest came from an i64, and no upload is much longer")
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.uploads.park(self.name.clone(), self.session.take());
    }
}

impl Session {
    fn start(cas: Cas, name: &resource::Write, place: Place) -> Self {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let (done, stored) = oneshot::channel();
        let (digest, size) = (name.digest, name.digest.size());
        let chunks = match name.form {
            Form::Plain => chunks(receiver),
            Form::Zstd => zstandard::decompressed(size, chunks(receiver)),
        };
        let storing = async move {
            // Nobody may be waiting for the answer: then the blob is stored all the same.
            let _ = done.send(cas.put(&digest, Blob::Stream { size, chunks }).await);
        };
        tasks::spawn("upload", storing.in_current_span());
        Self { _place: place, position: 0, sender, stored, state: State::Receiving }
    }

    async fn send(&mut self, mut data: Bytes) -> Result<()> {
        self.position += data.len() as u64;
        while !data.is_empty() && self.state == State::Receiving {
            let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
            if !self.hand_over(piece).await {
                self.settled().await?;
            }
        }
        Ok(())
    }

    /// Whether the store wants the piece.
    async fn hand_over(&self, piece: Bytes) -> bool {
        let bytes = u32::try_from(piece.len()).expect("a piece is small");
        let room = tokio::select! {
            room = WAITING.acquire_many(bytes) => room.expect("nobody closes it"),
            () = self.sender.closed() => return false,
        };
        self.sender.send((piece, room)).await.is_ok()
    }

    /// Waits until the store takes no more.
    async fn settled(&mut self) -> Result<()> {
        if self.state == State::Receiving {
            self.sender.closed().await;
            outcome(&mut self.stored).await?;
            self.state = State::Stored;
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
fn chunks(receiver: mpsc::Receiver<Piece>) -> Chunks {
    stream::unfold(receiver, |mut receiver| async move {
        match tokio::time::timeout(IDLE_MAX, receiver.recv()).await {
            Ok(piece) => piece.map(|(bytes, _room)| (Ok(bytes), receiver)),
            Err(_) => {
                receiver.close();
                let message = format!("the client sent nothing for {} s", IDLE_MAX.as_secs());
                Some((Err(Error::new(Kind::Timeout, message)), receiver))
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_have_places_and_one_account_leaves_some_for_the_others() {
        let uploads = Uploads::with_places(4, 2);
        let place = |account: &str| uploads.place(account.to_owned()).map_err(|error| error.to_string());
        let _own = [place("token:ci").unwrap(), place("token:ci").unwrap()];
        let refusal = place("token:ci").unwrap_err();
        assert!(refusal.contains("you have 2 uploads"), "{refusal}");
        let _others = [place("token:developer").unwrap(), place("").unwrap()];
        let refusal = place("").unwrap_err();
        assert!(refusal.contains("as many uploads"), "{refusal}");
        assert!(place("token:developer").is_err());
    }
}
