//! Reading a tar stream entry by entry, with bounds on everything an archive can say about itself.
//!
//! Formats: v7, POSIX ustar and pax (IEEE 1003.1-2017, pax), GNU long names. The `tar` crate reads the header block;
//! what follows a header (pax records, long names) is read here, because that crate would hold any amount of it in
//! memory. Nothing here touches the file system or judges names.

use std::io::{self, Read, Seek};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Bytes of pax records for one entry: room for a few extended attributes of the largest size Linux knows (64 KiB).
const MAX_PAX: u64 = 1 << 20;
/// Bytes of a path or link target: Linux' PATH_MAX.
const MAX_NAME: u64 = 4096;

/// An archive that is no tar, or not one that Tatami reads.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream under the archive failed or ended early.
    #[error("cannot read the archive: {0}")]
    Io(#[from] io::Error),
    /// A block that should be a header is not.
    #[error("tar header at byte {offset}: {why}")]
    Header {
        /// Where the header starts in the (unpacked) archive.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Extension data of an entry is larger than any real archive's.
    #[error("tar header at byte {offset}: {size} bytes of {what} are more than the {limit} allowed")]
    TooLong {
        /// Where the header starts.
        offset: u64,
        /// "pax records" or "name".
        what: &'static str,
        /// Bytes announced.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// An entry of a type that has no meaning in an image layer.
    #[error("entry {path:?}: {why}")]
    Unsupported {
        /// The entry's name.
        path: String,
        /// What it is.
        why: String,
    },
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry; names are exactly as the archive has them.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of content.
    pub(crate) size: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes: name and raw value.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Reads entries; between two entries, reading from the stream itself gives the content of the last one.
pub(crate) struct TarStream<R> {
    reader: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    offset: u64,
    /// Bytes of the current entry that were not read, and the padding behind it.
    body: u64,
    padding: u64,
}

/// What the extension headers before an entry said.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
    sparse: bool,
}

impl<R: Read> TarStream<R> {
    /// A stream that is read from start to end.
    pub(crate) fn new(reader: R) -> TarStream<R> {
        let skip = |reader: &mut R, count| {
            let skipped = io::copy(&mut reader.take(count), &mut io::sink())?;
            if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        };
        TarStream { reader, skip, offset: 0, body: 0, padding: 0 }
    }

    /// Where in the stream the current entry's unread content starts.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, or `None` at the end of the archive. Skips what was left of the last one.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let start = self.offset;
            let Some(header) = self.header()? else { return Ok(None) };
            let wrong = |source: io::Error| TarError::Header { offset: start, why: source.to_string() };
            let size = header.entry_size().map_err(wrong)?;
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => {
                    let records = self.extension("pax records", size, MAX_PAX)?;
                    extensions.read_pax(&records).map_err(|why| TarError::Header { offset: start, why })?;
                }
                // Of a whole archive: git writes a comment here. Nothing in it concerns a layer.
                EntryType::XGlobalHeader => drop(self.extension("pax records", size, MAX_PAX)?),
                EntryType::GNULongName => extensions.path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.long_name(size)?),
                _ => return self.entry(&header, size, extensions, start).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions, start: u64) -> Result<Entry, TarError> {
        let wrong = |source: io::Error| TarError::Header { offset: start, why: source.to_string() };
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let link = link.unwrap_or_default();
        for name in [&path, &link] {
            check_len("name", name.len() as u64, MAX_NAME, start)?;
        }
        let shown = || String::from_utf8_lossy(&path).into_owned();
        if extensions.sparse {
            return Err(TarError::Unsupported { path: shown(), why: "sparse files are not supported".into() });
        }
        let kind = match kind_of(header.entry_type(), &path) {
            Some(kind) => kind,
            None => {
                let why = format!("unknown tar entry type {:?}", char::from(header.entry_type().as_byte()));
                return Err(TarError::Unsupported { path: shown(), why });
            }
        };
        let id = |value: u64| match u32::try_from(value) {
            // All ones means "leave as it is" to chown.
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(TarError::Unsupported { path: shown(), why: format!("owner {value} is no user or group id") }),
        };
        // Only regular files have content, whatever the size field of the others says.
        let size = if kind == Kind::File { extensions.size.unwrap_or(size) } else { 0 };
        self.begin_body(size, start)?;
        let device = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default).map_err(wrong);
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Ok(Entry {
            kind,
            mode: header.mode().map_err(wrong)? & 0o7777,
            uid: id(match extensions.uid {
                Some(uid) => uid,
                None => header.uid().map_err(wrong)?,
            })?,
            gid: id(match extensions.gid {
                Some(gid) => gid,
                None => header.gid().map_err(wrong)?,
            })?,
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                None => (i64::try_from(header.mtime().map_err(wrong)?).unwrap_or(0), 0),
            },
            size,
            device: if is_device { (device(header.device_major())?, device(header.device_minor())?) } else { (0, 0) },
            xattrs: extensions.xattrs,
            path,
            link,
        })
    }

    /// Reads one header block; `None` for the block of zeros that ends an archive, or a stream that ends here.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let start = self.offset;
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Io(io::ErrorKind::UnexpectedEof.into())),
                count => filled += count,
            }
        }
        self.offset += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The checksum counts its own field as spaces (bytes 148 to 155).
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
        match header.cksum() {
            Ok(wanted) if wanted == sum => Ok(Some(header)),
            _ => Err(TarError::Header { offset: start, why: "not a tar header (checksum is wrong)".into() }),
        }
    }

    fn extension(&mut self, what: &'static str, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        check_len(what, size, limit, self.offset - BLOCK)?;
        self.begin_body(size, self.offset - BLOCK)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension("name", size, MAX_NAME + 1)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn begin_body(&mut self, size: u64, start: u64) -> Result<(), TarError> {
        if size > i64::MAX as u64 {
            return Err(TarError::Header { offset: start, why: format!("an entry of {size} bytes cannot be") });
        }
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.body + self.padding;
        if rest > 0 {
            (self.skip)(&mut self.reader, rest)?;
        }
        self.offset += rest;
        (self.body, self.padding) = (0, 0);
        Ok(())
    }
}

