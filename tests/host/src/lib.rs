//! What the two ends of the emulated test host agree on: the messages of a command's control connection.
//!
//! The developer's end is `main.rs` (finds, starts and keeps the host), the other `init/main.rs` (PID 1 inside it).
//! Nothing here knows of QEMU, of sockets or of processes.

pub mod wire;
