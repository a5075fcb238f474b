//! Trees of files, as actions have them for inputs and leave them for outputs: what is at a path, and a list of what is in a directory.

use std::collections::HashMap;

use maud::{Markup, html};
use prost::Message;

use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result, shown};
use crate::proto::rev2::{self, ActionResult, Directory, OutputDirectory};
use crate::store::{Cas, tree};

use super::page::table;
use super::query::{Paging, Query};
use super::text;

/// Bytes of an output directory's tree that is browsed: all of it is read for each page.
const TREE_BYTES_MAX: u64 = 16 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    Folder(Directory),
    File(Digest),
    /// A symbolic link, with its target.
    Link(String),
}

/// Where the directories of a tree are.
enum Source {
    /// Each is a blob.
    Blobs,
    /// All are in one message.
    Tree(HashMap<Digest, Directory>),
}

/// What is at `path` under the input root.
///
/// # Errors
/// `NotFound` when there is nothing, or when the CAS does not have it any more.
pub(super) async fn input(cas: &Cas, root: Digest, path: &str) -> Result<Found> {
    find(cas, (&Source::Blobs, root), path).await
}

/// What is at `path` among the outputs: a path of the result, or one below a directory of it. The empty path has all of the result.
///
/// # Errors
/// As for [`input`]; `Exhausted` for a tree that is too large to be browsed.
pub(super) async fn output(
    cas: &Cas,
    (function, result): (Function, &ActionResult),
    path: &str,
) -> Result<Found> {
    if path.is_empty() {
        return Ok(Found::Folder(overview(function, result)));
    }
    if let Some(file) = result.output_files.iter().find(|file| file.path == path) {
        return Ok(Found::File(digest(function, file.digest.as_ref())?));
    }
    if let Some(link) = links(result).find(|link| link.path == path) {
        return Ok(Found::Link(link.target.clone()));
    }
    let below = |directory: &OutputDirectory| {
        let rest = path.strip_prefix(directory.path.as_str())?;
        (rest.is_empty() || rest.starts_with('/') || directory.path.is_empty()).then(|| rest.to_owned())
    };
    for directory in &result.output_directories {
        if let Some(rest) = below(directory) {
            let (source, root) = open(cas, function, directory).await?;
            return find(cas, (&source, root), &rest).await;
        }
    }
    Err(nothing(path))
}

async fn open(cas: &Cas, function: Function, directory: &OutputDirectory) -> Result<(Source, Digest)> {
    let Some(named) = &directory.tree_digest else {
        return Ok((Source::Blobs, digest(function, directory.root_directory_digest.as_ref())?));
    };
    let named = digest(function, Some(named))?;
    if named.size() > TREE_BYTES_MAX {
        let message = format!("the tree {named} is too large to be shown; a client can read it from the CAS");
        return Err(Error::new(Kind::Exhausted, message));
    }
    let tree = tree::message(cas, &named).await?.ok_or_else(|| gone(&named))?;
    let all = tree.children.into_iter().chain(tree.root.clone());
    let known = all.map(|one| (function.hash(&one.encode_to_vec()), one)).collect();
    Ok((Source::Tree(known), function.hash(&tree.root.unwrap_or_default().encode_to_vec())))
}

async fn find(cas: &Cas, (source, root): (&Source, Digest), path: &str) -> Result<Found> {
    let function = root.function();
    let mut directory = source.directory(cas, &root).await?;
    let mut names = path.split('/').filter(|name| !name.is_empty());
    while let Some(name) = names.next() {
        if let Some(node) = directory.directories.iter().find(|node| node.name == name) {
            directory = source.directory(cas, &digest(function, node.digest.as_ref())?).await?;
            continue;
        }
        if names.next().is_some() {
            return Err(nothing(path));
        }
        if let Some(node) = directory.files.iter().find(|node| node.name == name) {
            return Ok(Found::File(digest(function, node.digest.as_ref())?));
        }
        let link = directory.symlinks.into_iter().find(|node| node.name == name);
        return link.map(|node| Found::Link(node.target)).ok_or_else(|| nothing(path));
    }
    Ok(Found::Folder(directory))
}

