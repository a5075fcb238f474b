//! Runs actions: inputs, sandbox, outputs.

mod command;
mod directory;
mod inputs;
mod outputs;
pub mod sandbox;
#[cfg(test)]
mod shelf;
mod tree;
