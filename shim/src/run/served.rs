//! Devices that other processes serve (vhost-user), as they are found on the command line: which one of the VM's each is.
//!
//! Connects to nobody: some back ends take one connection in their life, and it is the sandbox's.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tatami_vmm::{MemoryKind, VhostUserKind, vhost_user_tag};

use super::volume::Volume;
use crate::spec::Files;

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// Where each one's process listens.
    pub(super) sockets: Vec<PathBuf>,
    /// What each one is.
    pub(super) kinds: Vec<VhostUserKind>,
}

impl Served {
    /// Takes one in that the process at `socket` serves; its number.
    ///
    /// # Errors
    /// When nothing, or something else, is there.
    pub(super) fn add(&mut self, socket: &Path, kind: VhostUserKind) -> io::Result<usize> {
        if !std::fs::metadata(socket)?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no unix socket"));
        }
        self.sockets.push(std::path::absolute(socket)?);
        self.kinds.push(kind);
        Ok(self.kinds.len() - 1)
    }

    /// Takes a file system in; how the container has it.
    ///
    /// # Errors
    /// As [`Served::add`].
    pub(super) fn add_files(&mut self, volume: &Volume) -> io::Result<Files> {
        let number = self.add(&volume.source, VhostUserKind::Files)?;
        let (destination, read_only) = (volume.destination.clone(), volume.read_only);
        Ok(Files { tag: vhost_user_tag(number), destination, read_only })
    }

    /// What the VM's memory must be made of if nobody says so.
    pub(super) fn memory_kind(&self) -> MemoryKind {
        if self.kinds.is_empty() { MemoryKind::Anonymous } else { MemoryKind::Shared }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn each_has_a_number_and_what_is_no_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut served = Served::default();
        assert_eq!(served.memory_kind(), MemoryKind::Anonymous);
        assert_eq!(served.add(&socket, VhostUserKind::Disk { read_only: true }).unwrap(), 0);
        let volume = Volume { source: socket.clone(), destination: "/data".into(), read_only: true };
        let files = served.add_files(&volume).unwrap();
        assert_eq!((files.tag.as_str(), files.read_only), ("vhost1", true));
        assert_eq!((served.memory_kind(), served.sockets.len()), (MemoryKind::Shared, 2));
        assert!(served.add(folder.path(), VhostUserKind::Files).is_err());
        assert!(served.add(Path::new("/no/such/socket"), VhostUserKind::Files).is_err());
    }
}
