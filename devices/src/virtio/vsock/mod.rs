//! virtio-vsock (virtio 1.2, 5.10): stream sockets between guest and host, multiplexed over unix sockets.
//!
//! Read in this order: `spec` and `credit` for the rules, `connection` for one stream as a pure state machine, `slot` and
//! `table` for the sockets behind streams, `muxer` for all of them together, `packet` for bytes in guest memory, `device` for
//! queues and thread. Nothing here knows what the streams carry.

mod connection;
mod credit;
mod device;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod greeting;
mod muxer;
mod outbox;
mod packet;
mod slot;
mod spec;
mod table;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;

pub use device::{Vsock, VsockError};

/// What the host offers to guest programs that connect to it (context 2).
pub trait HostPorts: Send {
    /// A guest program connects to host port `port`: its end of a stream, or `None` to refuse it. Called on the device's thread, which
    /// serves every other stream as well: must not block.
    fn connect(&mut self, port: u32) -> Option<UnixStream>;
}
