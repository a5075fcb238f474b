//! What it costs to give an action its inputs: 10,000 files cold, warm, and with one file changed, beside linking and copying them.
//!
//! `cargo bench --bench staging`. The files have 5 to 11 KiB, so the store keeps each as a file. All is in one directory, in that named by
//! `CROFT_BENCH_DIRECTORY` or else in that of temporary files, which decides what is measured: ext4 is slow at making inodes where
//! many were deleted a moment ago.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on panics"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft::digest::{Digest, Function};
use croft::proto::rev2::{Directory, DirectoryNode, FileNode};
use croft::store::{Cas, Disk, DiskOptions};
use croft::worker::inputs::{Inputs, Staged};
use croft::worker::sandbox::{Config, End, Launcher, Limits, Scratch, Spec, System, claim};
use prost::Message;

const FILES: usize = 10_000;
const STORE_BYTES: u64 = 4 << 30;
const CACHE_BYTES: u64 = 4 << 30;
const REPEATS: usize = 11;
/// Actions that are run to find out what a mount costs, which is less than their time varies on a busy machine.
const RUNS: usize = 41;

/// The goals of the issue, each with the overlay's share of the sandbox.
const WARM_MAX: Duration = Duration::from_millis(5);
const CHANGE_MAX: Duration = Duration::from_millis(20);

/// Files in directories: `folders` of them, beside each other or each in the one before.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    files: usize,
    folders: usize,
    is_deep: bool,
}

const LAYOUTS: [Layout; 4] = [
    Layout { name: "100 directories of 100 files", files: FILES, folders: 100, is_deep: false },
    Layout { name: "one directory of 10,000 files", files: FILES, folders: 1, is_deep: false },
    Layout { name: "100 files at each of 100 levels", files: FILES, folders: 100, is_deep: true },
    Layout { name: "32 files in 4 directories", files: 32, folders: 4, is_deep: false },
];

struct Bench {
    directory: tempfile::TempDir,
    cas: Cas,
    launcher: Launcher,
    actions: usize,
}

impl Bench {
    fn new() -> Self {
        let parent = std::env::var_os("CROFT_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = tempfile::tempdir_in(parent).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let disk = Disk::open(&directory.path().join("cas"), DiskOptions::new(STORE_BYTES)).unwrap();
        let config = Config {
            directory: directory.path().to_owned(),
            roots: vec![System::Directories("/".into())],
            uid: 65534,
            gid: 65534,
            networks: 1,
            scratch: Scratch::Memory,
            groups: claim(Some((65534, 65534)), Limits::AMPLE.memory_bytes).groups,
        };
        let launcher = Launcher::start(Path::new(env!("CARGO_BIN_EXE_croft")), config).unwrap();
        Self { directory, cas: Cas::new(Arc::new(disk)), launcher, actions: 0 }
    }

    fn inputs(&self) -> Inputs {
        // A cache for each layout: what another one left would help.
        let ownership = self.launcher.ownership();
        let _ = fs::remove_dir_all(self.directory.path().join("inputs"));
        Inputs::open(self.cas.clone(), self.directory.path(), CACHE_BYTES, ownership).unwrap()
    }

    /// Stores the root whose file `changed` has another content.
    async fn root(&self, layout: Layout, changed: Option<usize>) -> Digest {
        let each = layout.files / layout.folders;
        let (mut below, mut nodes) = (None, Vec::new());
        for folder in (0..layout.folders).rev() {
            let numbers = folder * each..(folder + 1) * each;
            let contents = numbers.map(|number| (number, content(layout, number, changed == Some(number))));
            let mut files = Vec::new();
            let mut blobs = Vec::new();
            for (number, bytes) in contents {
                let digest = Function::Sha256.hash(&bytes);
                let name = format!("file-{number:05}.h");
                files.push(FileNode { name, digest: Some(digest.to_proto()), ..FileNode::default() });
                blobs.push((digest, bytes.into()));
            }
            self.cas.put_all(blobs).await.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
            let directories = below.take().into_iter().collect();
            let digest = self.put(&Directory { files, directories, ..Directory::default() }).await;
            let node = DirectoryNode { name: format!("dir-{folder:03}"), digest: Some(digest.to_proto()) };
            match layout.is_deep {
                true => below = Some(node),
                false => nodes.insert(0, node),
            }
        }
        nodes.extend(below);
        self.put(&Directory { directories: nodes, ..Directory::default() }).await
    }

    async fn put(&self, directory: &Directory) -> Digest {
        self.cas.put_bytes(Function::Sha256, directory.encode_to_vec().into()).await.unwrap()
    }

    /// The time that a command which does nothing takes over these layers.
    async fn run(&mut self, layers: Vec<String>) -> Duration {
        self.actions += 1;
        let directory = format!("action-{}", self.actions);
        fs::create_dir_all(self.directory.path().join(&directory)).unwrap();
        let spec = Spec {
            directory,
            layers,
            arguments: vec!["/bin/true".to_owned()],
            environment: Vec::new(),
            working_directory: String::new(),
            root: 0,
            limits: Limits::AMPLE,
        };
        let begin = Instant::now();
        let exit = self.launcher.run(spec).await.unwrap().wait().await.unwrap();
        assert_eq!(exit.end, End::Exited(0));
        begin.elapsed()
    }

    /// What the layers cost more than an empty input root.
    async fn mount(&mut self, layers: &[String]) -> Duration {
        let empty = self.directory.path().join("empty");
        fs::create_dir_all(&empty).unwrap();
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            with.push(self.run(layers.to_vec()).await);
            without.push(self.run(vec!["empty".to_owned()]).await);
        }
        median(with).saturating_sub(median(without))
    }

