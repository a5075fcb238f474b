//! A journal in memory that remembers every commit, can be slow, and can fail.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::super::record::{Record, RecordKey};
use super::{Change, Journal};
use crate::error::{Error, Kind, Result};

#[derive(Default)]
pub(in super::super) struct Memory {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    records: BTreeMap<RecordKey, Record>,
    commits: Vec<Vec<Change>>,
    is_held: bool,
    fails: bool,
}

impl Memory {
    pub(in super::super) fn with(records: impl IntoIterator<Item = Record>) -> Self {
        let memory = Self::default();
        memory.lock().records = records.into_iter().map(|record| (record.key(), record)).collect();
        memory
    }

    /// From here on commits do not return until this is taken back.
    pub(in super::super) fn hold(&self, is_held: bool) {
        self.lock().is_held = is_held;
        self.changed.notify_all();
    }

    pub(in super::super) fn fail(&self) {
        self.lock().fails = true;
    }

    pub(in super::super) fn records(&self) -> Vec<Record> {
        self.lock().records.values().cloned().collect()
    }

    /// What was committed so far, group by group.
    pub(in super::super) fn commits(&self) -> Vec<Vec<Change>> {
        self.lock().commits.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }
}

impl Journal for Memory {
    fn load(&self) -> Result<Vec<Record>> {
        Ok(self.records())
    }

    fn commit(&self, changes: &[Change]) -> Result<()> {
        let mut state = self
            .changed
            .wait_while(self.lock(), |state| state.is_held)
            .expect("no test panics with the lock");
        if state.fails {
            return Err(Error::new(Kind::Exhausted, "the disk is full"));
        }
        for (key, record) in changes {
            match record {
                Some(record) => state.records.insert(key.clone(), record.clone()),
                None => state.records.remove(key),
            };
        }
        state.commits.push(changes.to_vec());
        Ok(())
    }
}
