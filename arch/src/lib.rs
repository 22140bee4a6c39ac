//! What a machine looks like, as pure data: where memory and devices lie, what must be in memory and in the registers
//! when the first instruction runs.
//!
//! Every architecture compiles on every host, so that its tables are tested everywhere; [`Host`] names the one that this
//! binary can run. The crate deliberately knows neither KVM nor devices nor files: it computes, others place.

pub mod aarch64;
mod command_line;
mod elf;
mod host;
mod image;
mod kernel;
mod machine;
pub mod ppc64le;
#[cfg(test)]
mod testing;
pub mod x86_64;

pub use command_line::{CommandLine, CommandLineError};
pub use elf::ElfMachine;
#[allow(unused_imports, unreachable_pub, reason = "empty on a host that no machine here is for")]
pub use host::*;
pub use kernel::{KernelFormat, KernelFormatError, KernelHeader};
pub use machine::{
    Blob, BootImage, BootImageError, BootInputs, Device, DeviceSlot, Extent, FixedSlot, Machine, PlacementError,
    Region, Space,
};
