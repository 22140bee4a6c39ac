//! Where a sandbox's server is reached: a name, and a socket below the state folder, that follow from whose it is.
//!
//! Two containerds may use the same ids, and so may two namespaces of one; so all three make up the name. Knows nothing
//! of what is spoken there.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::sandbox::folder::{self, Places};

/// The folder of sockets below the state folder.
const SOCKETS: &str = "containerd";
/// The longest path that a socket's address holds.
const MAX_PATH: usize = 107;
/// How long after its socket a sandbox's folder may be made.
const MAKING: Duration = Duration::from_secs(60);

/// A sandbox's name and socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    name: String,
    socket: PathBuf,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// Beyond what the kernel takes.
    #[error("the socket {} has a path of more than {MAX_PATH} bytes: choose a shorter TATAMI_STATE", .0.display())]
    Long(PathBuf),
    /// Somebody listens already.
    #[error("a server listens at {} already", .0.display())]
    Taken(PathBuf),
    /// The kernel refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Address {
    /// That of the sandbox `id` in `namespace` of the containerd at `containerd`.
    pub(crate) fn of(places: &Places, containerd: &str, namespace: &str, id: &str) -> Address {
        let mut hash = Sha256::new();
        for part in [containerd, namespace, id] {
            hash.update(part);
            hash.update([0]);
        }
        let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Address { socket: places.state.join(SOCKETS).join(&name), name }
    }

    /// The sandbox's name on this host.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As clients take it.
    pub(crate) fn uri(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Its path.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether somebody answers there.
    pub(crate) fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// Listens there, after removing a dead server's socket.
    ///
    /// # Errors
    /// [`AddressError::Taken`] when a living one listens.
    pub(crate) fn bind(&self) -> Result<UnixListener, AddressError> {
        if self.socket.as_os_str().len() > MAX_PATH {
            return Err(AddressError::Long(self.socket.clone()));
        }
        if let Some(folder) = self.socket.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(self.failed("create the folder of"))?;
        }
        match UnixListener::bind(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if self.answers() {
                    return Err(AddressError::Taken(self.socket.clone()));
                }
                self.remove();
                UnixListener::bind(&self.socket).map_err(self.failed("listen at"))
            }
            result => result.map_err(self.failed("listen at")),
        }
    }

    /// Removes the socket, if it is there.
    pub(crate) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {error}", self.socket.display());
        }
    }

    /// Removes what is left of servers that were killed together with all who would have removed it: sockets that belong to no
    /// sandbox, living or dead. Not the youngest, whose sandboxes are being made.
    pub(super) fn sweep(places: &Places) {
        let Ok(entries) = std::fs::read_dir(places.state.join(SOCKETS)) else { return };
        let old = entries.flatten().filter(|entry| {
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|made| made.elapsed());
            matches!(age, Ok(Ok(age)) if age > MAKING)
        });
        let old: Vec<_> = old.collect();
        // Listed after the sockets, so that none is missing whose socket was seen.
        let Ok(names) = folder::names(places) else { return };
        for entry in old.iter().filter(|entry| names.iter().all(|name| entry.file_name() != name.as_str())) {
            if let Err(error) = std::fs::remove_file(entry.path()) {
                log::debug!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> AddressError {
        let path = self.socket.clone();
        move |source| AddressError::System { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(state: &Path) -> Places {
        Places { root: "/unused".into(), state: state.to_owned() }
    }

    #[test]
    fn whose_it_is_makes_the_name() {
        let of = |containerd, namespace, id| Address::of(&places(Path::new("/run/tatami")), containerd, namespace, id);
        let one = of("/run/c.sock", "default", "x");
        assert_eq!(one, of("/run/c.sock", "default", "x"));
        for other in
            [of("/run/d.sock", "default", "x"), of("/run/c.sock", "k8s.io", "x"), of("/run/c.sock", "default", "y")]
        {
            assert_ne!(one, other);
        }
        // No part runs into the next.
        assert_ne!(of("a", "bc", "d"), of("ab", "c", "d"));
        assert_eq!(one.uri(), format!("unix:///run/tatami/containerd/{}", one.name()));
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::of(&places(dir.path()), "c", "n", "x");
        let first = address.bind().unwrap();
        assert!(address.answers());
        assert!(matches!(address.bind(), Err(AddressError::Taken(_))));
        drop(first);
        assert!(!address.answers());
        let _second = address.bind().unwrap();
        address.remove();
        address.remove();
        assert!(!address.socket.exists());
    }

    #[test]
    fn sockets_without_a_sandbox_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        let [known, young, orphan] = ["known", "young", "orphan"].map(|id| Address::of(&places, "c", "n", id));
        let listeners = [&known, &young, &orphan].map(|address| address.bind().unwrap());
        let lot = folder::Lot::choose(&places).unwrap();
        let _folder = folder::Folder::create(&places, lot, Some(known.name())).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * MAKING;
        for address in [&known, &orphan] {
            let times = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ },
                last_modification: rustix::fs::Timespec::try_from(
                    long_ago.duration_since(std::time::UNIX_EPOCH).unwrap(),
                )
                .unwrap(),
            };
            let flags = rustix::fs::AtFlags::empty();
            rustix::fs::utimensat(rustix::fs::CWD, &address.socket, &times, flags).unwrap();
        }
        drop(listeners);
        Address::sweep(&places);
        assert!(known.socket.exists() && young.socket.exists() && !orphan.socket.exists());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let state = PathBuf::from(format!("/tmp/{}", "x".repeat(100)));
        let address = Address::of(&places(&state), "c", "n", "x");
        assert!(matches!(address.bind(), Err(AddressError::Long(_))));
    }
}
