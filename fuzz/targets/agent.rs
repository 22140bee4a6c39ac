//! What the agent reads. See `tatami_fuzz::agents::agent`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("agent"), |data: &[u8]| tatami_fuzz::agents::agent(data));
