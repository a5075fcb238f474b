//! Time, the agenda, and the scheduler in the middle with the driver's part around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::proto::rev2::ExecuteResponse;

use super::books::{Books, is_dull};
use super::journal::{Journal, Word};
use super::links::{Link, Links, Order};
use super::plan::Plan;
use super::random::Random;
use super::story::{describe, describe_effect};
use super::workers::{Birth, Worker};
use crate::scheduler::config::Config;
use crate::scheduler::core::inspect::ensure;
use crate::scheduler::core::{Bug, Core};
use crate::scheduler::event::{Effect, Event};
use crate::scheduler::id::{Lease, OperationId, Time, WorkerId};

/// How many lines of the story are shown when something is wrong.
const STORY_LINES: usize = 80;

/// In a larger world only one event in so many is followed by a look at the whole of the core.
const LOOK_EVERY: u64 = 16;

pub(super) struct World {
    pub(super) random: Random,
    pub(super) plan: Plan,
    pub(super) config: Arc<Config>,
    core: Core,
    bug: Option<Bug>,
    pub(super) books: Books,
    pub(super) journal: Journal,
    pub(super) now: Time,
    /// Which life of the scheduler this is.
    pub(super) life: u32,
    /// When this life began; the core's clock starts at zero.
    born: Duration,
    agenda: BTreeMap<(Time, u64), Happening>,
    entries: u64,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) links: Links,
    /// The watches that clients have on each operation that they were told of.
    pub(super) watches: BTreeMap<OperationId, u32>,
    /// While it lasts, things go wrong.
    pub(super) is_chaos: bool,
    story: Option<Vec<String>>,
    ids: u128,
}

