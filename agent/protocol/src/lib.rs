//! The wire between the sandbox server and the agent.
//!
//! Three kinds of vsock connection, told apart by port:
//!
//! | port | opened by | carries |
//! |---|---|---|
//! | [`READY_PORT`] on the host | agent, once | nothing: opening it says that the two ports below are listening |
//! | [`CONTROL_PORT`] in the guest | server, once | ttrpc, the [`agent`] service |
//! | [`STREAM_PORT`] in the guest | server, one per stream | a [`stream`] header, then raw bytes with vsock's own flow control |
//!
//! It knows neither how the agent runs containers nor who asks for them.

pub mod names;
pub mod stream;

#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{agent, agent_ttrpc};

/// Host port (CID 2) that the agent connects to, and closes, once it listens on the two guest ports.
pub const READY_PORT: u32 = 1024;
/// Guest port of the control channel.
pub const CONTROL_PORT: u32 = 1024;
/// Guest port of the stdio streams.
pub const STREAM_PORT: u32 = 1025;
