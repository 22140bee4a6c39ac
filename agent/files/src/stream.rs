//! The stream: entries one after another, files with their content behind them, and a last word.
//!
//! An entry is a head of [`HEAD`] bytes, integers little endian, then name and link. Names are relative to the root of what is copied,
//! and the root itself has the empty one; a folder comes before what is in it. What is read here was written by somebody else: nothing
//! gets past that could lead elsewhere or be taken for something else.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;

use crate::CopyError;

/// Bytes of an entry before its names.
pub const HEAD: usize = 49;
/// The longest name and the longest link, in bytes: Linux's.
pub const MAX_NAME: usize = 4096;
/// Folders within folders. Each is open while it is copied.
pub const MAX_DEPTH: usize = 200;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file; its content follows.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Another name of a file that came before.
    HardLink,
    /// A fifo.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

const KINDS: [Kind; 7] =
    [Kind::File, Kind::Folder, Kind::Link, Kind::HardLink, Kind::Fifo, Kind::CharDevice, Kind::BlockDevice];
/// In the place of a kind: nothing follows.
const END: u8 = 0;

/// One file, folder or other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its permissions, with the three bits above them.
    pub mode: u32,
    /// Whose it is.
    pub uid: u32,
    /// And which group's.
    pub gid: u32,
    /// When it was changed: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of content.
    pub size: u64,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Relative to the root, empty for the root itself.
    pub name: Vec<u8>,
    /// Where a symbolic link leads, or the name that a hard link is another one of.
    pub link: Vec<u8>,
}

impl Entry {
    /// One of this kind and name, of which nothing else is known.
    pub fn new(kind: Kind, name: Vec<u8>) -> Entry {
        Entry { kind, mode: 0, uid: 0, gid: 0, mtime: (0, 0), size: 0, device: (0, 0), name, link: Vec::new() }
    }

    /// Writes it; a file's content is to follow.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, stream: &mut impl Write) -> Result<(), CopyError> {
        let mut bytes = Vec::with_capacity(HEAD + self.name.len() + self.link.len());
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u8 + 1;
        bytes.push(kind);
        for number in [self.mode, self.uid, self.gid, self.mtime.1, self.device.0, self.device.1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.mtime.0.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        for text in [&self.name, &self.link] {
            bytes.extend((text.len() as u32).to_le_bytes());
        }
        bytes.extend(&self.name);
        bytes.extend(&self.link);
        stream.write_all(&bytes).map_err(CopyError::of_stream)
    }

    /// Reads one; none where the other end says that it is done. Of the last one, the content must have been read.
    ///
    /// # Errors
    /// [`CopyError::Malformed`] for what may not be, [`CopyError::Early`] if the stream ends without the last word.
    pub fn read(stream: &mut impl Read) -> Result<Option<Entry>, CopyError> {
        let mut kind = [0; 1];
        fill(stream, &mut kind)?;
        if kind[0] == END {
            return Ok(None);
        }
        let kind = KINDS.get(usize::from(kind[0]) - 1).copied().ok_or(CopyError::Malformed("no kind of file"))?;
        let mut head = [0; HEAD - 1];
        fill(stream, &mut head)?;
        let small = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let large = |at: usize| u64::from(small(at)) | u64::from(small(at + 4)) << 32;
        let entry = Entry {
            kind,
            mode: small(0),
            uid: small(4),
            gid: small(8),
            mtime: (large(24) as i64, small(12)),
            size: large(32),
            device: (small(16), small(20)),
            name: text(stream, small(40))?,
            link: text(stream, small(44))?,
        };
        entry.judge()
    }

    fn judge(self) -> Result<Option<Entry>, CopyError> {
        let name = parts(&self.name).ok_or(CopyError::Malformed("a name that leads elsewhere"))?;
        if name.len() > MAX_DEPTH {
            return Err(CopyError::Malformed("too many folders within folders"));
        }
        let link = match self.kind {
            Kind::Link => !self.link.is_empty() && !self.link.contains(&0),
            Kind::HardLink => parts(&self.link).is_some_and(|link| !link.is_empty() && link.len() <= MAX_DEPTH),
            _ => self.link.is_empty(),
        };
        if !link {
            return Err(CopyError::Malformed("a link that cannot be"));
        }
        let content = self.size == 0 || (self.kind == Kind::File && i64::try_from(self.size).is_ok());
        // All ones means "leave it as it is" to chown(2).
        let owner = self.uid != u32::MAX && self.gid != u32::MAX;
        if !content || !owner || self.mode > 0o7777 || self.mtime.1 >= 1_000_000_000 {
            return Err(CopyError::Malformed("numbers that cannot be"));
        }
        Ok(Some(self))
    }
}

