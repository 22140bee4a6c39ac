//! A saved machine's state file. See `tatami_fuzz::loading::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("snapshot"), |data: &[u8]| tatami_fuzz::loading::snapshot(data));
