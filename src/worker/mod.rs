//! Runs actions: inputs, sandbox, outputs.

mod command;
pub mod sandbox;
#[cfg(test)]
mod shelf;
mod tree;
