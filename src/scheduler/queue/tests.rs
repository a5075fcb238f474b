//! The queue beside a list that is searched from end to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::flows::QUANTUM;
use super::*;
use crate::scheduler::config::Config;
use crate::scheduler::requirements::Requirements;
use crate::scheduler::requirements::SoftSize;
use crate::scheduler::task::Platform;

/// What is done to both.
#[derive(Debug, Clone)]
enum Step {
    Insert { shape: usize, priority: i32, invocation: usize },
    Remove { index: usize },
    Reposition { index: usize, priority: i32 },
    StartFirst { lines: usize },
    StartOldest { lines: usize },
}

/// An entry as the model has it.
#[derive(Debug, Clone)]
struct Listed {
    shape: usize,
    invocation: usize,
    entry: Entry,
    place: Place,
}

#[derive(Default)]
struct Pair {
    queue: Queue,
    list: Vec<Listed>,
    /// Virtual time of each invocation at each priority that has entries, and the clock of each priority.
    times: BTreeMap<(i32, usize), u64>,
    clocks: BTreeMap<i32, u64>,
    arrivals: u64,
}

const SHAPES: usize = 4;

fn shape(number: usize) -> Shape {
    let platform = Platform::new([("ISA".to_owned(), number.to_string())]);
    let requirements = Requirements::resolve(&Config::default(), &platform).unwrap();
    Shape { requirements: Arc::new(requirements), soft: SoftSize::default() }
}

impl Pair {
    fn line(&mut self, number: usize) -> LineId {
        let shape = shape(number);
        self.queue.find(&shape).unwrap_or_else(|| self.queue.open(&shape))
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Insert { shape, priority, invocation } => self.insert(shape, priority, invocation),
            Step::Remove { index } if !self.list.is_empty() => {
                let listed = self.list.remove(index % self.list.len());
                self.queue.remove(listed.place, listed.entry.position);
            }
            Step::Reposition { index, priority } if !self.list.is_empty() => {
                let index = index % self.list.len();
                self.reposition(index, priority);
            }
            Step::StartFirst { lines } => self.start_first(lines),
            Step::StartOldest { lines } => self.start_oldest(lines),
            Step::Remove { .. } | Step::Reposition { .. } => {}
        }
        self.forget();
        assert_eq!(self.queue.len(), self.list.len());
        assert_eq!(self.queue.flows.len(), self.times.len());
    }

    fn insert(&mut self, shape: usize, priority: i32, invocation: usize) {
        self.arrivals += 1;
        let position = Position { priority, arrival: self.arrivals };
        let entry = Entry { execution: ExecutionId::new(self.arrivals.into()), position, since: Time::START };
        let line = self.line(shape);
        let place = with_party(invocation, |party| self.queue.insert(line, party, entry));
        self.begin(priority, invocation);
        self.list.push(Listed { shape, invocation, entry, place });
    }

    fn begin(&mut self, priority: i32, invocation: usize) {
        let clock = *self.clocks.entry(priority).or_default();
        self.times.entry((priority, invocation)).or_insert(clock);
    }

    fn reposition(&mut self, index: usize, priority: i32) {
        let listed = self.list[index].clone();
        let old = listed.entry.position;
        let new = Position { priority, ..old };
        let taken = self.list.remove(index);
        self.forget();
        self.list.insert(index, taken);
        self.begin(priority, listed.invocation);
        let place =
            with_party(listed.invocation, |party| self.queue.reposition(listed.place, (old, new), party));
        self.list[index] = Listed { entry: Entry { position: new, ..listed.entry }, place, ..listed };
    }

    fn start_first(&mut self, lines: usize) {
        let open: Vec<_> = (0..SHAPES).filter(|shape| lines >> shape & 1 == 1).collect();
        let numbers: Vec<_> = open.iter().map(|shape| (self.line(*shape), ())).collect();
        let first = self.queue.first(numbers.iter().copied(), |()| true);
        let candidates = self.list.iter().enumerate().filter(|(_, one)| open.contains(&one.shape));
        let key = |one: &Listed| {
            let Position { priority, arrival } = one.entry.position;
            (priority, self.times[&(priority, one.invocation)] / QUANTUM, arrival)
        };
        let expected = candidates.min_by_key(|(_, one)| key(one)).map(|(index, _)| index);
        assert_eq!(first, expected.map(|index| self.list[index].entry.execution));
        if let Some(index) = expected {
            self.start(index);
        }
    }

    fn start_oldest(&mut self, lines: usize) {
        let open: Vec<_> = (0..SHAPES).filter(|shape| lines >> shape & 1 == 1).collect();
        let numbers: Vec<_> = open.iter().map(|shape| self.line(*shape)).collect();
        let oldest = self.queue.oldest_line(numbers.into_iter());
        let oldest = oldest.and_then(|(_, line)| self.queue.oldest_in(line));
        let candidates = self.list.iter().enumerate().filter(|(_, one)| open.contains(&one.shape));
        let expected = candidates.min_by_key(|(_, one)| one.entry.position.arrival).map(|(index, _)| index);
        assert_eq!(oldest, expected.map(|index| self.list[index].entry.execution));
        if let Some(index) = expected {
            self.start(index);
        }
    }

    fn start(&mut self, index: usize) {
        let listed = self.list.remove(index);
        let priority = listed.entry.position.priority;
        let clock = self.clocks.get_mut(&priority).unwrap();
        let time = self.times.get_mut(&(priority, listed.invocation)).unwrap();
        *clock = (*clock).max(*time);
        *time = (*time).max(clock.saturating_sub(4 * QUANTUM)) + 1;
        self.queue.charge(listed.place);
        self.queue.remove(listed.place, listed.entry.position);
    }

    fn forget(&mut self) {
        let list = &self.list;
        let is_queued = |priority: i32, invocation: Option<usize>| {
            list.iter().any(|one| {
                one.entry.position.priority == priority
                    && invocation.is_none_or(|number| number == one.invocation)
            })
        };
        self.times.retain(|(priority, invocation), _| is_queued(*priority, Some(*invocation)));
        self.clocks.retain(|priority, _| is_queued(*priority, None));
    }
}

