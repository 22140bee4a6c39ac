//! What a detached container writes, on disk, each piece with its time and stream, in files of a bounded size.
//!
//! The format is the one that Kubernetes' container runtimes use: a line is `TIME STREAM TAG TEXT`, with a time of RFC 3339 in
//! nanoseconds and UTC, `stdout` or `stderr`, and `F` for a text that a line's end followed, `P` for one without. So every
//! byte comes back as it was written. Knows nothing of who writes or reads.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::log_files::{self, Limits, LogReader, LogWriter, time_of};

/// The log's name in the container's folder.
const NAME: &str = "output.log";
/// The longest text of one entry, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The log that is being written.
#[derive(Debug)]
pub(super) struct OutputLog(LogWriter);

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
        Ok(OutputLog(LogWriter::create(folder, NAME, limits)?))
    }

    /// Adds what a process wrote to `stream` now.
    ///
    /// # Errors
    /// What the operating system said, of a full disk for instance.
    pub(super) fn write(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let time = time_of(SystemTime::now());
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().take(MAX_TEXT).position(|byte| *byte == b'\n');
            let text = &bytes[..end.unwrap_or(bytes.len().min(MAX_TEXT))];
            bytes = &bytes[text.len() + usize::from(end.is_some())..];
            let tag = if end.is_some() { 'F' } else { 'P' };
            write!(entries, "{time} {} {tag} ", stream.name())?;
            entries.extend_from_slice(text);
            entries.push(b'\n');
            if entries.len() as u64 > self.0.room() {
                self.0.write(&entries)?;
                entries.clear();
            }
        }
        self.0.write(&entries)
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

/// The newest file of the log in `folder`.
pub(crate) fn newest(folder: &Path) -> PathBuf {
    log_files::file_of(folder, NAME, 0)
}

/// Reads the log in `folder` from its oldest entry.
pub(super) fn read(folder: &Path) -> LogReader {
    LogReader::open(folder, NAME)
}

/// Reads what is written to the log in `folder` from now on.
///
/// # Errors
/// What the operating system said.
pub(super) fn read_on(folder: &Path) -> io::Result<LogReader> {
    LogReader::at_end(folder, NAME)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn entries(folder: &Path) -> Vec<(bool, Vec<u8>)> {
        let text = fs::read(newest(folder)).unwrap();
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
        assert_eq!(entries(dir.path()), expected.map(|(whole, text)| (whole, text.to_vec())));
        let text = fs::read(newest(dir.path())).unwrap();
        let last = Entry::parse(text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap();
        assert_eq!(last.stream, Stream::Stderr);
        assert_eq!((last.time.len(), last.time.ends_with('Z')), ("2026-01-01T00:00:00.000000000Z".len(), true));
    }

    #[test]
    fn long_texts_are_cut_and_stay_whole_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(dir.path(), Limits::default()).unwrap();
        log.write(Stream::Stdout, &[&[b'x'; 40_000][..], b"\n"].concat()).unwrap();
        let lengths: Vec<_> = entries(dir.path()).iter().map(|(whole, text)| (*whole, text.len())).collect();
        assert_eq!(lengths, [(false, MAX_TEXT), (false, MAX_TEXT), (true, 40_000 - 2 * MAX_TEXT)]);
    }

    #[test]
    fn what_is_no_entry_is_none() {
        for line in [&b""[..], b"x", b"2026 stdin F x", b"2026 stdout X x", b"2026 stdout F", b"\xff stdout F x"] {
            assert_eq!(Entry::parse(line), None);
        }
    }
}
