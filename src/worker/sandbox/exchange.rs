//! The init's side of a resident: a command that stays, and before which the inputs of one request after the other are put.
//!
//! The command stands in its exec root for its whole life, and nothing can be exchanged below a process' feet. So that root is an empty
//! directory in memory, and what is exchanged are the entries at its top: each is a mount from the exec root of a request, an overlay that
//! another init has made as for any action. What the command writes is found there, and bounded as ever.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};
use rustix::pipe::{PipeFlags, pipe_with};

use super::init::{EXEC_ROOT, PLAIN};
use super::launcher::{Fault, Step};
use super::order::Purpose;
use super::skeleton::HIDDEN;
use super::wire::{self, Left};

/// Room for the points where the inputs are mounted and for what a command leaves beside them, which is not kept.
const GROUND_OPTIONS: &std::ffi::CStr = c"mode=0755,size=16m,nr_inodes=1024";
/// Entries at the top of a request's exec root. Each is a mount, and few projects have as many.
const ENTRIES_MAX: usize = 256;

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Mounts what a resident stands on.
pub(super) fn mount_ground() -> Result<(), Fault> {
    mount("tmpfs", EXEC_ROOT, "tmpfs", PLAIN, Some(GROUND_OPTIONS)).step("mount the exec root of a resident")
}

/// Gives the farm the exec root of a request.
pub(super) fn hand_over(channel: &OwnedFd, left: &Left) -> Result<(), Fault> {
    let tree = open_tree(CWD, EXEC_ROOT, CLONE).step("clone the exec root of a request")?;
    // A send fails only when the farm is gone.
    let _ = wire::send_staged(channel, left, &tree);
    Ok(())
}

/// Opens the pipes of a resident, tells the farm its ends of them, and waits for its first request, so that the command finds its own
/// program. Returns what the command reads; what it answers into is in `left`.
pub(super) fn begin(channel: &OwnedFd, left: &mut Left) -> Result<OwnedFd, Fault> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step("open a pipe for a resident");
    let (stdin, requests) = pipe()?;
    let (answers, stdout) = pipe()?;
    left.stdout = stdout;
    let _ = wire::send_piped(channel, [&requests, &answers, &left.stderr]);
    match serve(channel) {
        true => Ok(stdin),
        false => Err("the first request of a resident was withdrawn".to_owned()),
    }
}

/// What is left with the end of the pipe closed that belongs to the command alone.
pub(super) fn without_pipe(left: Left, purpose: Purpose) -> Result<Left, Fault> {
    if purpose != Purpose::Resident {
        return Ok(left);
    }
    let stdout = left.stderr.try_clone().step("copy a descriptor")?;
    Ok(Left { stdout, ..left })
}

/// Does what the farm says through `channel`; whether that was to exchange the inputs, and they are exchanged.
pub(super) fn serve(channel: &OwnedFd) -> bool {
    let mut word = [0; 4];
    let Ok((length, fds)) = wire::receive(channel, &mut word) else { return false };
    if &word[..length] != b"X" {
        return false;
    }
    match exchange(fds.into_iter().next()) {
        Ok(()) => wire::send(channel, b"X", &[]).is_ok(),
        Err(fault) => {
            let _ = wire::send_fault(channel, &fault);
            false
        }
    }
}

/// Takes away the inputs of the last request and what lies beside them, and puts those of the next in their place, if there is one.
fn exchange(tree: Option<OwnedFd>) -> Result<(), Fault> {
    clear().step("take away the inputs of a request")?;
    let Some(tree) = tree else { return Ok(()) };
    // Where the worker's directory was until it was hidden: an empty directory that nothing else uses.
    move_mount(tree, "", CWD, HIDDEN, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step("mount the exec root of a request")?;
    let shown = show().step("show the inputs of a request");
    unmount(HIDDEN, UnmountFlags::DETACH).step("unmount the exec root of a request")?;
    shown
}

fn clear() -> io::Result<()> {
    for entry in fs::read_dir(EXEC_ROOT)? {
        let entry = entry?;
        let path = entry.path();
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // The command has made it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        // What is mounted there does not count any more; what the command has put there may be anything.
        match path.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

fn show() -> io::Result<()> {
    for (count, entry) in fs::read_dir(HIDDEN)?.enumerate() {
        let entry = entry?;
        if count == ENTRIES_MAX {
            return Err(io::Error::other("there are too many at the top of the exec root"));
        }
        attach(&entry.path(), &Path::new(EXEC_ROOT).join(entry.file_name()), entry.file_type()?)?;
    }
    Ok(())
}

fn attach(source: &Path, point: &Path, kind: fs::FileType) -> io::Result<()> {
    if kind.is_dir() {
        fs::create_dir(point)?;
    } else if kind.is_file() {
        fs::File::create_new(point)?;
    } else {
        return Err(io::Error::other("one is neither a directory nor a file"));
    }
    let tree = open_tree(CWD, source, CLONE | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)?;
    // The command may write here meanwhile: a link in place of the point must lead nowhere.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = rustix::fs::open(point, flags, Mode::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", point, "", flags)?)
}