impl Source {
    async fn directory(&self, cas: &Cas, digest: &Digest) -> Result<Directory> {
        let found = match self {
            Self::Blobs => tree::directory(cas, digest).await?,
            Self::Tree(known) => known.get(digest).cloned(),
        };
        found.ok_or_else(|| gone(digest))
    }
}

/// The outputs of a result as one directory, with their paths for names.
fn overview(function: Function, result: &ActionResult) -> Directory {
    let files = result.output_files.iter().map(|file| rev2::FileNode {
        name: file.path.clone(),
        digest: file.digest.clone(),
        is_executable: file.is_executable,
        node_properties: None,
    });
    let directories = result.output_directories.iter().map(|directory| rev2::DirectoryNode {
        name: directory.path.clone(),
        // What is shown of a directory is its name.
        digest: Some(Digest::empty(function).to_proto()),
    });
    let symlinks = links(result).map(|link| rev2::SymlinkNode {
        name: link.path.clone(),
        target: link.target.clone(),
        node_properties: None,
    });
    Directory {
        files: files.collect(),
        directories: directories.collect(),
        symlinks: symlinks.collect(),
        node_properties: None,
    }
}

fn links(result: &ActionResult) -> impl Iterator<Item = &rev2::OutputSymlink> {
    #[expect(deprecated, reason = "workers older than 2.1 report them")]
    let old = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    old.chain(&result.output_symlinks)
}

fn digest(function: Function, named: Option<&rev2::Digest>) -> Result<Digest> {
    Ok(Digest::from_proto(function, named)?)
}

fn gone(digest: &Digest) -> Error {
    Error::new(Kind::NotFound, format!("{digest} is not in the CAS any more"))
}

fn nothing(path: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is nothing at `{}`", shown(path)))
}

/// How many entries a directory has.
pub(super) fn count(directory: &Directory) -> usize {
    directory.directories.len() + directory.files.len() + directory.symlinks.len()
}

/// One page of a directory whose address is `base`: directories first, then files, then links.
pub(super) fn list(directory: &Directory, base: &str, (paging, query): (Paging, &Query)) -> Markup {
    let folders = directory
        .directories
        .iter()
        .map(|node| row((base, &node.name), "/", &html! { td.quiet { "directory" } }));
    let files = directory.files.iter().map(|node| {
        let mark = if node.is_executable { "*" } else { "" };
        let size = node.digest.as_ref().map_or(0, |digest| digest.size_bytes);
        row(
            (base, &node.name),
            mark,
            &html! { td.number { (text::bytes(u64::try_from(size).unwrap_or(0))) } },
        )
    });
    let links = directory.symlinks.iter().map(|node| {
        row((base, &node.name), "@", &html! { td { "→ " code { (text::visible(&node.target)) } } })
    });
    let (skip, length) = paging.range();
    let shown = folders.chain(files).chain(links).skip(skip).take(length);
    let total = count(directory);
    html! {
        p { (text::counted(total, ("entry", "entries"))) }
        (table("Entries", &["Name", "Size"], &html! { @for row in shown { (row) } }))
        (paging.links(query, total))
    }
}

fn row((base, name): (&str, &str), mark: &str, what: &Markup) -> Markup {
    html! {
        tr {
            td { a href={ (base) "/" (text::path(name)) } { code { (text::visible(name)) } } (mark) }
            (what)
        }
    }
}

