//! What containerd says to a shim. See `tatami_fuzz::agents::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("options"), |data: &[u8]| tatami_fuzz::agents::options(data));
