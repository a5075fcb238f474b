//! The paged hash of BuildXL, `VSO` in the protocol: SHA-256 of pages, of blocks of pages, and a chain over the blocks.

use sha2::{Digest, Sha256};

/// Bytes of a page, the unit that is hashed as it is.
const PAGE: usize = 64 << 10;

/// Pages of a block.
const BLOCK_PAGES: usize = 32;

/// What the chain over the blocks begins with.
const SEED: &[u8] = b"VSO Content Identifier Seed";

/// The last byte of each hash; it tells this chain from other content identifiers of BuildXL.
const ALGORITHM: u8 = 0;

/// The state while a blob streams by. A page, a block and the chain each wait for their end, because the last block counts differently.
pub(super) struct Paged {
    page: Sha256,
    page_bytes: usize,
    block: Sha256,
    block_pages: usize,
    chain: Vec<u8>,
}

impl Default for Paged {
    fn default() -> Self {
        Self {
            page: Sha256::new(),
            page_bytes: 0,
            block: Sha256::new(),
            block_pages: 0,
            chain: SEED.to_vec(),
        }
    }
}

impl Paged {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // Only now is it known that the page before, and perhaps its block, was not the last.
            if self.page_bytes == PAGE {
                self.end_page();
                if self.block_pages == BLOCK_PAGES {
                    self.end_block(false);
                }
            }
            let (now, later) = bytes.split_at(bytes.len().min(PAGE - self.page_bytes));
            self.page.update(now);
            self.page_bytes += now.len();
            bytes = later;
        }
    }

    pub(super) fn finish(mut self) -> [u8; 33] {
        // The block of an empty blob has no page.
        if self.page_bytes > 0 {
            self.end_page();
        }
        self.end_block(true);
        let mut hash = [ALGORITHM; 33];
        hash[..32].copy_from_slice(&self.chain);
        hash
    }

    fn end_page(&mut self) {
        self.block.update(self.page.finalize_reset());
        self.page_bytes = 0;
        self.block_pages += 1;
    }

    fn end_block(&mut self, is_last: bool) {
        let block = self.block.finalize_reset();
        let link =
            Sha256::new().chain_update(&self.chain).chain_update(block).chain_update([u8::from(is_last)]);
        self.chain = link.finalize().to_vec();
        self.block_pages = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_PAGES * PAGE;

    /// The published values for content that counts its bytes.
    #[test]
    fn known_vectors() {
        let vectors = [
            (0, "1e57cf2792a900d06c1cdfb3c453f35bc86f72788aa9724c96c929d1cc6b456a00"),
            (1, "3da32150b5e69b54e7ad1765d9573bc5e6e05d3b6529556c1b4a436a76a511f400"),
            (PAGE - 1, "4ae1ad6462d75d117a5dafcf98167981371a4b21e1cee49d0b982de2ce01032300"),
            (PAGE, "85840e1cb7cbfd78b464921c54c96f68c19066f20860efa8cce671b40ba5162300"),
            (PAGE + 1, "d92a37c547f9d5b6b7b791a24f587da8189cca14ebc8511d2482e7448763e2bd00"),
            (BLOCK - 1, "1c3c73f7e829e84a5ba05631195105fb49e033fa23bda6d379b3e46b5d73ef3700"),
            (BLOCK, "6dae3ed3e623aed293297c289c3d20a53083529138b7631e99920ef0d93af3cd00"),
            (BLOCK + 1, "1f9f3c008ea37ecb65bc5fb14a420cebb3ca72a9601ec056709a6b431f91807100"),
            (2 * BLOCK - 1, "df0e0db15e866592dbfa9bca74e6d547d67789f7eb088839fc1a5cefa862353700"),
            (2 * BLOCK, "5e3a80b2acb2284cd21a08979c49cbb80874e1377940699b07a8abee9175113200"),
            (2 * BLOCK + 1, "b9a44a420593fa18453b3be7b63922df43c93ff52d88f2cab26fe1fadba7003100"),
        ];
        let content: Vec<u8> = (0..=2 * BLOCK).map(|place| place as u8).collect();
        for (size, expected) in vectors {
            for piece in [size.max(1), 100_003] {
                let mut paged = Paged::default();
                content[..size].chunks(piece).for_each(|piece| paged.update(piece));
                assert_eq!(hex::encode(paged.finish()), expected, "{size} bytes");
            }
        }
    }
}
