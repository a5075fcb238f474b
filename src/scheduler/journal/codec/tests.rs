//! What is written is read back, and what was not written by us is refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::id::{ExecutionId, Lease, OperationId, WorkerId};
use super::super::super::record::Pending;
use super::super::super::task::{Availability, Platform, Stage, Task, Update};
use super::*;
use crate::digest::{Digest, Function};
use crate::proto::rev2::{ActionResult, ExecuteResponse, ExecutedActionMetadata, OutputFile};

fn digest() -> impl Strategy<Value = Digest> {
    let function = prop::sample::select(Function::ALL.to_vec());
    (function, any::<[u8; 64]>(), any::<u64>())
        .prop_map(|(function, hash, size)| Digest::new(function, &hash, size))
}

fn text() -> impl Strategy<Value = Arc<str>> {
    "\\PC{0,12}".prop_map(Arc::from)
}

fn task() -> impl Strategy<Value = Arc<Task>> {
    let properties = vec(("[a-z]{0,4}", "\\PC{0,4}"), 0..4);
    let digests = (digest(), digest(), digest());
    let texts = (text(), text(), text());
    let numbers = (any::<bool>(), any::<u32>(), 0..1_000_000_000_u32, any::<i32>(), vec(any::<u64>(), 0..8));
    (digests, texts, properties, numbers).prop_map(|(digests, texts, properties, numbers)| {
        Arc::new(Task {
            instance: texts.0,
            action_digest: digests.0,
            command: digests.1,
            input_root: digests.2,
            do_not_cache: numbers.0,
            timeout: Duration::new(numbers.1.into(), numbers.2),
            platform: Arc::new(Platform::new(properties)),
            priority: numbers.3,
            invocation: texts.1,
            identity: texts.2,
            neighbours: numbers.4.into(),
            trace: None,
        })
    })
}

fn time() -> impl Strategy<Value = SystemTime> {
    any::<u64>().prop_map(|nanoseconds| UNIX_EPOCH + Duration::from_nanos(nanoseconds))
}

fn execution() -> impl Strategy<Value = Record> {
    let numbers = (any::<u64>(), any::<i32>(), any::<u32>(), any::<u32>(), any::<u32>());
    (any::<u128>(), task(), time(), numbers).prop_map(|(execution, task, queued_at, numbers)| {
        let (arrival, priority, attempts, failures, losses) = numbers;
        let execution = ExecutionId::new(execution);
        let pending = Pending { execution, task, arrival, queued_at, priority, attempts, failures, losses };
        Record::Execution(Box::new(pending))
    })
}

fn finished() -> impl Strategy<Value = Record> {
    let metadata = prop::option::of("\\PC{0,8}").prop_map(|worker| {
        worker.map(|worker| Box::new(ExecutedActionMetadata { worker, ..ExecutedActionMetadata::default() }))
    });
    let response = (vec("[a-z]{0,9}", 0..5), any::<i32>()).prop_map(|(paths, exit_code)| {
        let file = |path| OutputFile { path, ..OutputFile::default() };
        let output_files = paths.into_iter().map(file).collect();
        let result = ActionResult { output_files, exit_code, ..ActionResult::default() };
        ExecuteResponse { result: Some(result), ..ExecuteResponse::default() }
    });
    (any::<u128>(), task(), time(), any::<u32>(), metadata, response).prop_map(
        |(operation, task, queued_at, attempt, metadata, response)| {
            let response = Some(Arc::new(response));
            let execution = ExecutionId::new(operation.rotate_left(1));
            let update =
                Update { execution, stage: Stage::Completed, task, queued_at, attempt, metadata, response };
            Record::Finished { operation: OperationId::new(operation), update: Arc::new(update) }
        },
    )
}

fn worker() -> impl Strategy<Value = Record> {
    let availability = prop_oneof![
        Just(Availability::Open),
        "\\PC{0,9}".prop_map(|reason| Availability::Cordoned { reason }),
        "\\PC{0,9}".prop_map(|reason| Availability::Draining { reason }),
    ];
    (text(), availability).prop_map(|(name, availability)| Record::Worker { name, availability })
}

