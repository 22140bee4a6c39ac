//! Virtio 1.2: what every device and every transport agree on.
//!
//! A [`VirtioDevice`] is configuration space plus behaviour. The transport owns status, feature negotiation and queue
//! registers, checks them, and hands the device its queues once, on activation; nothing a driver writes afterwards can
//! change them until reset.

mod device;

pub use device::{ActivateError, Activation, ActiveQueue, DeviceKind, Interrupt, Role, Threads, VirtioDevice};

/// Guest RAM as every device sees it: physical addresses in, bounds-checked host memory out.
pub type GuestMemory = vm_memory::GuestMemoryMmap;
