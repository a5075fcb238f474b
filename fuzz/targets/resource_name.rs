//! Looks for bytes for which `croft::fuzz::resource_name` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| croft::fuzz::resource_name(bytes));
