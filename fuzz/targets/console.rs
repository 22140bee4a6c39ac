//! The console. See `tatami_fuzz::memories::console`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("console"), |data: &[u8]| tatami_fuzz::memories::console(data));
