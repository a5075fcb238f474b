//! What must hold for any bytes that come from outside, a function for each kind of them. `fuzz/` lets libFuzzer look for bytes for
//! which it does not, and keeps those that were found as seeds, which ordinary tests try again.

pub use crate::rpc::fuzz::{build_event, digest, resource_name};
pub use crate::scheduler::fuzz::journal_record;
pub use crate::store::fuzz::{tree, zstd_frames};
pub use crate::worker::fuzz::{command, directory};

/// One kind of bytes: its name, which is that of its program and of its folder of seeds, and what must hold.
pub type Target = (&'static str, fn(&[u8]));

/// All kinds.
pub const TARGETS: [Target; 8] = [
    ("build_event", build_event),
    ("command", command),
    ("digest", digest),
    ("directory", directory),
    ("journal_record", journal_record),
    ("resource_name", resource_name),
    ("tree", tree),
    ("zstd_frames", zstd_frames),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let files = fs::read_dir(folder("seeds").join(target)).expect("every target has seeds");
        files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn every_seed_holds() {
        for (name, holds) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name}");
            seeds.iter().for_each(|seed| holds(seed));
        }
    }

    #[test]
    fn every_target_has_a_program() {
        let programs = fs::read_dir(folder("targets")).unwrap();
        let name = |program: fs::DirEntry| program.path().file_stem().unwrap().to_str().unwrap().to_owned();
        let programs: BTreeSet<String> = programs.map(|program| name(program.unwrap())).collect();
        let targets = TARGETS.map(|(name, _)| name.to_owned());
        assert_eq!(programs, targets.into());
    }

    proptest! {
        #[test]
        fn damaged_seeds_hold(target in 0..TARGETS.len(), seed: prop::sample::Index, at: prop::sample::Index, byte: u8) {
            let (name, holds) = TARGETS[target];
            let seeds = seeds(name);
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            bytes.push(0);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            holds(&bytes);
            holds(&bytes[..at]);
        }
    }
}
