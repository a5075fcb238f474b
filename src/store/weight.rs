//! What a directory takes in memory once it is decoded, told before it is.
//!
//! A client may write a node as two bytes that decode to two hundred. Such nodes are refused, since no right one is as short: it has
//! a name and a digest or a target.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::{Error, Result};

/// Memory of a decoded node beside its texts, and their allocations.
const NODE: u64 = 200;

/// Bytes of the shortest file or directory node: a name of one byte, and a digest with the 32 characters of MD5.
const CHILD_MIN: usize = 3 + 2 + 2 + 32;

/// Bytes of the shortest symbolic link: a name and a target of one byte each.
const LINK_MIN: usize = 3 + 3;

/// The fields of `Directory` and of `Tree` (REv2).
const FILES: u32 = 1;
const DIRECTORIES: u32 = 2;
const SYMLINKS: u32 = 3;

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
        Ok(())
    })?;
    Ok(weight)
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
        let (part, rest) = split.ok_or_else(|| Error::invalid("a directory ends within a node"))?;
        each(tag, part)?;
        bytes = rest;
    }
    Ok(())
}

fn malformed(error: prost::DecodeError) -> Error {
    Error::invalid("a directory is no message").with_source(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::digest::Function;
    use crate::error::Kind;
    use crate::proto::rev2::{Directory, DirectoryNode, FileNode, SymlinkNode, Tree};

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

    proptest! {
        #[test]
        fn any_bytes_are_weighed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (of_directory(&bytes), of_tree(&bytes));
        }
    }
}
