//! What builds do and have done, kept in memory for people who look: operations, the invocations that they belong to, and what
//! running commands print.
//!
//! Nothing else depends on it, and nothing of it outlives the process. Each event costs one lock and a few look-ups, whatever is kept.

mod answers;
mod event;
mod filter;
mod invocation;
mod logs;
mod record;
mod responses;
mod shares;
mod streams;
#[cfg(test)]
mod tests;
mod texts;
mod told;
mod verdicts;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::Result;
use crate::proto::rev2::{ExecuteResponse, RequestMetadata};
use crate::scheduler::{OperationId, Update};

pub use self::answers::Answer;
use self::answers::Answers;
pub use self::event::{
    Cached, Completion, Event, Exit, Metrics, Started, Target, Test, TestResult, TestStatus, Workspace,
};
pub use self::filter::{Filter, InvocationFilter};
pub use self::invocation::{Invocation, Outcome, hit_rate};
pub use self::logs::Logs;
pub use self::record::{Client, Lookup, Record, Span, State, Times};
use self::responses::Responses;
use self::shares::Shares;
pub use self::streams::{Position, Turn};
use self::texts::Texts;
pub use self::texts::cut;
pub use self::told::{ROWS_MAX, Row, Rows, TargetName, TargetState, TestName, Told};
pub use self::verdicts::Verdicts;

/// Operations that are kept, the latest: some large builds. A record takes about a kilobyte.
pub const OPERATIONS_MAX: usize = 20_000;

/// Failures that are kept when they are no longer among those, since these are what people look for. Each counts against its invocation, so
/// that one in which all fails leaves those of the others.
const FAILURES_MAX: usize = 5_000;

/// Operations that are kept so because they have not ended: a long test may be the last of a million actions and fail then.
const UNENDED_MAX: usize = 5_000;

/// Operations that were forgotten although they go on, of which that is known: a number and a name each. Of what is beyond, the next report
/// begins a record anew.
const LOST_MAX: usize = 100_000;

/// Invocations that are kept, of those that had something executed or told: those of a day in a company with a hundred developers.
const INVOCATIONS_MAX: usize = 1_000;

/// Invocations that are kept beside, of which nothing is known but look-ups in the action cache: whoever may read can make them up.
const LOOKERS_MAX: usize = 1_000;

/// Bytes of what clients have told of all invocations together. Those of a usual build take some hundred kilobytes.
const TOLD_BYTES_MAX: usize = 64 << 20;

/// The book of operations and invocations. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Builds {
    book: Arc<Mutex<Book>>,
    since: SystemTime,
}

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

/// Who tells of an invocation.
#[derive(Debug, Clone, Copy)]
pub struct Publisher<'a> {
    pub instance: &'a str,
    /// Who may go on to tell of it.
    pub identity: &'a str,
    /// By which it is counted.
    pub account: &'a str,
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
    /// By the number of their arrival.
    order: BTreeMap<u64, OperationId>,
    arrivals: u64,
    /// Those that make room for later ones, the oldest first.
    line: VecDeque<OperationId>,
    /// Those that have left the line and are kept all the same, by invocation.
    failures: Shares<OperationId>,
    unended: Shares<OperationId>,
    /// Those that were forgotten although they go on, with the invocation that their ends are still counted in.
    lost: HashMap<OperationId, Arc<str>>,
    invocations: HashMap<Arc<str>, Invocation>,
    /// By the number of their arrival, counted with operations.
    invocation_order: BTreeMap<u64, Arc<str>>,
    /// Invocations by who holds them, in the order in which they were last heard of: those that only look up, and the others.
    lookers: Shares<Arc<str>>,
    builders: Shares<Arc<str>>,
    answers: Answers,
    /// The bytes of what is told of invocations, by who holds them.
    told: Shares<Arc<str>>,
    /// Answers, but for those of failures.
    responses: Responses,
    failures_responses: Responses,
    texts: Texts,
}

impl Default for Builds {
    fn default() -> Self {
        Self { book: Arc::default(), since: SystemTime::now() }
    }
}

impl Builds {
    /// Since when it is kept; nobody knows here what was before.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// A client has asked for an operation, and the action cache was looked into or not.
    pub fn begin(&self, asked: &Asked<'_>, lookup: Lookup) {
        let mut book = self.lock();
        let client = book.client(asked.client);
        let identity = book.text(asked.identity);
        book.enter(asked.operation, (asked.instance, asked.action), (&client.invocation, &identity));
        if let Some(invocation) = book.invocation_of(asked.operation) {
            invocation.learn(asked.client, &identity);
            invocation.began(lookup, SystemTime::now());
        }
        let Some(record) = book.record_mut(asked.operation) else { return };
        let filed = Arc::clone(&record.client.invocation);
        record.client = Client { invocation: filed, ..client };
        (record.identity, record.lookup) = (identity, lookup);
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
        let Some(invocation) = book.invocation_mut((&id, &instance), &identity) else { return };
        let at = SystemTime::now();
        invocation.learn(client, &identity);
        invocation.looked_up(is_hit, at);
        // Who has actions executed comes back with those that it misses, as operations.
        if is_hit || invocation.executes_nothing() {
            let [target, mnemonic] = [&client.target_id, &client.action_mnemonic].map(|text| book.text(text));
            book.answers.push(&id, Answer { instance, action, target, mnemonic, at, is_hit });
        }
        book.heard_of(&id);
    }

