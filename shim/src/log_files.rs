//! Logs on disk: lines in files of a bounded size and number, written by one process and read by any.
//!
//! The newest file has the log's name; older ones have a number at the end, `.1` for the newest of them. Knows nothing of what the
//! lines say.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// How late a change is noticed at the latest, whoever missed it.
const GLANCE: Duration = Duration::from_millis(500);

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

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct LogWriter {
    folder: PathBuf,
    name: &'static str,
    file: File,
    size: u64,
    limits: Limits,
}

impl LogWriter {
    /// Begins an empty one in `folder`.
    ///
    /// # Errors
    /// What the operating system said; that there is one already, for instance.
    pub(crate) fn create(folder: &Path, name: &'static str, limits: Limits) -> io::Result<LogWriter> {
        Ok(LogWriter { folder: folder.to_owned(), name, file: open(folder, name)?, size: 0, limits })
    }

    /// Bytes that the present file still takes before the next one begins.
    pub(crate) fn room(&self) -> u64 {
        self.limits.size.saturating_sub(self.size)
    }

    /// Adds whole lines, and begins another file when this one is full.
    ///
    /// # Errors
    /// What the operating system said, of a full disk for instance.
    pub(crate) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        if self.size >= self.limits.size { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.limits.files).rev() {
            let (from, to) = (file_of(&self.folder, self.name, number - 1), file_of(&self.folder, self.name, number));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.files <= 1 {
            fs::remove_file(file_of(&self.folder, self.name, 0))?;
        }
        self.file = open(&self.folder, self.name)?;
        self.size = 0;
        Ok(())
    }
}

/// The log's file with this number: 0 for the newest.
pub(crate) fn file_of(folder: &Path, name: &str, number: u32) -> PathBuf {
    match number {
        0 => folder.join(name),
        number => folder.join(format!("{name}.{number}")),
    }
}

/// A time as lines have it: of one length, so that texts compare as times do.
pub(crate) fn time_of(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

fn open(folder: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(file_of(folder, name, 0))
}

/// Reads a log from its oldest line, across its files, and goes on where it stopped.
pub(crate) struct LogReader {
    folder: PathBuf,
    name: &'static str,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl LogReader {
    pub(crate) fn open(folder: &Path, name: &'static str) -> LogReader {
        let oldest = (0..).take_while(|number| file_of(folder, name, *number).exists()).last();
        let file = oldest.and_then(|number| File::open(file_of(folder, name, number)).ok());
        LogReader { folder: folder.to_owned(), name, file: file.map(BufReader::new), line: Vec::new() }
    }

    /// At the end of what there is now.
    pub(crate) fn at_end(folder: &Path, name: &'static str) -> io::Result<LogReader> {
        let mut reader = LogReader { folder: folder.to_owned(), name, file: None, line: Vec::new() };
        if let Ok(mut file) = File::open(file_of(folder, name, 0)) {
            io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
            reader.file = Some(BufReader::new(file));
        }
        Ok(reader)
    }

    /// Gives every line that there is to `take`, without its end, until that fails; the outer error is of reading, the inner one of
    /// `take`.
    pub(crate) fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<io::Result<()>> {
        loop {
            let Some(file) = &mut self.file else {
                match File::open(file_of(&self.folder, self.name, 0)) {
                    Ok(file) => self.file = Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
                    Err(error) => return Err(error),
                }
                continue;
            };
            if file.read_until(b'\n', &mut self.line)? == 0 {
                match self.next_file()? {
                    Some(next) => self.file = Some(BufReader::new(next)),
                    None => return Ok(Ok(())),
                }
                continue;
            }
            // A line that is being written is completed by the next round.
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if let Err(error) = take(&line[..line.len() - 1]) {
                    return Ok(Err(error));
                }
            }
        }
    }

    /// The file that was begun after the one that is read; one whose successor cannot be told was removed meanwhile, and the oldest
    /// comes next.
    fn next_file(&self) -> io::Result<Option<File>> {
        let Some(file) = &self.file else { return Ok(None) };
        let present = identity(&file.get_ref().metadata()?);
        let mut newer: Option<File> = None;
        for number in 0.. {
            let Ok(other) = File::open(file_of(&self.folder, self.name, number)) else { break };
            if identity(&other.metadata()?) == present {
                return Ok(newer);
            }
            newer = Some(other);
        }
        Ok(newer)
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Tells when something happens in a folder with logs.
pub(crate) struct Changes(Option<OwnedFd>);

impl Changes {
    pub(crate) fn of(folder: &Path) -> Changes {
        let watch = || {
            let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
            inotify::add_watch(&inotify, folder, what)?;
            rustix::io::Result::Ok(inotify)
        };
        // Without it there is still the time.
        Changes(watch().ok())
    }

    /// Returns when something has changed, or after a while.
    pub(crate) fn wait(&self) {
        let Some(inotify) = &self.0 else { return std::thread::sleep(GLANCE) };
        let limit = Timespec { tv_sec: 0, tv_nsec: GLANCE.subsec_nanos().into() };
        // Whatever it says, the log is looked at.
        let _ = rustix::event::poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&limit));
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        while reader.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "some.log";

    fn lines(reader: &mut LogReader) -> Vec<String> {
        let mut lines = Vec::new();
        let mut take = |line: &[u8]| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        };
        reader.read(&mut take).unwrap().unwrap();
        lines
    }

    #[test]
    fn a_reader_follows_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = LogReader::open(dir.path(), NAME);
        assert!(lines(&mut reader).is_empty());
        let mut log = LogWriter::create(dir.path(), NAME, Limits { size: 50, files: 3 }).unwrap();
        log.write(b"one\n").unwrap();
        assert_eq!(lines(&mut reader), ["one"]);
        for number in 0..9 {
            log.write(format!("line {number}\n").as_bytes()).unwrap();
        }
        let expected: Vec<_> = (0..9).map(|number| format!("line {number}")).collect();
        assert_eq!(lines(&mut reader), expected);
        assert!(lines(&mut reader).is_empty());
        let from_start = lines(&mut LogReader::open(dir.path(), NAME));
        assert!(from_start.ends_with(&expected[4..]), "{from_start:?}");
        // One that is left far behind goes on with what is still there.
        for number in 0..50 {
            log.write(format!("more {number}\n").as_bytes()).unwrap();
        }
        let late = lines(&mut reader);
        assert!(late.len() < 50 && late.last().is_some_and(|text| text == "more 49"), "{late:?}");
        let mut end = LogReader::at_end(dir.path(), NAME).unwrap();
        log.write(b"new\n").unwrap();
        assert_eq!(lines(&mut end), ["new"]);
    }

    #[test]
    fn the_oldest_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let file = |number| file_of(dir.path(), NAME, number);
        let mut log = LogWriter::create(dir.path(), NAME, Limits { size: 1000, files: 2 }).unwrap();
        for number in 0..200 {
            log.write(format!("line {number} of a log\n").as_bytes()).unwrap();
        }
        assert!(file(0).exists() && file(1).exists() && !file(2).exists());
        let size = |number| fs::metadata(file(number)).unwrap().len();
        assert!(size(1) >= 1000 && size(1) < 1100 && size(0) < 1000);
        let single = || LogWriter::create(dir.path(), NAME, Limits { size: 10, files: 1 });
        assert!(single().is_err(), "an old log is not overwritten");
        fs::remove_file(file(0)).unwrap();
        let mut log = single().unwrap();
        log.write(b"a long line\n").unwrap();
        log.write(b"x\n").unwrap();
        assert_eq!((size(0), log.room()), (2, 8));
    }
}