/// What is going to happen.
pub(super) enum Happening {
    /// Something reaches this life of the scheduler from within, or from a client.
    Arrives {
        life: u32,
        event: Event,
    },
    /// A connection of a worker begins, for the scheduler.
    Hello {
        link: Link,
        leases: Vec<Lease>,
    },
    /// A worker's message reaches the scheduler.
    Says {
        link: Link,
        event: Event,
    },
    /// The scheduler notices that a connection ended.
    Breaks {
        link: Link,
    },
    /// The worker notices that its connection ended.
    Closes {
        link: Link,
    },
    /// A command reaches a worker.
    Told {
        link: Link,
        lease: Lease,
        order: Order,
    },
    /// A worker tries to connect.
    Connects {
        worker: WorkerId,
    },
    /// A worker process starts.
    Starts(Birth),
    /// An action ends on a worker.
    Ends {
        worker: WorkerId,
        lease: Lease,
    },
    Heartbeat {
        worker: WorkerId,
    },
    /// The journal has made its changes up to this one durable.
    Commits {
        life: u32,
        number: u64,
    },
    /// A client asks again for an operation after a restart.
    Returns {
        life: u32,
        operation: OperationId,
    },
    /// A client does something.
    Client,
    /// Something goes wrong.
    Trouble,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let config = Arc::new(plan.config());
        let mut core = Core::new(Arc::clone(&config));
        core.bug = bug;
        Self {
            random,
            plan,
            config,
            core,
            bug,
            books: Books::default(),
            journal: Journal::default(),
            now: Time::START,
            life: 0,
            born: Duration::ZERO,
            agenda: BTreeMap::new(),
            entries: 0,
            workers: BTreeMap::new(),
            links: Links::default(),
            watches: BTreeMap::new(),
            is_chaos: true,
            story: None,
            ids: 0,
        }
    }

    /// Keeps the last lines of what happens.
    pub(super) fn tell_story(&mut self) {
        self.story = Some(Vec::new());
    }

    pub(super) fn story(&self) -> &[String] {
        let lines = self.story.as_deref().unwrap_or_default();
        &lines[lines.len().saturating_sub(STORY_LINES)..]
    }

    /// From here on everything works, and there is a worker for every action.
    pub(super) fn make_peace(&mut self) -> Result<(), String> {
        self.is_chaos = false;
        self.let_all_in()?;
        self.join_able();
        Ok(())
    }

    /// Everything is finished, nothing runs, and every answer was thanked for.
    pub(super) fn is_at_rest(&self) -> bool {
        self.books.live().next().is_none() && self.workers.values().all(Worker::is_done)
    }

    /// Nothing is left when everybody is gone.
    pub(super) fn check_empty(&self) -> Result<(), String> {
        ensure!(self.workers.is_empty(), "a worker cannot leave");
        ensure!(self.core.is_empty(), "something is left when everybody is gone");
        let leftovers = self.journal.leftovers();
        ensure!(leftovers.is_empty(), "the journal keeps {leftovers:?} when everybody is gone");
        Ok(())
    }

    pub(super) fn fresh_id(&mut self) -> u128 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.schedule_at(self.now + after, happening);
    }

    pub(super) fn schedule_at(&mut self, at: Time, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((at, self.entries), happening);
    }

    /// Lets the next thing happen. Returns whether there was one before `end`.
    pub(super) fn step(&mut self, end: Time) -> Result<bool, String> {
        let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let deadline = self.core.deadline().map(|at| at + self.born);
        let Some(at) = next.into_iter().chain(deadline).min().filter(|at| *at < end) else {
            self.now = self.now.max(end);
            return Ok(false);
        };
        self.now = self.now.max(at);
        if next.is_some_and(|next| next <= at) {
            let (_, happening) = self.agenda.pop_first().unwrap();
            self.happen(happening)?;
        } else {
            self.feed(Event::Tick)?;
        }
        Ok(true)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrives { life, event } if life == self.life => self.feed(event),
            Happening::Hello { link, leases } if link.life == self.life => self.hello(link, leases),
            Happening::Says { link, event } if link.life == self.life => self.hear(link, event),
            Happening::Breaks { link } if link.life == self.life => self.breaks(link),
            Happening::Commits { life, number } if life == self.life => self.committed(number),
            Happening::Returns { life, operation } if life == self.life => self.returns(operation),
            Happening::Arrives { .. } | Happening::Hello { .. } | Happening::Says { .. } => Ok(()),
            Happening::Breaks { .. } | Happening::Commits { .. } | Happening::Returns { .. } => Ok(()),
            Happening::Told { link, lease, order } => self.told(link, lease, order),
            Happening::Ends { worker, lease } => self.ends(worker, lease),
            Happening::Client => self.client_acts(),
            Happening::Trouble => self.trouble(),
            Happening::Closes { link } => {
                self.closes(link);
                Ok(())
            }
            Happening::Connects { worker } => {
                self.connects(worker);
                Ok(())
            }
            Happening::Starts(birth) => {
                if self.is_chaos {
                    self.begins(birth);
                }
                Ok(())
            }
            Happening::Heartbeat { worker } => {
                self.heartbeat(worker);
                Ok(())
            }
        }
    }

    /// Hands an event to the scheduler, checks what it says and makes it happen.
    pub(super) fn feed(&mut self, event: Event) -> Result<(), String> {
        let now = Time::after_start(self.now.since_start() - self.born);
        let effects = self.core.handle(now, event.clone());
        self.note(&event, &effects);
        self.books.enter(&event, &effects)?;
        self.books.check_shares(&self.config, &event, &effects)?;
        // A planted mistake must be seen from the outside.
        let is_small = self.books.operations.len() < 64;
        let is_due = is_small || self.entries.is_multiple_of(LOOK_EVERY);
        if self.bug.is_none() && is_due && !is_dull(&event, &effects) {
            self.core.check()?;
        }
        for effect in effects {
            self.perform(effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Start { worker, lease, task } => self.command(worker, lease, Order::Start(task)),
            Effect::Kill { worker, lease } => self.command(worker, lease, Order::Kill),
            Effect::Settle { lease, task: _, response } => self.settle(lease, response),
            Effect::Drop { worker, .. } => self.drop_link(worker),
            Effect::Keep(record) => {
                self.journal.keep(record);
                self.commit_soon();
            }
            Effect::Erase(key) => {
                self.journal.erase(key);
                self.commit_soon();
            }
            Effect::Acknowledge { .. } | Effect::Forget { .. } => return self.gate(Word::Effect(effect)),
            Effect::Report { ref update, .. } if update.response.is_some() => {
                return self.gate(Word::Effect(effect));
            }
            Effect::Report { .. } | Effect::Refuse(_) => {}
            // What a worker makes of it is nothing that the scheduler hears of.
            Effect::Warm { .. } => {}
            Effect::AttemptFailed { .. } | Effect::Judged { .. } | Effect::Hedge { .. } => {}
        }
        Ok(())
    }

    /// Says something now, if all that was written is durable, or else once it is.
    pub(super) fn gate(&mut self, word: Word) -> Result<(), String> {
        if self.journal.is_durable() {
            return self.say(word);
        }
        self.journal.gate(word);
        Ok(())
    }

    fn say(&mut self, word: Word) -> Result<(), String> {
        self.books.hear(&word)?;
        match word {
            Word::Accepted(operation) => {
                self.watches.insert(operation, 1);
            }
            Word::Effect(Effect::Acknowledge { worker, lease }) => {
                self.command(worker, lease, Order::Acknowledge);
            }
            Word::Effect(Effect::Forget { operation }) => {
                self.watches.remove(&operation);
            }
            Word::Effect(_) => {}
        }
        Ok(())
    }

    fn commit_soon(&mut self) {
        if self.journal.is_committing {
            return;
        }
        self.journal.is_committing = true;
        let is_slow = self.is_chaos && self.plan.has_slow_journal;
        let delay = match is_slow {
            true if self.random.chance(10) => self.random.millis(100, 900),
            true => self.random.millis(1, 60),
            false => Duration::ZERO,
        };
        let number = self.journal.made();
        self.schedule(delay, Happening::Commits { life: self.life, number });
    }

    /// A group of changes is durable, and the next group is on its way if there is one.
    fn committed(&mut self, number: u64) -> Result<(), String> {
        self.journal.is_committing = false;
        let words = self.journal.commit(number);
        if !self.journal.is_durable() {
            self.commit_soon();
        }
        words.into_iter().try_for_each(|word| self.say(word))
    }

    /// The scheduler dies and another begins with what the journal has kept.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        let (records, lost) = self.journal.cut(&mut self.random);
        self.books.see("restart");
        if lost > 0 {
            self.books.see("records lost");
        }
        self.life += 1;
        self.born = self.now.since_start();
        self.core = Core::new(Arc::clone(&self.config));
        self.core.bug = self.bug;
        self.books.restart(&records);
        self.lose_all_links();
        self.lose_all_watches();
        self.feed(Event::Restore(records))?;
        self.books.check_restored()
    }

    fn settle(&mut self, lease: Lease, response: Box<ExecuteResponse>) {
        let fails = self.is_chaos && self.random.chance(8);
        let result = if fails { Err("an output is missing".to_owned()) } else { Ok(response) };
        let copies = 1 + u64::from(self.random.chance(5));
        for _ in 0..copies {
            let delay = self.random.millis(1, 800);
            let event = Event::Settled { lease, result: result.clone() };
            self.schedule(delay, Happening::Arrives { life: self.life, event });
        }
    }

    pub(super) fn wall_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now.since_start()
    }

    fn note(&mut self, event: &Event, effects: &[Effect]) {
        let Some(story) = &mut self.story else { return };
        let is_dull = matches!(event, Event::Heartbeat { .. } | Event::Progress { .. } | Event::Tick);
        if is_dull && effects.is_empty() {
            return;
        }
        story.push(format!("{:>9.3?} {}", self.now.since_start(), describe(event)));
        story.extend(effects.iter().map(|effect| format!("           -> {}", describe_effect(effect))));
    }

    /// Adds a line to the story that is no event of the scheduler.
    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>9.3?} ({})", self.now.since_start(), line()));
        }
    }
}
