//! Starts the write-back of what was just written, so that the sync at the end of a large blob finds little left to do.
//!
//! A second thread that syncs meanwhile does not serve: on ext4 its commits stop the writes.

#![allow(unsafe_code, reason = "no library has a safe sync_file_range; it takes numbers only")]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Hands `length` bytes of `file` from `offset` on to the disk without waiting for it. It is only a hint, and promises nothing:
/// whoever needs the bytes to be durable syncs the file.
pub(super) fn begin(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: the call takes a descriptor, which `file` keeps open, and numbers; it touches no memory of ours.
    let started =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if started != 0 {
        tracing::trace!("the write-back could not be started early");
    }
}
