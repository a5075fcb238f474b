//! What actions leave behind: nothing on the machine, and the same outputs on every worker.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::client::{Client, Inputs, stdout};
use crate::farm::Farm;

/// Enough for one leaked thing an action to show among what comes and goes.
const ACTIONS: usize = 300;

/// For a long run, such as 10,000.
const ACTIONS_VARIABLE: &str = "CROFT_TEST_ACTIONS";

/// The kernel frees namespaces and keys a while after their last user has gone.
const LIMIT: Duration = Duration::from_secs(30);

/// Descriptors and connections that come and go with requests, whatever ran before.
const SLACK: usize = 8;

/// What a farm and its launcher hold on the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    processes: usize,
    descriptors: usize,
    mounts: usize,
    namespaces: usize,
    keys: usize,
    groups: usize,
}

impl Held {
    pub(crate) fn by(farm: u32) -> Self {
        let family = family(farm);
        let of = |pid: &u32, what: &str| format!("/proc/{pid}/{what}");
        let entries = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
        let lines = |path: String| fs::read_to_string(path).map_or(0, |text| text.lines().count());
        Self {
            processes: family.len(),
            descriptors: family.iter().map(|pid| entries(of(pid, "fd"))).sum(),
            mounts: family.iter().map(|pid| lines(of(pid, "mountinfo"))).sum(),
            namespaces: namespaces(&family).len(),
            keys: lines("/proc/keys".into()),
            groups: group_count(),
        }
    }

    /// What is held when what ends has ended and what is prepared is ready: two counts in a row are the same.
    pub(crate) async fn settled(farm: u32) -> Self {
        let begin = Instant::now();
        let mut last = Self::by(farm);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let next = Self::by(farm);
            if next == last || begin.elapsed() > LIMIT {
                return next;
            }
            last = next;
        }
    }

    /// Waits until the farm holds no more than this.
    pub(crate) async fn until_again(&self, farm: u32) {
        let begin = Instant::now();
        loop {
            let after = Self::by(farm);
            if after.is_within(self) {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "before: {self:?}\nafter: {after:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.processes <= before.processes
            && self.descriptors <= before.descriptors + SLACK
            && self.mounts <= before.mounts
            && self.namespaces <= before.namespaces
            // Other users of the machine make keys and groups, too.
            && self.keys <= before.keys + SLACK
            && self.groups <= before.groups + SLACK
    }
}

/// The farm and everything that descends from it.
pub(crate) fn family(farm: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (_, rest) = stat.rsplit_once(") ")?;
            Some((entry.file_name().to_str()?.parse().ok()?, rest.split(' ').nth(1)?.parse().ok()?))
        })
        .collect();
    let mut family = BTreeSet::from([farm]);
    while parents.iter().any(|(pid, parent)| family.contains(parent) && family.insert(*pid)) {}
    family
}

/// Namespaces that the family is in or holds open.
fn namespaces(family: &BTreeSet<u32>) -> BTreeSet<String> {
    let links = family.iter().flat_map(|pid| [format!("/proc/{pid}/ns"), format!("/proc/{pid}/fd")]);
    let targets = links.flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
    targets
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_owned()))
        .filter(|target| {
            target.contains(":[") && !target.starts_with("socket") && !target.starts_with("pipe")
        })
        .collect()
}

/// Control groups of the machine, by the kernel's own count per hierarchy.
fn group_count() -> usize {
    let text = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let counts =
        text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2)?.parse::<usize>().ok());
    counts.sum()
}

#[tokio::test]
async fn many_actions_leave_no_trace_on_the_machine() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let actions = std::env::var(ACTIONS_VARIABLE).map_or(ACTIONS, |text| text.parse().expect("a number"));
    let run = |number: usize| {
        let client = client.clone();
        async move {
            let response = client.run(&format!(": {number}"), &Inputs::default(), &[]).await;
            assert_eq!(response.result.expect("it ran").exit_code, 0);
        }
    };
    for number in 0..20 {
        run(number).await;
    }
    let before = Held::settled(farm.pid()).await;
    let runs = futures_util::stream::iter((20..actions + 20).map(run));
    futures_util::StreamExt::collect::<()>(futures_util::StreamExt::buffer_unordered(runs, 4)).await;
    before.until_again(farm.pid()).await;
    let left = fs::read_dir(farm.data().join("worker/actions")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "directories of actions");
}

#[tokio::test]
async fn an_action_prints_the_same_on_workers_of_other_names_and_histories() {
    let look = "env | sort; id; umask; ulimit -a; ulimit -Ha | grep -v stack; hostname; cat /etc/hostname; pwd; tty; \
                cat /proc/sys/kernel/domainname; ls -lR --time-style=full-iso | grep -v '^d'; ls -A /tmp /dev /dev/shm; \
                stat -c '%a %u %g %n' . /tmp /dev/shm /build/input; cat /etc/passwd /etc/group /etc/hosts";
    // Small files: they are written for the action. Large ones are the store's own and have its times.
    let inputs = Inputs::default().file("input", "some input").program("tool", "#!/bin/sh\n");
    let mut printed = Vec::new();
    for (name, is_warm) in [("alpha", false), ("a-much-longer-name", true)] {
        let farm = Farm::start_with(&[("CROFT_WORKER__NAME", name)]);
        let client = Client::new(&farm).await;
        if is_warm {
            client.run("mkdir -p a/b; echo warm > /tmp/x", &inputs, &["a"]).await;
        }
        let response = client.run(look, &inputs, &[]).await;
        assert!(!stdout(&response).contains(name), "{}", stdout(&response));
        printed.push(stdout(&response));
    }
    assert_eq!(printed[0], printed[1]);
    assert!(printed[0].starts_with("PATH=/usr/bin:/bin\nPWD=/build\n"), "nothing is added: {}", printed[0]);
}
