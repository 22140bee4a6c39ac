//! The hostile guest (`guest/`), compiled: an ELF file that the VMM boots in a kernel's place. Empty where there is none for the
//! architecture.

/// The file's bytes.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));
