//! Connections to the processes that serve devices of the VM's (vhost-user), for the VMM.
//!
//! What is said on them is the VMM's and theirs.

use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Error;

/// Connects to who listens at `path`; at once, or not at all.
///
/// # Errors
/// [`Error::Backend`].
pub(super) fn connect(path: &Path) -> Result<UnixStream, Error> {
    let connected = || {
        // One that takes nobody in would be waited for.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    };
    connected().map_err(|source| Error::Backend { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn whoever_does_not_listen_is_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let refused = || connect(&path).unwrap_err().to_string();
        assert!(refused().contains("socket: No such file"), "{}", refused());
        let listener = UnixListener::bind(&path).unwrap();
        connect(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        // One more is let in than is said.
        let _waiting = [connect(&path), connect(&path)];
        assert!(refused().contains("temporarily unavailable"), "{}", refused());
        drop(listener);
        assert!(refused().contains("refused"), "{}", refused());
    }
}
