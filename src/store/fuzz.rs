//! What must hold for messages and frames that clients store.

use bytes::Bytes;
use prost::Message;

use crate::proto::rev2::{Directory, NodeProperties, Tree};

use super::{weight, zstandard};

/// The largest blob that frames are taken for: far more than the frames have, so that they may inflate.
const SIZE_MAX: usize = 1 << 20;

/// A tree is told to take at least the memory that it takes when it is decoded.
pub fn tree(bytes: &[u8]) {
    let Ok(weight) = weight::of_tree(bytes) else { return };
    let Ok(tree) = Tree::decode(bytes) else { return };
    let taken: usize = tree.root.iter().chain(&tree.children).map(memory).sum();
    assert!(taken as u64 <= weight, "{taken} bytes are more than {weight}");
}

/// The memory of a directory's nodes, without what the lists themselves keep in reserve.
fn memory(directory: &Directory) -> usize {
    let files = directory.files.iter().map(|file| {
        size_of_val(file)
            + file.name.len()
            + file.digest.as_ref().map_or(0, |digest| digest.hash.len())
            + properties(file.node_properties.as_ref())
    });
    let directories = directory.directories.iter().map(|child| {
        size_of_val(child) + child.name.len() + child.digest.as_ref().map_or(0, |digest| digest.hash.len())
    });
    let links = directory.symlinks.iter().map(|link| {
        size_of_val(link) + link.name.len() + link.target.len() + properties(link.node_properties.as_ref())
    });
    let own = properties(directory.node_properties.as_ref());
    files.sum::<usize>() + directories.sum::<usize>() + links.sum::<usize>() + own
}

fn properties(properties: Option<&NodeProperties>) -> usize {
    let properties = properties.into_iter().flat_map(|properties| &properties.properties);
    properties.map(|property| size_of_val(property) + property.name.len() + property.value.len()).sum()
}

/// Frames that are accepted for a blob have as many bytes as it, whatever they declare. The first three bytes are the blob's size.
pub fn zstd_frames(bytes: &[u8]) {
    let Some(([low, middle, high], frames)) = bytes.split_first_chunk() else { return };
    let size = u32::from_le_bytes([*low, *middle, *high, 0]) as usize % SIZE_MAX;
    if let Ok(blob) = zstandard::decompress(size as u64, Bytes::copy_from_slice(frames)) {
        assert_eq!(blob.len(), size);
    }
}
