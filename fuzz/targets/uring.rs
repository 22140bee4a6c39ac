//! The block device, through io_uring. See `tatami_fuzz::devices::uring`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("uring"), |data: &[u8]| tatami_fuzz::devices::uring(data));
