//! FUSE requests. See `tatami_fuzz::files::fuse`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("fuse"), |data: &[u8]| tatami_fuzz::files::fuse(data));
