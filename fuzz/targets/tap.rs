//! The network device, with something like a tap plugged in. See `tatami_fuzz::nics::tap`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("tap"), |data: &[u8]| tatami_fuzz::nics::tap(data));
