//! Looks for bytes for which `croft::fuzz::build_event` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| croft::fuzz::build_event(bytes));
