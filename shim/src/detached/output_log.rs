//! What a detached container writes, on disk, each piece with its time and stream, in files of a bounded size.
//!
//! The format is the one that Kubernetes' container runtimes use: a line is `TIME STREAM TAG TEXT`, with a time of RFC 3339 in
//! nanoseconds and UTC, `stdout` or `stderr`, and `F` for a text that a line's end followed, `P` for one without. So every
//! byte comes back as it was written. Knows nothing of who writes or reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The newest file; older ones have a number at the end, `.1` for the newest of them.
pub(crate) const FILE: &str = "output.log";
/// The longest text of one entry, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file's size in bytes after which the next one begins.
    pub size: u64,
    /// The number of files, at least 1; the oldest goes.
    pub files: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { size: 10 << 20, files: 3 }
    }
}

/// The log that is being written.
#[derive(Debug)]
pub(super) struct OutputLog {
    folder: PathBuf,
    file: File,
    size: u64,
    limits: Limits,
}

/// One entry, as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// A line's end followed the text.
    pub(crate) whole: bool,
    pub(crate) text: &'a [u8],
}

impl OutputLog {
    /// Begins an empty one in `folder`.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn create(folder: &Path, limits: Limits) -> io::Result<OutputLog> {
        Ok(OutputLog { folder: folder.to_owned(), file: open(folder)?, size: 0, limits })
    }

    /// Adds what a process wrote to `stream` now.
    ///
    /// # Errors
    /// What the operating system said, of a full disk for instance.
    pub(super) fn write(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let time = time_of(SystemTime::now());
        let mut entry = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().take(MAX_TEXT).position(|byte| *byte == b'\n');
            let text = &bytes[..end.unwrap_or(bytes.len().min(MAX_TEXT))];
            bytes = &bytes[text.len() + usize::from(end.is_some())..];
            let tag = if end.is_some() { 'F' } else { 'P' };
            write!(entry, "{time} {} {tag} ", stream.name())?;
            entry.extend_from_slice(text);
            entry.push(b'\n');
            if self.size + entry.len() as u64 > self.limits.size {
                self.flush(&mut entry)?;
            }
        }
        self.flush(&mut entry)
    }

    /// Writes whole entries, and begins another file when this one is full.
    fn flush(&mut self, entries: &mut Vec<u8>) -> io::Result<()> {
        self.file.write_all(entries)?;
        self.size += entries.len() as u64;
        entries.clear();
        if self.size >= self.limits.size { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.limits.files).rev() {
            match fs::rename(file_of(&self.folder, number - 1), file_of(&self.folder, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.files <= 1 {
            fs::remove_file(file_of(&self.folder, 0))?;
        }
        self.file = open(&self.folder)?;
        self.size = 0;
        Ok(())
    }
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

impl Entry<'_> {
    /// Reads a line without its end; None if it is none of ours.
    pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Entry { time, stream, whole, text: parts.next()? })
    }
}

/// The file with this number: 0 for the newest.
pub(crate) fn file_of(folder: &Path, number: u32) -> PathBuf {
    match number {
        0 => folder.join(FILE),
        number => folder.join(format!("{FILE}.{number}")),
    }
}

/// A time as entries have it: of one length, so that texts compare as times do.
pub(crate) fn time_of(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

fn open(folder: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(file_of(folder, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path, number: u32) -> Vec<(bool, Vec<u8>)> {
        let text = fs::read(file_of(folder, number)).unwrap();
        let lines = text.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n');
        lines.map(|line| Entry::parse(line).unwrap()).map(|entry| (entry.whole, entry.text.to_vec())).collect()
    }

    #[test]
    fn every_byte_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(dir.path(), Limits::default()).unwrap();
        log.write(Stream::Stdout, b"one\ntwo\n\n$ ").unwrap();
        log.write(Stream::Stderr, b"\xff\xfe no text\r\n").unwrap();
        let expected: [(bool, &[u8]); 5] =
            [(true, b"one"), (true, b"two"), (true, b""), (false, b"$ "), (true, b"\xff\xfe no text\r")];
        assert_eq!(entries(dir.path(), 0), expected.map(|(whole, text)| (whole, text.to_vec())));
        let text = fs::read(file_of(dir.path(), 0)).unwrap();
        let last = Entry::parse(text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap();
        assert_eq!(last.stream, Stream::Stderr);
        assert_eq!((last.time.len(), last.time.ends_with('Z')), ("2026-01-01T00:00:00.000000000Z".len(), true));
    }

    #[test]
    fn long_texts_are_cut_and_stay_whole_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(dir.path(), Limits::default()).unwrap();
        log.write(Stream::Stdout, &[&[b'x'; 40_000][..], b"\n"].concat()).unwrap();
        let lengths: Vec<_> = entries(dir.path(), 0).iter().map(|(whole, text)| (*whole, text.len())).collect();
        assert_eq!(lengths, [(false, MAX_TEXT), (false, MAX_TEXT), (true, 40_000 - 2 * MAX_TEXT)]);
    }

    #[test]
    fn the_oldest_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(dir.path(), Limits { size: 1000, files: 2 }).unwrap();
        for number in 0..200 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes()).unwrap();
        }
        assert!(file_of(dir.path(), 0).exists() && file_of(dir.path(), 1).exists() && !file_of(dir.path(), 2).exists());
        let size = |number| fs::metadata(file_of(dir.path(), number)).unwrap().len();
        assert!(size(1) >= 1000 && size(1) < 1100 && size(0) < 1000);
        let mut single = OutputLog::create(&dir.path().join("."), Limits { size: 10, files: 1 }).map(drop);
        assert!(single.is_err(), "an old log is not overwritten");
        fs::remove_file(file_of(dir.path(), 0)).unwrap();
        single = OutputLog::create(dir.path(), Limits { size: 10, files: 1 }).and_then(|mut log| {
            log.write(Stream::Stdout, b"a long line\nanother\n")?;
            log.write(Stream::Stdout, b"x")
        });
        single.unwrap();
        assert!(size(0) < 60);
    }

    #[test]
    fn what_is_no_entry_is_none() {
        for line in [&b""[..], b"x", b"2026 stdin F x", b"2026 stdout X x", b"2026 stdout F", b"\xff stdout F x"] {
            assert_eq!(Entry::parse(line), None);
        }
    }
}
