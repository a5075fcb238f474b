//! Runs actions: inputs, sandbox, outputs.
