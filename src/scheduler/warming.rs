//! Which executions have their inputs made ready on which worker, while they wait in line. A guess at where they will run: nothing but time depends on it.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::id::{ExecutionId, WorkerId};
use super::lookup::Lookup;

/// Executions whose inputs one worker has ready ahead of their start, and no more than it has slots: what is fetched for an action that
/// goes elsewhere in the end is lost, and a worker fetches them one after another.
pub(super) const AHEAD_MAX: usize = 4;

/// How often an execution is passed over by another one of its line because a worker that is busy has its inputs. After that it goes to whoever has
/// room, so that a worker which is busy for long holds nothing up.
const PASSED_MAX: u32 = 8;

/// Workers that are looked at for one execution: in a farm of many kinds, most of those with room may be of the wrong one.
const CANDIDATES_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Warming {
    workers: Lookup<WorkerId, Ahead>,
    claims: Lookup<ExecutionId, Claim>,
    /// The workers with room for one more.
    roomy: BTreeSet<WorkerId>,
    /// The last of them that was looked at; the next look begins behind it.
    last: Option<WorkerId>,
}

/// What one worker has ready, the oldest first.
#[derive(Debug)]
struct Ahead {
    executions: Vec<ExecutionId>,
    max: usize,
}

#[derive(Debug)]
struct Claim {
    worker: WorkerId,
    passed: u32,
}

impl Warming {
    /// A worker of so many slots has connected, perhaps again.
    pub(super) fn join(&mut self, worker: WorkerId, slots: u32) {
        let max = AHEAD_MAX.min(slots as usize);
        match self.workers.get_mut(&worker) {
            Some(ahead) => ahead.max = max,
            None => {
                self.workers.insert(worker, Ahead { executions: Vec::new(), max });
            }
        }
        self.list(worker);
    }

    /// The worker is gone, and with it what it had ready.
    pub(super) fn leave(&mut self, worker: WorkerId) {
        self.roomy.remove(&worker);
        for execution in self.workers.remove(&worker).into_iter().flat_map(|ahead| ahead.executions) {
            self.claims.remove(&execution);
        }
    }

    /// The worker makes the inputs of an execution ready.
    pub(super) fn begin(&mut self, worker: WorkerId, execution: ExecutionId) {
        let Some(ahead) = self.workers.get_mut(&worker) else { return };
        ahead.executions.push(execution);
        self.claims.insert(execution, Claim { worker, passed: 0 });
        self.list(worker);
    }

    /// The execution is in line no more.
    pub(super) fn end(&mut self, execution: ExecutionId) {
        let Some(Claim { worker, .. }) = self.claims.remove(&execution) else { return };
        if let Some(ahead) = self.workers.get_mut(&worker) {
            ahead.executions.retain(|one| *one != execution);
        }
        self.list(worker);
    }

    fn list(&mut self, worker: WorkerId) {
        if self.has_room(worker) {
            self.roomy.insert(worker);
        } else {
            self.roomy.remove(&worker);
        }
    }

    pub(super) fn has_room(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|ahead| ahead.executions.len() < ahead.max)
    }

    /// Whether no worker has room for one more.
    pub(super) fn is_full(&self) -> bool {
        self.roomy.is_empty()
    }

    /// Some workers with room for one more, others each time.
    pub(super) fn candidates(&mut self) -> Vec<WorkerId> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.roomy.range((behind, Bound::Unbounded));
        let before = self.last.into_iter().flat_map(|last| self.roomy.range(..=last));
        let candidates: Vec<_> = after.chain(before).copied().take(CANDIDATES_MAX).collect();
        self.last = candidates.last().copied();
        candidates
    }

    /// What the worker has ready, the oldest first.
    pub(super) fn of(&self, worker: WorkerId) -> &[ExecutionId] {
        self.workers.get(&worker).map_or(&[], |ahead| &ahead.executions)
    }

    /// The worker for which the execution may be left when another has room.
    pub(super) fn claimant(&self, execution: ExecutionId) -> Option<WorkerId> {
        let claim = self.claims.get(&execution).filter(|claim| claim.passed < PASSED_MAX);
        claim.map(|claim| claim.worker)
    }

    /// The execution is left for its worker once more.
    pub(super) fn pass(&mut self, execution: ExecutionId) {
        if let Some(claim) = self.claims.get_mut(&execution) {
            claim.passed += 1;
        }
    }
}

