//! The embedded journal, cut off anywhere: between any two changes of its database, it holds what whole commits have left.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::super::record::{Record, RecordKey};
use super::super::task::{Platform, Task};
use super::embedded::Written;
use super::tests::{execution, live};
use super::*;
use crate::index::{Batch, Index};

/// Bytes of the longest text of a task: it takes more than two parts.
const TEXT_BYTES_MAX: usize = 150_000;

type State = BTreeMap<RecordKey, Record>;

/// What is done to one key.
#[derive(Debug, Clone)]
enum Step {
    /// An execution whose task has a text of so many bytes, with a priority of its own.
    Execution {
        number: u32,
        text_bytes: usize,
        priority: i32,
    },
    Live(u32),
    EraseExecution(u32),
    EraseLive(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let text_bytes = prop_oneof![20 => 0..3000_usize, 1 => 20_000..TEXT_BYTES_MAX];
    let execution = (0..12_u32, text_bytes, any::<i32>());
    prop_oneof![
        3 => execution.prop_map(|(number, text_bytes, priority)| Step::Execution { number, text_bytes, priority }),
        1 => (0..12_u32).prop_map(Step::Live),
        2 => (0..12_u32).prop_map(Step::EraseExecution),
        1 => (0..12_u32).prop_map(Step::EraseLive),
    ]
}

/// Groups of changes, as the writer makes them: none has two of one key.
fn groups() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 1..12), 1..40)
}

impl Step {
    fn change(&self) -> Change {
        match self {
            Self::Execution { number, text_bytes, priority } => {
                let Record::Execution(mut pending) = execution(*number) else { panic!("another record") };
                let text = ("text".to_owned(), priority.to_string().repeat(1 + text_bytes / 8));
                let task = Task { platform: Platform::new([text]).into(), ..Task::example("large") };
                (pending.task, pending.priority) = (task.into(), *priority);
                (RecordKey::Execution(pending.execution), Some(Record::Execution(pending)))
            }
            Self::Live(number) => (live(*number).key(), Some(live(*number))),
            Self::EraseExecution(number) => (execution(*number).key(), None),
            Self::EraseLive(number) => (live(*number).key(), None),
        }
    }
}

fn changes(group: &[Step]) -> Vec<Change> {
    let by_key: BTreeMap<RecordKey, Option<Record>> = group.iter().map(Step::change).collect();
    by_key.into_iter().collect()
}

fn apply(state: &mut State, changes: &[Change]) {
    for (key, record) in changes {
        match record {
            Some(record) => state.insert(key.clone(), record.clone()),
            None => state.remove(key),
        };
    }
}

fn loaded(journal: &Embedded) -> State {
    let records = journal.load().unwrap();
    let count = records.len();
    let state: State = records.into_iter().map(|record| (record.key(), record)).collect();
    assert_eq!(state.len(), count, "a record is there twice");
    state
}

/// A journal whose power went after these changes of its database.
fn cut(path: &Path, written: &[Written]) -> Embedded {
    drop(Embedded::open(path).unwrap());
    Index::open(path).unwrap().0.append(written.to_vec()).unwrap();
    Embedded::open(path).unwrap()
}

fn is_cut_anywhere(groups: &[Vec<Step>], at: &prop::sample::Index) {
    let directory = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&directory.path().join("whole")).unwrap();
    // The state after each commit, with how many changes of the database had been made then.
    let (mut states, mut state) = (vec![(0, State::new())], State::new());
    for group in groups {
        let changes = changes(group);
        journal.commit(&changes).unwrap();
        apply(&mut state, &changes);
        states.push((journal.written.lock().unwrap().len(), state.clone()));
    }
    assert!(loaded(&journal) == state);
    let written = journal.written.lock().unwrap().clone();
    let count = at.index(written.len() + 1);
    let journal = cut(&directory.path().join("cut"), &written[..count]);
    let found = loaded(&journal);
    let whole = states.iter().rposition(|(after, _)| *after <= count).unwrap();
    // A commit counts from its last page on; what it removes comes after that.
    let next = states.get(whole + 1).filter(|(_, next)| *next == found);
    assert!(found == states[whole].1 || next.is_some(), "after {count} changes, {whole} commits");
    goes_on(&journal, found, groups);
}

/// What is left of a journal takes everything that is done to it next.
fn goes_on(journal: &Embedded, mut state: State, groups: &[Vec<Step>]) {
    for group in groups {
        journal.commit(&changes(group)).unwrap();
        apply(&mut state, &changes(group));
    }
    assert!(loaded(journal) == state);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_between_any_two_changes_leaves_whole_commits(groups in groups(), at in any::<prop::sample::Index>()) {
        is_cut_anywhere(&groups, &at);
    }
}

#[test]
fn a_large_record_that_is_replaced_is_one_or_the_other_wherever_it_is_cut() {
    let large = |priority| Step::Execution { number: 1, text_bytes: TEXT_BYTES_MAX, priority };
    let states = [large(1), large(23), large(4)]
        .map(|step| State::from_iter([(execution(1).key(), step.change().1.unwrap())]));
    let directory = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&directory.path().join("whole")).unwrap();
    for state in &states {
        journal
            .commit(
                &state.iter().map(|(key, record)| (key.clone(), Some(record.clone()))).collect::<Vec<_>>(),
            )
            .unwrap();
    }
    let written = journal.written.lock().unwrap().clone();
    let first = written.iter().position(|(key, _)| key[0] == b'g').unwrap() + 1;
    for count in first..=written.len() {
        let journal = cut(&directory.path().join(count.to_string()), &written[..count]);
        let found = loaded(&journal);
        assert!(states.contains(&found), "after {count} changes: {} records", found.len());
    }
}

#[test]
fn a_journal_in_another_format_is_kept_aside_and_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut value = Vec::new();
    codec::write_value(&live(1), &mut value);
    let mut batch = Batch::default();
    batch.insert(&codec::key(&live(1).key()), value);
    batch.finish_index();
    Index::open(&path).unwrap().0.commit(batch, || {}).unwrap();
    let journal = Embedded::open(&path).unwrap();
    assert_eq!(loaded(&journal), State::new());
    assert!(path.with_extension("bad-1").exists());
    journal.commit(&[(live(2).key(), Some(live(2)))]).unwrap();
    drop(journal);
    assert_eq!(loaded(&Embedded::open(&path).unwrap()).into_values().collect::<Vec<_>>(), [live(2)]);
}