impl<R: Read + Seek> TarStream<io::BufReader<R>> {
    /// A stream whose content is skipped by seeking.
    pub(crate) fn seekable(reader: io::BufReader<R>) -> TarStream<io::BufReader<R>> {
        TarStream {
            skip: |reader, count| reader.seek_relative(i64::try_from(count).map_err(io::Error::other)?),
            ..TarStream::new(reader)
        }
    }
}

impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.body).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.body -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }
}

fn check_len(what: &'static str, size: u64, limit: u64, offset: u64) -> Result<(), TarError> {
    if size > limit { Err(TarError::TooLong { offset, what, size, limit }) } else { Ok(()) }
}

fn kind_of(kind: EntryType, path: &[u8]) -> Option<Kind> {
    Some(match kind {
        // v7 has no type for a directory, but a slash at the end of its name.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        _ => return None,
    })
}

impl Extensions {
    /// Reads records of the form `LENGTH key=value\n`, where LENGTH counts all of the record.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() && records.iter().any(|byte| *byte != 0) {
            let (record, rest) = split_record(records).ok_or("malformed pax record")?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("pax record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let key = std::str::from_utf8(key).map_err(|_| "pax key that is not UTF-8")?;
            self.set(key, value).ok_or_else(|| format!("pax record {key} has an impossible value"))?;
            records = rest;
        }
        Ok(())
    }

    /// Keeps one record; an empty value takes an earlier one back. `None`: the value makes no sense.
    fn set(&mut self, key: &str, value: &[u8]) -> Option<()> {
        let name = || (!value.contains(&0)).then(|| (!value.is_empty()).then(|| value.to_vec()));
        match key {
            "path" => self.path = name()?,
            "linkpath" => self.link = name()?,
            "size" => self.size = number(value)?,
            "uid" => self.uid = number(value)?,
            "gid" => self.gid = number(value)?,
            "mtime" => self.mtime = time(value)?,
            _ => {
                if let Some(attribute) = key.strip_prefix("SCHILY.xattr.") {
                    self.xattrs.push((attribute.to_owned(), value.to_vec()));
                } else if key.starts_with("GNU.sparse.") {
                    self.sparse = true;
                }
            }
        }
        Some(())
    }
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    if length < space + 2 || length > records.len() || records[length - 1] != b'\n' {
        return None;
    }
    Some((&records[space + 1..length - 1], &records[length..]))
}

