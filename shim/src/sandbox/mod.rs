//! The sandbox server: one VM, the agent in it, its containers, and all that belongs to them on the host.

pub mod agent;
pub mod console;
pub mod door;
pub mod folder;
pub mod mounts;
mod remove;
pub mod timings;
mod undertaker;
