//! What a registry says before it gives anything. See `tatami_fuzz::images::challenge`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("challenge"), |data: &[u8]| tatami_fuzz::images::challenge(data));
