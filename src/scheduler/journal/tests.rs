//! The embedded journal on a real disk, and the thread before it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::super::record::{Pending, Record};
use super::super::task::{Availability, Stage, Task, Update};
use super::memory::Memory;
use super::*;
use crate::index::Index;
use crate::proto::rev2::{ActionResult, ExecuteResponse, OutputFile};

pub(in super::super) fn execution(number: u32) -> Record {
    Record::Execution(Box::new(Pending {
        execution: ExecutionId::new(number.into()),
        task: Arc::new(Task::example(&number.to_string())),
        arrival: number.into(),
        queued_at: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        priority: 0,
        attempts: 0,
        failures: 0,
        losses: 0,
    }))
}

pub(in super::super) fn live(number: u32) -> Record {
    Record::Live { operation: OperationId::new(number.into()), execution: ExecutionId::new(number.into()) }
}

pub(in super::super) fn leased(number: u32) -> Record {
    let lease = Lease { execution: ExecutionId::new(number.into()), attempt: 1 };
    Record::Leased { lease, worker: WorkerId::new(7), name: "worker".into(), owner: "token:a".into() }
}

/// A finished operation whose answer names so many outputs, of about 100 bytes each.
pub(super) fn finished(number: u32, outputs: usize) -> Record {
    let file = |number| OutputFile { path: format!("{number:0100}"), ..OutputFile::default() };
    let result = ActionResult { output_files: (0..outputs).map(file).collect(), ..ActionResult::default() };
    let update = Update {
        execution: ExecutionId::new(1),
        stage: Stage::Completed,
        task: Arc::new(Task::example("finished")),
        queued_at: UNIX_EPOCH,
        attempt: 1,
        metadata: None,
        response: Some(Arc::new(ExecuteResponse { result: Some(result), ..ExecuteResponse::default() })),
    };
    Record::Finished { operation: OperationId::new(number.into()), update: Arc::new(update) }
}

/// The key of a page in the database.
fn page_key(number: u64) -> Vec<u8> {
    [&b"g"[..], &number.to_be_bytes()].concat()
}

pub(super) fn kept(record: Record) -> Change {
    (record.key(), Some(record))
}

pub(super) fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(Record::key);
    records
}

fn load(path: &Path) -> Vec<Record> {
    sorted(Embedded::open(path).unwrap().load().unwrap())
}

/// Opens what is there as a database without the journal around it.
fn keys(path: &Path, prefix: u8) -> usize {
    let (index, _) = Index::open(path).unwrap();
    index
        .page(std::ops::Bound::Unbounded, prefix, 10_000)
        .unwrap()
        .iter()
        .filter(|(key, _)| key[0] == prefix)
        .count()
}

#[test]
fn records_are_there_after_a_restart_and_erased_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Embedded::open(&path).unwrap();
    let cordon = Record::Worker {
        name: "worker".into(),
        availability: Availability::Cordoned { reason: "its disk is slow".into() },
    };
    let records = [execution(1), live(1), leased(1), execution(2), live(2), cordon, finished(3, 1)];
    journal.commit(&records.clone().map(kept)).unwrap();
    assert_eq!(sorted(journal.load().unwrap()), sorted(records.to_vec()));
    drop(journal);
    let journal = Embedded::open(&path).unwrap();
    assert_eq!(sorted(journal.load().unwrap()), sorted(records.to_vec()));
    let erased: Vec<Change> = records[..3].iter().map(|record| (record.key(), None)).collect();
    journal.commit(&erased).unwrap();
    drop(journal);
    assert_eq!(load(&path), sorted(records[3..].to_vec()));
}

#[test]
fn more_records_than_a_page_are_all_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Embedded::open(&path).unwrap();
    let records: Vec<Record> = (0..2500).map(live).collect();
    for some in records.chunks(500) {
        journal.commit(&some.iter().cloned().map(kept).collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(sorted(journal.load().unwrap()), sorted(records));
}

#[test]
fn what_came_and_went_in_one_group_is_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Embedded::open(&path).unwrap();
    journal.commit(&[(execution(1).key(), None), (leased(1).key(), None)]).unwrap();
    drop(journal);
    assert_eq!(keys(&path, b'g'), 0);
}

