//! A tree as a stream: every file opened in its folder, which is open, without following a link.
//!
//! Somebody may change the tree meanwhile. What was taken for a file and has become something else is an error, and a file that grows or
//! shrinks has the length that it had.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::stream::{Entry, Kind, MAX_DEPTH, MAX_NAME, end};
use crate::{CopyError, failed};

/// How much is moved at a time, in bytes. A file that is read whole at once may have any length beforehand: the kernel's own are said
/// to be empty.
const CHUNK: usize = 64 * 1024;
/// File systems that the kernel makes up, by their numbers in its magic.h: proc, sysfs, cgroup2, devpts. Below something else
/// nobody means them.
const MADE_UP: [i64; 4] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1];

/// Who is told of what is left out.
pub type Notes<'a> = &'a mut dyn FnMut(String);

/// Writes what is at `source` to `stream`. With `follow`, a symbolic link there stands for what it leads to; a slash behind it means
/// that, too.
///
/// # Errors
/// [`CopyError`], for the first that cannot be read. Nothing of what was written before is of use then.
pub fn pack(source: &Path, follow: bool, stream: &mut impl Write, notes: Notes<'_>) -> Result<(), CopyError> {
    let mut packer = Packer { stream, notes, names: HashMap::new(), chunk: vec![0; CHUNK] };
    let root = Thing { folder: CWD, name: source.as_os_str(), path: source.to_owned(), of: Vec::new(), within: None };
    packer.thing(&root, follow)?;
    end(packer.stream)
}

struct Packer<'a, W> {
    stream: &'a mut W,
    notes: Notes<'a>,
    /// Of files that have several: device and inode, and the first name.
    names: HashMap<(u64, u64), Vec<u8>>,
    chunk: Vec<u8>,
}

/// Something in an open folder.
struct Thing<'a> {
    folder: BorrowedFd<'a>,
    name: &'a OsStr,
    /// As messages call it.
    path: PathBuf,
    /// As the stream calls it.
    of: Vec<u8>,
    /// The device of the folder, unless it is the root.
    within: Option<u64>,
}

impl Thing<'_> {
    fn open(&self, flags: OFlags, follow: bool) -> Result<OwnedFd, CopyError> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
        openat(self.folder, self.name, flags, Mode::empty()).map_err(failed("open", &self.path))
    }

    fn refused(&self, why: &'static str) -> CopyError {
        CopyError::Refused { path: self.path.clone(), why }
    }
}

impl<W: Write> Packer<'_, W> {
    fn thing(&mut self, thing: &Thing<'_>, follow: bool) -> Result<(), CopyError> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = match statat(thing.folder, thing.name, flags) {
            Ok(stat) => stat,
            // Removed since its folder was read.
            Err(Errno::NOENT) if thing.within.is_some() => return Ok(()),
            Err(error) => return Err(failed("find", &thing.path)(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(thing, follow),
            FileType::Directory => self.folder(thing, follow),
            FileType::Symlink => {
                let link = readlinkat(thing.folder, thing.name, Vec::new()).map_err(failed("read", &thing.path))?;
                Entry { link: link.into_bytes(), ..entry(Kind::Link, &stat, thing) }.write(self.stream)
            }
            FileType::Fifo => entry(Kind::Fifo, &stat, thing).write(self.stream),
            FileType::CharacterDevice => entry(Kind::CharDevice, &stat, thing).write(self.stream),
            FileType::BlockDevice => entry(Kind::BlockDevice, &stat, thing).write(self.stream),
            _ if thing.within.is_none() => Err(thing.refused("is a socket, which cannot be copied")),
            _ => {
                (self.notes)(format!("{} is a socket: left out", thing.path.display()));
                Ok(())
            }
        }
    }

    fn file(&mut self, thing: &Thing<'_>, follow: bool) -> Result<(), CopyError> {
        let mut file = File::from(thing.open(OFlags::empty(), follow)?);
        let stat = fstat(&file).map_err(failed("look at", &thing.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(thing.refused("has become something else meanwhile"));
        }
        let number = (stat.st_dev as u64, stat.st_ino as u64);
        if stat.st_nlink as u64 > 1 && thing.within.is_some() {
            if let Some(first) = self.names.get(&number) {
                return Entry { link: first.clone(), ..entry(Kind::HardLink, &stat, thing) }.write(self.stream);
            }
            self.names.insert(number, thing.of.clone());
        }
        let mut have = 0;
        while have < self.chunk.len() {
            match self.read(&mut file, thing, have)? {
                0 => break,
                count => have += count,
            }
        }
        let whole = have < self.chunk.len();
        let size = if whole { have as u64 } else { (stat.st_size as u64).max(have as u64) };
        Entry { size, ..entry(Kind::File, &stat, thing) }.write(self.stream)?;
        let mut left = size;
        loop {
            let count = left.min(have as u64) as usize;
            self.stream.write_all(&self.chunk[..count]).map_err(CopyError::of_stream)?;
            left -= count as u64;
            if left == 0 {
                return Ok(());
            }
            have = self.read(&mut file, thing, 0)?;
            if have == 0 {
                return Err(thing.refused("became shorter while it was read: copy it once more"));
            }
        }
    }

    /// Reads on, into the chunk from `at`.
    fn read(&mut self, file: &mut File, thing: &Thing<'_>, at: usize) -> Result<usize, CopyError> {
        loop {
            match file.read(&mut self.chunk[at..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map_err(failed("read", &thing.path)),
            }
        }
    }

    fn folder(&mut self, thing: &Thing<'_>, follow: bool) -> Result<(), CopyError> {
        let folder = thing.open(OFlags::DIRECTORY, follow)?;
        let stat = fstat(&folder).map_err(failed("look at", &thing.path))?;
        entry(Kind::Folder, &stat, thing).write(self.stream)?;
        let device = stat.st_dev as u64;
        let mounted = thing.within.is_some_and(|above| above != device);
        if mounted && fstatfs(&folder).is_ok_and(|stat| MADE_UP.contains(&stat.f_type)) {
            (self.notes)(format!("{} is made up by the kernel: its contents are left out", thing.path.display()));
            return Ok(());
        }
        if thing.of.iter().filter(|byte| **byte == b'/').count() + 2 > MAX_DEPTH {
            return Err(thing.refused("is too many folders deep"));
        }
        for name in names(&folder).map_err(failed("list", &thing.path))? {
            let of = if thing.of.is_empty() { name.clone() } else { joined(&thing.of, &name) };
            let path = thing.path.join(&name);
            if of.len() > MAX_NAME {
                return Err(CopyError::Refused { path, why: "has too long a name" });
            }
            let of = of.into_encoded_bytes();
            let below = Thing { folder: folder.as_fd(), name: &name, path, of, within: Some(device) };
            self.thing(&below, false)?;
        }
        Ok(())
    }
}

fn joined(above: &[u8], name: &OsStr) -> OsString {
    OsStr::from_bytes(&[above, b"/", name.as_bytes()].concat()).to_owned()
}

/// What is in a folder. In no order: what sorts takes room in every guest.
fn names(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for found in Dir::read_from(folder)? {
        let found = found?;
        let name = OsStr::from_bytes(found.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn entry(kind: Kind, stat: &Stat, thing: &Thing<'_>) -> Entry {
    let number = stat.st_rdev;
    Entry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        device: (rustix::fs::major(number), rustix::fs::minor(number)),
        ..Entry::new(kind, thing.of.clone())
    }
}
