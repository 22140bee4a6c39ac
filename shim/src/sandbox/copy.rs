//! Copies a folder that a guest has filled, with all that an overlay's upper folder can hold: owners, modes, times, extended
//! attributes, devices (among them whiteouts), links of both kinds, holes.
//!
//! The content is a guest's: it is walked by descriptors, no link of it is followed, no other mount is entered. Where the file
//! system can, a file's content is shared until one of the two is changed. Knows nothing of sandboxes.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::fs::{XattrFlags, fstat};
use rustix::io::Errno;

/// Folders deeper than this are not copied: each level is two open descriptors.
const MAX_DEPTH: u32 = 200;
/// How much of a file is moved at a time, in bytes.
const CHUNK: usize = 1 << 20;
/// What overlayfs notes in an upper folder that means nothing in another place.
const MOMENTARY: [&[u8]; 4] =
    [b"trusted.overlay.impure", b"trusted.overlay.nlink", b"trusted.overlay.origin", b"trusted.overlay.uuid"];

/// What could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {}: {source}", path.display())]
pub(super) struct CopyError {
    path: PathBuf,
    source: io::Error,
}

/// Copies the folder `from` as `to`, which must not be there.
///
/// # Errors
/// The first thing that could not be copied; then `to` is of no use.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |errno: Errno| CopyError { path: from.to_owned(), source: errno.into() };
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::open(from, folder, Mode::empty()).map_err(failed)?;
    rustix::fs::mkdir(to, Mode::RWXU).map_err(failed)?;
    let target = rustix::fs::open(to, folder, Mode::empty()).map_err(failed)?;
    let mut copy = Copy { top: target.try_clone().map_err(|_| failed(Errno::MFILE))?, links: HashMap::new() };
    let mut at = PathBuf::new();
    copy.folder(&source, &target, &mut at, 0).map_err(|errno| CopyError { path: from.join(&at), source: errno.into() })
}

struct Copy {
    /// The new folder.
    top: OwnedFd,
    /// Where the first name of a file was copied that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// Fills `target` with what `source` holds, then makes it look the same. After a failure, `at` says where it was.
    fn folder(&mut self, source: &OwnedFd, target: &OwnedFd, at: &mut PathBuf, depth: u32) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        for name in names {
            at.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entry(source, target, &name, at, depth)?;
            at.pop();
        }
        let stat = fstat(source)?;
        attributes(source, target)?;
        rustix::fs::fchown(target, owner(&stat), group(&stat))?;
        rustix::fs::fchmod(target, mode(&stat))?;
        rustix::fs::futimens(target, &times(&stat))
    }

    fn entry(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CStr,
        at: &mut PathBuf,
        depth: u32,
    ) -> rustix::io::Result<()> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            let inner = open(source.as_fd(), name, OFlags::DIRECTORY)?;
            let copy = open(target.as_fd(), name, OFlags::DIRECTORY)?;
            return self.folder(&inner, &copy, at, depth + 1);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return rustix::fs::linkat(&self.top, first, target, name, AtFlags::empty());
            }
            self.links.insert((stat.st_dev, stat.st_ino), at.clone());
        }
        if kind == FileType::RegularFile {
            return file(source, target, name);
        }
        match kind {
            FileType::Symlink => {
                rustix::fs::symlinkat(rustix::fs::readlinkat(source, name, Vec::new())?, target, name)?;
            }
            _ => rustix::fs::mknodat(target, name, kind, Mode::RUSR, stat.st_rdev)?,
        }
        special_attributes(source, target, name)?;
        rustix::fs::chownat(target, name, owner(&stat), group(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(target, name, mode(&stat), AtFlags::empty())?;
        }
        rustix::fs::utimensat(target, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Opens what is `name` itself, and nothing behind it.
fn open(folder: BorrowedFd<'_>, name: &CStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | more;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)
}

fn file(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let source = open(source.as_fd(), name, OFlags::empty())?;
    let stat = fstat(&source)?;
    let create = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(target, name, create, Mode::RUSR | Mode::WUSR)?;
    if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
        content(&File::from(source.try_clone().map_err(errno)?), &File::from(copy.try_clone().map_err(errno)?), &stat)?;
    }
    // The owner first: with a change of it go a file's capabilities, and some bits of its mode.
    rustix::fs::fchown(&copy, owner(&stat), group(&stat))?;
    attributes(&source, &copy)?;
    rustix::fs::fchmod(&copy, mode(&stat))?;
    rustix::fs::futimens(&copy, &times(&stat))
}

/// Copies what a file holds, and leaves its holes out.
fn content(from: &File, to: &File, stat: &Stat) -> rustix::io::Result<()> {
    let end = stat.st_size as u64;
    rustix::fs::ftruncate(to, end)?;
    let (mut buffer, mut at) = (Vec::new(), 0);
    while at < end {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
        buffer.resize(CHUNK, 0);
        at = data;
        while at < hole {
            let size = usize::try_from(hole - at).unwrap_or(CHUNK).min(CHUNK);
            let read = from.read_at(&mut buffer[..size], at).map_err(errno)?;
            if read == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..read], at).map_err(errno)?;
            at += read as u64;
        }
    }
    Ok(())
}

