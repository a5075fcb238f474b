//! What a client has told of its invocation: targets, tests, how it ended. Bounded whatever it says: what is beyond is only counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::event::{Completion, Event, Exit, Metrics, Target, Test, TestResult, TestStatus, Workspace};
use super::texts::{Texts, cut};
use super::verdicts::Verdicts;

/// Targets, and runs of tests, of one invocation that are kept: those of a large company's whole source.
pub const ROWS_MAX: usize = 10_000;

/// Failures that are kept beyond, since these are what people look for.
const BAD_ROWS_MAX: usize = 1_000;

/// Bytes of one invocation: rows of usual labels up to their number.
const BYTES_MAX: usize = 8 << 20;

/// Bytes of a row beside its texts: two names, a state, its place in the tree.
const ROW_BYTES: usize = 200;

/// Options, patterns and entries of metadata that are kept, more than anybody writes by hand.
const LINES_MAX: usize = 200;

/// Configurations whose names are kept; beyond, a target has none.
const CONFIGURATIONS_MAX: usize = 100;

/// What a client has told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Empty until it is told.
    pub command: String,
    pub patterns: Vec<String>,
    pub options: Vec<String>,
    pub metadata: Vec<(String, String)>,
    pub workspace: Workspace,
    pub begun: Option<SystemTime>,
    pub ended: Option<SystemTime>,
    pub exit: Option<Exit>,
    pub metrics: Option<Metrics>,
    /// What did not come about, beside targets.
    pub problems: Vec<String>,
    /// Nothing follows.
    pub is_over: bool,
    pub targets: Rows<TargetName, TargetState>,
    pub tests: Verdicts,
    /// Their runs, shards and attempts.
    pub runs: Rows<TestName, TestResult>,
    configurations: BTreeMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

/// Rows in the order of their names, and how many there are in all.
#[derive(Debug, Clone)]
pub struct Rows<K, V> {
    kept: BTreeMap<K, V>,
    /// Those that are not kept included.
    pub total: usize,
    /// Those of them that failed.
    pub bad: usize,
}

/// A target in the order of lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetName {
    pub label: Arc<str>,
    pub aspect: Arc<str>,
    pub configuration: Arc<str>,
}

/// What is known of a target.
#[derive(Debug, Clone)]
pub struct TargetState {
    /// `cc_library rule`, …; empty where that is not told.
    pub kind: Arc<str>,
    pub end: Completion,
    /// Why it was not built.
    pub why: Arc<str>,
    /// What its tests come to; none where it has none or they are not over.
    pub tests: Option<TestStatus>,
}

/// A run of a test in the order of lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TestName {
    pub target: TargetName,
    pub run: i32,
    pub shard: i32,
    pub attempt: i32,
}

/// What may be a failure.
pub trait Row {
    fn is_bad(&self) -> bool;
}

impl Row for TargetState {
    fn is_bad(&self) -> bool {
        self.end.is_bad() || self.tests.is_some_and(TestStatus::is_bad)
    }
}

impl Row for TestResult {
    fn is_bad(&self) -> bool {
        self.status.is_bad()
    }
}

impl<K, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), total: 0, bad: 0 }
    }
}

impl<K: Ord, V: Row> Rows<K, V> {
    /// Those that are kept, the failures first. Looks at all of them.
    pub fn failures_first(&self) -> impl Iterator<Item = (&K, &V)> {
        let of = |is_bad: bool| self.kept.iter().filter(move |(_, row)| row.is_bad() == is_bad);
        of(true).chain(of(false))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Says what a row is. True when it takes more room than before.
    fn put(&mut self, name: K, row: V, has_room: bool) -> bool {
        let is_bad = row.is_bad();
        if let Some(known) = self.kept.get_mut(&name) {
            self.bad = self.bad + usize::from(is_bad) - usize::from(known.is_bad());
            *known = row;
            return false;
        }
        self.total += 1;
        self.bad += usize::from(is_bad);
        let rows_max = ROWS_MAX + if is_bad { BAD_ROWS_MAX } else { 0 };
        let is_kept = has_room && self.kept.len() < rows_max;
        if is_kept {
            self.kept.insert(name, row);
        }
        is_kept
    }

    fn remove(&mut self, name: &K) -> Option<V> {
        let row = self.kept.remove(name)?;
        self.total -= 1;
        self.bad -= usize::from(row.is_bad());
        Some(row)
    }
}

impl Rows<TestName, TestResult> {
    /// How the attempt before ended, or this one if it is told again.
    fn before(&self, name: &TestName) -> Option<TestStatus> {
        let first = TestName { attempt: i32::MIN, ..name.clone() };
        self.kept.range(&first..=name).next_back().map(|(_, result)| result.status)
    }
}

impl TargetName {
    fn of(target: &Target, texts: &mut Texts) -> Self {
        let [label, aspect, configuration] =
            [&target.label, &target.aspect, &target.configuration].map(|text| texts.share(text));
        Self { label, aspect, configuration }
    }

    /// As it is before its configuration is known.
    fn without_configuration(&self) -> Self {
        Self { configuration: "".into(), ..self.clone() }
    }

    fn bytes(&self) -> usize {
        ROW_BYTES + self.text_bytes()
    }

