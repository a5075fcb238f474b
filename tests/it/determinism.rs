//! The same action on two workers that differ in all that a worker may: the same outputs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use croft::audit::Outcome;
use croft::digest::Digest;
use croft::proto::rev2::{self, Action, DirectoryNode, Platform, platform::Property};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::audit::audit;
use crate::client::{Client, Inputs, code, message, shell, stdout};
use crate::farm::Farm;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Entries of one directory: enough that file systems list them in orders of their own.
const FILES: usize = 300;

/// A file system in memory, as long as this is held.
struct Memory(PathBuf);

impl Memory {
    /// None where nobody may mount.
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"size=256m").ok().map(|()| Self(path))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A farm with a worker on a disk, and one in memory on a host of another name, whose actions are another user there.
struct Two {
    farm: Farm,
    _other: Farm,
    _memory: Memory,
    _data: tempfile::TempDir,
}

impl Two {
    /// None where that takes privileges which nobody has.
    async fn start() -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let memory = Memory::mount(data.path().join("worker"))?;
        let farm = Farm::start_with(&[
            ("CROFT_WORKERS__LISTEN", "127.0.0.1:0"),
            ("CROFT_WORKER__NAME", "disk"),
            ("CROFT_WORKER__PROPERTIES", "{Pool=[\"disk\"]}"),
        ]);
        let other = other(&farm, data.path());
        let deadline = Instant::now() + PATIENCE;
        while other.page("/readyz").await.0 != 200 {
            assert!(Instant::now() < deadline, "the other worker does not get ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(Self { farm, _other: other, _memory: memory, _data: data })
    }
}

fn other(farm: &Farm, data: &Path) -> Farm {
    let environment = [
        ("CROFT_ROLES", "[\"worker\"]"),
        ("CROFT_WORKER__NAME", "memory"),
        ("CROFT_WORKER__PROPERTIES", "{Pool=[\"memory\"]}"),
        ("CROFT_WORKER__UID", "54321"),
        ("CROFT_WORKER__GID", "54321"),
        ("CROFT_WORKER__SCHEDULER", &format!("grpc://{}", farm.workers)),
        ("CROFT_STORAGE__TIER", &format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", farm.public)),
        ("TZ", "Pacific/Chatham"),
        ("LANG", "tr_TR.UTF-8"),
    ];
    let script = "hostname elsewhere && umask 077 && cd / && exec \"$0\"";
    Farm::start_by(&["unshare", "--uts", "sh", "-c", script], data, &environment)
}

/// A tree with a large directory, in which all contents are there twice; `more` makes it another one.
async fn inputs(client: &Client, more: &str) -> Inputs {
    let contents: Vec<_> = (0..FILES).map(|number| format!("{}\n", number / 2).into()).collect();
    let digests = client.put_all(contents).await;
    let file = |(number, digest): (usize, &Digest)| rev2::FileNode {
        name: format!("{:08x}", number.wrapping_mul(0x9E37_79B9) & 0xFFFF_FFFF),
        digest: Some(digest.to_proto()),
        is_executable: number % 7 == 0,
        node_properties: None,
    };
    let mut files: Vec<_> = digests.iter().enumerate().map(file).collect();
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let large = client.put_message(&rev2::Directory { files, ..rev2::Directory::default() }).await;
    let mut inputs = Inputs::default().file("plain", "plain\n").file("more", more.to_owned());
    inputs.root.directories = vec![DirectoryNode { name: "large".into(), digest: Some(large.to_proto()) }];
    inputs
}

async fn run(client: &Client, command: &rev2::Command, inputs: &Inputs, pool: &[&str]) -> (Digest, String) {
    let property = |value: &&str| Property { name: "Pool".into(), value: (*value).into() };
    let platform = Platform { properties: pool.iter().map(property).collect() };
    let change = |action: &mut Action| action.platform = Some(platform);
    let action = client.action(command, inputs, change).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), 0, "{}", message(&response));
    assert_eq!(response.result.as_ref().unwrap().exit_code, 0, "{response:?}");
    (action, stdout(&response))
}

/// All that a command may look at and that is no more than its action says: who and where it is, its environment, its files with
/// their modes, owners, times and links to one another, and what archivers make of them.
const LOOK: &str = "{ id; uname -n; hostname; umask; pwd; env | sort; date -r plain +%FT%T; ulimit -a; cat /etc/hosts /etc/passwd; } > world; \
     find large plain more -type f -printf '%p %m %U %G %T@ %s\\n' | sort > files; sha256sum large/* plain more > sums; \
     tar --sort=name -cf all.tar large plain; mkdir -p new/deep; echo x > new/deep/x; ln -s x new/deep/link; \
     stat -c '%n %a %U %Y' large more >> world; echo seen";

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_that_differ_in_everything_make_the_same_outputs() {
    let Some(two) = Two::start().await else {
        eprintln!("skipped: nobody may mount here");
        return;
    };
    let client = Client::new(&two.farm).await;
    // One of them has a tree already that differs a little, so that it has the other as a layer over that.
    run(&client, &shell("true", &[]), &inputs(&client, "another").await, &["memory"]).await;
    let outputs = ["world", "files", "sums", "all.tar", "new"];
    let (action, printed) = run(&client, &shell(LOOK, &outputs), &inputs(&client, "this").await, &[]).await;
    assert_eq!(printed, "seen\n");
    let (exit, reports) = audit(&two.farm, &[&action]).await;
    let workers = [&reports[0].first_worker, &reports[0].second_worker];
    assert!(workers.contains(&&"disk".to_owned()) && workers.contains(&&"memory".to_owned()), "{reports:?}");
    assert_eq!((exit, reports[0].outcome), (0, Outcome::Same), "{reports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_an_unsorted_listing_is_all_that_a_cache_may_leave_and_an_audit_names_who_looks() {
    let Some(two) = Two::start().await else {
        eprintln!("skipped: nobody may mount here");
        return;
    };
    let client = Client::new(&two.farm).await;
    let script = "ls -U large > order; sort order > names; find . -printf '%p\\n' > walk; sort walk > paths";
    let outputs = ["order", "names", "walk", "paths"];
    let (action, _) = run(&client, &shell(script, &outputs), &inputs(&client, "this").await, &[]).await;
    let (_, reports) = audit(&two.farm, &[&action]).await;
    assert_ne!(reports[0].outcome, Outcome::Failed, "{reports:?}");
    let differing: Vec<&str> = reports[0].differences.iter().map(|one| one.path.as_str()).collect();
    eprintln!("the order of listings differs in {differing:?}");
    assert!(differing.iter().all(|path| ["order", "walk"].contains(path)), "{reports:?}");
}
