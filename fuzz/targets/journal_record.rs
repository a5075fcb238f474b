//! Looks for bytes for which `croft::fuzz::journal_record` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| croft::fuzz::journal_record(bytes));
