//! Leases over input trees that others have used before.

use super::*;

impl Farm {
    /// Stores a root of plain files and subdirectories.
    async fn root(&self, files: &[(&str, &str)], directories: &[(&str, rev2::Digest)]) -> rev2::Digest {
        let mut root = rev2::Directory::default();
        for (name, content) in files {
            let digest = Some(self.put((*content).to_owned()).await);
            root.files.push(rev2::FileNode { name: (*name).into(), digest, ..rev2::FileNode::default() });
        }
        for (name, digest) in directories {
            let digest = Some(digest.clone());
            root.directories.push(rev2::DirectoryNode { name: (*name).into(), digest });
        }
        self.put(root.encode_to_vec()).await
    }

    /// Runs a script over `root`; what it prints.
    async fn run_over(&mut self, root: rev2::Digest, script: &str, outputs: &[&str]) -> (i32, String) {
        let variable =
            rev2::command::EnvironmentVariable { name: "PATH".into(), value: "/usr/bin:/bin".into() };
        let command = rev2::Command {
            arguments: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            environment_variables: vec![variable],
            output_paths: outputs.iter().map(|path| (*path).to_owned()).collect(),
            ..rev2::Command::default()
        };
        let command = self.put(command.encode_to_vec()).await;
        self.start_action(command, root, 20).await;
        let response = self.response().await;
        let result = response.result.clone().unwrap_or_else(|| panic!("{response:?}"));
        (result.exit_code, self.text(result.stdout_digest.as_ref()).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_their_directories_over_a_shared_tree_and_leave_none_there() {
    let mut farm = Farm::start().await;
    let inner = farm.root(&[("x", "one")], &[]).await;
    let both = [("kept", inner.clone()), ("gone", inner.clone())];
    let base = farm.root(&[("a", "a")], &both).await;
    let root = farm.root(&[("a", "changed")], &both[..1]).await;
    let list = "find . | sort | tr '\\n' ' '; stat -c %Y kept";
    let plain = ". ./a ./gone ./gone/x ./kept ./kept/x 946684800\n";
    assert_eq!(farm.run_over(base.clone(), list, &[]).await, (0, plain.to_owned()));
    let seen = ". ./a ./gone ./gone/deep ./kept ./kept/new ./kept/x 946684800\n";
    let outputs = ["gone/deep/out", "kept/new/out", "kept/out"];
    let script = format!("{list}; echo x > gone/deep/out; echo y > kept/new/out");
    assert_eq!(farm.run_over(root.clone(), &script, &outputs).await, (0, seen.to_owned()));
    // Neither the tree nor the layer over it has got what outputs needed.
    assert_eq!(farm.run_over(root, list, &[]).await, (0, ". ./a ./kept ./kept/x 946684800\n".to_owned()));
    assert_eq!(farm.run_over(base, list, &[]).await, (0, plain.to_owned()));
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_root_runs_although_the_store_has_lost_its_files() {
    let mut farm = Farm::start().await;
    let root = farm.root(&[("plain", "plain\n")], &[]).await;
    assert_eq!(farm.run_over(root.clone(), "cat plain", &[]).await, (0, "plain\n".to_owned()));
    // It has been an input and an output; only the root and its file go.
    for digest in [&root, &Function::Sha256.hash(b"plain\n").to_proto()] {
        let digest = Digest::from_proto(Function::Sha256, Some(digest)).expect("a digest");
        farm.store.remove(&Key::Blob(digest)).await.expect("removed");
    }
    assert_eq!(farm.run_over(root, "wc -c < plain", &[]).await, (0, "6\n".to_owned()));
    farm.stop().await;
}
