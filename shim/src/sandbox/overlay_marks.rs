//! What the guest's overlayfs noted in an upper folder of the host's, in the form in which the host's overlayfs notes it.
//!
//! overlayfs marks a folder that hides the one below it with an extended attribute: `trusted.overlay.opaque`, which a file
//! server without privileges cannot write, so the guest's uses `user.overlay.opaque`. Whoever mounts the upper folder on the
//! host later, to commit it for one, would see again what the container has removed. Its content is a guest's: links
//! are not followed, other mounts are not entered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;

const OPAQUE: &str = "user.overlay.opaque";
const HOST_OPAQUE: &str = "trusted.overlay.opaque";
/// Others that mean nothing without the guest's mount.
const MOMENTARY: [&str; 3] = ["user.overlay.impure", "user.overlay.origin", "user.overlay.uuid"];
/// Folders deeper than this are left as they are: each level is an open descriptor.
const MAX_DEPTH: u32 = 256;

/// Rewrites the marks in `folder` and below it, unless it is mounted read-only.
///
/// # Errors
/// The first thing that could not be read or written.
pub(super) fn rewrite(folder: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(folder, flags, Mode::empty())?;
    if rustix::fs::fstatvfs(&top)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    Ok(rewrite_below(top.as_fd(), 0)?)
}

fn rewrite_below(folder: BorrowedFd<'_>, depth: u32) -> rustix::io::Result<()> {
    let mut mark = [0; 2];
    // Only whole folders are opaque ("y"); the guest's attribute has no other value that the host knows.
    if rustix::fs::fgetxattr(folder, OPAQUE, &mut mark) == Ok(1) && mark[0] == b'y' {
        rustix::fs::fsetxattr(folder, HOST_OPAQUE, b"y", XattrFlags::empty())?;
        rustix::fs::fremovexattr(folder, OPAQUE)?;
    }
    forget_momentary(folder)?;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type();
        if name == c"." || name == c".." || !matches!(kind, FileType::Directory | FileType::RegularFile) {
            continue;
        }
        let inner = match open(folder, name, kind) {
            Ok(inner) => inner,
            // Gone, a link by now, or the root of another mount.
            Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => continue,
            Err(error) => return Err(error),
        };
        match kind {
            FileType::Directory if depth == MAX_DEPTH => log::warn!("marks of overlayfs remain below {name:?}"),
            FileType::Directory => rewrite_below(inner.as_fd(), depth + 1)?,
            _ => forget_momentary(inner.as_fd())?,
        }
    }
    Ok(())
}

fn forget_momentary(file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for name in MOMENTARY {
        match rustix::fs::fremovexattr(file, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(folder: BorrowedFd<'_>, name: &std::ffi::CStr, kind: FileType) -> rustix::io::Result<OwnedFd> {
    let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if kind == FileType::Directory {
        flags |= OFlags::DIRECTORY;
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{lgetxattr, lsetxattr};

    fn value(path: &Path, name: &str) -> Option<Vec<u8>> {
        let mut bytes = [0; 16];
        lgetxattr(path, name, &mut bytes).ok().map(|length| bytes[..length].to_vec())
    }

    #[test]
    fn marks_of_the_guests_become_the_hosts() {
        // Not /tmp, which may lack these attributes.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let upper = folder.path().join("fs");
        let (deep, file) = (upper.join("a/b"), upper.join("a/file"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(&file, "").unwrap();
        let outside = tempfile::tempdir_in("/var/tmp").unwrap();
        std::os::unix::fs::symlink(outside.path(), upper.join("link")).unwrap();
        for (path, name, bytes) in [
            (deep.as_path(), OPAQUE, "y"),
            (upper.as_path(), OPAQUE, "x"),
            (outside.path(), OPAQUE, "y"),
            (deep.as_path(), MOMENTARY[0], "y"),
            (file.as_path(), MOMENTARY[1], "zz"),
        ] {
            lsetxattr(path, name, bytes.as_bytes(), XattrFlags::empty()).unwrap();
        }
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: trusted attributes cannot be written, only that is tested");
            assert!(rewrite(folder.path()).is_err());
            return;
        }
        rewrite(folder.path()).unwrap();
        assert_eq!((value(&deep, HOST_OPAQUE), value(&deep, OPAQUE)), (Some(b"y".to_vec()), None));
        assert_eq!((value(&deep, MOMENTARY[0]), value(&file, MOMENTARY[1])), (None, None));
        assert_eq!((value(&upper, HOST_OPAQUE), value(&upper, OPAQUE)), (None, Some(b"x".to_vec())));
        assert_eq!(value(outside.path(), HOST_OPAQUE), None, "a link was followed");
        rewrite(folder.path()).unwrap();
    }
}
