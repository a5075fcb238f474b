//! What a directory or an action result takes in memory once it is decoded, told before it is.
//!
//! A client may write a node as two bytes that decode to two hundred. Such nodes are refused, since no right one is as short: it has
//! a name and a digest or a target. A property of a node may be empty, so properties are counted.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::{Error, Result};

/// Memory of a decoded node beside its texts, and their allocations.
const NODE: u64 = 200;

/// Bytes of the shortest file or directory node: a name of one byte, and a digest with the 32 characters of MD5.
const CHILD_MIN: usize = 3 + 2 + 2 + 32;

/// Bytes of the shortest symbolic link: a name and a target of one byte each.
const LINK_MIN: usize = 3 + 3;

/// Memory of a decoded property of a node: two texts and their allocations.
const PROPERTY: u64 = 80;

/// Memory of a decoded output of an action beside its texts and contents.
const OUTPUT: u64 = 300;

/// The fields of `Directory` (REv2), and the properties of its nodes.
const FILES: u32 = 1;
const DIRECTORIES: u32 = 2;
const SYMLINKS: u32 = 3;
const PROPERTIES: u32 = 5;
const PROPERTIES_OF_FILE: u32 = 6;
const PROPERTIES_OF_SYMLINK: u32 = 4;

/// The list in `NodeProperties`.
const PROPERTY_LIST: u32 = 1;

/// The fields of `ActionResult` that clients may repeat without an end, and its metadata, which has some of its own.
const OUTPUT_FILES: u32 = 2;
const OUTPUT_DIRECTORIES: u32 = 3;
const METADATA: u32 = 9;
const OUTPUT_SYMLINKS: [u32; 3] = [10, 11, 12];

/// The fields with the properties of an `OutputFile` and of an `OutputSymlink`.
const PROPERTIES_OF_OUTPUT_FILE: u32 = 7;
const PROPERTIES_OF_OUTPUT_SYMLINK: u32 = 4;

/// The auxiliary data in `ExecutedActionMetadata`.
const AUXILIARY: u32 = 11;

/// The bytes that a `Directory` message takes when it is decoded.
///
/// # Errors
/// `Invalid` when it is no message, or has nodes that cannot be right.
pub(super) fn of_directory(bytes: &[u8]) -> Result<u64> {
    let mut weight = bytes.len() as u64;
    for_each_part(bytes, |tag, part| {
        let least = match tag {
            FILES | DIRECTORIES => CHILD_MIN,
            SYMLINKS => LINK_MIN,
            _ => 0,
        };
        if part.len() < least {
            return Err(Error::invalid("a directory has a node without a name, a digest or a target"));
        }
        weight += NODE;
        weight += match tag {
            FILES => of_properties(part, PROPERTIES_OF_FILE)?,
            SYMLINKS => of_properties(part, PROPERTIES_OF_SYMLINK)?,
            PROPERTIES => of_list(part)?,
            _ => 0,
        };
        Ok(())
    })?;
    Ok(weight)
}

/// What the properties of a node take, which stand in its field `field`.
fn of_properties(node: &[u8], field: u32) -> Result<u64> {
    let mut weight = 0;
    for_each_part(node, |tag, part| {
        weight += if tag == field { of_list(part)? } else { 0 };
        Ok(())
    })?;
    Ok(weight)
}

/// What the entries of a `NodeProperties` message take.
fn of_list(properties: &[u8]) -> Result<u64> {
    of_pairs(properties, PROPERTY_LIST)
}

/// The bytes that an `ActionResult` message takes when it is decoded.
///
/// # Errors
/// `Invalid` when it is no message.
pub(super) fn of_result(bytes: &[u8]) -> Result<u64> {
    let mut weight = bytes.len() as u64;
    for_each_part(bytes, |tag, part| {
        weight += match tag {
            OUTPUT_FILES => OUTPUT + of_properties(part, PROPERTIES_OF_OUTPUT_FILE)?,
            OUTPUT_DIRECTORIES => OUTPUT,
            METADATA => of_pairs(part, AUXILIARY)?,
            tag if OUTPUT_SYMLINKS.contains(&tag) => {
                OUTPUT + of_properties(part, PROPERTIES_OF_OUTPUT_SYMLINK)?
            }
            _ => 0,
        };
        Ok(())
    })?;
    Ok(weight)
}

/// What the entries of a repeated field take, each of two texts.
fn of_pairs(message: &[u8], field: u32) -> Result<u64> {
    let mut count = 0;
    for_each_part(message, |tag, _| {
        count += u64::from(tag == field);
        Ok(())
    })?;
    Ok(count * PROPERTY)
}

