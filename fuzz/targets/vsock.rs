//! The socket device. See `tatami_fuzz::devices::vsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("vsock"), |data: &[u8]| tatami_fuzz::devices::vsock(data));
