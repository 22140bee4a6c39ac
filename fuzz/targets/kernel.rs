//! Kernel files. See `tatami_fuzz::loading::kernel`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("kernel"), |data: &[u8]| tatami_fuzz::loading::kernel(data));
