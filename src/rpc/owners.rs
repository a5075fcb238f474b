//! Whose each worker is, and which worker was given which lease.
//!
//! A worker is whoever first came under its identifier. So nobody who may work, too, can take its place, speak for it, or say what came
//! of an action that another was given. It is known as long as the scheduler waits for the worker, also over a restart: the journal has
//! whose the workers were that had something to do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::{Caller, Identity};
use crate::error::{Error, Kind, Result};
use crate::scheduler::{Claim, Lease, Offer, WorkerId};

/// Workers that are known; more than any farm has.
const WORKERS_MAX: usize = 1 << 16;

/// Workers of one identity, which all workers of a farm may share. The rest is for the others.
const WORKERS_OF_ONE_MAX: usize = WORKERS_MAX / 2;

/// The workers of one farm. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Debug, Default)]
struct Shelf {
    workers: HashMap<WorkerId, Owned>,
    names: HashMap<String, WorkerId>,
    leases: HashMap<Lease, WorkerId>,
}

#[derive(Debug)]
struct Owned {
    owner: Arc<str>,
    name: String,
    connections: u32,
    /// When it is forgotten if it does not come back; it counts while there is no connection.
    until: Instant,
}

/// One connection of a worker. Dropping it says that it is over.
#[derive(Debug)]
pub(super) struct Tenure {
    owners: Owners,
    worker: WorkerId,
    caller: Caller,
    kept_for: Duration,
}

/// What an owner is known by: certificates and tokens are renewed, but their name and kind stay.
pub(super) fn account(identity: &Identity) -> Arc<str> {
    identity.to_string().into()
}

impl Owners {
    /// Knows the workers that the scheduler waits for since its start, each for `kept_for` unless it comes back.
    pub fn restored(claims: &[Claim], kept_for: Duration) -> Self {
        let (owners, until) = (Self::default(), Instant::now() + kept_for);
        let mut shelf = owners.lock();
        for Claim { lease, worker, name, owner } in claims {
            shelf.enter(*worker, owner, (name, until));
            shelf.leases.insert(*lease, *worker);
        }
        drop(shelf);
        owners
    }

    /// A worker connects; it is remembered for `kept_for` after its connection is over.
    ///
    /// # Errors
    /// `Denied` when the worker, its name, or a lease that it claims is another's; `Exhausted` when there are too many.
    pub(super) fn begin(&self, caller: &Caller, offer: &Offer, kept_for: Duration) -> Result<Tenure> {
        let mut shelf = self.lock();
        shelf.forget(Instant::now());
        if let Some(problem) = shelf.problem(offer) {
            drop(shelf);
            return Err(caller.refuse_worker(problem));
        }
        if !shelf.has_room(offer) {
            return Err(Error::new(Kind::Exhausted, "there are too many workers"));
        }
        shelf.begin(offer, Instant::now() + kept_for);
        Ok(Tenure { owners: self.clone(), worker: offer.worker, caller: caller.clone(), kept_for })
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn problem(&self, offer: &Offer) -> Option<&'static str> {
        let is_other =
            |worker: &WorkerId| self.workers.get(worker).is_some_and(|owned| owned.owner != offer.owner);
        if is_other(&offer.worker) {
            return Some("the worker's identifier is that of somebody else's worker");
        }
        if self.names.get(&offer.name).is_some_and(is_other) {
            return Some("the worker's name is that of somebody else's worker");
        }
        let is_anothers =
            |lease: &Lease| self.leases.get(lease).is_some_and(|worker| *worker != offer.worker);
        offer.leases.iter().any(is_anothers).then_some("the worker claims a lease that another was given")
    }

    /// Whether one more worker can be known, or this one is.
    fn has_room(&self, offer: &Offer) -> bool {
        if self.workers.contains_key(&offer.worker) {
            return true;
        }
        let of_one = self.workers.values().filter(|owned| owned.owner == offer.owner).count();
        self.workers.len() < WORKERS_MAX && of_one < WORKERS_OF_ONE_MAX
    }

    fn begin(&mut self, offer: &Offer, until: Instant) {
        let worker = offer.worker;
        self.enter(worker, &offer.owner, (&offer.name, until)).connections += 1;
        // What it does not hold it need not answer for. After a restart of the farm only the worker knows what it was given.
        self.leases.retain(|_, holder| *holder != worker);
        self.leases.extend(offer.leases.iter().map(|lease| (*lease, worker)));
    }

    /// Knows a worker under this name, of this owner if it has none.
    fn enter(&mut self, worker: WorkerId, owner: &Arc<str>, (name, until): (&str, Instant)) -> &mut Owned {
        let Self { workers, names, .. } = self;
        let owned = workers.entry(worker).or_insert_with(|| Owned {
            owner: Arc::clone(owner),
            name: name.to_owned(),
            connections: 0,
            until,
        });
        let old = std::mem::replace(&mut owned.name, name.to_owned());
        if names.get(&old) == Some(&worker) {
            names.remove(&old);
        }
        names.insert(name.to_owned(), worker);
        owned
    }

    /// Forgets the workers that nobody waits for. Workers come seldom, so each arrival can look at all.
    fn forget(&mut self, now: Instant) {
        let Self { workers, names, leases } = self;
        let before = workers.len();
        workers.retain(|_, owned| owned.connections > 0 || owned.until > now);
        if workers.len() < before {
            names.retain(|name, worker| workers.get(worker).is_some_and(|owned| owned.name == *name));
            leases.retain(|_, worker| workers.contains_key(worker));
        }
    }
}

