//! An image archive. See `tatami_fuzz::images::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("image"), |data: &[u8]| tatami_fuzz::images::image(data));
