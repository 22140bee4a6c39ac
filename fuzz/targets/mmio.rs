//! The transport's registers. See `tatami_fuzz::rings::mmio`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("mmio"), |data: &[u8]| tatami_fuzz::rings::mmio(data));
