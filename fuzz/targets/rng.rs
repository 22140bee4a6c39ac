//! The entropy device. See `tatami_fuzz::devices::rng`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("rng"), |data: &[u8]| tatami_fuzz::devices::rng(data));
