//! A worker whose machine fails: its faults are not the clients', it is taken out with the reason, and it comes back by itself.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use croft::proto::rev2::ExecuteResponse;
use futures_util::future::join_all;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::{Farm, executable};
use crate::operator::{said, until_said};

/// A small file system of its own, as long as this is held.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None where nobody may mount.
    fn mount(path: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=16m").ok().map(|()| Self(path))
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_full_disk_is_taken_out_says_why_and_comes_back_when_there_is_room() {
    let data = tempfile::tempdir().unwrap();
    let directory = data.path().join("worker");
    let Some(disk) = SmallDisk::mount(&directory) else { return };
    let environment = [
        ("CROFT_WORKER__NAME", "alpha"),
        ("CROFT_WORKER__SLOTS", "3"),
        ("CROFT_SCHEDULER__HEALTH_PROBATION", "1s"),
        // One of them may have all of its attempts before the others have one.
        ("CROFT_SCHEDULER__ATTEMPTS_MAX", "10"),
    ];
    let farm = Farm::start_in(data.path(), &environment);
    let client = Client::new(&farm).await;
    disk.fill();
    let mut actions = Vec::new();
    for number in 0..3 {
        let inputs = Inputs::default().file("in", format!("{number}"));
        actions.push(client.action(&shell("cat in", &[]), &inputs, |_| {}).await);
    }
    let responses = join_all(actions.iter().map(|action| client.execute(client.request(action))));
    let mended = async {
        let status = until_said(&farm, &["status"], "different actions failed in a row").await;
        assert!(status.contains("the disk is full"), "{status}");
        disk.free();
        status
    };
    let (responses, _) = tokio::join!(responses, mended);
    for response in responses {
        let response = response.unwrap();
        assert_eq!(code(&response), 0, "{}", message(&response));
    }
    let status = said(&farm, &["status"]);
    assert!(!status.contains("failed in a row"), "{status}");
}

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The launchers of a farm's sandboxes.
fn launchers(farm: &Farm) -> Vec<Pid> {
    let parent = format!("\nPPid:\t{}\n", farm.pid());
    let is_launcher = |process: &Path| {
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        status.contains(&parent) && String::from_utf8_lossy(&command).contains("launcher")
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let launchers = processes.filter(|process| is_launcher(process));
    launchers.filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)).collect()
}

/// The worker that an action ran on.
fn worker_of(response: ExecuteResponse) -> String {
    assert_eq!(code(&response), 0, "{}", message(&response));
    response.result.expect("it ran").execution_metadata.expect("of a run").worker
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_can_set_up_no_sandbox_is_taken_out_and_its_actions_run_elsewhere() {
    let farm = Farm::start_with(&[
        ("CROFT_WORKERS__LISTEN", "127.0.0.1:0"),
        ("CROFT_WORKER__NAME", "good"),
        ("CROFT_WORKER__SLOTS", "1"),
        // One of them may have more attempts on the bad worker than others have begun.
        ("CROFT_SCHEDULER__ATTEMPTS_MAX", "10"),
    ]);
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("croft");
    std::fs::copy(executable(), &program).unwrap();
    let words = ["sh", "-c", "exec \"$0\"", program.to_str().unwrap()];
    // With more free slots it is the first to be given something.
    let environment = [
        ("CROFT_ROLES", "[\"worker\"]"),
        ("CROFT_WORKER__NAME", "bad"),
        ("CROFT_WORKER__SLOTS", "4"),
        ("CROFT_WORKER__SCHEDULER", &format!("grpc://{}", farm.workers)),
        ("CROFT_STORAGE__TIER", &format!("[{{kind=\"farm\",endpoints=[\"http://{}\"]}}]", farm.public)),
    ];
    let bad = Farm::start_by(&words, &place.path().join("data"), &environment);
    let deadline = Instant::now() + PATIENCE;
    while bad.page("/readyz").await.0 != 200 {
        assert!(Instant::now() < deadline, "it does not get ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_file(&program).unwrap();
    let launchers = launchers(&bad);
    assert_eq!(launchers.len(), 1);
    kill_process(launchers[0], Signal::KILL).unwrap();

    let client = Client::new(&farm).await;
    let scripts: Vec<_> = (0..6).map(|number| format!("echo {number}")).collect();
    let none = Inputs::default();
    let responses = join_all(scripts.iter().map(|script| client.run(script, &none, &[]))).await;
    assert!(responses.into_iter().all(|response| worker_of(response) == "good"));
    let status = until_said(&farm, &["status"], "3 different actions failed in a row").await;
    assert!(status.contains("start the sandbox's launcher"), "{status}");
    assert_eq!(worker_of(client.run("echo after", &none, &[]).await), "good");
}
