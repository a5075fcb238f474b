//! A worker whose machine fails: its faults are not the clients', it is taken out with the reason, and it comes back by itself.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use futures_util::future::join_all;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::Farm;
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
