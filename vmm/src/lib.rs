//! The micro-VMM on KVM: composes a machine of `tatami-arch` and devices of `tatami-devices`, and is the jailed process that
//! runs it.
//!
//! The server's side is [`client`]; the process itself is [`process`]; [`boot`] is what happens in between. Deliberately
//! knows nothing of containers, of the agent, or of what the guest's bytes mean.

mod backing;
pub mod boot;
mod bus;
mod child;
pub mod client;
mod config;
mod console;
mod control;
mod disks;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod jail;
mod kernel;
mod kvm;
mod memory;
mod nics;
pub mod open_files;
mod ports;
pub mod probe;
pub mod process;
mod ration;
mod seccomp;
pub mod snapshot;
mod stop;
mod supervisor;
mod threads;
mod vcpu;
mod verity;
mod virtio;

pub use backing::RamBacking;
pub use client::{Event, Resources, SpawnError, VmmProcess};
pub use config::{
    ConfigError, FolderConfig, MAX_DISK_SLOTS, MAX_NICS, MAX_QUEUE_PAIRS, MAX_VHOST_USER, MemoryKind, NicConfig,
    NicKind, RootDisk, VhostUserKind, VirtioBus, VmConfig, nic_address, slot_serial, vhost_user_tag,
};
pub use control::{ControlError, DISK_PARTS_LIMIT};
pub use kernel::LoadError;
pub use kvm::KvmError;
pub use memory::MemoryError;
pub use stop::StopReason;
pub use tatami_devices::virtio::{
    Allowance, BLK_QUEUES_MAX, DiskPart, FS_QUEUES_MAX, FsCache, NicLimits, RateLimit, uring_works, vhost_lacks,
};
pub use threads::VmmThreads;
pub use vcpu::ExitCounts;
pub use verity::{VERITY_BLOCK, Verity, VerityError};