impl Tenure {
    /// The worker is given a lease.
    pub(super) fn give(&self, lease: Lease) {
        self.owners.lock().leases.insert(lease, self.worker);
    }

    /// The worker need not speak of a lease any more.
    pub(super) fn close(&self, lease: Lease) {
        let mut shelf = self.owners.lock();
        if shelf.leases.get(&lease) == Some(&self.worker) {
            shelf.leases.remove(&lease);
        }
    }

    /// Whether the lease was given to this worker and may be spoken of.
    ///
    /// # Errors
    /// `Denied` when another was given it. One that is closed is nobody's, and what is said of it again means nothing.
    pub(super) fn holds(&self, lease: Lease) -> Result<bool> {
        let holder = self.owners.lock().leases.get(&lease).copied();
        match holder {
            Some(holder) if holder != self.worker => {
                Err(self.caller.refuse_worker("the worker speaks of a lease that another was given"))
            }
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        let mut shelf = self.owners.lock();
        if let Some(owned) = shelf.workers.get_mut(&self.worker) {
            owned.connections -= 1;
            owned.until = Instant::now() + self.kept_for;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Access, Grants, Proof};
    use crate::scheduler::ExecutionId;

    const KEPT: Duration = Duration::from_secs(20);

    fn is_denied(begun: Result<Tenure>) -> bool {
        begun.is_err_and(|error| error.kind() == Kind::Denied)
    }

    fn caller(name: &str) -> Caller {
        let identity = Identity::new(Proof::Certificate, name, vec![]);
        Caller::with(Access::of_this_machine(), identity, Grants::everything())
    }

    fn begin(owners: &Owners, who: &str, offer: Offer) -> Result<Tenure> {
        let caller = caller(who);
        owners.begin(&caller, &Offer { owner: account(caller.identity()), ..offer }, KEPT)
    }

    fn offer(worker: u128, name: &str, leases: &[Lease]) -> Offer {
        let (name, leases) = (name.to_owned(), leases.to_vec());
        Offer {
            worker: WorkerId::new(worker),
            name,
            owner: "".into(),
            slots: 1,
            properties: Default::default(),
            leases,
        }
    }

    fn lease(number: u128) -> Lease {
        Lease { execution: ExecutionId::new(number), attempt: 1 }
    }

    #[test]
    fn a_worker_a_name_and_a_lease_are_whose_they_were_first_until_the_worker_is_given_up() {
        let owners = Owners::default();
        let begin = |who: &str, offer| begin(&owners, who, offer);
        let first = begin("a", offer(1, "one", &[])).unwrap();
        first.give(lease(7));
        assert!(is_denied(begin("b", offer(1, "other", &[]))));
        assert!(is_denied(begin("b", offer(2, "one", &[]))));
        assert!(is_denied(begin("b", offer(2, "two", &[lease(7)]))));
        let second = begin("b", offer(2, "two", &[lease(8)])).unwrap();
        assert_eq!(second.holds(lease(7)).unwrap_err().kind(), Kind::Denied);
        assert_eq!(first.holds(lease(8)).unwrap_err().kind(), Kind::Denied);
        assert!(first.holds(lease(7)).unwrap() && second.holds(lease(8)).unwrap());
        assert!(!first.holds(lease(9)).unwrap(), "nobody has it");

        drop(begin("a", offer(1, "renamed", &[lease(7)])).unwrap());
        drop(begin("b", offer(3, "one", &[])).unwrap());
        assert!(is_denied(begin("b", offer(2, "renamed", &[]))));
        owners.lock().forget(Instant::now() + KEPT);

        drop(first);
        let again = begin("a", offer(1, "one", &[lease(7)])).unwrap();
        again.close(lease(7));
        assert!(!second.holds(lease(7)).unwrap());
        drop(again);
        assert!(is_denied(begin("b", offer(1, "one", &[]))), "the scheduler waits for it");
        owners.lock().forget(Instant::now() + KEPT);
        begin("b", offer(1, "one", &[])).unwrap();
    }

    #[test]
    fn after_a_restart_a_worker_and_its_lease_are_still_whose_they_were() {
        let claim = Claim {
            lease: lease(7),
            worker: WorkerId::new(1),
            name: "one".into(),
            owner: account(caller("a").identity()),
        };
        let owners = Owners::restored(&[claim], KEPT);
        for stolen in [offer(1, "other", &[]), offer(2, "one", &[]), offer(2, "two", &[lease(7)])] {
            assert!(is_denied(begin(&owners, "b", stolen)));
        }
        assert!(is_denied(begin(&owners, "a", offer(3, "three", &[lease(7)]))), "it is one worker's only");
        let thief = begin(&owners, "b", offer(2, "two", &[])).unwrap();
        assert_eq!(thief.holds(lease(7)).unwrap_err().kind(), Kind::Denied);
        assert!(begin(&owners, "a", offer(1, "one", &[lease(7)])).unwrap().holds(lease(7)).unwrap());
        owners.lock().forget(Instant::now() + 2 * KEPT);
        begin(&owners, "b", offer(1, "one", &[])).unwrap();
    }
}
