//! Tatami's agent: PID 1 of the guest, which runs the containers of one sandbox for the server on the host.
//!
//! | module | idea |
//! |---|---|
//! | `boot`, `mounts`, `loopback`, `kmsg`, `clock`, `entropy` | from the kernel's first call of `/init` to listening sockets |
//! | `transport`, `server`, `service` | the control channel and the stdio streams, as they come in |
//! | `sandbox`, `container`, `process` | what exists: containers, their processes, their states |
//! | `guest` | what of a specification no guest of this kind can do |
//! | `hooks` | what of the guest's own runs for every container |
//! | `cgroup`, `limits`, `devices`, `bpf`, `stats`, `events` | what a container may use, and what it uses |
//! | `processors`, `memory` | what of the machine comes and goes |
//! | `network`, `netlink`, `depot` | the guest's network interfaces, which all containers share, and those that wait to be plugged |
//! | `forward`, `names`, `console` | streams that are no container's: connections to ports, questions to a resolver on the host, a shell in the guest itself |
//! | `storage`, `served`, `nodes`, `tmpfs` | the file systems that are mounted for a container, and the devices it has |
//! | `volumes` | what of the host's files it sees, and who hears of changes to them |
//! | `stdio`, `pump`, `reaper`, `syscalls` | what processes are made of |
//! | `hold` | the process that holds a pod's namespaces |
//! | `launch`, `wire`, `zygote`, `creator`, `join`, `priority`, `rights`, `executor` | making one: libcontainer in a forked, single-threaded child |
//!
//! It does not know images, registries or anything of the host: paths in specifications are guest paths.

mod boot;
mod bpf;
mod cgroup;
mod clock;
mod console;
mod container;
mod copy;
mod creator;
mod depot;
mod devices;
mod entropy;
mod error;
mod events;
mod executor;
mod figures;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest;
mod hold;
mod hooks;
mod idle;
mod join;
mod kmsg;
mod launch;
mod limits;
mod loopback;
mod memory;
mod mounts;
mod names;
mod netlink;
mod network;
mod nodes;
mod priority;
mod process;
mod processors;
mod pump;
mod reaper;
mod rights;
mod sandbox;
mod served;
mod server;
mod service;
mod stats;
mod stdio;
mod storage;
mod syscalls;
mod sysctl;
mod tmpfs;
mod transport;
mod volumes;
mod wire;
mod zygote;

pub use boot::boot;
pub use cgroup::enable_controllers;
pub use hold::hold;
pub use sandbox::Sandbox;
pub use server::{Server, Shutdown};
pub use transport::Listener;
pub use zygote::Zygote;
