//! Files that come out of a container. See `tatami_fuzz::copies::copy`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("copy"), |data: &[u8]| tatami_fuzz::copies::copy(data));
