//! The one place that chooses the machine this binary runs; it knows nothing but the names.

/// The machine of the host this was compiled for.
#[cfg(target_arch = "x86_64")]
pub type Host = crate::x86_64::X86_64;

/// The machine of the host this was compiled for.
#[cfg(target_arch = "aarch64")]
pub type Host = crate::aarch64::Aarch64;

/// The machine of the host this was compiled for.
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
pub type Host = crate::ppc64le::Ppc64le;
