//! Looks for bytes for which `croft::fuzz::digest` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| croft::fuzz::digest(bytes));
