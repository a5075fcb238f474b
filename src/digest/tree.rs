//! SHA256TREE: a Merkle tree whose leaves are plain SHA-256 of 1 KiB and whose nodes are one call of its compression function.

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// Bytes of a leaf.
const LEAF: usize = 1024;

/// What a node's state begins with: the roots of the 9th to the 16th prime, where SHA-256 has those of the first eight, so that no
/// node collides with a leaf.
const NODE: [u32; 8] =
    [0xcbbb_9d5d, 0x629a_292a, 0x9159_015a, 0x152f_ecd8, 0x6733_2667, 0x8eb4_4a87, 0xdb0c_2e0d, 0x47b5_481d];

type Hash = [u8; 32];

/// The state while a blob streams by: the leaf at its end, and the finished subtrees before it, whose sizes fall like the ones in the
/// binary number of their leaves.
#[derive(Default)]
pub(super) struct Tree {
    leaf: Sha256,
    leaf_bytes: usize,
    /// Leaves that are finished, which is not the one at the end even when it is full.
    leaves: u64,
    subtrees: Vec<Hash>,
}

impl Tree {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // Only now is it known that the leaf before was not the last, which belongs to the right side.
            if self.leaf_bytes == LEAF {
                self.end_leaf();
            }
            let (now, later) = bytes.split_at(bytes.len().min(LEAF - self.leaf_bytes));
            self.leaf.update(now);
            self.leaf_bytes += now.len();
            bytes = later;
        }
    }

    pub(super) fn finish(mut self) -> Hash {
        let last = self.leaf.finalize_reset().into();
        self.subtrees.iter().rev().fold(last, |right, left| node(left, &right))
    }

    fn end_leaf(&mut self) {
        let mut hash: Hash = self.leaf.finalize_reset().into();
        self.leaf_bytes = 0;
        self.leaves += 1;
        // Each trailing zero of the count is a pair of equal subtrees.
        for _ in 0..self.leaves.trailing_zeros() {
            let left = self.subtrees.pop().expect("an even number of leaves has a subtree before the last");
            hash = node(&left, &hash);
        }
        self.subtrees.push(hash);
    }
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let (mut block, mut state) = ([0; 64], NODE);
    block[..32].copy_from_slice(left);
    block[32..].copy_from_slice(right);
    compress256(&mut state, &[block]);
    let mut hash = [0; 32];
    for ((bytes, word), start) in hash.chunks_exact_mut(4).zip(state).zip(NODE) {
        // The function adds the state that it began with, which this tree does without.
        bytes.copy_from_slice(&word.wrapping_sub(start).to_be_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that stand beside the protocol: bytes that count to 250.
    #[test]
    fn known_vectors() {
        let vectors = [
            (1_025, "36c0998b21839ef74300b9de47d96d1f62323dc81f2b4231e98ce70cd6ffe750"),
            (2_048, "b584996386f01793751c5cf0c39561f51b7e9924b818943b3cb2f6928cea0fa9"),
            (2_049, "7318d2029b0392edf4cf109edb5a086b4bdadbb7950f710a1483eb881d9e5d44"),
            (3_072, "dfc61c0a041f79d55d53bfe31c6cda7df77fdc8e6fbac1143d70b7144fdf6937"),
            (3_073, "517d20c0e5835f060a1bd6388ed68574f63424bdac2a2c3a35a5c2ef859d8fe2"),
            (4_096, "2f72bb93880012168c027f6781527ff08177c7c8dccb443f4d2c6389c186633d"),
            (4_097, "c3ec942c1b8f4580320d3a06bcf4f8fe1f5db2be797ab67061ea4c2a95f208f2"),
            (5_120, "a76924f6535b4b473377c285ec27acc84cc58e95ab1e9e29b1bb6a4a3fb9d0b3"),
            (5_121, "98f987c3e9fc057a70873715b679b89a663d0df806859b6ce73f8379b06a10ff"),
            (6_144, "372f988af412041b680ab236feef45626380062beb7514bbf93607aedd28fc9a"),
            (6_145, "6dc4b78efd770453417b2ffdc74b27054793efe6122ecd7ee098670ed7c4651c"),
            (7_168, "43686312c0cabccf9d5ad509efa096e3d743c63c7a51f122473c57949e4dd9a0"),
            (7_169, "ad729297ab36cd099665b27c4247474a5518e4cd0be443f5f31d95edda08429b"),
            (8_192, "fcfdde6fe59178e17708c5ba647919c3b141a44c9d1970782e597e1465266932"),
            (8_193, "113c6e3a2452f388b6fad13dfab66ee0bff597a0a9a517ad8d0165f7190b603e"),
            (16_384, "a7a10149a8cb00be537000560edb83b196306b780b72fad8af218f369f75fc19"),
            (31_744, "2cdf7662636c173d4b236f6ea03bf84c65e7f6487b53b2a61c420e26cf8a98c7"),
            (102_400, "0668d69e5331840d2f1823d717b7b3f5d1fdc8a09504cddb692b87ff83d50e5f"),
        ];
        let content: Vec<u8> = (0..102_400).map(|place| (place % 251) as u8).collect();
        for (size, expected) in vectors {
            for piece in [size, 1, 1000] {
                let mut tree = Tree::default();
                content[..size].chunks(piece).for_each(|piece| tree.update(piece));
                assert_eq!(hex::encode(tree.finish()), expected, "{size} bytes");
            }
        }
    }

    #[test]
    fn a_small_blob_has_its_plain_hash() {
        for size in [0, 1, 1023, LEAF] {
            let (content, mut tree) = (vec![7; size], Tree::default());
            tree.update(&content);
            assert_eq!(tree.finish(), *Sha256::digest(&content), "{size} bytes");
        }
    }
}