/// For tests.
#[cfg(test)]
impl Warming {
    pub(super) fn is_empty(&self) -> bool {
        self.workers.len() == 0 && self.claims.len() == 0 && self.roomy.is_empty()
    }

    /// The executions that some worker has ready.
    pub(super) fn executions(&self) -> Vec<ExecutionId> {
        self.claims.sorted_keys().into_iter().copied().collect()
    }

    /// The first thing that is wrong, where these are all workers. One of which only an earlier scheduler has heard has nothing ready.
    pub(super) fn check(&self, workers: &BTreeSet<WorkerId>) -> Result<(), String> {
        let known: BTreeSet<_> = self.workers.sorted_keys().into_iter().copied().collect();
        if !known.is_subset(workers) {
            return Err(format!("inputs are made ready on {known:?} of {workers:?}"));
        }
        let roomy: BTreeSet<_> = known.iter().copied().filter(|worker| self.has_room(*worker)).collect();
        if roomy != self.roomy {
            return Err(format!("{roomy:?} have room for inputs, and {:?} are listed", self.roomy));
        }
        let ready =
            |worker: &WorkerId| self.of(*worker).iter().map(|one| (*one, *worker)).collect::<Vec<_>>();
        let mut all: Vec<_> = known.iter().flat_map(ready).collect();
        all.sort();
        let claims = self.executions().into_iter();
        let claims: Vec<_> =
            claims.map(|one| (one, self.claims.get(&one).map(|claim| claim.worker))).collect();
        let is_equal = all.iter().map(|(one, worker)| (*one, Some(*worker))).eq(claims.iter().copied());
        if is_equal { Ok(()) } else { Err(format!("{all:?} are ready, and {claims:?} are claimed")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u128) -> WorkerId {
        WorkerId::new(number)
    }

    fn execution(number: u128) -> ExecutionId {
        ExecutionId::new(number)
    }

    #[test]
    fn a_worker_has_as_much_ready_as_it_has_slots_and_four_at_most() {
        for (slots, most) in [(1, 1), (3, 3), (64, AHEAD_MAX)] {
            let mut warming = Warming::default();
            warming.join(worker(1), slots);
            let taken = (1..100).take_while(|number| {
                let has_room = warming.has_room(worker(1));
                warming.begin(worker(1), execution(*number));
                has_room
            });
            assert_eq!(taken.count(), most);
            assert!(warming.is_full());
        }
    }

    #[test]
    fn what_is_in_line_no_more_makes_room_and_what_a_worker_had_goes_with_it() {
        let mut warming = Warming::default();
        warming.join(worker(1), 1);
        warming.begin(worker(1), execution(7));
        assert_eq!((warming.claimant(execution(7)), warming.is_full()), (Some(worker(1)), true));
        warming.end(execution(7));
        assert_eq!((warming.claimant(execution(7)), warming.is_full()), (None, false));
        warming.begin(worker(1), execution(8));
        warming.leave(worker(1));
        assert!(warming.is_empty());
    }

    #[test]
    fn a_claim_lapses_when_it_has_held_an_execution_up_often_enough() {
        let mut warming = Warming::default();
        warming.join(worker(1), 1);
        warming.begin(worker(1), execution(7));
        let mut passes = 0;
        while warming.claimant(execution(7)).is_some() && passes < 100 {
            warming.pass(execution(7));
            passes += 1;
        }
        assert_eq!(passes, PASSED_MAX);
    }

    #[test]
    fn every_worker_with_room_is_looked_at_in_its_turn() {
        let mut warming = Warming::default();
        (0..20).for_each(|number| warming.join(worker(number), 1));
        let mut seen = BTreeSet::new();
        (0..3).for_each(|_| seen.extend(warming.candidates()));
        assert_eq!(seen.len(), 20);
    }
}
