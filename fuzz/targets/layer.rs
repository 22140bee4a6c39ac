//! An image's layer. See `tatami_fuzz::images::layer`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("layer"), |data: &[u8]| tatami_fuzz::images::layer(data));
