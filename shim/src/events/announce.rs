//! Telling what happens to those who listen on this host, from within a sandbox's server.
//!
//! Who listens has a socket in a folder beside the sandboxes' ([`FOLDER`]), to which each event is a connection with one line of JSON. So
//! nothing is written where nobody listens, and a listener that stands still takes up no more than its queue, and no server's time.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};

/// The folder below the one of sandboxes.
pub(super) const FOLDER: &str = "events";

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Happening {
    /// When.
    pub(crate) at: SystemTime,
    /// What, in containerd's words: `start`, `exec-added`.
    pub(crate) what: String,
    /// Whose it is: a namespace of containerd's, or `tatami`.
    pub(crate) namespace: String,
    /// The process of the server that tells.
    pub(crate) server: u32,
    pub(crate) container: String,
    /// The process in the container that it is about, unless it is about the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exec: Option<String>,
    /// How that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u32>,
}

/// Tells all who listen. One that is gone is forgotten; one that has no room hears nothing of it.
pub(crate) fn announce(state: &Path, happening: &Happening) {
    let listeners = fs::read_dir(state.join(FOLDER)).into_iter().flatten().flatten();
    let listeners: Vec<PathBuf> = listeners.map(|entry| entry.path()).collect();
    if listeners.is_empty() {
        return;
    }
    let mut line = serde_json::to_vec(happening).expect("texts and numbers are JSON");
    line.push(b'\n');
    for listener in listeners {
        match tell(&listener, &line) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // It was killed. Another server may have been faster.
                let _ = fs::remove_file(&listener);
            }
            Err(error) => log::debug!("{} is not told of {}: {error}", listener.display(), happening.what),
            Ok(()) => {}
        }
    }
}

fn tell(listener: &Path, line: &[u8]) -> io::Result<()> {
    // A connection that does not wait until there is room for it.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(listener)?)?;
    UnixStream::from(socket).write_all(line)
}