#[test]
fn the_log_stays_short_and_what_lasts_stays_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Embedded::open(&path).unwrap();
    let lasting: Vec<Record> = (0..200).map(execution).collect();
    journal.commit(&lasting.iter().cloned().map(kept).collect::<Vec<_>>()).unwrap();
    for round in 0..300 {
        let brief: Vec<Record> = (0..100).map(|number| execution(1000 + 100 * round + number)).collect();
        journal.commit(&brief.iter().cloned().map(kept).collect::<Vec<_>>()).unwrap();
        journal.commit(&brief.iter().map(|record| (record.key(), None)).collect::<Vec<_>>()).unwrap();
    }
    drop(journal);
    // A hundred are twice as many bytes as are alive, and an eightieth of all that was written.
    let pages = keys(&path, b'g');
    assert!(pages < 100, "{pages} pages");
    assert_eq!(load(&path), sorted(lasting));
}

#[test]
fn a_commit_that_did_not_come_to_its_end_is_as_if_it_had_never_begun() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let commits = [
        vec![kept(execution(1)), kept(live(1))],
        (2..80).map(|number| kept(execution(number))).chain([(live(1).key(), None)]).collect::<Vec<_>>(),
    ];
    let journal = Embedded::open(&path).unwrap();
    journal.commit(&commits[0]).unwrap();
    journal.commit(&commits[1]).unwrap();
    drop(journal);
    assert_eq!(load(&path).len(), 79);
    let pages = keys(&path, b'g') as u64;
    assert!(pages > 3, "{pages} pages");
    // The power went before the last page was written.
    Index::open(&path).unwrap().0.append(vec![(page_key(pages - 1), None)]).unwrap();
    assert_eq!(load(&path), [execution(1), live(1)]);
    assert_eq!(keys(&path, b'g'), 1);
    let journal = Embedded::open(&path).unwrap();
    journal.load().unwrap();
    journal.commit(&[kept(live(2))]).unwrap();
    drop(journal);
    assert_eq!(load(&path), [execution(1), live(1), live(2)]);
}

#[test]
fn an_answer_of_any_size_is_kept_in_parts_that_go_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let large = finished(1, 5000);
    assert!(codec::weight(Some(&large)) > 3 * GROUP_BYTES_MAX);
    let journal = Embedded::open(&path).unwrap();
    journal.commit(&[kept(execution(1)), kept(live(1))]).unwrap();
    journal.commit(&[kept(large.clone()), (execution(1).key(), None)]).unwrap();
    drop(journal);
    let journal = Embedded::open(&path).unwrap();
    assert_eq!(journal.load().unwrap(), std::slice::from_ref(&large));
    journal.commit(&[(large.key(), None)]).unwrap();
    assert_eq!(journal.load().unwrap(), []);
    drop(journal);
    assert_eq!(keys(&path, b'p'), 0);
}

#[test]
fn parts_that_no_record_names_are_removed_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let large = finished(1, 5000);
    Embedded::open(&path).unwrap().commit(&[kept(large.clone())]).unwrap();
    let mut batch = crate::index::Batch::default();
    batch.remove(&page_key(0));
    Index::open(&path).unwrap().0.commit(batch, || {}).unwrap();
    assert!(keys(&path, b'p') > 4);
    assert_eq!(load(&path), []);
    assert_eq!(keys(&path, b'p'), 0);
}

#[test]
fn a_record_that_cannot_be_read_is_dropped_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    Embedded::open(&path).unwrap().commit(&[kept(live(1)), kept(live(2))]).unwrap();
    let mut page = vec![1];
    codec::write_entry(&codec::key(&live(1).key()), Some(b"nonsense"), &mut page);
    let mut batch = crate::index::Batch::default();
    batch.insert(&page_key(1), page);
    batch.insert(&page_key(2), b"not even a page".to_vec());
    Index::open(&path).unwrap().0.commit(batch, || {}).unwrap();
    let before = crate::metrics::JOURNAL_DROPPED.get();
    assert_eq!(load(&path), [live(2)]);
    assert!(crate::metrics::JOURNAL_DROPPED.get() >= before + 2);
    assert_eq!(load(&path), [live(2)]);
}