    /// An operation stands elsewhere than before. The scheduler may say so before or after [`Builds::begin`]. The first that it says names
    /// the invocation of whoever asked for the operation, but after a restart of whoever asked for the work first; what it says later may
    /// name another one that waits for the same work.
    pub fn noted(&self, operation: OperationId, update: &Update) {
        let mut book = self.lock();
        let task = &update.task;
        if book.lost.contains_key(&operation) {
            return book.lost_noted(operation, update);
        }
        let [invocation, identity] = [&task.invocation, &task.identity].map(|text| book.text(text));
        book.enter(operation, (&task.instance, task.action_digest), (&invocation, &identity));
        let worker = book.text(record::worker(update).unwrap_or_default());
        let Some(record) = book.record_mut(operation) else { return };
        record.note(update, worker);
        let Some(response) = &update.response else { return };
        let (state, id) = (record.state, Arc::clone(&record.client.invocation));
        record.response = Some(Arc::clone(response));
        book.keep_response((operation, state), response);
        // Who has ended can make room again.
        if book.unended.remove(&operation) {
            book.line.push_back(operation);
        }
        if let Some(invocation) = book.invocation_of(operation) {
            invocation.ended(state, SystemTime::now());
            book.heard_of(&id);
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
        publisher: &Publisher<'_>,
        event: Option<Event>,
    ) -> Result<Turn> {
        let mut book = self.lock();
        let Publisher { instance, identity, account } = *publisher;
        let [id, instance, identity, account] =
            [position.invocation, instance, identity, account].map(|text| book.text(text));
        let invocation = book.invocation_or_new((&id, &instance), &account);
        let turn = invocation.advance(position, &identity, SystemTime::now())?;
        if let (Turn::New, Some(event)) = (turn, event) {
            book.keep(&id, event);
        }
        book.heard_of(&id);
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
        let found = book.order.values().rev().filter_map(|operation| book.records.get(operation));
        part(found.filter(|record| filter.admits(record)).cloned(), (skip, limit))
    }

    /// The latest operations that began before this one with the same instance, target and mnemonic. None for one without a target.
    pub fn alike(&self, record: &Record, limit: usize) -> Vec<Arc<Record>> {
        let book = self.lock();
        let before = book.order.range(..record.arrival).rev();
        let found = before.filter_map(|(_, operation)| book.records.get(operation));
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
        let found = book.invocation_order.values().rev().filter_map(|id| book.invocations.get(id));
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

    /// What the action cache itself has answered to an invocation, as far as it is kept, the oldest first: hits, and misses as long as it has
    /// not had anything executed.
    pub fn answers(&self, invocation: &str) -> Vec<Answer> {
        self.lock().answers.of(invocation)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn enter(
        &mut self,
        operation: OperationId,
        work: (&Arc<str>, Digest),
        (invocation, account): (&Arc<str>, &Arc<str>),
    ) {
        if self.records.contains_key(&operation) {
            return;
        }
        while self.line.len() >= OPERATIONS_MAX {
            self.make_room();
        }
        self.arrivals += 1;
        let arrival = self.arrivals;
        let mut client = Client::default();
        if !invocation.is_empty()
            && let Some(filed) = self.invocation_mut((invocation, work.0), account)
        {
            filed.add(arrival, operation);
            self.heard_of(invocation);
            client.invocation = Arc::clone(invocation);
        }
        self.records.insert(operation, Arc::new(Record::new((operation, arrival), work, client)));
        self.order.insert(arrival, operation);
        self.line.push_back(operation);
    }

    /// Has the first in line leave it. It is forgotten, unless it failed or has not ended and there is room for such.
    fn make_room(&mut self) {
        let Some(oldest) = self.line.pop_front() else { return };
        let Some(record) = self.records.get(&oldest) else { return };
        let (spared, max) = match record.state {
            State::Failed | State::Error => (&mut self.failures, FAILURES_MAX),
            State::Queued | State::Executing => (&mut self.unended, UNENDED_MAX),
            State::Succeeded | State::Cached => return self.forget(oldest),
        };
        spared.put(&record.client.invocation, oldest, 1);
        let gone = if spared.weight() > max { spared.pop() } else { None };
        if let Some(gone) = gone {
            self.lose(gone);
            self.forget(gone);
        }
    }

    /// Remembers of an operation that is about to be forgotten that it goes on, if it does.
    fn lose(&mut self, operation: OperationId) {
        let Some(record) = self.records.get(&operation) else { return };
        if !record.state.has_ended() && self.lost.len() < LOST_MAX {
            self.lost.insert(operation, Arc::clone(&record.client.invocation));
        }
    }

    fn lost_noted(&mut self, operation: OperationId, update: &Update) {
        if update.response.is_none() {
            return;
        }
        let Some(id) = self.lost.remove(&operation) else { return };
        if let Some(invocation) = self.invocations.get_mut(&id) {
            invocation.ended(record::state(update), SystemTime::now());
            self.heard_of(&id);
        }
    }

    fn forget(&mut self, operation: OperationId) {
        let Some(record) = self.records.remove(&operation) else { return };
        self.order.remove(&record.arrival);
        if let Some(invocation) = self.invocations.get_mut(&record.client.invocation) {
            invocation.remove(record.arrival);
        }
    }

    /// Counts an answer; the oldest ones make room.
    fn keep_response(&mut self, (operation, state): (OperationId, State), response: &ExecuteResponse) {
        let responses = match state {
            State::Failed | State::Error => &mut self.failures_responses,
            State::Queued | State::Executing | State::Succeeded | State::Cached => &mut self.responses,
        };
        for old in responses.add(operation, response) {
            if let Some(record) = self.record_mut(old) {
                record.response = None;
            }
        }
    }

    fn record_mut(&mut self, operation: OperationId) -> Option<&mut Record> {
        self.records.get_mut(&operation).map(Arc::make_mut)
    }

    /// The invocation that an operation is counted in, if there is one.
    fn invocation_of(&mut self, operation: OperationId) -> Option<&mut Invocation> {
        let record = self.records.get(&operation)?;
        let invocation = self.invocations.get_mut(&record.client.invocation)?;
        invocation.has(record.arrival).then_some(invocation)
    }

    /// The invocation, for who asks for something in its name; it begins if it is not known. None where it is somebody else's.
    fn invocation_mut(
        &mut self,
        name: (&Arc<str>, &Arc<str>),
        account: &Arc<str>,
    ) -> Option<&mut Invocation> {
        let invocation = self.invocation_or_new(name, account);
        invocation.admits(account).then_some(invocation)
    }

    /// The invocation, whosever it is. Instances share their names: events of a build may be told in another one than it executes in.
    fn invocation_or_new(
        &mut self,
        (id, instance): (&Arc<str>, &Arc<str>),
        account: &Arc<str>,
    ) -> &mut Invocation {
        self.invocations.entry(Arc::clone(id)).or_insert_with(|| {
            self.arrivals += 1;
            self.invocation_order.insert(self.arrivals, Arc::clone(id));
            self.lookers.put(account, Arc::clone(id), 1);
            Invocation::new((id, instance), (account, self.arrivals), SystemTime::now())
        })
    }

    /// An invocation is the last of its holder's to make room, since it has just done something. What makes room is the invocation, of the
    /// holder of most, that was heard of longest ago: so not one that is being told of. A look-up drives out only what looks up.
    fn heard_of(&mut self, id: &Arc<str>) {
        let Some(invocation) = self.invocations.get(id) else { return };
        let (shares, max) = match invocation.only_looks_up() {
            true => (&mut self.lookers, LOOKERS_MAX),
            false => {
                self.lookers.remove(id);
                (&mut self.builders, INVOCATIONS_MAX)
            }
        };
        shares.put(&invocation.holder, Arc::clone(id), 1);
        let oldest = if shares.weight() > max { shares.pop() } else { None };
        if let Some(oldest) = oldest {
            self.forget_invocation(&oldest);
        }
    }

    /// Forgets an invocation, but not its operations.
    fn forget_invocation(&mut self, id: &Arc<str>) {
        let Some(invocation) = self.invocations.remove(id) else { return };
        self.invocation_order.remove(&invocation.arrival);
        self.told.remove(id);
        self.answers.forget(id);
    }

    fn client(&mut self, metadata: &RequestMetadata) -> Client {
        Client {
            invocation: self.text(&metadata.tool_invocation_id),
            target: self.text(&metadata.target_id),
            mnemonic: self.text(&metadata.action_mnemonic),
        }
    }

    /// Keeps what was told of an invocation. What makes room is what was told longest ago by the holder of most.
    fn keep(&mut self, id: &Arc<str>, event: Event) {
        let Some(invocation) = self.invocations.get_mut(id) else { return };
        invocation.tell(event, &mut self.texts);
        self.told.put(&invocation.holder, Arc::clone(id), invocation.told_bytes());
        while self.told.weight() > TOLD_BYTES_MAX
            && let Some(oldest) = self.told.pop()
        {
            if let Some(invocation) = self.invocations.get_mut(&oldest) {
                invocation.forget_told();
            }
        }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.share(text)
    }
}
