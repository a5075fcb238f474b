//! Do the pieces fit: the real binary, spoken to as clients do.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and says what it skips"
)]

mod bad_input;
mod bytestream;
mod cas;
mod client;
mod execution;
mod farm;
mod lifecycle;
mod operations;
mod sandbox;
mod worker;
