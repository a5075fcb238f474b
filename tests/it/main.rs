//! Do the pieces fit: the real binary, spoken to as clients do.

mod bad_input;
mod bytestream;
mod cas;
mod client;
mod execution;
mod farm;
mod lifecycle;
mod operations;
mod sandbox;
