//! The files of an input root as a tool is told of them that stays running.

use super::Inputs;
use super::directories::Directories;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::proto::rev2::FileNode;
use crate::worker::command::{digest, join};

/// Files and directories. Whoever has more gets a process for each action: a request names all files.
const ENTRIES_MAX: usize = 100_000;
/// The node property by which Bazel marks the files of the tool itself; it has no value.
const TOOL: &str = "bazel_tool_input";

/// A file of an input root.
#[derive(Debug)]
pub(in crate::worker) struct Listed {
    pub(in crate::worker) path: String,
    pub(in crate::worker) digest: Digest,
    pub(in crate::worker) node: FileNode,
}

impl Listed {
    /// Whether it belongs to the tool and not to what the tool works on.
    pub(in crate::worker) fn is_tool(&self) -> bool {
        let properties = self.node.node_properties.as_ref();
        properties.is_some_and(|properties| properties.properties.iter().any(|entry| entry.name == TOOL))
    }
}

impl Inputs {
    /// All files of `root`, which is staged, by path; `None` if there are too many or it has other things than files in directories.
    ///
    /// # Errors
    /// What the CAS reports, and `MissingInput` when a directory has gone from it since.
    pub(in crate::worker) async fn files(&self, root: Digest) -> Result<Option<Vec<Listed>>> {
        files(&self.shared.source, root).await
    }
}

async fn files(source: &Directories, root: Digest) -> Result<Option<Vec<Listed>>> {
    let (mut files, mut entries) = (Vec::new(), 0);
    let mut directories = vec![(String::new(), root)];
    while let Some((path, own)) = directories.pop() {
        let directory = source.get(&own).await?.ok_or_else(|| Error::missing_input(vec![own]))?;
        entries += directory.files.len() + directory.directories.len();
        if entries > ENTRIES_MAX || !directory.symlinks.is_empty() {
            return Ok(None);
        }
        for node in &directory.directories {
            let below = digest(root.function(), node.digest.as_ref(), "directory")?;
            directories.push((join(&path, &node.name), below));
        }
        for node in &directory.files {
            let digest = digest(root.function(), node.digest.as_ref(), "file")?;
            files.push(Listed { path: join(&path, &node.name), digest, node: node.clone() });
        }
    }
    files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(Some(files))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::digest::Function;
    use crate::proto::rev2::{Directory, DirectoryNode, NodeProperties, NodeProperty, SymlinkNode};
    use crate::store::Cas;
    use crate::worker::shelf::Shelf;

    async fn put(cas: &Cas, directory: &Directory) -> Digest {
        cas.put_bytes(Function::Sha256, directory.encode_to_vec().into()).await.unwrap()
    }

    fn file(name: &str, marks: &[&str]) -> FileNode {
        let mark = |name: &&str| NodeProperty { name: (*name).into(), value: String::new() };
        let properties =
            NodeProperties { properties: marks.iter().map(mark).collect(), ..Default::default() };
        let digest = Some(Function::Sha256.hash(name.as_bytes()).to_proto());
        FileNode { name: name.into(), digest, is_executable: false, node_properties: Some(properties) }
    }

    #[tokio::test]
    async fn all_files_are_listed_in_order_and_those_of_the_tool_are_known() {
        let cas = Shelf::cas();
        let below = Directory { files: vec![file("tool", &["x", TOOL])], ..Directory::default() };
        let below = put(&cas, &below).await.to_proto();
        let bin = |name: &str| DirectoryNode { name: name.into(), digest: Some(below.clone()) };
        let root = Directory {
            files: vec![file("c", &[])],
            directories: vec![bin("a"), bin("d")],
            ..Directory::default()
        };
        let root = put(&cas, &root).await;
        let listed = files(&Directories::new(cas), root).await.unwrap().unwrap();
        let listed: Vec<_> = listed.iter().map(|file| (file.path.as_str(), file.is_tool())).collect();
        assert_eq!(listed, [("a/tool", true), ("c", false), ("d/tool", true)]);
    }

    #[tokio::test]
    async fn a_root_with_a_link_or_a_gap_has_no_list() {
        let cas = Shelf::cas();
        let link = SymlinkNode { name: "x".into(), target: "y".into(), node_properties: None };
        let root = put(&cas, &Directory { symlinks: vec![link], ..Directory::default() }).await;
        let source = Directories::new(cas);
        assert!(files(&source, root).await.unwrap().is_none());
        let gone = Function::Sha256.hash(b"gone");
        assert_eq!(files(&source, gone).await.unwrap_err().missing(), [gone]);
    }
}
