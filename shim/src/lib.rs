//! The host side of Tatami: the sandbox server and the front ends that stand on it.
//!
//! [`sandbox`] is the one state machine: a VM, the agent in it, its containers and everything on the host that belongs
//! to them. [`run`] is a front end of it for a person at a
//! terminal, [`containerd`] one for containerd and what stands on it, and [`detached`] one for
//! containers in the background, with the commands about them; [`oci`] one for what calls an OCI runtime; [`metrics`] looks at all of them. Nothing here parses what a guest wrote into device
//! memory: that is the VMM's, in a process of its own.

pub mod check;
pub mod command_line;
pub mod configuration;
pub mod containerd;
pub mod content;
pub mod detached;
pub mod direct_volume;
pub mod environment;
pub mod events;
pub mod guest_files;
pub mod image;
pub mod images;
pub mod install;
pub mod journal;
pub mod ksm;
pub mod log_files;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod oci;
mod overlay;
pub mod privilege;
pub mod registry;
pub mod root_image;
pub mod rootfs;
pub mod run;
pub mod sandbox;
pub mod spec;
mod table;
