//! Which folders of the host are shown in the shared folder, where, and for which containers.
//!
//! Each mount in the shared folder is a file system of its own in the guest, with files of its own: a fifo or a socket in it joins only those
//! who have the same. So containers of one sandbox that may write to the same folder are given the same mount, which stays until the last
//! of them is gone. What may only be read each has for itself. Knows nothing of how mounts are made.

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

/// All of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Shown(Vec<Entry>);

#[derive(Debug)]
struct Entry {
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
    /// Where `folder` is shown already; `container` has it from now on.
    pub(super) fn join(&mut self, folder: &Folder, container: &str) -> Option<PathBuf> {
        let entry = self.0.iter_mut().find(|entry| entry.folder == *folder)?;
        entry.users.push(container.to_owned());
        Some(entry.name.clone())
    }

    /// `folder` is shown at `name` for `container`.
    pub(super) fn add(&mut self, folder: Folder, container: &str, name: PathBuf) {
        self.0.push(Entry { folder, name, users: vec![container.to_owned()] });
    }

    /// `container` is gone; where something is shown that nobody has any more.
    pub(super) fn leave(&mut self, container: &str) -> Vec<PathBuf> {
        for entry in &mut self.0 {
            entry.users.retain(|user| user != container);
        }
        let idle = self.0.extract_if(.., |entry| entry.users.is_empty());
        idle.map(|entry| entry.name).collect()
    }

    /// Whether something that somebody has is shown at `name`.
    pub(super) fn is_used(&self, name: &std::path::Path) -> bool {
        self.0.iter().any(|entry| entry.name == name)
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
        shown.add(folder(1), "one", "one/volumes/0".into());
        shown.add(folder(2), "one", "one/volumes/1".into());
        assert_eq!(shown.join(&folder(1), "other"), Some("one/volumes/0".into()));
        // Twice in one container is once.
        assert_eq!(shown.join(&folder(1), "other"), Some("one/volumes/0".into()));
        assert_eq!(shown.leave("one"), [Path::new("one/volumes/1")]);
        assert!(shown.is_used(Path::new("one/volumes/0")) && !shown.is_used(Path::new("one/volumes/1")));
        // One that comes back finds it.
        assert_eq!(shown.join(&folder(1), "again"), Some("one/volumes/0".into()));
        assert!(shown.leave("other").is_empty());
        assert_eq!(shown.leave("again"), [Path::new("one/volumes/0")]);
        assert_eq!(shown.join(&folder(1), "one"), None);
    }
}