fn number(value: &[u8]) -> Option<Option<u64>> {
    let text = std::str::from_utf8(value).ok()?;
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

/// Seconds since 1970 with an optional fraction, possibly negative.
fn time(value: &[u8]) -> Option<Option<(i64, u32)>> {
    let text = std::str::from_utf8(value).ok()?;
    if text.is_empty() {
        return Some(None);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(Some(if whole.starts_with('-') && nanoseconds > 0 {
        (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)
    } else {
        (seconds, nanoseconds)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Tar, pax_record};

    fn only_entry(bytes: &[u8]) -> Result<Option<Entry>, TarError> {
        TarStream::new(bytes).next_entry()
    }

    #[test]
    fn reads_names_longer_than_the_header_holds() {
        let long = "d/".repeat(200) + "file";
        let gnu = Tar::new().gnu_long_name(&long).file("short", b"x").finish();
        assert_eq!(only_entry(&gnu).unwrap().unwrap().path, long.as_bytes());
        let pax = Tar::new().pax(&[("path", long.as_bytes())]).file("short", b"x").finish();
        assert_eq!(only_entry(&pax).unwrap().unwrap().path, long.as_bytes());
    }

    #[test]
    fn pax_values_may_hold_any_byte() {
        let value = b"\x01\0\0\x02=\n12 x=y\n\xff";
        let tar = Tar::new().pax(&[("SCHILY.xattr.security.capability", value)]).file("f", b"").finish();
        let entry = only_entry(&tar).unwrap().unwrap();
        assert_eq!(entry.xattrs, [("security.capability".to_owned(), value.to_vec())]);
    }

    #[test]
    fn pax_size_and_owner_win_over_the_header() {
        let tar = Tar::new()
            .pax(&[("size", b"3"), ("uid", b"70000"), ("gid", b"7"), ("mtime", b"-1.25")])
            .file_with_header_size("f", 0, b"abc")
            .file("g", b"")
            .finish();
        let mut stream = TarStream::new(&tar[..]);
        let entry = stream.next_entry().unwrap().unwrap();
        assert_eq!((entry.size, entry.uid, entry.gid, entry.mtime), (3, 70000, 7, (-2, 750_000_000)));
        assert_eq!(stream.next_entry().unwrap().unwrap().path, b"g");
        assert!(stream.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_link_with_a_size_has_no_content() {
        let tar = Tar::new().hard_link_with_size("l", "t", 5000).file("after", b"").finish();
        let mut stream = TarStream::new(&tar[..]);
        assert_eq!(stream.next_entry().unwrap().unwrap().kind, Kind::HardLink);
        assert_eq!(stream.next_entry().unwrap().unwrap().path, b"after");
    }

    #[test]
    fn extensions_are_bounded() {
        let names = Tar::new().gnu_long_name(&"n".repeat(5000)).file("f", b"").finish();
        assert!(matches!(only_entry(&names), Err(TarError::TooLong { what: "name", .. })));
        let records = Tar::new().pax(&[("comment", &vec![b'c'; 2 << 20])]).file("f", b"").finish();
        assert!(matches!(only_entry(&records), Err(TarError::TooLong { what: "pax records", .. })));
        let path = Tar::new().pax(&[("path", &[b'p'; 5000])]).file("f", b"").finish();
        assert!(matches!(only_entry(&path), Err(TarError::TooLong { what: "name", .. })));
    }

    #[test]
    fn refuses_what_is_no_tar() {
        assert!(matches!(only_entry(&[7; 512]), Err(TarError::Header { .. })));
        assert!(matches!(only_entry(&[7; 100]), Err(TarError::Io(_))));
        assert!(only_entry(&[]).unwrap().is_none());
    }

    #[test]
    fn refuses_sparse_files_and_unknown_types() {
        let sparse = Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("f", b"").finish();
        assert!(matches!(only_entry(&sparse), Err(TarError::Unsupported { .. })));
        let unknown = Tar::new().typed(b'Z', "f").finish();
        assert!(matches!(only_entry(&unknown), Err(TarError::Unsupported { .. })));
    }

    #[test]
    fn refuses_an_owner_that_chown_would_ignore() {
        let tar = Tar::new().pax(&[("uid", b"4294967295")]).file("f", b"").finish();
        assert!(matches!(only_entry(&tar), Err(TarError::Unsupported { .. })));
    }

    #[test]
    fn malformed_pax_records_are_errors() {
        for bad in [&b"5 a=b\n"[..], b"99 a=b\n", b"6 a=b", b"x a=b\n", b"0 \n", b"5 ab\n", b"-1 a=b\n"] {
            assert!(Extensions::default().read_pax(bad).is_err(), "{bad:?}");
        }
        assert!(Extensions::default().read_pax(&pax_record("mtime", b"soon")).is_err());
        assert!(Extensions::default().read_pax(&pax_record("a", b"b")).is_ok());
    }

    #[test]
    fn times_before_1970_and_without_fraction() {
        assert_eq!(time(b"12"), Some(Some((12, 0))));
        assert_eq!(time(b"12.5"), Some(Some((12, 500_000_000))));
        assert_eq!(time(b"-1.25"), Some(Some((-2, 750_000_000))));
        assert_eq!(time(b"1.x"), None);
    }
}
