//! Files for content whose digest is not known before its last byte.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::integrity::{Checker, Integrity};
use crate::digest::{Digest, Function, Hasher};
use crate::error::{Context, Error, Kind, Result};
use crate::store::{Blob, CHUNK_BYTES};

/// The directory of the files. They have no name for longer than it takes to open them, so nothing is left of a fetch that ends early.
#[derive(Debug, Clone)]
pub(super) struct Spools {
    directory: Arc<Path>,
}

impl Spools {
    /// Makes the directory, and empties it of what a crash may have left.
    ///
    /// # Errors
    /// What the file system reports.
    pub(super) fn open(directory: PathBuf) -> Result<Self> {
        if let Err(error) = std::fs::remove_dir_all(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::from(error).context("empty the directory of fetches"));
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.context(|| "make the directory of fetches")?;
        Ok(Self { directory: directory.into() })
    }

    fn file(&self) -> Result<File> {
        let path = self.directory.join(uuid::Uuid::new_v4().to_string());
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.context(|| "make a file for a fetch")?;
        std::fs::remove_file(&path).context(|| "unlink a file for a fetch")?;
        Ok(file)
    }
}

/// Content on its way to a file, hashed as it passes. All of it blocks.
pub(super) struct Spool {
    file: File,
    size: u64,
    size_max: u64,
    function: Function,
    /// Some functions hash the size first, so this needs one; without it the file is read again at the end.
    hasher: Option<Hasher>,
    checker: Option<Checker>,
}

/// What a spool needs to know before the first byte.
pub(super) struct Expected<'a> {
    pub(super) function: Function,
    pub(super) integrity: Option<&'a Integrity>,
    /// The size that was promised; a spool that gets another is refused.
    pub(super) size: Option<u64>,
    /// The bytes that are taken at most.
    pub(super) size_max: u64,
}

impl Spool {
    /// # Errors
    /// `Exhausted` when the promised size is over the limit, and what the file system reports.
    pub(super) fn new(spools: &Spools, expected: &Expected<'_>) -> Result<Self> {
        if expected.size.is_some_and(|size| size > expected.size_max) {
            return Err(too_large(expected.size_max));
        }
        Ok(Self {
            file: spools.file()?,
            size: 0,
            size_max: expected.size_max,
            function: expected.function,
            hasher: expected.size.map(|size| expected.function.hasher(size)),
            checker: expected.integrity.map(Integrity::checker),
        })
    }

    /// # Errors
    /// `Exhausted` when the content is over the limit or the disk is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        if self.size > self.size_max {
            return Err(too_large(self.size_max));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        if let Some(checker) = &mut self.checker {
            checker.update(bytes);
        }
        self.file.write_all(bytes).context(|| "write a fetch")
    }

    /// The content as a blob with its digest.
    ///
    /// # Errors
    /// `Aborted` when the content is not what it should be.
    pub(super) fn finish(self) -> Result<(Digest, Blob)> {
        if let Some(checker) = self.checker {
            checker.finish()?;
        }
        let digest = match self.hasher {
            Some(hasher) => hasher.finish(),
            None => hash(&self.file, self.function, self.size)?,
        };
        Ok((digest, Blob::File { file: Arc::new(self.file), offset: 0, size: self.size }))
    }
}

fn hash(file: &File, function: Function, size: u64) -> Result<Digest> {
    let (mut hasher, mut buffer, mut offset) = (function.hasher(size), vec![0; CHUNK_BYTES], 0);
    while offset < size {
        let count = file.read_at(&mut buffer, offset).context(|| "read a fetch")?;
        if count == 0 {
            return Err(Error::new(Kind::Corrupt, "the file of a fetch ends before its size"));
        }
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
    Ok(hasher.finish())
}

fn too_large(size_max: u64) -> Error {
    Error::new(Kind::Exhausted, format!("the content has more than the {size_max} bytes that are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(spools: &Spools, size: Option<u64>) -> Result<Spool> {
        Spool::new(spools, &Expected { function: Function::Blake3, integrity: None, size, size_max: 10 })
    }

    #[tokio::test]
    async fn the_digest_is_the_same_with_and_without_a_promised_size() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("left"), "by a crash").unwrap();
        let spools = Spools::open(directory.path().to_owned()).unwrap();
        for size in [None, Some(5)] {
            let mut spool = spool(&spools, size).unwrap();
            spool.write(b"12").unwrap();
            spool.write(b"345").unwrap();
            let (digest, blob) = spool.finish().unwrap();
            assert_eq!(digest, Function::Blake3.hash(b"12345"));
            assert_eq!(blob.into_bytes(10).await.unwrap(), "12345");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let spools = Spools::open(directory.path().to_owned()).unwrap();
        assert_eq!(spool(&spools, Some(11)).err().unwrap().kind(), Kind::Exhausted);
        let mut spool = spool(&spools, None).unwrap();
        spool.write(b"1234567890").unwrap();
        assert_eq!(spool.write(b"1").unwrap_err().kind(), Kind::Exhausted);
    }
}
