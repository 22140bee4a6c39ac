//! The file system device. See `tatami_fuzz::files::fs`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("fs"), |data: &[u8]| tatami_fuzz::files::fs(data));
