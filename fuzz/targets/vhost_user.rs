//! A disk that another process serves. See `tatami_fuzz::back_ends::vhost_user`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("vhost_user"), |data: &[u8]| tatami_fuzz::back_ends::vhost_user(data));
