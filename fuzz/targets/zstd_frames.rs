//! Looks for bytes for which `croft::fuzz::zstd_frames` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| croft::fuzz::zstd_frames(bytes));
