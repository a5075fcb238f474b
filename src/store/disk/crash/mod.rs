//! Crashes, by killing a process that writes and by cutting the power of its disk: what was acknowledged is there afterwards.
//!
//! The writer is this test's own program, started again for [`writer`] alone. It tells each put before and after; `book` keeps
//! what it told, and what must therefore be there. The index has the disk whose power can be cut.

mod book;
mod load;

use self::book::Book;
use super::*;
use crate::index::crash::Writer;
use crate::index::power::{self, Image, Power};

/// The store's limit: small, so that it evicts all the time.
const SIZE: u64 = 36 << 20;

const KILLS: u32 = 200;
const POWER_CUTS: u32 = 20;

/// Acknowledged puts before a kill, at most: 50 to 150 ms of writing. There are fewer power cuts, so each gets more.
const PUTS_MAX: usize = 150;
const PUTS_BEFORE_CUT_MAX: usize = 450;

const DIRECTORY: &str = "CROFT_CRASH_DIRECTORY";
const ROUND: &str = "CROFT_CRASH_ROUND";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "this is the process that is killed; it never ends by itself"]
async fn writer() {
    let (Ok(directory), Ok(round)) = (std::env::var(DIRECTORY), std::env::var(ROUND)) else { return };
    let round = round.parse().unwrap();
    let disk = Disk::open(Path::new(&directory), options(round)).unwrap();
    // Time goes on, so that what earlier rounds have put may be evicted before a put needs the room, too.
    disk.shared.clock.ahead.store(round * (options::LEASE_MINUTES_MIN + 2), Ordering::Relaxed);
    load::run(&disk, round).await;
}

/// Every other round compresses.
fn options(round: u32) -> Options {
    Options { compression: round % 2 == 1, ..Options::new(SIZE) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_two_hundred_kills() {
    // A kill loses nothing of what the kernel has, so the disk itself does not matter.
    let directory = tempfile::TempDir::new_in(power::place()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut book = Book::default();
    for round in 0..KILLS {
        let writer = start(directory.path(), round);
        follow(&writer, random.usize(1..=PUTS_MAX), &mut book);
        kill(writer, &mut book);
        book.check(directory.path(), options(round + 1)).await;
    }
    is_sound_after_a_scrub(directory.path()).await;
    book.report("kills", KILLS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_twenty_power_cuts() {
    let mut image = match Image::new() {
        Ok(image) => image,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let mut random = fastrand::Rng::with_seed(2);
    let mut book = Book::default();
    for round in 0..POWER_CUTS {
        let power = Power::on(image);
        let writer = start(&power.directory(), round);
        follow(&writer, random.usize(1..=PUTS_BEFORE_CUT_MAX), &mut book);
        writer.stop();
        let cut = power.cut();
        kill(writer, &mut book);
        image = power.off(cut);
        let power = Power::on(image);
        book.check(&power.directory(), options(round + 1)).await;
        image = power.off_cleanly();
    }
    let power = Power::on(image);
    is_sound_after_a_scrub(&power.directory()).await;
    power.off_cleanly();
    book.report("power cuts", POWER_CUTS);
}

/// A scrub finds nothing damaged and nothing lost, takes up what lost its entry, and leaves nothing for a second one.
async fn is_sound_after_a_scrub(directory: &Path) {
    let directory = directory.join("cas");
    let disk = Disk::open(&directory, options(0)).unwrap();
    let first = disk.scrub(None).await.unwrap();
    println!("{first:?}");
    assert_eq!((first.damaged, first.lost), (0, 0), "{first:?}");
    assert_eq!(temporary_files(&directory), 0, "temporary files are left");
    let second = disk.scrub(None).await.unwrap();
    let findings = (second.damaged, second.lost, second.adopted, second.removed_temporary);
    assert_eq!(findings, (0, 0, 0, 0), "{second:?}");
}

fn temporary_files(directory: &Path) -> usize {
    fs::read_dir(directory.join("tmp")).unwrap().count()
}

fn start(directory: &Path, round: u32) -> Writer {
    let place = directory.join("cas");
    Writer::start("store::disk::crash::writer", (DIRECTORY, &place), &[(ROUND, round.to_string())])
}

/// Takes notes until `puts` of them are acknowledged.
fn follow(writer: &Writer, puts: usize, book: &mut Book) {
    let mut acknowledged = 0;
    while acknowledged < puts {
        acknowledged += usize::from(book.note(&writer.line()));
    }
}

/// Kills it and notes what it had said until then.
fn kill(writer: Writer, book: &mut Book) {
    for line in writer.kill() {
        book.note(&line);
    }
}
