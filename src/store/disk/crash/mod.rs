//! Crashes, by killing a process that writes and by cutting the power of its disk: what was acknowledged is there afterwards.
//!
//! The writer is this test's own program, started again for [`writer`] alone. It tells each put before and after; `book` keeps
//! what it told, and what must therefore be there. `power` is a disk whose power can be cut.

mod book;
mod load;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use self::book::Book;
use super::*;
use crate::index::power::{self, Image, Power};

/// The store's limit: small, so that it evicts all the time.
const SIZE: u64 = 36 << 20;

const KILLS: u32 = 200;
const POWER_CUTS: u32 = 20;

/// Acknowledged puts before a kill, at most: 50 to 150 ms of writing. There are fewer power cuts, so each gets more.
const PUTS_MAX: usize = 150;
const PUTS_BEFORE_CUT_MAX: usize = 450;

/// How long the writer may take for anything: far more than it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of the writer that wait to be read.
const LINES_MAX: usize = 10_000;

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
        let mut writer = Writing::start(directory.path(), round);
        writer.follow(random.usize(1..=PUTS_MAX), &mut book);
        writer.kill(&mut book);
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
        let mut writer = Writing::start(&power.directory(), round);
        writer.follow(random.usize(1..=PUTS_BEFORE_CUT_MAX), &mut book);
        writer.stop();
        let cut = power.cut();
        writer.kill(&mut book);
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

/// A writer at work. Dropping it kills it.
struct Writing {
    child: Child,
    lines: Receiver<String>,
}

impl Writing {
    fn start(directory: &Path, round: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::disk::crash::writer", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.join("cas"))
            .env(ROUND, round.to_string())
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

    /// Takes notes until `puts` of them are acknowledged.
    fn follow(&mut self, puts: usize, book: &mut Book) {
        let mut acknowledged = 0;
        while acknowledged < puts {
            let line = self.lines.recv_timeout(PATIENCE).expect("the writer writes until it is killed");
            acknowledged += usize::from(book.note(&line));
        }
    }

    /// Stops it in the middle of what it does; nothing is acknowledged after that.
    fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !power::is_stopped(self.child.id()) {
            assert!(Instant::now() < deadline, "the writer does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it and notes what it had said until then.
    fn kill(mut self, book: &mut Book) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for line in &self.lines {
            book.note(&line);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // It may be dead already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
