//! Where volumes of containers are shown in the shared folder, and which of them several have in common.
//!
//! Each mount in the shared folder is a file system of its own in the guest, with files of its own: a fifo or a socket in it joins only those
//! who have the same. So containers of one sandbox that may write to the same folder are given the same mount, which stays until the last
//! of them is gone. What may only be read each has for itself. Knows nothing of how mounts are made.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxFlags};

/// A folder of the host, by the mount through which it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    device: (u32, u32),
    inode: u64,
    mount: u64,
    /// With what is mounted below it.
    recursive: bool,
}

/// All of a sandbox. A container is known by its place in the shared folder.
#[derive(Debug, Default)]
pub(super) struct Shown {
    common: Vec<Common>,
    /// Of each container, in its own order, below the shared folder.
    volumes: HashMap<String, Vec<PathBuf>>,
    last: u64,
}

#[derive(Debug)]
struct Common {
    folder: Folder,
    /// Below the shared folder.
    name: PathBuf,
    /// The containers that have it.
    users: Vec<String>,
}

impl Folder {
    /// The one that `fd` is of.
    ///
    /// # Errors
    /// The kernel's; one before 5.8 does not tell mounts apart.
    pub(super) fn of(fd: impl AsFd, recursive: bool) -> io::Result<Folder> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?;
        if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let device = (found.stx_dev_major, found.stx_dev_minor);
        Ok(Folder { device, inode: found.stx_ino, mount: found.stx_mnt_id, recursive })
    }
}

impl Shown {
    /// A number that no folder has had.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Where `folder` is shown already; `container` has it from now on.
    pub(super) fn join(&mut self, folder: &Folder, container: &str) -> Option<PathBuf> {
        let common = self.common.iter_mut().find(|common| common.folder == *folder)?;
        common.users.push(container.to_owned());
        Some(common.name.clone())
    }

    /// `folder` is shown at `name` for `container`, and for whoever joins.
    pub(super) fn add(&mut self, folder: Folder, container: &str, name: PathBuf) {
        self.common.push(Common { folder, name, users: vec![container.to_owned()] });
    }

    /// These are the volumes of `container`.
    pub(super) fn note(&mut self, container: &str, volumes: Vec<PathBuf>) {
        self.volumes.insert(container.to_owned(), volumes);
    }

    /// The volumes of `container`.
    pub(super) fn volumes(&self, container: &str) -> &[PathBuf] {
        self.volumes.get(container).map_or(&[], Vec::as_slice)
    }

    /// `container` is gone; where something is shown that nobody has any more.
    pub(super) fn leave(&mut self, container: &str) -> Vec<PathBuf> {
        self.volumes.remove(container);
        for common in &mut self.common {
            common.users.retain(|user| user != container);
        }
        let idle = self.common.extract_if(.., |common| common.users.is_empty());
        idle.map(|common| common.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;

    #[test]
    fn a_folder_is_the_same_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        let of = |name: &str| Folder::of(File::open(dir.path().join(name)).unwrap(), true).unwrap();
        assert_eq!(of("a"), of("b"));
        assert_ne!(of("a"), of("."));
        assert_ne!(of("a"), Folder::of(File::open(dir.path().join("a")).unwrap(), false).unwrap());
    }

    #[test]
    fn it_stays_until_the_last_who_has_it_is_gone() {
        let mut shown = Shown::default();
        let folder = |inode| Folder { device: (8, 1), inode, mount: 5, recursive: true };
        assert_eq!(shown.join(&folder(1), "one"), None);
        shown.add(folder(1), "one", "common/1".into());
        shown.add(folder(2), "one", "common/2".into());
        assert_eq!(shown.join(&folder(1), "other"), Some("common/1".into()));
        // Twice in one container is once.
        assert_eq!(shown.join(&folder(1), "other"), Some("common/1".into()));
        assert_eq!(shown.leave("one"), [Path::new("common/2")]);
        // One that comes back finds it.
        assert_eq!(shown.join(&folder(1), "one"), Some("common/1".into()));
        assert!(shown.leave("other").is_empty());
        assert_eq!(shown.leave("one"), [Path::new("common/1")]);
        assert_eq!(shown.join(&folder(1), "one"), None);
    }
}
