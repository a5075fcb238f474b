//! What the farm asks of an init, and what system calls make of it.

use std::ffi::{CStr, CString};

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::exec::Program;
use super::init::EXEC_ROOT;
use super::launcher::{Fault, Scratch, Step};
use super::limits::Ceilings;
use super::skeleton::{LOWER, MEMORY, SCRATCH};
use crate::error::Error;

/// Of the action's directory, in which its overlay and `/tmp` are when they are on disk.
pub(in crate::worker) const DISK_DIRECTORY: &str = "scratch";
/// The options of the memory that an action writes into if nothing else is said: a part of the machine's.
pub(super) const MEMORY_OPTIONS: &CStr = c"mode=0755,size=50%";

/// The command as it crosses the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) root: usize,
    /// The action's directory, below the one that the launcher serves.
    pub(super) directory: String,
    /// The lower layers, below the same one, the uppermost first.
    pub(super) layers: Vec<String>,
    /// Relative to the exec root.
    pub(super) working_directory: String,
    pub(super) arguments: Vec<String>,
    /// `NAME=value`, each.
    pub(super) environment: Vec<String>,
    /// What it may write, in bytes, if that is kept in memory.
    pub(super) memory_scratch: Option<u64>,
    pub(super) ceilings: Ceilings,
    pub(super) purpose: Purpose,
}

/// What an order is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// To run a command on its inputs.
    Command,
    /// To make the exec root of a request to a resident and hand it over; nothing is run.
    Request,
    /// To run a command that answers one request after the other; it has no inputs of its own.
    Resident,
}

/// An order as system calls take it.
pub(super) struct Plan {
    pub(super) root: usize,
    pub(super) writable: Writable,
    /// The options of the overlay.
    pub(super) overlay: CString,
    pub(super) working_directory: CString,
    pub(super) program: Program,
    pub(super) ceilings: Ceilings,
    pub(super) purpose: Purpose,
}

/// Where what an action writes is kept.
pub(super) enum Writable {
    /// In memory that has these options.
    Memory(CString),
    Disk(Places),
}

/// The paths of what an action writes.
pub(super) struct Places {
    /// To be made, with their modes.
    pub(super) directories: [(CString, Mode); 3],
    pub(super) stdout: CString,
    pub(super) stderr: CString,
    /// What becomes `/tmp`.
    pub(super) temporary: CString,
}

impl Order {
    /// Refuses what no program can be started with.
    pub(super) fn check(&self) -> crate::error::Result<()> {
        let mut strings = self.arguments.iter().chain(&self.environment).chain([&self.working_directory]);
        if strings.any(|text| text.contains('\0')) {
            return Err(Error::invalid("the command cannot be run: a string contains a NUL character"));
        }
        Ok(())
    }
}

impl Plan {
    /// # Errors
    /// When a string has a NUL, of which the farm lets none pass.
    pub(super) fn new(order: Order, scratch: Scratch) -> Result<Self, Fault> {
        let options = |bytes| string(format!("mode=0755,size={bytes}"));
        let (directory, writable) = match scratch {
            Scratch::Memory => {
                let options = order.memory_scratch.map_or_else(|| Ok(MEMORY_OPTIONS.to_owned()), options)?;
                (MEMORY.to_owned(), Writable::Memory(options))
            }
            Scratch::Disk => {
                let directory = format!("{SCRATCH}/{}/{DISK_DIRECTORY}", order.directory);
                let places = Places::below(&directory)?;
                (directory, Writable::Disk(places))
            }
        };
        let layers: Vec<String> = order.layers.iter().map(|layer| format!("{LOWER}/{layer}")).collect();
        Ok(Self {
            root: order.root,
            writable,
            // volatile: unmounting would sync the whole file system below, for files that are thrown away.
            overlay: string(format!(
                "lowerdir={},upperdir={directory}/upper,workdir={directory}/work,userxattr,volatile",
                layers.join(":")
            ))?,
            working_directory: string(format!("{EXEC_ROOT}/{}", order.working_directory))?,
            program: Program::new(order.arguments, order.environment)?,
            ceilings: order.ceilings,
            purpose: order.purpose,
        })
    }
}

impl Places {
    /// # Errors
    /// When the path has a NUL.
    pub(super) fn below(directory: &str) -> Result<Self, Fault> {
        let below = |name: &str| string(format!("{directory}/{name}"));
        let mode = Mode::from_raw_mode;
        Ok(Self {
            directories: [
                (below("upper")?, mode(0o755)),
                (below("work")?, mode(0o700)),
                (below("tmp")?, mode(0o1777)),
            ],
            stdout: below("stdout")?,
            stderr: below("stderr")?,
            temporary: below("tmp")?,
        })
    }
}

fn string(text: String) -> Result<CString, Fault> {
    CString::new(text).step("read the command")
}
