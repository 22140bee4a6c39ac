//! Device models: what a guest driver talks to, and the bus on which it finds them.
//!
//! A device sees guest memory through `vm-memory`, rings through `virtio-queue`, and the outside through descriptors it was
//! given. It deliberately knows neither KVM nor interrupt numbers nor addresses: it signals through an [`virtio::Interrupt`],
//! and the transport that carries it is somebody else's.

pub mod pci;
pub mod virtio;
