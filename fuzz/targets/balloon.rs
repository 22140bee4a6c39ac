//! The balloon. See `tatami_fuzz::memories::balloon`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("balloon"), |data: &[u8]| tatami_fuzz::memories::balloon(data));
