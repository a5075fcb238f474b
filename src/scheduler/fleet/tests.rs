//! Room, soft sizes, locality and reservations of a fleet by itself.

use std::collections::BTreeMap;

use super::*;
use crate::scheduler::config::Config;
use crate::scheduler::id::ExecutionId;
use crate::scheduler::queue::Queue;
use crate::scheduler::requirements::SoftSize;
use crate::scheduler::task::{Offer, Platform};

#[derive(Default)]
struct Yard {
    fleet: Fleet,
    queue: Queue,
    leases: u128,
}

impl Yard {
    fn join(&mut self, number: u128, slots: u32, amounts: &[(&str, u64)]) -> WorkerId {
        let worker = WorkerId::new(number);
        let amounts = amounts.iter().map(|(name, amount)| ((*name).to_owned(), vec![amount.to_string()]));
        let properties: BTreeMap<_, _> = amounts.collect();
        let offer =
            Offer { worker, name: "w".into(), owner: "".into(), slots, properties, leases: Vec::new() };
        let capacity = Arc::new(Capacity::resolve(&Config::default(), &offer).unwrap());
        self.fleet.join(worker, "w".into(), capacity);
        self.fleet.introduce(self.queue.open_lines());
        worker
    }

    fn line(&mut self, shape: &Shape) -> LineId {
        self.queue.find(shape).unwrap_or_else(|| {
            let line = self.queue.open(shape);
            self.fleet.open_line(line, shape);
            line
        })
    }

    fn best(&mut self, shape: &Shape, neighbours: &[u64]) -> Option<WorkerId> {
        let line = self.line(shape);
        self.fleet.best_for(line, Preference { avoided: &BTreeSet::new(), neighbours })
    }

    fn start(&mut self, shape: &Shape) -> (WorkerId, Lease) {
        let worker = self.best(shape, &[]).unwrap();
        self.leases += 1;
        let lease = Lease { execution: ExecutionId::new(self.leases), attempt: 1 };
        self.fleet.hold(worker, (lease, Time::START), Some(shape));
        (worker, lease)
    }
}

fn shape(properties: &[(&str, u64)], soft: SoftSize) -> Shape {
    let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), value.to_string()));
    let requirements = Requirements::resolve(&Config::default(), &Platform::new(properties)).unwrap();
    Shape { requirements: Arc::new(requirements), soft }
}

#[test]
fn a_soft_size_binds_only_beside_something_else() {
    let mut yard = Yard::default();
    let worker = yard.join(1, 8, &[("cores", 4), ("memory", 8 << 30)]);
    let big = shape(&[], SoftSize::of(16.0, 1 << 30));
    let small = shape(&[], SoftSize::of(1.0, 1 << 30));
    let unknown = shape(&[], SoftSize::default());
    let (_, lease) = yard.start(&big);
    assert_eq!((yard.best(&small, &[]), yard.best(&big, &[])), (None, None));
    assert_eq!(yard.best(&unknown, &[]), Some(worker), "what is not known takes a slot and no more");
    yard.fleet.release(worker, lease);
    for _ in 0..4 {
        yard.start(&small);
    }
    assert_eq!(yard.best(&big, &[]), None);
    assert_eq!(yard.best(&small, &[]), None, "four of one core are all of four cores");
}

#[test]
fn what_is_demanded_counts_where_less_is_expected() {
    let mut yard = Yard::default();
    yard.join(1, 8, &[("cores", 4)]);
    let demand = shape(&[("cores", 3)], SoftSize::of(0.5, 0));
    let expected = shape(&[], SoftSize::of(1.5, 0));
    yard.start(&demand);
    assert_eq!(yard.best(&demand, &[]), None);
    assert_eq!(yard.best(&expected, &[]), None);
}

#[test]
fn a_worker_without_room_is_passed_over_for_another_of_its_class() {
    let mut yard = Yard::default();
    yard.join(1, 4, &[("cores", 4)]);
    yard.join(2, 4, &[("cores", 4)]);
    let all = shape(&[("cores", 4)], SoftSize::default());
    let (first, _) = yard.start(&all);
    let (second, _) = yard.start(&all);
    assert_ne!(first, second);
    assert_eq!(yard.best(&all, &[]), None);
    assert!(yard.best(&shape(&[], SoftSize::default()), &[]).is_some());
}

#[test]
fn the_worker_that_had_most_of_the_trees_is_preferred_while_it_has_room() {
    let mut yard = Yard::default();
    let [one, two, three] = [1, 2, 3].map(|number| yard.join(number, 1, &[]));
    let any = shape(&[], SoftSize::default());
    yard.fleet.familiarize(one, &[10, 11]);
    yard.fleet.familiarize(two, &[12]);
    assert_eq!(yard.best(&any, &[10, 11, 12]), Some(one));
    assert_eq!(yard.best(&any, &[12, 99]), Some(two));
    assert_eq!(yard.best(&any, &[99]), Some(three));
    yard.fleet.set_takes_work(one, false);
    assert_eq!(yard.best(&any, &[10, 11, 12]), Some(two));
    yard.fleet.leave(two);
    assert_eq!(yard.best(&any, &[10, 11, 12]), Some(three));
}

#[test]
fn a_worker_that_takes_no_work_is_not_chosen_until_it_does() {
    let mut yard = Yard::default();
    let worker = yard.join(1, 1, &[]);
    let any = shape(&[], SoftSize::default());
    yard.fleet.set_takes_work(worker, false);
    assert_eq!(yard.best(&any, &[]), None);
    assert!(yard.fleet.room(worker).is_none());
    yard.fleet.set_takes_work(worker, true);
    assert_eq!(yard.best(&any, &[]), Some(worker));
}

#[test]
fn a_reservation_ends_with_its_worker_or_its_line() {
    let mut yard = Yard::default();
    let worker = yard.join(1, 2, &[("cores", 2)]);
    let large = shape(&[("cores", 2)], SoftSize::default());
    let any = shape(&[], SoftSize::default());
    let line = yard.line(&large);
    yard.fleet.reserve(worker, line);
    assert_eq!(yard.best(&any, &[]), None);
    yard.fleet.unreserve(line);
    assert_eq!((yard.best(&any, &[]), yard.fleet.next_released()), (Some(worker), Some(worker)));
    yard.fleet.reserve(worker, line);
    yard.fleet.set_takes_work(worker, false);
    assert!(!yard.fleet.is_reserved(line));
    yard.fleet.set_takes_work(worker, true);
    yard.fleet.reserve(worker, line);
    yard.fleet.leave(worker);
    assert!(!yard.fleet.is_reserved(line));
}

#[test]
fn lines_and_classes_know_each_other_whoever_comes_first() {
    let mut yard = Yard::default();
    let large = shape(&[("cores", 4)], SoftSize::default());
    let line = yard.line(&large);
    assert!(!yard.fleet.could_run(line));
    let small = yard.join(1, 1, &[("cores", 2)]);
    assert!(!yard.fleet.could_run(line));
    let able = yard.join(2, 1, &[("cores", 4)]);
    assert!(yard.fleet.could_run(line));
    assert_eq!(yard.fleet.able_workers(&large), 1);
    yard.fleet.leave(able);
    assert!(!yard.fleet.could_run(line));
    yard.fleet.close_line(line);
    assert_eq!(yard.fleet.room(small).unwrap().lines().count(), 0);
}