fn attributes(source: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    each_attribute(
        |names| rustix::fs::flistxattr(source, names),
        |name, value| rustix::fs::fgetxattr(source, name, value),
        |name, value| rustix::fs::fsetxattr(target, name, value, XattrFlags::empty()),
    )
}

/// Those of what cannot be opened: by a path that leads through its folder's descriptor.
fn special_attributes(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let path = |folder: &OwnedFd| {
        let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        path.extend(name.to_bytes());
        path
    };
    let (from, to) = (path(source), path(target));
    each_attribute(
        |names| rustix::fs::llistxattr(&from[..], names),
        |name, value| rustix::fs::lgetxattr(&from[..], name, value),
        |name, value| rustix::fs::lsetxattr(&to[..], name, value, XattrFlags::empty()),
    )
}

/// The most that the kernel gives of a list of names, and of a value.
const ATTRIBUTE_LIMIT: usize = 64 << 10;

fn each_attribute(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
    set: impl Fn(&CStr, &[u8]) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let mut names = vec![0; ATTRIBUTE_LIMIT];
    let length = match list(&mut names) {
        // There are none, or none can be.
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        result => result?,
    };
    let mut value = Vec::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if MOMENTARY.contains(&name.to_bytes()) {
            continue;
        }
        value.resize(ATTRIBUTE_LIMIT, 0);
        let length = get(name, &mut value)?;
        set(name, &value[..length])?;
    }
    Ok(())
}

fn owner(stat: &Stat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn group(stat: &Stat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    #[test]
    fn everything_looks_the_same_afterwards() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/empty")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::hard_link(from.join("sub/file"), from.join("second")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("..", from.join("sub/up")).unwrap();
        std::os::unix::fs::chown(from.join("sub"), Some(1000), Some(1001)).unwrap();
        fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o2711)).unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        let path = from.join("null");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let mark = "trusted.overlay.opaque";
        rustix::fs::setxattr(from.join("sub/empty"), mark, b"y", XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(from.join("sub"), "trusted.overlay.origin", b"x", XattrFlags::empty()).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"end", 32 << 20).unwrap();
        let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(from.join("sub")).unwrap().set_modified(past).unwrap();

        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"text");
        let sub = fs::metadata(to.join("sub")).unwrap();
        assert_eq!((sub.uid(), sub.gid(), sub.mode() & 0o7777, sub.mtime()), (1000, 1001, 0o2711, 1_000_000_000));
        assert_eq!(fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4755);
        let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
        assert_eq!(inode("sub/file"), inode("second"));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_link(to.join("sub/up")).unwrap(), Path::new(".."));
        let whiteout = fs::symlink_metadata(to.join("null")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert!(fs::symlink_metadata(to.join("fifo")).unwrap().file_type().is_fifo());
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(to.join("sub/empty"), mark, &mut value), Ok(1));
        assert!(rustix::fs::getxattr(to.join("sub"), "trusted.overlay.origin", &mut value).is_err());
        let sparse = fs::metadata(to.join("sparse")).unwrap();
        assert!(sparse.len() == 64 << 20 && sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
        let mut end = [0; 3];
        File::open(to.join("sparse")).unwrap().read_exact_at(&mut end, 32 << 20).unwrap();
        assert_eq!(&end, b"end");
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let error = copy_tree(&from, &to).unwrap_err().to_string();
        assert!(error.contains("from") && error.contains("No such file"), "{error}");
        let mut deep = from.clone();
        for _ in 0..MAX_DEPTH + 3 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let error = copy_tree(&from, &to).unwrap_err().to_string();
        assert!(error.contains("d/d/d") && error.contains("too long"), "{error}");
    }
}
