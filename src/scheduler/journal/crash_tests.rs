//! Crashes of a process that writes the embedded journal, by kills and by cuts of its disk's power: what was committed is there.
//!
//! The writer is this test's own program, started again for [`writer`] alone. It tells the number of each commit that has returned.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::super::record::Record;
use super::tests::{execution, finished, kept, live, sorted};
use super::*;

use crate::index::power::{self, Image, Power};

const KILLS: u32 = 20;
const POWER_CUTS: u32 = 8;

/// Commits before a crash, at most.
const COMMITS_MAX: u32 = 60;

/// How long the writer may take for anything: far more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of the writer that wait to be read.
const LINES_MAX: usize = 10_000;

const DIRECTORY: &str = "CROFT_JOURNAL_CRASH_DIRECTORY";

/// Records that each commit writes; it erases as many that an earlier one wrote.
const RECORDS: u32 = 40;

/// Commits until what one wrote is erased.
const LIFETIME: u32 = 5;

/// One commit in so many writes a record that takes several parts.
const LARGE_EVERY: u32 = 10;

/// What commit `number` writes. All that it wrote is erased some commits later, but for one record that stays.
fn written(number: u32) -> Vec<Record> {
    let mut records: Vec<Record> = (1..RECORDS).map(|one| execution(number * RECORDS + one)).collect();
    records.push(live(number));
    if number.is_multiple_of(LARGE_EVERY) {
        records.push(finished(1_000_000 + number, 2000));
    }
    records
}

fn commit(number: u32) -> Vec<Change> {
    let old = number.checked_sub(LIFETIME).map(written).unwrap_or_default();
    let erased = old.iter().filter(|record| !is_lasting(record)).map(|record| (record.key(), None));
    written(number).into_iter().map(kept).chain(erased).collect()
}

fn is_lasting(record: &Record) -> bool {
    matches!(record, Record::Live { .. })
}

/// All records after so many commits.
fn state(commits: u32) -> Vec<Record> {
    let lasts = |number: u32| move |record: &Record| is_lasting(record) || number + LIFETIME >= commits;
    sorted((0..commits).flat_map(|number| written(number).into_iter().filter(lasts(number))).collect())
}

/// How many commits a journal holds: each leaves one record.
fn commits(records: &[Record]) -> u32 {
    u32::try_from(records.iter().filter(|record| is_lasting(record)).count()).unwrap()
}

#[test]
#[ignore = "this is the process that is killed; it never ends by itself"]
fn writer() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let journal = Embedded::open(Path::new(&directory)).unwrap();
    for number in commits(&journal.load().unwrap()).. {
        journal.commit(&commit(number)).unwrap();
        println!("committed {number}");
    }
}

#[test]
fn what_was_committed_survives_twenty_kills() {
    let directory = tempfile::tempdir_in(power::place()).unwrap();
    let path = directory.path().join("journal");
    let (mut random, mut told) = (fastrand::Rng::with_seed(1), 0);
    for _ in 0..KILLS {
        let mut writing = Writing::start(&path);
        writing.follow(random.u32(1..=COMMITS_MAX), &mut told);
        writing.kill(&mut told);
        holds(&path, &mut told);
    }
    println!("{told} commits in {KILLS} lives");
}

#[test]
fn what_was_committed_survives_eight_power_cuts() {
    let mut image = match Image::new() {
        Ok(image) => image,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let (mut random, mut told) = (fastrand::Rng::with_seed(2), 0);
    for _ in 0..POWER_CUTS {
        let power = Power::on(image);
        let mut writing = Writing::start(&power.directory().join("journal"));
        writing.follow(random.u32(1..=COMMITS_MAX), &mut told);
        writing.stop();
        let cut = power.cut();
        writing.kill(&mut told);
        image = power.off(cut);
        let power = Power::on(image);
        holds(&power.directory().join("journal"), &mut told);
        image = power.off_cleanly();
    }
    println!("{told} commits before {POWER_CUTS} power cuts");
}

/// The journal holds all commits that were told, and perhaps one more, but nothing of any other.
fn holds(path: &Path, told: &mut u32) {
    let found = sorted(Embedded::open(path).unwrap().load().unwrap());
    let commits = commits(&found);
    assert!(commits == *told || commits == *told + 1, "{told} commits were told, {commits} are there");
    assert!(found == state(commits), "the records are not those of {commits} commits");
    *told = commits;
}

/// A writer at work. Dropping it kills it.
struct Writing {
    child: Child,
    lines: Receiver<String>,
}

impl Writing {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "scheduler::journal::crash_tests::writer"])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Takes notes until so many more commits are told.
    fn follow(&mut self, commits: u32, told: &mut u32) {
        let wanted = *told + commits;
        while *told < wanted {
            note(&self.lines.recv_timeout(PATIENCE).expect("the writer writes until it is killed"), told);
        }
    }

    /// Stops it in the middle of what it does; nothing is told after that.
    fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !power::is_stopped(self.child.id()) {
            assert!(Instant::now() < deadline, "the writer does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it and notes what it had told until then.
    fn kill(mut self, told: &mut u32) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().for_each(|line| note(&line, told));
    }
}

fn note(line: &str, told: &mut u32) {
    // The first one stands behind the name of the test.
    if let Some((_, number)) = line.split_once("committed ") {
        let number: u32 = number.parse().unwrap();
        assert_eq!(number, *told, "commits are told in their order");
        *told += 1;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // It may be dead already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