fn record() -> impl Strategy<Value = Record> {
    let live = (any::<u128>(), any::<u128>()).prop_map(|(operation, execution)| Record::Live {
        operation: OperationId::new(operation),
        execution: ExecutionId::new(execution),
    });
    let leased = (any::<u128>(), any::<u32>(), any::<u128>(), text(), text()).prop_map(
        |(execution, attempt, worker, name, owner)| Record::Leased {
            lease: Lease { execution: ExecutionId::new(execution), attempt },
            worker: WorkerId::new(worker),
            name,
            owner,
        },
    );
    prop_oneof![execution(), live, finished(), leased, worker()]
}

fn value(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_value(record, &mut bytes);
    bytes
}

proptest! {
    #[test]
    fn every_record_is_read_as_it_was_written(record in record()) {
        let (key, value) = (key(&record.key()), value(&record));
        prop_assert_eq!(Reader::default().record(&key, &value).unwrap(), record.clone());
        prop_assert_eq!(read_key(&key).unwrap(), record.key());
        let weight = weight(Some(&record));
        prop_assert!(weight >= value.len(), "{} < {}", weight, value.len());
        prop_assert!(weight <= value.len() + 600, "{} > {}", weight, value.len());
    }

    #[test]
    fn bytes_that_nobody_wrote_are_refused_without_a_panic(
        key in vec(any::<u8>(), 0..24), value in vec(any::<u8>(), 0..64),
    ) {
        let _ = Reader::default().record(&key, &value);
        let _ = Entries::of(&value).count();
    }

    #[test]
    fn every_entry_is_read_as_it_was_written(
        entries in vec((vec(any::<u8>(), 0..24), prop::option::of(vec(any::<u8>(), 0..64))), 0..8),
    ) {
        let mut page = Vec::new();
        let mut bytes = 0;
        for (key, value) in &entries {
            write_entry(key, value.as_deref(), &mut page);
            bytes += entry_bytes(key, value.as_deref());
        }
        prop_assert_eq!(bytes, page.len());
        let read = Entries::of(&page).map(|entry| {
            let (key, value) = entry.unwrap();
            (key.to_vec(), value.map(<[u8]>::to_vec))
        });
        prop_assert_eq!(read.collect::<Vec<_>>(), entries);
    }

    #[test]
    fn a_value_that_lost_its_end_is_no_other_record_than_it_was(record in record(), cut in any::<prop::sample::Index>()) {
        let (key, value) = (key(&record.key()), value(&record));
        let short = &value[..cut.index(value.len())];
        if let Ok(read) = Reader::default().record(&key, short) {
            prop_assert_eq!(read.key(), record.key());
        }
    }
}

#[test]
fn a_value_of_another_version_is_refused() {
    let record = Record::Live { operation: OperationId::new(1), execution: ExecutionId::new(2) };
    let mut value = value(&record);
    value[0] = VERSION + 1;
    let error = Reader::default().record(&key(&record.key()), &value).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Corrupt, "a record of the journal has another version")
    );
}

#[test]
fn what_the_tasks_of_a_build_share_is_shared_again() {
    let mut reader = Reader::default();
    let task = |name: u128| {
        let platform = Platform::new([("OSFamily".to_owned(), "linux".to_owned())]);
        Arc::new(Task {
            platform: Arc::new(platform),
            invocation: "build".into(),
            identity: "main".into(),
            ..Task::example(&name.to_string())
        })
    };
    let read: Vec<Arc<Task>> = [1, 2]
        .map(|number| {
            let pending = Pending {
                execution: ExecutionId::new(number),
                task: task(number),
                arrival: 1,
                queued_at: UNIX_EPOCH,
                priority: 0,
                attempts: 0,
                failures: 0,
                losses: 0,
            };
            let record = Record::Execution(Box::new(pending));
            let read = reader.record(&key(&record.key()), &value(&record)).unwrap();
            let Record::Execution(pending) = read else { panic!("{read:?}") };
            pending.task
        })
        .into();
    assert!(Arc::ptr_eq(&read[0].platform, &read[1].platform));
    assert!(Arc::ptr_eq(&read[0].instance, &read[1].identity));
    assert!(Arc::ptr_eq(&read[0].invocation, &read[1].invocation));
}
