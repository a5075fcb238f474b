//! How each worker stands: whether its connection holds, and who says that it takes no new work.
//!
//! Three may say so: an operator, for every life of every worker of that name; the worker itself, for this life; and the scheduler, by the
//! worker's health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::health::Health;
use super::id::WorkerId;
use super::lookup::Lookup;
use super::task::Availability;

/// The names that operators' marks are kept for. Beyond, those go whose workers are not there: a mark is made for a worker that is.
const MARKS_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Standings {
    workers: Lookup<WorkerId, Standing>,
    names: BTreeSet<(Arc<str>, WorkerId)>,
    /// What operators say; a name that is not in here is open.
    marks: BTreeMap<Arc<str>, Availability>,
    /// Of workers that have failed since their last success. It outlives a worker that was dropped for a while.
    healths: BTreeMap<WorkerId, Health>,
}

#[derive(Debug)]
struct Standing {
    name: Arc<str>,
    /// Whose it is; empty until it has connected.
    owner: Arc<str>,
    is_away: bool,
    /// It has been connected since the scheduler started.
    has_connected: bool,
    /// What the worker says of itself.
    own: Availability,
}

impl Standings {
    /// A worker connects. Returns whether it was known.
    pub(super) fn connect(&mut self, worker: WorkerId, name: &Arc<str>, owner: Arc<str>) -> bool {
        let old = self.workers.get_mut(&worker);
        let own = old.map(|old| std::mem::take(&mut old.own));
        let is_known = own.is_some();
        let own = own.unwrap_or_default();
        let name = Arc::clone(name);
        self.set(worker, Standing { name, owner, is_away: false, has_connected: true, own });
        is_known
    }

    /// A worker is known only by the lease that it had before the scheduler started.
    pub(super) fn expect(&mut self, worker: WorkerId, name: &Arc<str>) {
        let (name, own) = (Arc::clone(name), Availability::Open);
        self.set(worker, Standing { name, owner: Arc::from(""), is_away: true, has_connected: false, own });
    }

    fn set(&mut self, worker: WorkerId, standing: Standing) {
        let name = Arc::clone(&standing.name);
        if let Some(old) = self.workers.insert(worker, standing) {
            self.names.remove(&(old.name, worker));
        }
        self.names.insert((name, worker));
    }

    /// A connection broke. Returns whether there was one.
    pub(super) fn disconnect(&mut self, worker: WorkerId) -> bool {
        self.workers.get_mut(&worker).is_some_and(|standing| !std::mem::replace(&mut standing.is_away, true))
    }

    /// A worker is gone. Returns its name.
    pub(super) fn remove(&mut self, worker: WorkerId) -> Option<Arc<str>> {
        let standing = self.workers.remove(&worker)?;
        self.names.remove(&(Arc::clone(&standing.name), worker));
        Some(standing.name)
    }

    pub(super) fn is_known(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some()
    }

    pub(super) fn is_connected(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|standing| !standing.is_away)
    }

    /// Whether the worker has been connected since the scheduler started.
    pub(super) fn has_connected(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|standing| standing.has_connected)
    }

    /// Empty for a worker that is not known.
    pub(super) fn name(&self, worker: WorkerId) -> Arc<str> {
        self.workers.get(&worker).map_or_else(|| Arc::from(""), |standing| Arc::clone(&standing.name))
    }

    /// Whose the worker is; empty for one that is not known.
    pub(super) fn owner(&self, worker: WorkerId) -> Arc<str> {
        self.workers.get(&worker).map_or_else(|| Arc::from(""), |standing| Arc::clone(&standing.owner))
    }

    /// All workers of one name.
    pub(super) fn named(&self, name: &Arc<str>) -> Vec<WorkerId> {
        let from = (Arc::clone(name), WorkerId::new(0));
        let workers = self.names.range(from..).take_while(|(other, _)| other == name);
        workers.map(|(_, worker)| *worker).collect()
    }

    /// The workers of this name that are not connected and are not `worker`: they have died, and `worker` is what came after them.
    /// A worker without a name comes after none, and neither does one that was there before.
    pub(super) fn succeeded_by(&self, worker: WorkerId, name: &Arc<str>) -> Vec<WorkerId> {
        if name.is_empty() || self.is_known(worker) {
            return Vec::new();
        }
        let others = self.named(name).into_iter();
        others.filter(|other| *other != worker && !self.is_connected(*other)).collect()
    }

    /// Whether the worker takes new work and, if not, why. What an operator says comes first, then the worker's own word.
    pub(super) fn availability(&self, worker: WorkerId) -> Availability {
        let Some(standing) = self.workers.get(&worker) else { return Availability::Open };
        let said = [self.marks.get(&standing.name), Some(&standing.own)].into_iter().flatten();
        if let Some(closed) = said.into_iter().find(|said| **said != Availability::Open) {
            return closed.clone();
        }
        let reason = self.healths.get(&worker).and_then(Health::reason);
        reason.map_or(Availability::Open, |reason| Availability::Cordoned { reason: reason.to_owned() })
    }

    pub(super) fn takes_work(&self, worker: WorkerId) -> bool {
        self.is_connected(worker) && self.availability(worker) == Availability::Open
    }

    /// The worker says of itself whether it takes new work.
    pub(super) fn set_own(&mut self, worker: WorkerId, availability: Availability) {
        if let Some(standing) = self.workers.get_mut(&worker) {
            standing.own = availability;
        }
    }

    /// What operators say of this name; `None` if it is open.
    pub(super) fn mark(&self, name: &Arc<str>) -> Option<&Availability> {
        self.marks.get(name)
    }

    /// An operator says whether the workers of this name take new work. Returns the name whose mark had to go for it.
    pub(super) fn set_mark(&mut self, name: &Arc<str>, availability: Availability) -> Option<Arc<str>> {
        if availability == Availability::Open {
            self.marks.remove(name);
            return None;
        }
        self.marks.insert(Arc::clone(name), availability);
        if self.marks.len() <= MARKS_MAX {
            return None;
        }
        let idle = self.marks.keys().find(|other| self.named(other).is_empty()).cloned()?;
        self.marks.remove(&idle);
        Some(idle)
    }

    pub(super) fn health_mut(&mut self, worker: WorkerId) -> &mut Health {
        self.healths.entry(worker).or_default()
    }

    /// Forgets what a worker has failed. Returns whether that had taken it out.
    pub(super) fn forget_health(&mut self, worker: WorkerId) -> bool {
        self.healths.remove(&worker).is_some_and(|health| health.reason().is_some())
    }

    pub(super) fn health(&self, worker: WorkerId) -> Option<&Health> {
        self.healths.get(&worker)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.workers.len() == 0 && self.names.is_empty() && self.healths.is_empty()
    }

    #[cfg(test)]
    pub(super) fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.sorted_keys().into_iter().copied()
    }

    #[cfg(test)]
    pub(super) fn marked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.marks.keys()
    }
}