/// The bytes that a `Tree` message takes when it is decoded: its parts are a root and children, all of them directories.
///
/// # Errors
/// As for [`of_directory`].
pub(super) fn of_tree(bytes: &[u8]) -> Result<u64> {
    let mut weight = 0;
    for_each_part(bytes, |_, part| {
        weight += NODE + of_directory(part)?;
        Ok(())
    })?;
    Ok(weight)
}

/// Gives the number and the bytes of every message, text or bytes at the top of a message.
fn for_each_part(mut bytes: &[u8], mut each: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes).map_err(malformed)?;
        if kind != WireType::LengthDelimited {
            skip_field(kind, tag, &mut bytes, DecodeContext::default()).map_err(malformed)?;
            continue;
        }
        let length = decode_varint(&mut bytes).map_err(malformed)?;
        let split = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
        let (part, rest) = split.ok_or_else(|| Error::invalid("a message ends within a field"))?;
        each(tag, part)?;
        bytes = rest;
    }
    Ok(())
}

fn malformed(error: prost::DecodeError) -> Error {
    Error::invalid("a message is malformed").with_source(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::digest::Function;
    use crate::error::Kind;
    use crate::proto::rev2::{
        ActionResult, Directory, DirectoryNode, ExecutedActionMetadata, FileNode, NodeProperties,
        NodeProperty, OutputDirectory, OutputFile, OutputSymlink, SymlinkNode, Tree,
    };

    fn directory(function: Function) -> Directory {
        let digest = Some(function.hash(b"x").to_proto());
        let (name, target) = ("n".to_owned(), "t".to_owned());
        Directory {
            files: vec![FileNode { name: name.clone(), digest: digest.clone(), ..FileNode::default() }],
            directories: vec![DirectoryNode { name: name.clone(), digest }],
            symlinks: vec![SymlinkNode { name, target, node_properties: None }],
            node_properties: None,
        }
    }

    #[test]
    fn the_shortest_right_nodes_pass_in_every_function() {
        for function in Function::ALL {
            let directory = directory(function);
            let bytes = directory.encode_to_vec();
            assert_eq!(of_directory(&bytes).unwrap(), bytes.len() as u64 + 3 * NODE, "{function:?}");
            let tree =
                Tree { root: Some(directory.clone()), children: vec![directory, Directory::default()] };
            assert!(of_tree(&tree.encode_to_vec()).unwrap() > 9 * NODE);
        }
    }

    #[test]
    fn hollow_nodes_are_refused() {
        let hollow = Directory { files: vec![FileNode::default(); 1000], ..Directory::default() };
        assert_eq!(of_directory(&hollow.encode_to_vec()).unwrap_err().kind(), Kind::Invalid);
        let tree = Tree { root: None, children: vec![hollow] };
        assert_eq!(of_tree(&tree.encode_to_vec()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn empty_properties_count() {
        let properties =
            || Some(NodeProperties { properties: vec![NodeProperty::default(); 1000], ..Default::default() });
        let mut on_file = directory(Function::Sha256);
        on_file.files[0].node_properties = properties();
        let mut on_link = directory(Function::Sha256);
        on_link.symlinks[0].node_properties = properties();
        let itself = Directory { node_properties: properties(), ..directory(Function::Sha256) };
        for heavy in [on_file, on_link, itself] {
            assert!(of_directory(&heavy.encode_to_vec()).unwrap() > 1000 * PROPERTY);
        }
    }

    #[test]
    #[expect(deprecated, reason = "old clients write these fields")]
    fn the_outputs_of_a_result_count() {
        let properties =
            Some(NodeProperties { properties: vec![NodeProperty::default(); 1000], ..Default::default() });
        let link = OutputSymlink { node_properties: properties.clone(), ..Default::default() };
        let metadata = ExecutedActionMetadata {
            auxiliary_metadata: vec![Default::default(); 1000],
            ..Default::default()
        };
        let empty = ActionResult::default();
        for heavy in [
            ActionResult { output_files: vec![OutputFile::default(); 1000], ..empty.clone() },
            ActionResult { output_directories: vec![OutputDirectory::default(); 1000], ..empty.clone() },
            ActionResult { output_symlinks: vec![OutputSymlink::default(); 1000], ..empty.clone() },
            ActionResult { output_file_symlinks: vec![link.clone()], ..empty.clone() },
            ActionResult { output_directory_symlinks: vec![link], ..empty.clone() },
            ActionResult {
                output_files: vec![OutputFile { node_properties: properties, ..Default::default() }],
                ..empty.clone()
            },
            ActionResult { execution_metadata: Some(metadata), ..empty },
        ] {
            assert!(of_result(&heavy.encode_to_vec()).unwrap() > 1000 * PROPERTY);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_weighed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (of_directory(&bytes), of_tree(&bytes), of_result(&bytes));
        }
    }
}
