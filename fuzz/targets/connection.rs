//! One stream's state. See `tatami_fuzz::devices::connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("connection"), |data: &[u8]| tatami_fuzz::devices::connection(data));
