//! What the host has for a guest's network interfaces to be joined to: taps, and user-mode networks.
//!
//! Opens and starts; what the guest is told of addresses and routes is decided by the front ends.

pub mod passt;
pub mod resolv_conf;
pub mod tap;
pub mod vhost;
