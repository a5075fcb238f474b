//! Collects what a command left: finds the outputs, hashes them, uploads what the CAS lacks, and names it all in the result.
//!
//! Everything is read through the descriptor of the exec root, one path at a time and without following any link, so nothing
//! outside of it can be read and any number of outputs needs only a few descriptors.

mod live;
mod scan;
mod upload;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use prost::Message;

use super::command::{Expected, Format, Output};
use crate::digest::{Digest, Function};
use crate::error::Result;
use crate::proto::rev2;
use crate::store::Cas;
use crate::tasks;
pub(super) use live::follow;
use scan::{Folder, Found, Scan};
pub(super) use upload::{upload_file, upload_messages};

/// Finds `outputs` below `view` and uploads them; the result has nothing else in it.
///
/// # Errors
/// `Precondition` when an output is of a type that was not asked for or that REv2 has no place for; what the CAS reports.
pub(super) async fn collect(
    cas: &Cas,
    function: Function,
    view: OwnedFd,
    (outputs, format): (Vec<Output>, Format),
) -> Result<rev2::ActionResult> {
    // Whoever drops the last descriptor unmounts the overlay, which takes time: always a blocking thread.
    let (scan, found) = tasks::blocking(move || {
        let mut scan = Scan::new(Arc::new(view));
        let found = outputs.into_iter().filter_map(|output| scan.find(output).transpose());
        let found = found.collect::<Result<Vec<Found>>>()?;
        Ok((if scan.files.is_empty() { None } else { Some(scan) }, found))
    })
    .await?;
    let digests = match scan {
        Some(scan) => upload_files(cas, function, scan).await?,
        None => Vec::new(),
    };
    let mut collection = Collection {
        function,
        format,
        digests,
        messages: Messages::default(),
        result: rev2::ActionResult::default(),
    };
    found.into_iter().for_each(|found| collection.add(found));
    let Collection { messages, result, .. } = collection;
    upload_messages(cas, messages.blobs).await?;
    Ok(result)
}

async fn upload_files(cas: &Cas, function: Function, scan: Scan) -> Result<Vec<Digest>> {
    let Scan { view, files, .. } = scan;
    let digests = upload::upload_outputs(cas, function, &view, files).await;
    tasks::blocking(move || {
        drop(view);
        digests
    })
    .await
}

/// The result as it grows.
struct Collection {
    function: Function,
    format: Format,
    /// Of the files, by their number.
    digests: Vec<Digest>,
    messages: Messages,
    result: rev2::ActionResult,
}

/// Trees and directories to upload, each once.
#[derive(Default)]
struct Messages {
    known: HashSet<Digest>,
    blobs: Vec<(Digest, bytes::Bytes)>,
}

impl Collection {
    #[expect(deprecated, reason = "clients of REv2 2.0 read these fields")]
    fn add(&mut self, found: Found) {
        match found {
            Found::File { name, index, is_executable } => {
                let digest = Some(self.digests[index].to_proto());
                let file =
                    rev2::OutputFile { path: name, digest, is_executable, ..rev2::OutputFile::default() };
                self.result.output_files.push(file);
            }
            Found::Symlink { name, target, expected } => {
                let symlink = rev2::OutputSymlink { path: name, target, node_properties: None };
                match expected {
                    Expected::Any => {}
                    Expected::File => self.result.output_file_symlinks.push(symlink.clone()),
                    Expected::Directory => self.result.output_directory_symlinks.push(symlink.clone()),
                }
                self.result.output_symlinks.push(symlink);
            }
            Found::Folder { name, folder } => {
                let directory = self.directory(name, &folder);
                self.result.output_directories.push(directory);
            }
        }
    }

    fn directory(&mut self, path: String, folder: &Folder) -> rev2::OutputDirectory {
        let mut finished = Finished {
            function: self.function,
            digests: &self.digests,
            known: HashSet::new(),
            order: Vec::new(),
        };
        let root = finished.visit(folder);
        let order = finished.order;
        let mut output = rev2::OutputDirectory { path, ..rev2::OutputDirectory::default() };
        if self.format.is_directory {
            order.iter().for_each(|(digest, directory)| self.messages.add(*digest, directory));
            output.root_directory_digest = Some(root.to_proto());
        }
        if self.format.is_tree {
            // A directory is finished after all that it holds, so the other way round parents come first: the root at the head.
            let mut directories = order.into_iter().rev().map(|(_, directory)| directory);
            let tree = rev2::Tree { root: directories.next(), children: directories.collect() };
            let bytes = tree.encode_to_vec();
            let digest = self.function.hash(&bytes);
            self.messages.insert(digest, bytes);
            output.tree_digest = Some(digest.to_proto());
            output.is_topologically_sorted = true;
        }
        output
    }
}

impl Messages {
    fn add(&mut self, digest: Digest, message: &rev2::Directory) {
        self.insert(digest, message.encode_to_vec());
    }

    fn insert(&mut self, digest: Digest, bytes: Vec<u8>) {
        if self.known.insert(digest) {
            self.blobs.push((digest, bytes.into()));
        }
    }
}

/// The distinct directories of a tree in the order in which a depth-first walk leaves them.
struct Finished<'a> {
    function: Function,
    digests: &'a [Digest],
    known: HashSet<Digest>,
    order: Vec<(Digest, rev2::Directory)>,
}

impl Finished<'_> {
    fn visit(&mut self, folder: &Folder) -> Digest {
        let mut directory = rev2::Directory::default();
        for (name, index, is_executable) in &folder.files {
            let digest = Some(self.digests[*index].to_proto());
            let node = rev2::FileNode {
                name: name.clone(),
                digest,
                is_executable: *is_executable,
                node_properties: None,
            };
            directory.files.push(node);
        }
        for (name, child) in &folder.folders {
            let digest = Some(self.visit(child).to_proto());
            directory.directories.push(rev2::DirectoryNode { name: name.clone(), digest });
        }
        for (name, target) in &folder.symlinks {
            let node =
                rev2::SymlinkNode { name: name.clone(), target: target.clone(), node_properties: None };
            directory.symlinks.push(node);
        }
        let digest = self.function.hash(&directory.encode_to_vec());
        if self.known.insert(digest) {
            self.order.push((digest, directory));
        }
        digest
    }
}

#[cfg(test)]
mod tests;
