//! Removes a folder that a guest may have filled, and nothing else.
//!
//! The content is hostile: trees of any depth, names of any bytes, symbolic links anywhere. So it is walked by
//! descriptors, follows no link, never crosses into another mount, and needs a bounded number of descriptors however deep
//! the tree is. Knows nothing of sandboxes.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// Below this depth a folder is first moved up to the top of the tree, which bounds recursion and descriptors.
const MAX_DEPTH: u32 = 24;

/// Removes the folder `path` with all it holds; one that is not there is fine.
///
/// # Errors
/// The first thing that could not be removed, for instance because a file system is mounted on it.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a folder"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let top = match open_folder(parent.as_fd(), name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    // Each round takes what the one before moved up to the top.
    while empty(top.as_fd(), top.as_fd(), 0, &mut moved)? {}
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what `folder` holds; whether something was moved up to `top` and remains to be done.
fn empty(top: BorrowedFd<'_>, folder: BorrowedFd<'_>, depth: u32, moved: &mut u64) -> rustix::io::Result<bool> {
    let mut again = false;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        again |= remove_entry(top, folder, name, entry.file_type(), depth, moved)?;
    }
    Ok(again)
}

fn remove_entry(
    top: BorrowedFd<'_>,
    folder: BorrowedFd<'_>,
    name: &CStr,
    kind: FileType,
    depth: u32,
    moved: &mut u64,
) -> rustix::io::Result<bool> {
    if kind != FileType::Directory {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(false),
            // Where readdir does not tell the type, this does.
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    if depth == MAX_DEPTH {
        return lift(top, folder, name, moved);
    }
    let inner = match open_folder(folder, name) {
        Ok(inner) => inner,
        // Somebody else removes the same tree.
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    let again = empty(top, inner.as_fd(), depth + 1, moved)?;
    if !again {
        match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(again)
}

/// Moves a folder to the top of the tree under a name that is free there.
fn lift(top: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> rustix::io::Result<bool> {
    loop {
        *moved += 1;
        let lifted = format!(".lifted-{moved}");
        match rustix::fs::renameat_with(folder, name, top, lifted.as_str(), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the folder `name` in `parent`, which must be neither a link nor the root of another mount.
fn open_folder(parent: BorrowedFd<'_>, name: impl AsName) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    name.with(|name| rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve))
}

/// A name from the caller or from a directory's listing.
trait AsName {
    fn with<R>(self, call: impl FnOnce(&OsStr) -> R) -> R;
}

impl AsName for &OsStr {
    fn with<R>(self, call: impl FnOnce(&OsStr) -> R) -> R {
        call(self)
    }
}

impl AsName for &CStr {
    fn with<R>(self, call: impl FnOnce(&OsStr) -> R) -> R {
        call(std::os::unix::ffi::OsStrExt::from_bytes(self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_what_its_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/file"), "y").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, dir.path().join("tree")).unwrap();
        assert!(remove_tree(&dir.path().join("tree")).is_err());
        assert!(outside.exists());
    }

    #[test]
    fn nothing_there_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        remove_tree(&dir.path().join("absent")).unwrap();
        remove_tree(&dir.path().join("absent/further")).unwrap();
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::create_dir(tree.join(".lifted-1")).unwrap();
        let mut here = rustix::fs::open(&tree, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(here);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