    async fn measure(&mut self, layout: Layout) {
        println!("\n{} ({} files)", layout.name, layout.files);
        let root = self.root(layout, None).await;
        let mut changes = Vec::new();
        for number in 0..REPEATS {
            changes.push(self.root(layout, Some(number * (layout.files / REPEATS))).await);
        }
        let inputs = self.inputs();
        let (cold, staged) = timed(inputs.stage(root)).await;
        print_row("cold, store warm", cold, "");
        let mut warm = Vec::new();
        for _ in 0..REPEATS {
            warm.push(timed(inputs.stage(root)).await.0);
        }
        let mount = self.mount(&staged.layers()).await;
        print_row("overlay over an empty root's", mount, "");
        let warm = median(warm) + mount;
        print_row("warm, with that", warm, goal(layout, warm, WARM_MAX));
        let (mut changed, mut last) = (Vec::new(), None);
        for root in changes {
            let (time, staged) = timed(inputs.stage(root)).await;
            assert!(layout.files < FILES || staged.layers().len() == 2, "a layer over the tree");
            changed.push(time);
            last = Some(staged);
        }
        let mount = self.mount(&last.unwrap().layers()).await;
        let most = changed.iter().max().copied().unwrap();
        let change = median(changed) + mount;
        print_row("one file changed, with its mount", change, goal(layout, change, CHANGE_MAX));
        print_row("  the slowest of them, without", most, "");
        self.compare(layout, &staged);
    }

    /// Links and copies the same files, as the simplest worker does.
    fn compare(&self, layout: Layout, staged: &Staged) {
        let tree = self.directory.path().join(&staged.layers()[0]);
        let mut entries = Vec::new();
        list(&tree, Path::new(""), &mut entries);
        assert_eq!(entries.iter().filter(|(_, is_directory)| !is_directory).count(), layout.files);
        type Place = fn(&Path, &Path) -> std::io::Result<()>;
        let ways: [(&str, Place); 2] = [
            ("linking each file", |from, to| fs::hard_link(from, to)),
            ("copying each file", |from, to| fs::copy(from, to).map(|_| ())),
        ];
        for (what, place) in ways {
            let target = tempfile::tempdir_in(self.directory.path()).unwrap();
            let begin = Instant::now();
            for (path, is_directory) in &entries {
                let to = target.path().join(path);
                match is_directory {
                    true => fs::create_dir(to).unwrap(),
                    false => place(&tree.join(path), &to).unwrap(),
                }
            }
            print_row(what, begin.elapsed(), "");
        }
    }
}

fn content(layout: Layout, number: usize, is_changed: bool) -> Vec<u8> {
    let word = if is_changed { "changed" } else { "input" };
    let line = format!("{word} {number} of {}\n", layout.name);
    line.as_bytes().iter().copied().cycle().take(5_000 + number % 13 * 500).collect()
}

/// All below `path` of `tree`, parents first.
fn list(tree: &Path, path: &Path, entries: &mut Vec<(PathBuf, bool)>) {
    for entry in fs::read_dir(tree.join(path)).unwrap() {
        let entry = entry.unwrap();
        let (path, is_directory) = (path.join(entry.file_name()), entry.file_type().unwrap().is_dir());
        entries.push((path.clone(), is_directory));
        if is_directory {
            list(tree, &path, entries);
        }
    }
}

async fn timed(staging: impl Future<Output = croft::error::Result<Staged>>) -> (Duration, Staged) {
    let begin = Instant::now();
    let staged = staging.await.unwrap();
    (begin.elapsed(), staged)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn goal(layout: Layout, time: Duration, most: Duration) -> &'static str {
    match (layout.files == FILES, time < most) {
        (false, _) => "",
        (true, true) => "goal met",
        (true, false) => "goal MISSED",
    }
}

fn print_row(what: &str, time: Duration, remark: &str) {
    println!("  {what:<36} {:>10.3} ms  {remark}", time.as_secs_f64() * 1e3);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut bench = Bench::new();
    println!(
        "inputs {:?}; goals: warm {WARM_MAX:?}, one file changed {CHANGE_MAX:?}",
        bench.launcher.ownership()
    );
    for layout in LAYOUTS {
        bench.measure(layout).await;
    }
}
