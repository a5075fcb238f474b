//! Bad input gets the right code and a sentence that helps, and the farm stays up.

use std::process::Command as Process;

use bytes::Bytes;
use croft::proto::bytestream::WriteRequest;
use croft::proto::rev2::{Action, Command, Directory, DirectoryNode, FileNode, SymlinkNode};
use tonic::Code;

use crate::client::{Client, Inputs, code, message, shell};
use crate::farm::Farm;

#[tokio::test]
async fn output_paths_that_leave_the_tree_are_refused() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    for path in ["/etc/passwd", "../up", "a/../../up", "a/.."] {
        let action = client.action(&shell("true", &[path]), &Inputs::default(), |_| {}).await;
        let response = client.execute(client.request(&action)).await.unwrap();
        assert_eq!(code(&response), Code::InvalidArgument as i32, "{path}: {response:?}");
        assert!(message(&response).contains(&format!("`{path}`")), "{path}: {response:?}");
    }
    assert!(farm.is_alive());
}

#[tokio::test]
async fn what_would_only_eat_memory_or_time_is_refused() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    let endless = format!("{}x", "a/".repeat(50_000));
    let action = client.action(&shell("true", &[&endless]), &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::InvalidArgument as i32, "{response:?}");

    let salted = |action: &mut Action| action.salt = vec![7; 2 << 20];
    let action = client.action(&shell("true", &[]), &Inputs::default(), salted).await;
    let error = client.execute(client.request(&action)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");

    let response = client.run("truncate -s 100G hole", &Inputs::default(), &["hole"]).await;
    assert_eq!(code(&response), Code::FailedPrecondition as i32, "{response:?}");
    assert!(message(&response).contains("107374182400"), "{response:?}");
    assert!(farm.is_alive());
}

#[tokio::test]
async fn working_directories_that_leave_the_tree_or_are_absent_are_refused() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    for directory in ["/", "..", "absent"] {
        let command = Command { working_directory: directory.into(), ..shell("true", &[]) };
        let action = client.action(&command, &Inputs::default(), |_| {}).await;
        let response = client.execute(client.request(&action)).await.unwrap();
        let expected = [Code::InvalidArgument as i32, Code::FailedPrecondition as i32];
        assert!(expected.contains(&code(&response)), "{directory}: {response:?}");
        assert!(message(&response).contains(directory), "{directory}: {response:?}");
    }
}

#[tokio::test]
async fn directories_with_impossible_names_are_refused() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    let empty = client.put_message(&Directory::default()).await;
    let blob = client.put(&b"x"[..]).await;
    let directory = |name: &str| DirectoryNode { name: name.into(), digest: Some(empty.to_proto()) };
    let file =
        |name: &str| FileNode { name: name.into(), digest: Some(blob.to_proto()), ..FileNode::default() };
    let link = |name: &str| SymlinkNode { name: name.into(), target: "t".into(), node_properties: None };
    let mut cases: Vec<(String, Directory)> = Vec::new();
    for name in ["", ".", "..", "a/b", "/abs", "nul\0"] {
        cases.push((name.into(), Directory { directories: vec![directory(name)], ..Directory::default() }));
        cases.push((name.into(), Directory { files: vec![file(name)], ..Directory::default() }));
        cases.push((name.into(), Directory { symlinks: vec![link(name)], ..Directory::default() }));
    }
    let twice = Directory {
        files: vec![file("twice")],
        directories: vec![directory("twice")],
        ..Directory::default()
    };
    cases.push(("twice".into(), twice));
    for (name, root) in cases {
        let root = client.put_message(&root).await;
        let change = |action: &mut Action| action.input_root_digest = Some(root.to_proto());
        let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
        let response = client.execute(client.request(&action)).await.unwrap();
        assert_eq!(code(&response), Code::InvalidArgument as i32, "{name:?}: {response:?}");
    }
    assert!(farm.is_alive());
}

/// A hash cannot contain itself, but a server that trusts names over content could be told so.
#[tokio::test]
async fn a_directory_that_names_itself_cannot_be_stored() {
    let mut farm = Farm::start();
    let client = Client::new(&farm).await;
    let digest = croft::digest::Function::Sha256.hash(b"a guess");
    let node = DirectoryNode { name: "self".into(), digest: Some(digest.to_proto()) };
    let content =
        prost::Message::encode_to_vec(&Directory { directories: vec![node], ..Directory::default() });
    let name = format!("uploads/x/blobs/{}/{}", digest.hex(), content.len());
    let error = client.write(crate::client::pieces(&name, &Bytes::from(content), 0)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    // So a walk over it ends: what it names is absent.
    let change = |action: &mut Action| action.input_root_digest = Some(digest.to_proto());
    let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::FailedPrecondition as i32, "{response:?}");
    assert!(farm.is_alive());
}

