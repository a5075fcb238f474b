//! Lists the outputs of results file by file, where two results of one action may differ.

use std::collections::HashMap;

use prost::Message;

use crate::digest::{Digest, Function};
use crate::error::{Error, Kind, Result};
use crate::proto::rev2::{ActionResult, Directory, NodeProperties, OutputDirectory};
use crate::store::{Cas, tree};

use super::compare::{Output, Outputs};

/// Outputs of one run that are compared. A tree may name one directory in many places, so its size is no bound.
const OUTPUTS_MAX: usize = 200_000;

/// Bytes of a path: what Linux takes. Directories may be nested as deep as there are bytes.
const PATH_BYTES_MAX: usize = 4096;

/// The outputs of both results. Directories with equal digests are not read: there is nothing in them that differs.
///
/// # Errors
/// `NotFound` when a tree is gone, `Exhausted` when there are more outputs than are compared, `Invalid` for a broken result.
pub(super) async fn of(
    cas: &Cas,
    function: Function,
    results: [&ActionResult; 2],
) -> Result<(Outputs, Outputs)> {
    let trees = |result: &ActionResult| -> HashMap<String, Option<Digest>> {
        let trees = result.output_directories.iter();
        trees.map(|one| (one.path.clone(), tree_of(function, one).ok().flatten())).collect()
    };
    let sides = results.map(trees);
    let is_read = |path: &str| match (sides[0].get(path), sides[1].get(path)) {
        (Some(one), Some(other)) => one != other,
        (None, _) | (_, None) => false,
    };
    Ok((side(cas, function, results[0], &is_read).await?, side(cas, function, results[1], &is_read).await?))
}

async fn side(
    cas: &Cas,
    function: Function,
    result: &ActionResult,
    is_read: &(impl Fn(&str) -> bool + Sync),
) -> Result<Outputs> {
    let mut outputs = Outputs::new();
    for file in &result.output_files {
        let output = (file.is_executable, file.node_properties.as_ref());
        let digest = parse(function, file.digest.as_ref(), &file.path)?;
        outputs.insert(file.path.clone(), self::file(digest, output));
    }
    #[expect(deprecated, reason = "workers older than 2.1 report them")]
    let old = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    for link in old.chain(&result.output_symlinks) {
        outputs.insert(link.path.clone(), Output::Symlink { target: link.target.clone() });
    }
    for directory in &result.output_directories {
        outputs.insert(directory.path.clone(), Output::Directory);
        if is_read(&directory.path) {
            let known = directories(cas, function, directory).await?;
            expand(function, known, &directory.path, &mut outputs)?;
        }
    }
    if outputs.len() > OUTPUTS_MAX {
        return Err(too_many());
    }
    Ok(outputs)
}

/// The directories of an output, by digest, and which is the top one.
struct Known {
    top: Directory,
    below: HashMap<Digest, Directory>,
}

async fn directories(cas: &Cas, function: Function, output: &OutputDirectory) -> Result<Known> {
    let gone = || Error::new(Kind::NotFound, format!("the tree of output {:?} is gone", output.path));
    let Some(digest) = tree_of(function, output)? else { return Err(gone()) };
    if output.tree_digest.is_none() {
        let walk = tree::directories(cas, &digest, &tree::Limits::default()).await?;
        let mut below: HashMap<Digest, Directory> = walk.directories.into_iter().collect();
        return Ok(Known { top: below.remove(&digest).ok_or_else(gone)?, below });
    }
    let tree = tree::message(cas, &digest).await?.ok_or_else(gone)?;
    let below = tree.children.into_iter().map(|child| (function.hash(&child.encode_to_vec()), child));
    Ok(Known { below: below.collect(), top: tree.root.unwrap_or_default() })
}

fn expand(function: Function, known: Known, path: &str, outputs: &mut Outputs) -> Result<()> {
    let mut open = vec![(path.to_owned(), &known.top)];
    while let Some((path, directory)) = open.pop() {
        let below = |name: &str| -> Result<String> {
            let path = format!("{path}/{name}");
            if path.len() > PATH_BYTES_MAX { Err(too_many()) } else { Ok(path) }
        };
        for node in &directory.files {
            let digest = parse(function, node.digest.as_ref(), &node.name)?;
            let output = file(digest, (node.is_executable, node.node_properties.as_ref()));
            outputs.insert(below(&node.name)?, output);
        }
        for node in &directory.symlinks {
            outputs.insert(below(&node.name)?, Output::Symlink { target: node.target.clone() });
        }
        for node in &directory.directories {
            let digest = parse(function, node.digest.as_ref(), &node.name)?;
            let child = known.below.get(&digest).ok_or_else(|| {
                Error::invalid(format!("the tree of output {path:?} lacks directory {digest}"))
            })?;
            outputs.insert(below(&node.name)?, Output::Directory);
            open.push((below(&node.name)?, child));
        }
        if outputs.len() > OUTPUTS_MAX {
            return Err(too_many());
        }
    }
    Ok(())
}

fn file(digest: Digest, (is_executable, properties): (bool, Option<&NodeProperties>)) -> Output {
    let mode = properties.and_then(|properties| properties.unix_mode.as_ref()).map(|mode| mode.value);
    Output::File { digest, is_executable, mode }
}

fn tree_of(function: Function, output: &OutputDirectory) -> Result<Option<Digest>> {
    let digest = output.tree_digest.as_ref().or(output.root_directory_digest.as_ref());
    digest.map(|digest| parse(function, Some(digest), &output.path)).transpose()
}

fn parse(function: Function, digest: Option<&crate::proto::rev2::Digest>, path: &str) -> Result<Digest> {
    Digest::from_proto(function, digest).map_err(|error| Error::invalid(format!("output {path:?}: {error}")))
}

fn too_many() -> Error {
    Error::new(Kind::Exhausted, format!("the action has more than {OUTPUTS_MAX} outputs, or too deep ones"))
}
