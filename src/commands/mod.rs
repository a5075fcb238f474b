//! One file a subcommand.

pub mod launcher;
