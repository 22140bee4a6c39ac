//! The block device. See `tatami_fuzz::devices::blk`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("blk"), |data: &[u8]| tatami_fuzz::devices::blk(data));
