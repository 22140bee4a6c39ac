//! The VMM's control socket. See `tatami_fuzz::loading::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("control"), |data: &[u8]| tatami_fuzz::loading::control(data));
