//! A saved sandbox's description. See `tatami_fuzz::headers::header`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("header"), |data: &[u8]| tatami_fuzz::headers::header(data));
