//! Control groups as far as every Linux has them: without controllers they still count and kill.

use super::*;

/// A control group that belongs to `nobody`, as systemd's `Delegate=yes` makes one.
pub(super) struct Delegated(PathBuf);

impl Delegated {
    pub(super) fn new() -> Option<Self> {
        let Some(groups) = claim(None, 1 << 40).groups else {
            eprintln!("without control groups: this machine gives none");
            return None;
        };
        let parent = groups.directory().parent().expect("it is below the own group");
        let delegated = Self(parent.join(format!("croft-test-{}", std::process::id())));
        fs::create_dir(&delegated.0).expect("mkdir");
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(delegated.0.join(name), Some(65534), Some(65534)).expect("chown");
        }
        Some(delegated)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // Farms that a test kills leave their groups to the next worker's start. Only groups without processes can be deleted.
        for life in directories(&self.0) {
            directories(&life).iter().for_each(|group| drop(fs::remove_dir(group)));
            let _ = fs::remove_dir(life);
        }
        let removed = fs::remove_dir(&self.0);
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "the run leaves no control group behind: {removed:?}"
        );
    }
}

#[tokio::test]
async fn an_action_is_at_the_root_of_its_control_groups_and_leaves_none_behind() {
    let bench = Bench::new();
    for number in 0..20 {
        let outcome = bench.run(&format!("a{number}"), "cat /proc/self/cgroup; setsid sleep 7777 &").await;
        outcome.succeeded();
        assert!(outcome.stdout.lines().all(|line| line.ends_with(":/")), "{}", outcome.stdout);
    }
    let running = bench.start("killed", "setsid sleep 7778 & sleep 7778").await;
    drop(running);
    let Some(groups) = &bench.groups else {
        let is_delegated = std::env::var_os("GROUP").is_some_and(|group| !group.is_empty());
        assert!(!is_delegated, "a delegated control group is used");
        println!("skipped: the worker may make no control groups here");
        return;
    };
    let directory = groups.directory().to_owned();
    let names = || -> Vec<_> {
        let entries = fs::read_dir(&directory).expect("list").flatten();
        let groups = entries.filter(|entry| entry.file_type().expect("a type").is_dir());
        groups.map(|entry| entry.file_name()).collect()
    };
    // One whose processes were still ending is deleted with a later action.
    let mut later = 0;
    while names() != ["launcher"] {
        assert!(later < 100, "{:?}", names());
        bench.run(&format!("later{later}"), "true").await.succeeded();
        later += 1;
    }
    drop(bench);
    assert!(!directory.exists(), "the worker's own go with it");
}

#[tokio::test]
async fn processes_are_bounded_also_without_control_groups() {
    let mut bench = Bench::new();
    bench.limits.processes = 20;
    let script = "i=0; while [ $i -lt 200 ]; do sleep 7779 & i=$((i+1)); done; echo $i";
    let outcome = bench.run("a", script).await;
    outcome.failed();
    assert_eq!(outcome.stdout, "");
    bench.run("b", "sleep 0 & wait; echo another").await.succeeded();
}