fn with_party<T>(invocation: usize, run: impl FnOnce(Party<'_>) -> T) -> T {
    // The invocation 0 is none at all.
    let text = if invocation == 0 { String::new() } else { invocation.to_string() };
    run(Party { invocation: &text.into(), identity: &"somebody".into() })
}

fn step() -> impl Strategy<Value = Step> {
    let insert = || {
        (0..SHAPES, -1..2, 0..3_usize).prop_map(|(shape, priority, invocation)| Step::Insert {
            shape,
            priority,
            invocation,
        })
    };
    prop_oneof![
        insert(),
        insert(),
        insert(),
        any::<usize>().prop_map(|index| Step::Remove { index }),
        (any::<usize>(), -1..2).prop_map(|(index, priority)| Step::Reposition { index, priority }),
        (0..1_usize << SHAPES).prop_map(|lines| Step::StartFirst { lines }),
        (0..1_usize << SHAPES).prop_map(|lines| Step::StartFirst { lines }),
        (0..1_usize << SHAPES).prop_map(|lines| Step::StartOldest { lines }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_a_search_of_a_list_does(steps in proptest::collection::vec(step(), 0..400)) {
        let mut pair = Pair::default();
        for step in steps {
            pair.apply(step);
        }
    }
}

#[test]
fn lines_without_entries_are_closed_when_there_are_many() {
    let mut queue = Queue::default();
    for number in 0..IDLE_LINES_MAX + 50 {
        queue.open(&shape(number));
    }
    let closed = std::iter::from_fn(|| queue.close_idle()).count();
    assert_eq!((closed, queue.open_lines().count()), (50, IDLE_LINES_MAX));
    assert!(queue.find(&shape(0)).is_none());
    assert!(queue.find(&shape(50)).is_some());
}

#[test]
fn what_is_ahead_is_counted_in_the_invocation_and_by_urgency() {
    let mut queue = Queue::default();
    let line = queue.open(&shape(0));
    let mut insert = |arrival: u64, priority, invocation| {
        let position = Position { priority, arrival };
        let entry = Entry { execution: ExecutionId::new(arrival.into()), position, since: Time::START };
        (with_party(invocation, |party| queue.insert(line, party, entry)), position)
    };
    insert(1, 0, 1);
    insert(2, 0, 1);
    insert(3, 0, 2);
    insert(4, -1, 2);
    let (place, position) = insert(5, 0, 1);
    insert(6, 0, 1);
    let ahead = queue.ahead_of(place, position);
    assert_eq!(ahead, Ahead { in_invocation: 2, is_capped: false, more_urgent: 1 });
}

#[test]
fn what_is_stranded_is_overdue_by_the_time_it_has_waited() {
    let mut queue = Queue::default();
    let line = queue.open(&shape(0));
    let at = |seconds| Time::after_start(Duration::from_secs(seconds));
    for arrival in 1..=2 {
        let position = Position { priority: 0, arrival };
        let entry = Entry { execution: ExecutionId::new(arrival.into()), position, since: at(arrival) };
        with_party(1, |party| queue.insert(line, party, entry));
    }
    let after = Duration::from_secs(10);
    assert_eq!(queue.strand(line, at(1), after), Some(at(11)));
    assert_eq!(queue.overdue(line, at(10), after), None);
    assert_eq!(queue.overdue(line, at(11), after), Some(ExecutionId::new(1)));
    assert!(queue.unstrand(line) && !queue.unstrand(line));
    assert_eq!(queue.overdue(line, at(100), after), None);
}