/// The way to a place, each part of it a link.
pub(super) fn trail((base, name): (&str, &str), path: &str) -> Markup {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let below = |count: usize| {
        parts[..count].iter().map(|part| format!("/{}", text::segment(part))).collect::<String>()
    };
    html! {
        a href=(base) { (name) }
        @for (index, part) in parts.iter().enumerate() {
            " / " a href={ (base) (below(index + 1)) } { (text::visible(part)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proto::rev2::{DirectoryNode, FileNode, OutputFile, SymlinkNode, Tree};
    use crate::store::Memory;

    fn file(name: &str) -> FileNode {
        let digest = Some(Function::Sha256.hash(name.as_bytes()).to_proto());
        FileNode { name: name.into(), digest, ..FileNode::default() }
    }

    fn folders() -> (Directory, Directory) {
        let link = SymlinkNode { name: "l".into(), target: "../x".into(), ..SymlinkNode::default() };
        let child = Directory { files: vec![file("f")], symlinks: vec![link], ..Directory::default() };
        let digest = Some(Function::Sha256.hash(&child.encode_to_vec()).to_proto());
        let node = DirectoryNode { name: "d".into(), digest };
        (Directory { directories: vec![node], files: vec![file("a")], ..Directory::default() }, child)
    }

    async fn put(cas: &Cas, message: &impl Message) -> Digest {
        cas.put_bytes(Function::Sha256, message.encode_to_vec().into()).await.unwrap()
    }

    #[tokio::test]
    async fn a_path_leads_to_a_directory_a_file_or_a_link() {
        let cas = Cas::new(Arc::new(Memory::new(1 << 20)));
        let (root, child) = folders();
        let digest = put(&cas, &root).await;
        assert_eq!(
            input(&cas, digest, "d").await.unwrap_err().kind(),
            Kind::NotFound,
            "it is not stored yet"
        );
        put(&cas, &child).await;
        assert_eq!(input(&cas, digest, "").await.unwrap(), Found::Folder(root.clone()));
        assert_eq!(input(&cas, digest, "d/").await.unwrap(), Found::Folder(child.clone()));
        assert_eq!(input(&cas, digest, "d/f").await.unwrap(), Found::File(Function::Sha256.hash(b"f")));
        assert_eq!(input(&cas, digest, "d/l").await.unwrap(), Found::Link("../x".into()));
        for path in ["x", "a/b", "d/f/g", "d/l/m", ".."] {
            assert_eq!(input(&cas, digest, path).await.unwrap_err().kind(), Kind::NotFound, "{path}");
        }

        let tree = put(&cas, &Tree { root: Some(root.clone()), children: vec![child.clone()] }).await;
        let directory = OutputDirectory {
            path: "out/t".into(),
            tree_digest: Some(tree.to_proto()),
            ..OutputDirectory::default()
        };
        let output_file = OutputFile {
            path: "out/a b".into(),
            digest: root.files[0].digest.clone(),
            ..OutputFile::default()
        };
        let result = ActionResult {
            output_files: vec![output_file],
            output_directories: vec![directory],
            ..ActionResult::default()
        };
        let at = async |path: &str| output(&cas, (Function::Sha256, &result), path).await;
        assert_eq!(at("out/t/d/f").await.unwrap(), Found::File(Function::Sha256.hash(b"f")));
        assert_eq!(at("out/t").await.unwrap(), Found::Folder(root));
        assert_eq!(at("out/a b").await.unwrap(), Found::File(Function::Sha256.hash(b"a")));
        let Found::Folder(all) = at("").await.unwrap() else { panic!("all of a result is a directory") };
        assert_eq!(count(&all), 2);
        for path in ["out", "out/tt", "out/t/x"] {
            assert_eq!(at(path).await.unwrap_err().kind(), Kind::NotFound, "{path}");
        }
    }

    #[test]
    fn names_are_text_and_segments() {
        let mut directory = folders().0;
        directory.files.push(file("<script>#?"));
        let query = Query::parse(None, &["page"]).unwrap();
        let list = list(&directory, "/x", (query.paging(2).unwrap(), &query)).into_string();
        assert!(
            list.contains("3 entries") && list.contains("/x/d") && list.contains("page 1 of 2"),
            "{list}"
        );
        let query = Query::parse(Some("page=2"), &["page"]).unwrap();
        let list = super::list(&directory, "/x", (query.paging(2).unwrap(), &query)).into_string();
        assert!(list.contains("/x/%3Cscript%3E%23%3F") && list.contains("&lt;script&gt;#?"), "{list}");
        let trail = trail(("/x", "Outputs"), "a b/<c>").into_string();
        assert!(trail.contains("/x/a%20b/%3Cc%3E") && trail.contains("&lt;c&gt;"), "{trail}");
    }
}
