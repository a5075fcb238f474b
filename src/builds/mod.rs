//! What builds do and have done, kept in memory for people who look: operations, the invocations that they belong to, and what
//! running commands print.
//!
//! Nothing else depends on it, and nothing of it outlives the process. Each event costs one lock and a few look-ups, whatever is kept.

mod event;
mod filter;
mod hits;
mod invocation;
mod logs;
mod record;
mod responses;
mod streams;
#[cfg(test)]
mod tests;
mod texts;
mod told;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::Result;
use crate::proto::rev2::RequestMetadata;
use crate::scheduler::{OperationId, Update};

pub use self::event::{
    Cached, Completion, Event, Exit, Metrics, Started, Target, Test, TestResult, TestStatus, Workspace,
};
pub use self::filter::{Filter, InvocationFilter};
pub use self::hits::Hit;
use self::hits::Hits;
pub use self::invocation::{Invocation, Outcome};
pub use self::logs::Logs;
pub use self::record::{Client, Lookup, Record, Span, State, Times};
use self::responses::Responses;
pub use self::streams::{Position, Turn};
use self::texts::Texts;
pub use self::texts::cut;
pub use self::told::{ROWS_MAX, Row, Rows, TargetName, TargetState, TestName, Told};

/// Operations that are kept: some large builds. A record takes about a kilobyte.
pub const OPERATIONS_MAX: usize = 20_000;

/// Invocations that are kept: those of a day in a company with a hundred developers.
const INVOCATIONS_MAX: usize = 1_000;

/// Bytes of what clients have told of all invocations together. Those of a usual build take some hundred kilobytes; what was told first goes
/// first.
const TOLD_BYTES_MAX: usize = 64 << 20;

/// The book of operations and invocations. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Builds(Arc<Mutex<Book>>);

/// What is known of an operation when it begins.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub operation: OperationId,
    pub instance: &'a Arc<str>,
    pub action: Digest,
    /// Whose request it is, as limits count it.
    pub identity: &'a str,
    pub client: &'a RequestMetadata,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Part<T> {
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: usize,
}

#[derive(Debug, Default)]
struct Book {
    records: HashMap<OperationId, Arc<Record>>,
    /// In the order of their arrival.
    order: VecDeque<OperationId>,
    invocations: HashMap<Arc<str>, Invocation>,
    invocation_order: VecDeque<Arc<str>>,
    hits: Hits,
    responses: Responses,
    texts: Texts,
    /// Invocations whose clients tell of them, in the order in which they began to; some may be forgotten.
    told: VecDeque<Arc<str>>,
    told_bytes: usize,
}

impl Builds {
    /// A client has asked for an operation, and the action cache was looked into or not.
    pub fn begin(&self, asked: &Asked<'_>, lookup: Lookup) {
        let mut book = self.lock();
        let client = book.client(asked.client);
        let identity = book.text(asked.identity);
        book.enter(asked.operation, (asked.instance, asked.action), &client.invocation);
        if let Some(invocation) = book.invocations.get_mut(&client.invocation) {
            invocation.learn(asked.client, &identity);
            invocation.began(lookup == Lookup::Hit, SystemTime::now());
        }
        let Some(record) = book.record_mut(asked.operation) else { return };
        (record.client, record.identity, record.lookup) = (client, identity, lookup);
        record.begun = SystemTime::now();
        if lookup == Lookup::Hit {
            (record.state, record.ended) = (State::Cached, Some(record.begun));
        }
    }

    /// A client has asked the action cache itself for the result of an action.
    pub fn looked_up(
        &self,
        client: &RequestMetadata,
        (instance, action, identity): (&str, Digest, &str),
        is_hit: bool,
    ) {
        // Only what an invocation does is told apart; the rest is among the metrics.
        if client.tool_invocation_id.is_empty() {
            return;
        }
        let mut book = self.lock();
        let [id, instance, identity] =
            [&client.tool_invocation_id, instance, identity].map(|text| book.text(text));
        let invocation = book.invocation_mut(&id, &instance);
        let at = SystemTime::now();
        invocation.learn(client, &identity);
        invocation.looked_up(is_hit, at);
        if is_hit {
            let [target, mnemonic] = [&client.target_id, &client.action_mnemonic].map(|text| book.text(text));
            book.hits.push(&id, Hit { instance, action, target, mnemonic, at });
        }
    }

