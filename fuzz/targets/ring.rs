//! The split queue. See `tatami_fuzz::rings::ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("ring"), |data: &[u8]| tatami_fuzz::rings::ring(data));
