//! Runs actions: inputs, sandbox, outputs.

pub mod sandbox;
