//! Damaged blobs that are kept to be looked at: few, and not many bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::keeper;
use crate::error::{Context, Result};
use crate::store::name::Name;

/// What is kept at most. One of each kind of damage tells what there is to learn.
const FILES_MAX: usize = 32;
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Keeps a file that has lost its name; the directory is that of the store.
pub(super) fn keep_file(directory: &Path, name: &Name, file: &Path) -> Result<()> {
    let target = place(directory, name)?;
    fs::rename(file, target).context(|| "move a damaged blob into quarantine")?;
    prune(directory)
}

/// Keeps a blob that was in the index.
pub(super) fn keep_bytes(directory: &Path, name: &Name, bytes: &[u8]) -> Result<()> {
    let target = place(directory, name)?;
    fs::write(target, bytes).context(|| "write a damaged blob into quarantine")?;
    prune(directory)
}

/// `quarantine/<seconds since 1970>-<hash>`: their order is that of time.
fn place(directory: &Path, name: &Name) -> Result<PathBuf> {
    let folder = folder(directory);
    fs::create_dir_all(&folder).context(|| "make the quarantine")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(folder.join(format!("{now:012}-{}", name.hex())))
}

fn folder(directory: &Path) -> PathBuf {
    directory.join("quarantine")
}

/// Deletes the oldest until the bounds are kept.
fn prune(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(folder(directory)).context(|| "list the quarantine")?;
    let mut kept: Vec<(PathBuf, u64)> =
        entries.flatten().map(|entry| (entry.path(), entry.metadata().map_or(0, |it| it.len()))).collect();
    kept.sort();
    let mut bytes = 0;
    for (number, (path, size)) in kept.iter().rev().enumerate() {
        bytes += size;
        if number >= FILES_MAX || bytes > BYTES_MAX {
            keeper::delete(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn few_are_kept_and_the_newest_are_among_them() {
        let directory = tempfile::TempDir::new().unwrap();
        let name = |number: u8| Name::from(&Key::Asset([number; 32]));
        for number in 0..40 {
            keep_bytes(directory.path(), &name(number), b"damaged").unwrap();
        }
        let kept = fs::read_dir(folder(directory.path())).unwrap();
        let kept: Vec<String> = kept.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(kept.len(), FILES_MAX);
        assert!(kept.iter().any(|file| file.ends_with(&name(39).hex())));
    }
}
