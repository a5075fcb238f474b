//! Steps that run as processes of their own, and what they take from the machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STEP: &str = "--step";

/// Bytes of one read of a file.
const PIECE: usize = 1 << 20;

/// What a step tells at its end.
pub(crate) struct Usage {
    pub(crate) elapsed: Duration,
    pub(crate) resident_bytes: u64,
    pub(crate) peak_bytes: u64,
    /// What the store says that it holds.
    pub(crate) accounted_bytes: u64,
}

impl Usage {
    pub(crate) fn now(elapsed: Duration) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kibibytes = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let metrics = croft::metrics::render();
        let accounted =
            metrics.lines().find_map(|it| it.strip_prefix("nativelink_store_size_bytes{tier=\"disk\"} "));
        Self {
            elapsed,
            resident_bytes: kibibytes("VmRSS:") << 10,
            peak_bytes: kibibytes("VmHWM:") << 10,
            accounted_bytes: accounted.map_or(0, |bytes| bytes.parse::<f64>().unwrap() as u64),
        }
    }

    /// Tells whoever started this step.
    pub(crate) fn tell(&self) {
        let Self { elapsed, resident_bytes, peak_bytes, accounted_bytes } = self;
        println!("{} {resident_bytes} {peak_bytes} {accounted_bytes}", elapsed.as_micros());
    }

    fn parse(told: &str) -> Self {
        let mut numbers = told.split_whitespace().map(|number| number.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        Self {
            elapsed: Duration::from_micros(next()),
            resident_bytes: next(),
            peak_bytes: next(),
            accounted_bytes: next(),
        }
    }
}

/// The step that this process is, and its arguments.
pub(crate) fn step(arguments: &[String]) -> Option<(&str, &[String])> {
    let [first, step, rest @ ..] = arguments else { return None };
    (first == STEP).then_some((step.as_str(), rest))
}

/// Runs a step on `directory` and returns what it took.
pub(crate) fn run(step: &str, directory: &Path, arguments: &[String]) -> Usage {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([STEP, step]).arg(directory).args(arguments).stdout(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "the step `{step}` failed");
    Usage::parse(&String::from_utf8(output.stdout).unwrap())
}

/// Reads a file as fast as the machine can.
pub(crate) fn read_all(path: &Path) {
    let start = Instant::now();
    let (mut file, mut buffer) = (File::open(path).unwrap(), vec![0; PIECE]);
    while file.read(&mut buffer).unwrap() > 0 {}
    Usage::now(start.elapsed()).tell();
}

/// The bytes that a directory takes from the disk, as `du` counts them.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    let own = directory.metadata().unwrap().blocks() * 512;
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let inside = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => disk_bytes(&entry.path()),
        false => entry.metadata().unwrap().blocks() * 512,
    });
    own + inside.sum::<u64>()
}
