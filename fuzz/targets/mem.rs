//! The memory device. See `tatami_fuzz::memories::mem`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("mem"), |data: &[u8]| tatami_fuzz::memories::mem(data));
