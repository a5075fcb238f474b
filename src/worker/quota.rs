//! Measures what an action has written to the disk. File systems have quotas for users and projects, but few are mounted so, and all
//! actions are one user's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::tasks;

/// The shortest time between two looks: a disk takes some GiB in it.
const LOOKS_MIN: Duration = Duration::from_secs(2);
/// A look may take this part of the time.
const EFFORT_PART: u32 = 10;
/// Files and directories that one look goes through; an action that writes more is measured by the first ones that are found.
const ENTRIES_MAX: usize = 1_000_000;
/// The kernel's unit of the space that a file takes.
const BLOCK_BYTES: u64 = 512;

/// What an action may write below a directory.
#[derive(Debug, Clone)]
pub(super) struct Quota {
    pub(super) directory: PathBuf,
    pub(super) bytes: u64,
}

/// Returns when there is more than the quota; without one, never.
pub(super) async fn exceeded(quota: Option<Quota>) {
    let Some(quota) = quota else { return std::future::pending().await };
    let mut pause = LOOKS_MIN;
    loop {
        sleep(pause).await;
        let quota = quota.clone();
        // Blocking work fails when the runtime ends, and then this does, too.
        let Ok((is_over, effort)) = tasks::blocking(move || Ok(quota.look())).await else { continue };
        if is_over {
            return;
        }
        pause = LOOKS_MIN.max(effort.saturating_mul(EFFORT_PART));
    }
}

impl Quota {
    /// Whether there is more than the quota, and the time that it took to find out.
    fn look(&self) -> (bool, Duration) {
        let begin = Instant::now();
        let mut directories = vec![self.directory.clone()];
        let (mut bytes, mut entries) = (0_u64, 0);
        while let Some(directory) = directories.pop() {
            // What vanishes or cannot be entered is not counted: its user is busy, or has shut out even itself.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
                bytes += metadata.blocks() * BLOCK_BYTES / metadata.nlink().max(1);
                entries += 1;
                if bytes > self.bytes || entries > ENTRIES_MAX {
                    return (bytes > self.bytes, begin.elapsed());
                }
            }
        }
        (false, begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_below_count_and_links_count_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        let file = directory.path().join("a/b/file");
        fs::write(&file, vec![1; 1 << 20]).unwrap();
        fs::hard_link(&file, directory.path().join("link")).unwrap();
        let is_over = |bytes| Quota { directory: directory.path().to_owned(), bytes }.look().0;
        assert!(is_over(1 << 19) && !is_over(3 << 19));
        fs::write(directory.path().join("more"), vec![1; 1 << 20]).unwrap();
        assert!(is_over(3 << 19));
    }

    #[test]
    fn without_a_quota_nothing_is_exceeded() {
        assert!(futures_util::FutureExt::now_or_never(exceeded(None)).is_none());
    }
}