    pub(super) fn text_bytes(&self) -> usize {
        self.label.len() + self.aspect.len() + self.configuration.len()
    }
}

impl TargetState {
    fn bytes(&self, name: &TargetName) -> usize {
        name.bytes() + self.kind.len() + self.why.len()
    }
}

impl Told {
    /// About the bytes that it takes; texts that it shares with others are counted, too.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What people call a configuration; empty where that is not told.
    pub fn configuration(&self, id: &str) -> &str {
        self.configurations.get(id).map_or("", |mnemonic| mnemonic)
    }

    pub(super) fn take(&mut self, event: Event, texts: &mut Texts) {
        match event {
            Event::Started(started) => {
                self.begun = started.at;
                self.command = self.line(&started.command);
                self.patterns = self.lines(&started.patterns);
            }
            Event::Options(options) => self.options = self.lines(&options),
            Event::Metadata(entries) => self.metadata = self.pairs(&entries),
            Event::Workspace(Workspace { user, host }) => {
                self.workspace = Workspace { user: self.line(&user), host: self.line(&host) };
            }
            Event::Configuration { id, mnemonic } => self.name_configuration(&id, &mnemonic, texts),
            Event::Configured { target, kind } => self.expect(&target, &kind, texts),
            Event::Completed { target, end, why } => self.complete(&target, (end, &why), texts),
            Event::Tested { test, result } => self.test(&test, result, texts),
            Event::Summarized { target, status } => self.summarize(&target, status, texts),
            Event::Aborted(problem) => {
                if self.problems.len() < LINES_MAX {
                    let problem = self.line(&problem);
                    self.problems.push(problem);
                }
            }
            Event::Metrics(mut metrics) => {
                metrics.runners.truncate(LINES_MAX);
                for (name, _) in &mut metrics.runners {
                    *name = self.line(name);
                }
                self.metrics = Some(metrics);
            }
            Event::Finished { exit, at } => {
                self.exit = Some(Exit { name: self.line(&exit.name), code: exit.code });
                self.ended = at;
            }
            Event::Over => self.is_over = true,
        }
    }

    fn name_configuration(&mut self, id: &str, mnemonic: &str, texts: &mut Texts) {
        if self.configurations.len() < CONFIGURATIONS_MAX {
            self.bytes += cut(id).len() + cut(mnemonic).len();
            self.configurations.insert(texts.share(id), texts.share(mnemonic));
        }
    }

    /// A target that is to be built. Those for which there is no room are counted when they are.
    fn expect(&mut self, target: &Target, kind: &str, texts: &mut Texts) {
        let name = TargetName::of(target, texts);
        if self.targets.kept.contains_key(&name) || self.targets.len() >= ROWS_MAX || !self.has_room() {
            return;
        }
        let row =
            TargetState { kind: texts.share(kind), end: Completion::Pending, why: "".into(), tests: None };
        self.put_target(name, row);
    }

    fn complete(&mut self, target: &Target, (end, why): (Completion, &str), texts: &mut Texts) {
        let name = TargetName::of(target, texts);
        let pending = name.without_configuration();
        // The first row of the same target says its kind: the one that waits for it, or that of another configuration.
        let alike = self.targets.kept.range(pending.clone()..).next();
        let alike = alike.filter(|(other, _)| other.label == name.label && other.aspect == name.aspect);
        let kind = alike.map_or_else(|| Arc::from(""), |(_, row)| Arc::clone(&row.kind));
        if let Some(row) = self.targets.kept.get(&pending)
            && row.end == Completion::Pending
        {
            self.bytes -= row.bytes(&pending);
            self.targets.remove(&pending);
        }
        let tests = self.targets.kept.get(&name).and_then(|row| row.tests);
        let row = TargetState { kind, end, why: texts.share(why), tests };
        self.put_target(name, row);
    }

    fn put_target(&mut self, name: TargetName, row: TargetState) {
        let before = self.targets.kept.get(&name).map(|known| known.bytes(&name));
        let (after, has_room) = (row.bytes(&name), self.has_room());
        if self.targets.put(name, row, has_room) || before.is_some() {
            self.bytes = self.bytes + after - before.unwrap_or(0);
        }
    }

    fn test(&mut self, test: &Test, result: TestResult, texts: &mut Texts) {
        let Test { run, shard, attempt, .. } = *test;
        let name = TestName { target: TargetName::of(&test.target, texts), run, shard, attempt };
        let (bytes, has_room) = (name.target.bytes(), self.has_room());
        self.bytes += self.tests.attempted(&name.target, (self.runs.before(&name), result.status), has_room);
        if self.runs.put(name, result, has_room) {
            self.bytes += bytes;
        }
    }

    /// What all runs come to stands with the target, if that is kept.
    fn summarize(&mut self, target: &Target, status: TestStatus, texts: &mut Texts) {
        let name = TargetName::of(target, texts);
        self.bytes += self.tests.summarized(&name, status, self.has_room());
        if let Some(row) = self.targets.kept.get(&name) {
            let row = TargetState { tests: Some(status), ..row.clone() };
            self.put_target(name, row);
        }
    }

    fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX
    }

    /// What is kept of a text; nothing where there is no room.
    fn line(&mut self, text: &str) -> String {
        let text = if self.has_room() { cut(text) } else { "" };
        self.bytes += text.len();
        text.to_owned()
    }

    fn lines(&mut self, all: &[String]) -> Vec<String> {
        all.iter().take(LINES_MAX).map(|line| self.line(line)).collect()
    }

    fn pairs(&mut self, all: &[(String, String)]) -> Vec<(String, String)> {
        all.iter().take(LINES_MAX).map(|(name, value)| (self.line(name), self.line(value))).collect()
    }
}
