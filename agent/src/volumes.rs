//! What a container sees of the host's files, and how those hear of it who watch them in the guest when somebody on the host
//! changes one.
//!
//! virtio-fs brings no such word: the host tells the agent, and the agent the kernel, by an ioctl that only the kernel built
//! for Tatami has (guest-kernel/patches). Knows nothing of how the host finds out.
#![allow(unsafe_code, reason = "an ioctl of our own kernel's")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tatami_protocol::agent::{Change, CreateContainerRequest};

use crate::mounts::SHARED;

/// `struct fuse_change` of the kernel's.
#[repr(C)]
pub(crate) struct FuseChange {
    mask: u32,
    /// The folder, and the address of the name in it; 0: what the descriptor is of.
    dir: i32,
    name: u64,
    /// Where it was before, if that was in the same file system; or 0.
    old_name: u64,
    old_dir: i32,
    unused: u32,
}

nix::ioctl_write_ptr!(fuse_changed, 229, 64, FuseChange);

/// The kernel is not one that can be told.
#[derive(Debug, thiserror::Error)]
#[error("the guest's kernel cannot tell watchers of changes on the host ({0}): use the one that Tatami builds")]
pub(crate) struct TellError(#[source] io::Error);

/// The volumes of one container, open for as long as it exists.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// Of the file system that all are in.
    shared: Option<OwnedFd>,
    roots: Vec<Option<OwnedFd>>,
    /// Where they are mounted.
    places: Vec<PathBuf>,
}

impl Volumes {
    /// Opens those that `request` speaks of. A container can do without what cannot be opened here.
    ///
    /// A folder bound by the host is a file system of its own in the guest, which the kernel mounts when it is first entered. That
    /// must be here and now: the container then gets a copy of this mount, instead of one with other inodes; and so does every other
    /// container that is given the same place, as long as one has it.
    pub(crate) async fn open(request: &CreateContainerRequest) -> Self {
        if request.volumes.is_empty() {
            return Self::default();
        }
        let places: Vec<PathBuf> = request.volumes.iter().map(|name| Path::new(SHARED).join(name)).collect();
        let opened = tokio::task::spawn_blocking(move || Self {
            shared: open(Path::new(SHARED), OFlags::RDONLY | OFlags::DIRECTORY).ok(),
            roots: places.iter().map(|place| open_root(place)).collect(),
            places,
        });
        opened.await.unwrap_or_default()
    }

    /// Takes them out of the agent's own mount namespace, but for those that one of `others` sees as well.
    pub(crate) fn hide<'a>(&self, others: impl Iterator<Item = &'a Self> + Clone) {
        for place in &self.places {
            if others.clone().all(|other| !other.places.contains(place)) {
                // A file is not mounted.
                let _ = rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
        }
    }

    /// Tells of one change.
    ///
    /// # Errors
    /// When the kernel cannot. What is gone by now, or not allowed, is passed over.
    pub(crate) fn tell(&self, change: &Change) -> Result<(), TellError> {
        match self.try_tell(change) {
            Err(cause @ (Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP)) => Err(TellError(cause.into())),
            Err(cause) => {
                log::debug!("a change on the host is not told: {cause}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn try_tell(&self, change: &Change) -> Result<(), Errno> {
        let root = self.roots.get(change.volume as usize).and_then(Option::as_ref).ok_or(Errno::NOENT)?;
        let at = Spot::find(root, &change.path)?;
        let before = match change.moved_from.is_empty() {
            true => None,
            false => Some(Spot::find(root, &change.moved_from)?),
        };
        let mut mask = change.event;
        if before.is_some() {
            mask |= libc::IN_MOVED_FROM;
        }
        let message = FuseChange {
            mask,
            dir: at.folder().as_raw_fd(),
            name: at.name_address(),
            old_name: before.as_ref().map_or(0, Spot::name_address),
            old_dir: before.as_ref().map_or(-1, |spot| spot.folder().as_raw_fd()),
            unused: 0,
        };
        let shared = self.shared.as_ref().ok_or(Errno::NOENT)?;
        // SAFETY: the kernel reads the structure and the strings it has the addresses of, all of which live across the call.
        unsafe { fuse_changed(shared.as_raw_fd(), &raw const message) }
            .map(drop)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }
}

/// A name in a folder, or without a name what was opened itself.
struct Spot<'a> {
    root: &'a OwnedFd,
    folder: Option<OwnedFd>,
    name: Option<CString>,
}

impl<'a> Spot<'a> {
    /// The place `path` below `root`; the folder must be there, and on the way to it neither links nor `..`.
    fn find(root: &'a OwnedFd, path: &[u8]) -> Result<Self, Errno> {
        let (folder, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let name = match name {
            b"" => None,
            b"." | b".." => return Err(Errno::INVAL),
            name => Some(CString::new(name).map_err(|_| Errno::INVAL)?),
        };
        let folder = match folder {
            b"" => None,
            folder => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                Some(rustix::fs::openat2(root, folder, flags, Mode::empty(), resolve)?)
            }
        };
        Ok(Self { root, folder, name })
    }

    fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_ref().unwrap_or(self.root).as_fd()
    }

    fn name_address(&self) -> u64 {
        self.name.as_ref().map_or(0, |name| name.as_ptr() as u64)
    }
}

fn open_root(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    // As a folder first: only so is it entered.
    let opened = match open(path, flags | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => open(path, flags),
        result => result,
    };
    opened.inspect_err(|cause| log::warn!("open the volume {}: {cause}", path.display())).ok()
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_below_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/out")).unwrap();
        let root = open_root(dir.path()).unwrap();
        let found = |path: &str| Spot::find(&root, path.as_bytes()).map(|spot| (spot.folder.is_some(), spot.name));
        assert_eq!(found("").unwrap(), (false, None));
        assert_eq!(found("f").unwrap(), (false, Some(c"f".to_owned())));
        assert_eq!(found("a/b/f").unwrap(), (true, Some(c"f".to_owned())));
        assert_eq!(found("a/b/../../../f").unwrap_err(), Errno::XDEV);
        assert_eq!(found("a/..").unwrap_err(), Errno::INVAL);
        assert_eq!(found("a/out/f").unwrap_err(), Errno::LOOP);
        assert_eq!(found("gone/f").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn another_kernel_says_that_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY).ok();
        let volumes = Volumes { shared, roots: vec![open_root(dir.path())], places: Vec::new() };
        let change =
            |path: &str| Change { event: libc::IN_CREATE, path: path.as_bytes().to_vec(), ..Change::default() };
        let error = volumes.tell(&change("file")).unwrap_err().to_string();
        assert!(error.contains("the guest's kernel cannot"), "{error}");
        volumes.tell(&change("gone/file")).unwrap();
        volumes.tell(&Change { volume: 7, ..change("file") }).unwrap();
    }
}
