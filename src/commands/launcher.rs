//! `croft launcher`: the hidden command by which the farm starts its sandbox's launcher. It is of no use to people.

use std::process::ExitCode;

/// Runs the launcher until the farm ends.
pub(super) fn run() -> ExitCode {
    crate::worker::sandbox::launcher::main()
}