#[test]
fn a_damaged_journal_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    Embedded::open(&path).unwrap().commit(&[kept(live(1))]).unwrap();
    // Nothing of it is what it was.
    let length = std::fs::metadata(path.join("db")).unwrap().len();
    std::fs::write(path.join("db"), vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    let journal = Embedded::open(&path).unwrap();
    assert_eq!(journal.load().unwrap(), []);
    journal.commit(&[kept(live(2))]).unwrap();
    drop(journal);
    assert_eq!(load(&path), [live(2)]);
}

#[test]
fn a_journal_that_opens_but_cannot_be_read_is_kept_aside_and_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Embedded::open(&path).unwrap();
    journal.commit(&[kept(live(1))]).unwrap();
    journal.begin_anew().unwrap();
    assert_eq!(journal.load().unwrap(), []);
    journal.commit(&[kept(live(2))]).unwrap();
    drop(journal);
    assert_eq!(load(&path), [live(2)]);
    assert_eq!(load(&path.with_extension("bad-1")), [live(1)]);
}

/// What must happen soon; the bound is only there so that a failure ends.
async fn durable(writer: &mut Writer, count: u64) -> Progress {
    let reach = async {
        loop {
            let progress = writer.progress().await;
            if progress.durable >= count || progress.failure.is_some() {
                return progress;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reach).await.expect("this happens soon")
}

#[tokio::test]
async fn what_gathers_during_a_commit_goes_into_one_group() {
    let memory = Arc::new(Memory::default());
    memory.hold(true);
    let mut writer = Writer::start(Arc::clone(&memory) as Arc<dyn Journal>).unwrap();
    writer.append(&mut vec![kept(live(1))]);
    // The thread may take the first alone or with the others; what it has not taken before the hold ends is one group.
    for number in 2..=100 {
        writer.append(&mut vec![kept(live(number))]);
    }
    writer.append(&mut vec![(live(50).key(), None)]);
    memory.hold(false);
    assert_eq!(durable(&mut writer, 101).await.durable, 101);
    let commits = memory.commits();
    assert!(commits.len() <= 100, "{} commits", commits.len());
    assert_eq!(memory.records().len(), 99);
}

#[tokio::test]
async fn a_writer_that_is_far_behind_says_so() {
    let memory = Arc::new(Memory::default());
    memory.hold(true);
    let mut writer = Writer::start(Arc::clone(&memory) as Arc<dyn Journal>).unwrap();
    let mut changes: Vec<Change> = (0..100_000).map(|number| kept(live(number))).collect();
    assert!(!writer.is_full());
    writer.append(&mut changes);
    assert!(writer.is_full());
    memory.hold(false);
    durable(&mut writer, 100_000).await;
    assert!(!writer.is_full());
}

#[tokio::test]
async fn nothing_is_durable_after_a_commit_that_failed() {
    let memory = Arc::new(Memory::default());
    let mut writer = Writer::start(Arc::clone(&memory) as Arc<dyn Journal>).unwrap();
    writer.append(&mut vec![kept(live(1))]);
    durable(&mut writer, 1).await;
    memory.fail();
    writer.append(&mut vec![kept(live(2))]);
    let progress = durable(&mut writer, 2).await;
    assert_eq!(progress.durable, 1);
    assert!(progress.failure.is_some());
    assert_eq!(memory.records(), [live(1)]);
}

#[tokio::test]
async fn dropping_the_writer_commits_what_waits() {
    let memory = Arc::new(Memory::default());
    let writer = Writer::start(Arc::clone(&memory) as Arc<dyn Journal>).unwrap();
    writer.append(&mut (0..1000).map(|number| kept(live(number))).collect());
    drop(writer);
    let all = async {
        while memory.records().len() < 1000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
}