#[tokio::test]
async fn messages_that_do_not_parse_are_refused() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let garbage = client.put(vec![0xff; 100]).await;
    let error = client.execute(client.request(&garbage)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    let change = |action: &mut Action| action.command_digest = Some(garbage.to_proto());
    let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
    assert_eq!(client.execute(client.request(&action)).await.unwrap_err().code(), Code::InvalidArgument);
    let change = |action: &mut Action| action.input_root_digest = Some(garbage.to_proto());
    let action = client.action(&shell("true", &[]), &Inputs::default(), change).await;
    let response = client.execute(client.request(&action)).await.unwrap();
    assert_eq!(code(&response), Code::InvalidArgument as i32, "{response:?}");
    let no_arguments = client.action(&Command::default(), &Inputs::default(), |_| {}).await;
    let response = client.execute(client.request(&no_arguments)).await.unwrap();
    assert_eq!(code(&response), Code::InvalidArgument as i32, "{response:?}");
}

#[tokio::test]
async fn a_hundred_thousand_outputs_pass_with_few_open_files() {
    let farm = Farm::start();
    let client = Client::new(&farm).await;
    let script = "mkdir d && cd d && seq -f 'f%06g' 100000 | xargs touch && printf x > last";
    // The farm holds a socket and a few files; 1,024 is what a shell gives it.
    let limit = rustix::process::Rlimit { current: Some(1024), maximum: Some(1024) };
    let pid = rustix::process::Pid::from_raw(farm.pid().cast_signed());
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    let response = client.run(script, &Inputs::default(), &["d"]).await;
    assert_eq!(code(&response), 0, "{}", message(&response));
    let digest = response.result.unwrap().output_directories[0].tree_digest.clone().unwrap();
    let name = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
    let tree: croft::proto::rev2::Tree =
        prost::Message::decode(client.read(&name, 0, 0).await.unwrap().as_slice()).unwrap();
    assert_eq!(tree.root.unwrap().files.len(), 100_001);
}

#[tokio::test]
async fn a_size_that_is_only_declared_evicts_nothing() {
    let farm = Farm::start_with(&[("CROFT_STORAGE__SIZE", "256 MiB")]);
    let client = Client::new(&farm).await;
    let kept: Vec<Bytes> = (0..100_u8).map(|number| Bytes::from(vec![number; 1 << 20])).collect();
    let mut digests = Vec::new();
    for content in &kept {
        digests.push(client.write_blob(content).await.unwrap());
    }
    let name = format!("uploads/big/blobs/{}/{}", "ab".repeat(32), 250 << 20);
    let data = Bytes::from(vec![0; 1000]);
    let message = WriteRequest { resource_name: name, data, ..WriteRequest::default() };
    assert_eq!(client.write(vec![message]).await.unwrap(), 1000);
    assert_eq!(client.missing(&digests).await, []);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_goes_on_reading() {
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("skipped a_full_disk_refuses_writes_and_goes_on_reading: {reason}");
            return;
        }
    };
    let mut farm = Farm::start_in(&disk.path(), &[("CROFT_STORAGE__SIZE", "10 GiB")]);
    let client = Client::new(&farm).await;
    let kept = Bytes::from(vec![1; 1 << 20]);
    let digest = client.write_blob(&kept).await.unwrap();
    let too_large = Bytes::from(vec![2; 200 << 20]);
    let error = client.write_blob(&too_large).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.message().contains("full"), "{error:?}");
    assert!(farm.is_alive());
    assert_eq!(client.read_blob(&digest).await.unwrap(), kept, "what fits is still there");
    let small = client.put(&b"room for little things again"[..]).await;
    assert_eq!(client.missing(&[small]).await, []);

    let filler = disk.path().join("filler");
    disk.fill(&filler);
    let content = Bytes::from(vec![3; 2 << 20]);
    let error = client.write_blob(&content).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(farm.is_alive());
    assert_eq!(client.read_blob(&digest).await.unwrap(), kept, "reading needs no room");
    std::fs::remove_file(filler).unwrap();
    let late = client.write_blob(&content).await.unwrap();
    assert_eq!(client.read_blob(&late).await.unwrap(), content, "room again, and no restart");
}

/// A file system of 128 MiB in a file, mounted; unmounted when dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting a file system needs root".into());
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = Self { directory };
        let image = disk.directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        run(Process::new("mkfs.ext4").arg("-qF").arg(&image))?;
        run(Process::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("mounted")
    }

    /// Writes a file until nothing more fits.
    fn fill(&self, filler: &std::path::Path) {
        let mut file = std::fs::File::create(filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 64 << 10]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a farm that is being killed may hold it for a moment.
        let _ = run(Process::new("umount").arg("--lazy").arg(self.path()));
    }
}

fn run(command: &mut Process) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
