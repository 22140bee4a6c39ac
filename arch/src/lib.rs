//! What a machine looks like, as pure data: where memory and devices lie, what must be in memory and in the registers
//! when the first instruction runs.
//!
//! Every architecture compiles on every host, so that its tables are tested everywhere; [`Host`] names the one that this
//! binary can run. The crate deliberately knows neither KVM nor devices nor files: it computes, others place.

mod command_line;
mod elf;
mod host;
mod machine;
pub mod x86_64;

pub use command_line::{CommandLine, CommandLineError};
pub use elf::{ElfHeader, ElfMachine, KernelFormatError};
#[allow(unused_imports, unreachable_pub, reason = "empty on a host that no machine here is for")]
pub use host::*;
pub use machine::{Blob, BootImage, BootInputs, DeviceSlot, Extent, FixedSlot, Machine, PlacementError, Region, Space};
