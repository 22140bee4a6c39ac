//! The transport behind PCI: configuration space, registers, messages. See `tatami_fuzz::rings::pci`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: tatami_fuzz::begin("pci"), |data: &[u8]| tatami_fuzz::rings::pci(data));
