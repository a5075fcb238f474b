//! Integration tests: they run the real binary.

mod sandbox;
mod worker;