    /// An operation stands elsewhere than before. The scheduler may say so before or after [`Builds::begin`].
    pub fn noted(&self, operation: OperationId, update: &Update) {
        let mut book = self.lock();
        let task = &update.task;
        book.enter(operation, (&task.instance, task.action_digest), &task.invocation);
        let worker = book.text(record::worker(update).unwrap_or_default());
        let Some(record) = book.record_mut(operation) else { return };
        record.note(update, worker);
        let Some(response) = &update.response else { return };
        let (state, invocation) = (record.state, Arc::clone(&record.client.invocation));
        record.response = Some(Arc::clone(response));
        for old in book.responses.add(operation, response) {
            if let Some(record) = book.record_mut(old) {
                record.response = None;
            }
        }
        if let Some(invocation) = book.invocations.get_mut(&invocation) {
            invocation.ended(state, SystemTime::now());
        }
    }

    /// A client tells of its invocation; `event` is none where nothing of it is kept.
    ///
    /// # Errors
    /// `Precondition` when an event is missing before this one, `Denied` when the invocation is told of by somebody else, `Exhausted` when it
    /// has too many streams. Nothing is kept then.
    pub fn tell(
        &self,
        position: &Position<'_>,
        (instance, publisher): (&str, &str),
        event: Option<Event>,
    ) -> Result<Turn> {
        let mut book = self.lock();
        let [id, instance, publisher] =
            [position.invocation, instance, publisher].map(|text| book.texts.share(text));
        let invocation = book.invocation_mut(&id, &instance);
        let turn = invocation.advance(position, &publisher, SystemTime::now())?;
        if let (Turn::New, Some(event)) = (turn, event) {
            book.keep(&id, event);
        }
        Ok(turn)
    }

    /// The command and the beginning of a build that was told of and has not ended.
    pub fn under_way(&self, invocation: &str) -> Option<(String, SystemTime)> {
        let book = self.lock();
        let told = book.invocations.get(invocation)?.told.as_ref()?;
        let begun = told.begun.filter(|_| told.exit.is_none())?;
        Some((told.command.clone(), begun))
    }

    pub fn record(&self, operation: OperationId) -> Option<Arc<Record>> {
        self.lock().records.get(&operation).cloned()
    }

    /// The latest operations, after the `skip` latest of them. Looks at all that are kept, which takes a millisecond.
    pub fn operations(&self, filter: &Filter, (skip, limit): (usize, usize)) -> Part<Arc<Record>> {
        let book = self.lock();
        let found = book.order.iter().rev().filter_map(|operation| book.records.get(operation));
        part(found.filter(|record| filter.admits(record)).cloned(), (skip, limit))
    }

    /// The latest operations that began before this one with the same instance, target and mnemonic. None for one without a target.
    pub fn alike(&self, record: &Record, limit: usize) -> Vec<Arc<Record>> {
        let book = self.lock();
        let before = book.order.iter().rev().skip_while(|operation| **operation != record.operation).skip(1);
        let found = before.filter_map(|operation| book.records.get(operation));
        let is_alike = |other: &&Arc<Record>| {
            let is_named = other.client.target == record.client.target
                && other.client.mnemonic == record.client.mnemonic;
            is_named && other.instance == record.instance && !record.client.target.is_empty()
        };
        found.filter(is_alike).take(limit).cloned().collect()
    }

    /// The latest invocations, after the `skip` latest of them. Looks at all that are kept.
    pub fn invocations(&self, filter: &InvocationFilter, (skip, limit): (usize, usize)) -> Part<Invocation> {
        let book = self.lock();
        let found = book.invocation_order.iter().rev().filter_map(|id| book.invocations.get(id));
        let part = part(found.filter(|invocation| filter.admits(invocation)), (skip, limit));
        Part { items: part.items.into_iter().cloned().collect(), total: part.total }
    }