/// Says that nothing follows.
///
/// # Errors
/// Those of writing.
pub fn end(stream: &mut impl Write) -> Result<(), CopyError> {
    stream.write_all(&[END]).and_then(|()| stream.flush()).map_err(CopyError::of_stream)
}

/// The components of a name; none if it could mean anything but something below the root.
pub fn parts(name: &[u8]) -> Option<Vec<&OsStr>> {
    if name.is_empty() {
        return Some(Vec::new());
    }
    let good = |part: &&[u8]| !matches!(*part, b"" | b"." | b"..") && !part.contains(&0);
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    parts.iter().all(good).then(|| parts.into_iter().map(OsStr::from_bytes).collect())
}

fn text(stream: &mut impl Read, length: u32) -> Result<Vec<u8>, CopyError> {
    if length as usize > MAX_NAME {
        return Err(CopyError::Malformed("a name that is too long"));
    }
    let mut text = vec![0; length as usize];
    fill(stream, &mut text)?;
    Ok(text)
}

fn fill(stream: &mut impl Read, bytes: &mut [u8]) -> Result<(), CopyError> {
    stream.read_exact(bytes).map_err(CopyError::of_stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, name: &str, link: &str) -> Entry {
        Entry { link: link.into(), mtime: (-5, 999_999_999), mode: 0o4755, ..Entry::new(kind, name.into()) }
    }

    fn bytes(entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.write(&mut bytes).unwrap();
        bytes
    }

    fn read(entry: &Entry) -> Result<Option<Entry>, CopyError> {
        Entry::read(&mut bytes(entry).as_slice())
    }

    #[test]
    fn entries_survive_the_stream() {
        let file = Entry { size: 1 << 40, uid: 7, gid: 8, ..entry(Kind::File, "a/b", "") };
        let device = Entry { device: (8, 1), ..entry(Kind::BlockDevice, "sda1", "") };
        for entry in [file, device, entry(Kind::Folder, "", ""), entry(Kind::Link, "l", "../..")] {
            assert_eq!(bytes(&entry).len(), HEAD + entry.name.len() + entry.link.len());
            assert_eq!(read(&entry).unwrap(), Some(entry));
        }
    }

    #[test]
    fn names_stay_below_the_root() {
        for name in ["/a", "a/", "a//b", "..", "a/../b", ".", "a\0b"] {
            assert!(matches!(read(&entry(Kind::File, name, "")), Err(CopyError::Malformed(_))), "{name}");
            assert!(matches!(read(&entry(Kind::HardLink, "x", name)), Err(CopyError::Malformed(_))), "{name}");
        }
        for long in ["x".repeat(MAX_NAME + 1), "a/".repeat(MAX_DEPTH) + "a"] {
            assert!(matches!(read(&entry(Kind::File, &long, "")), Err(CopyError::Malformed(_))));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = entry(Kind::File, "a", "");
        let wrong = [
            Entry { mode: 0o10000, ..good.clone() },
            Entry { uid: u32::MAX, ..good.clone() },
            Entry { size: u64::MAX, ..good.clone() },
            Entry { mtime: (0, 1_000_000_000), ..good.clone() },
            Entry { size: 1, ..entry(Kind::Folder, "a", "") },
            entry(Kind::File, "a", "b"),
            entry(Kind::Link, "a", ""),
            entry(Kind::HardLink, "a", ""),
        ];
        for entry in wrong {
            assert!(matches!(read(&entry), Err(CopyError::Malformed(_))), "{entry:?}");
        }
        assert!(matches!(Entry::read(&mut [9u8].as_slice()), Err(CopyError::Malformed(_))));
    }

    #[test]
    fn only_the_last_word_ends_the_stream() {
        let all = bytes(&entry(Kind::File, "a", ""));
        for length in 0..all.len() {
            assert!(matches!(Entry::read(&mut &all[..length]), Err(CopyError::Early)), "{length}");
        }
        let mut last = Vec::new();
        end(&mut last).unwrap();
        assert_eq!(Entry::read(&mut last.as_slice()).unwrap(), None);
    }
}
