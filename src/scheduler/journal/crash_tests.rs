//! Crashes of a process that writes the embedded journal, by kills and by cuts of its disk's power: what was committed is there.
//!
//! The writer is this test's own program, started again for [`writer`] alone. It tells the number of each commit that has returned.

use std::path::Path;

use super::super::record::Record;
use super::tests::{execution, finished, kept, live, sorted};
use super::*;
use crate::index::crash::Writer;
use crate::index::power::{self, Image, Power};

const KILLS: u32 = 20;
const POWER_CUTS: u32 = 8;

/// Commits before a crash, at most.
const COMMITS_MAX: u32 = 60;

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
        let writer = start(&path);
        follow(&writer, random.u32(1..=COMMITS_MAX), &mut told);
        kill(writer, &mut told);
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
        let writer = start(&power.directory().join("journal"));
        follow(&writer, random.u32(1..=COMMITS_MAX), &mut told);
        writer.stop();
        let cut = power.cut();
        kill(writer, &mut told);
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

fn start(path: &Path) -> Writer {
    Writer::start("scheduler::journal::crash_tests::writer", (DIRECTORY, path), &[])
}

/// Takes notes until so many more commits are told.
fn follow(writer: &Writer, commits: u32, told: &mut u32) {
    let wanted = *told + commits;
    while *told < wanted {
        note(&writer.line(), told);
    }
}

/// Kills it and notes what it had told until then.
fn kill(writer: Writer, told: &mut u32) {
    writer.kill().iter().for_each(|line| note(line, told));
}

fn note(line: &str, told: &mut u32) {
    // The first one stands behind the name of the test.
    if let Some((_, number)) = line.split_once("committed ") {
        let number: u32 = number.parse().unwrap();
        assert_eq!(number, *told, "commits are told in their order");
        *told += 1;
    }
}