    /// An invocation with those of its operations that are kept, the oldest first.
    pub fn invocation(&self, id: &str) -> Option<(Invocation, Vec<Arc<Record>>)> {
        let book = self.lock();
        let invocation = book.invocations.get(id)?;
        let records = invocation.operations().filter_map(|operation| book.records.get(operation).cloned());
        Some((invocation.clone(), records.collect()))
    }

    pub fn has_invocation(&self, id: &str) -> bool {
        self.lock().invocations.contains_key(id)
    }

    /// What an invocation got from the action cache without an operation, as far as it is kept, the oldest first.
    pub fn hits(&self, invocation: &str) -> Vec<Hit> {
        self.lock().hits.of(invocation)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn part<T>(all: impl Iterator<Item = T>, (skip, limit): (usize, usize)) -> Part<T> {
    let (mut items, mut total) = (Vec::new(), 0);
    for item in all {
        if total >= skip && items.len() < limit {
            items.push(item);
        }
        total += 1;
    }
    Part { items, total }
}

impl Book {
    /// Makes sure that there is a record; the oldest makes room.
    fn enter(&mut self, operation: OperationId, work: (&Arc<str>, Digest), invocation: &Arc<str>) {
        if self.records.contains_key(&operation) {
            return;
        }
        while self.order.len() >= OPERATIONS_MAX {
            self.forget_oldest();
        }
        if !invocation.is_empty() {
            self.invocation_mut(invocation, work.0).add(operation);
        }
        let client = Client { invocation: Arc::clone(invocation), ..Client::default() };
        self.records.insert(operation, Arc::new(Record::new(operation, work, client)));
        self.order.push_back(operation);
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.order.pop_front() else { return };
        let Some(record) = self.records.remove(&oldest) else { return };
        if let Some(invocation) = self.invocations.get_mut(&record.client.invocation) {
            invocation.remove(oldest);
        }
    }

    fn record_mut(&mut self, operation: OperationId) -> Option<&mut Record> {
        self.records.get_mut(&operation).map(Arc::make_mut)
    }

    /// The invocation; it begins if it is not known, and the oldest makes room.
    fn invocation_mut(&mut self, id: &Arc<str>, instance: &Arc<str>) -> &mut Invocation {
        if !self.invocations.contains_key(id) {
            while self.invocation_order.len() >= INVOCATIONS_MAX {
                let oldest = self.invocation_order.pop_front();
                if let Some(mut oldest) = oldest.and_then(|oldest| self.invocations.remove(&oldest)) {
                    self.told_bytes -= oldest.forget_told();
                    self.hits.forget(&oldest.id);
                }
            }
            self.invocation_order.push_back(Arc::clone(id));
        }
        let begin = || Invocation::new((Arc::clone(id), Arc::clone(instance)), SystemTime::now());
        self.invocations.entry(Arc::clone(id)).or_insert_with(begin)
    }

    fn client(&mut self, metadata: &RequestMetadata) -> Client {
        Client {
            invocation: self.text(&metadata.tool_invocation_id),
            target: self.text(&metadata.target_id),
            mnemonic: self.text(&metadata.action_mnemonic),
        }
    }

    /// Keeps what was told of an invocation; what was told first makes room.
    fn keep(&mut self, id: &Arc<str>, event: Event) {
        let Some(invocation) = self.invocations.get_mut(id) else { return };
        let (is_first, before) = (invocation.told.is_none(), invocation.told_bytes());
        invocation.tell(event, &mut self.texts);
        self.told_bytes = self.told_bytes - before + invocation.told_bytes();
        if is_first && invocation.told.is_some() {
            self.told.push_back(Arc::clone(id));
        }
        while (self.told_bytes > TOLD_BYTES_MAX || self.told.len() > INVOCATIONS_MAX)
            && let Some(oldest) = self.told.pop_front()
        {
            self.told_bytes -= self.invocations.get_mut(&oldest).map_or(0, Invocation::forget_told);
        }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.share(text)
    }
}
