//! Virtio 1.2: what every device and every transport agree on.
//!
//! A [`VirtioDevice`] is configuration space plus behaviour. The transport owns status, feature negotiation and queue
//! registers, checks them, and hands the device its queues once, on activation; nothing a driver writes afterwards can
//! change them until reset.

pub mod balloon;
pub mod blk;
mod buffers;
pub mod console;
mod device;
pub mod fs;
mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod rate_limit;
pub mod ring;
pub mod rng;
pub mod spec;
#[cfg(test)]
mod testing;
mod throttle;
mod transport;
pub mod vhost_user;
pub mod vsock;
mod worker;

pub use balloon::{Balloon, BalloonSize};
pub use blk::{BLK_QUEUES_MAX, Blk, BlkConfig, DiskError, DiskPart, Slot, uring_works};
pub use console::Console;
pub use device::{
    ActivateError, Activation, ActiveQueue, Backing, DeviceKind, Interrupt, Role, SaveError, Threads, VirtioDevice,
};
pub use fs::{FS_QUEUES_MAX, Fs, FsCache, FsConfig, FsError};
pub use interrupt::LineInterrupt;
pub use mem::{Mem, MemRegion, MemSize, TooMuch};
pub use mmio::{MmioTransport, RegisterPage};
pub use net::{Net, NicError, NicKind, NicLimits, NicShape, NicSlot, vhost_lacks};
pub use pci::{Message, MessageRoutes, PciState, PciTransport};
pub use rate_limit::{Allowance, RateLimit, RateLimiter};
pub use ring::{Chain, Ring, RingError, Segment};
pub use rng::Rng;
pub use throttle::Throttle;
pub use transport::{QueueFault, QueueState, RestoreError, Transport, TransportState};
pub use vhost_user::{BackendError, VhostUser};
pub use vsock::{HostPorts, Vsock, VsockError};
pub use worker::{Fault, Progress, TOKEN_LIMIT, Work, Worker};

/// Guest RAM as every device sees it: physical addresses in, bounds-checked host memory out.
pub type GuestMemory = vm_memory::GuestMemoryMmap;
