//! The network device, with a stream plugged in. See `tatami_fuzz::nics::net`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("net"), |data: &[u8]| tatami_fuzz::nics::net(data));
