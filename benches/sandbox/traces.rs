//! What is left on the machine by many actions that do nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel frees namespaces and groups a while after their last user has gone.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// What this process, the launcher and all that they have started hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    processes: usize,
    descriptors: usize,
    mounts: usize,
    namespaces: usize,
    groups: usize,
}

impl Held {
    /// Counts, with the control groups below `groups`.
    pub(crate) fn count(groups: Option<&Path>) -> Self {
        let family = family();
        let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        let of = |pid: &u32, what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
        let links = family.iter().flat_map(|pid| [of(pid, "ns"), of(pid, "fd")]).flat_map(entries);
        let targets = links.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_namespace = |target: &PathBuf| {
            ["cgroup:[", "ipc:[", "mnt:[", "net:[", "pid:[", "time:[", "user:[", "uts:["]
                .iter()
                .any(|kind| target.to_string_lossy().starts_with(kind))
        };
        let lines = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let is_group = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        Self {
            processes: family.len(),
            descriptors: family.iter().map(|pid| entries(of(pid, "fd")).count()).sum(),
            mounts: family.iter().map(|pid| lines(of(pid, "mountinfo"))).sum(),
            namespaces: targets.filter(is_namespace).collect::<BTreeSet<_>>().len(),
            groups: groups.map_or(0, |path| entries(path.to_owned()).filter(is_group).count()),
        }
    }

    /// Counts when what ends has ended: until two counts in a row are the same.
    pub(crate) fn settled(groups: Option<&Path>) -> Self {
        let end = Instant::now() + LIMIT;
        let mut last = Self::count(groups);
        loop {
            std::thread::sleep(PAUSE);
            let now = Self::count(groups);
            if now == last || Instant::now() > end {
                return now;
            }
            last = now;
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.processes <= before.processes
            && self.descriptors <= before.descriptors
            && self.mounts <= before.mounts
            && self.namespaces <= before.namespaces
            && self.groups <= before.groups
    }

    /// Waits until no more is held than this; what is held at the end, and whether it is no more.
    pub(crate) fn returns(&self, groups: Option<&Path>) -> (Self, bool) {
        let end = Instant::now() + LIMIT;
        loop {
            let now = Self::count(groups);
            if now.is_within(self) || Instant::now() > end {
                return (now, now.is_within(self));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// This process and all that descend from it.
fn family() -> BTreeSet<u32> {
    let parent = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        Some((entry.file_name().to_str()?.parse().ok()?, rest.split(' ').nth(1)?.parse().ok()?))
    };
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc").unwrap().flatten().filter_map(parent).collect();
    let mut family = BTreeSet::from([std::process::id()]);
    while parents.iter().any(|(pid, parent)| family.contains(parent) && family.insert(*pid)) {}
    family
}
