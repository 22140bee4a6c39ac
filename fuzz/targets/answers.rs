//! What the server reads from a guest. See `tatami_fuzz::agents::answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("answers"), |data: &[u8]| tatami_fuzz::agents::answers(data));
