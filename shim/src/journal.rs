//! What a sandbox's server and its VMM have said of the sandbox, kept beside what else is kept of it: `tatami log` shows it.
//!
//! However much the server's client is told, warnings, errors and what is of use in looking for a fault are in here. Each line is
//! `TIME LEVEL SOURCE TEXT`. It is bounded, and lies in memory unless something of the sandbox is kept on disk.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use log::{Level, LevelFilter, Record};

use crate::log_files::{Limits, LogReader, LogWriter, time_of};
use crate::logging;

/// Its name in the sandbox's folder.
const NAME: &str = "server.log";
const LIMITS: Limits = Limits { size: 128 << 10, files: 2 };
/// What is written whatever else is told to whom.
const LEVEL: LevelFilter = LevelFilter::Info;
/// The longest text of a line, in characters.
const MAX_TEXT: usize = 4096;
/// What messages of the VMM's process, and about it, come from.
const VMM: &str = "tatami_vmm";

static JOURNAL: OnceLock<Mutex<LogWriter>> = OnceLock::new();

/// Who has said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Server,
    Vmm,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Source::Server => "server",
            Source::Vmm => "vmm",
        }
    }
}

/// One line, as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: SystemTime,
    pub(crate) level: Level,
    pub(crate) source: Source,
    pub(crate) text: &'a str,
}

/// Has everything that this process logs from now on be in the journal in `folder`, too: once in a process's life.
pub(crate) fn begin(folder: &Path) {
    match LogWriter::create(folder, NAME, LIMITS) {
        Ok(journal) => {
            if JOURNAL.set(Mutex::new(journal)).is_ok() {
                logging::at_least(LEVEL);
            }
        }
        // It does without.
        Err(error) => log::warn!("cannot keep the server's log in {}: {error}", folder.display()),
    }
}

/// Adds a message, where there is a journal.
pub(crate) fn note(record: &Record<'_>) {
    let Some(journal) = JOURNAL.get() else { return };
    let line = line(SystemTime::now(), record);
    // A disk that is full must not stop a server.
    let _ = journal.lock().unwrap_or_else(PoisonError::into_inner).write(line.as_bytes());
}

/// Reads the journal in `folder` from its oldest line.
pub(crate) fn read(folder: &Path) -> LogReader {
    LogReader::open(folder, NAME)
}

/// Reads a line; none if it is none of ours.
pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = std::str::from_utf8(line).ok()?.splitn(4, ' ');
    let time = humantime::parse_rfc3339(parts.next()?).ok()?;
    let level = parts.next()?.parse().ok()?;
    let named = parts.next()?;
    let source = [Source::Server, Source::Vmm].into_iter().find(|source| source.name() == named)?;
    Some(Entry { time, level, source, text: parts.next()? })
}

fn line(now: SystemTime, record: &Record<'_>) -> String {
    let source = if record.target().starts_with(VMM) { Source::Vmm } else { Source::Server };
    let text: String = record.args().to_string().chars().take(MAX_TEXT).collect();
    // A line ends at its first line break, so breaks become visible blanks.
    let text = text.trim_end().replace('\n', " | ");
    format!("{} {} {} {text}\n", time_of(now), record.level(), source.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_700_000_000_123_456_789);
        let written = |target: &str, text: &str| {
            line(now, &Record::builder().level(Level::Warn).target(target).args(format_args!("{text}")).build())
        };
        let first = written("tatami_vmm::client", "vCPU 0\nstands  still\n");
        assert_eq!(first, "2023-11-14T22:13:20.123456789Z WARN vmm vCPU 0 | stands  still\n");
        let read = parse(first.trim_end().as_bytes()).unwrap();
        assert_eq!(read, Entry { time: now, level: Level::Warn, source: Source::Vmm, text: "vCPU 0 | stands  still" });
        let long = written("tatami_shim::sandbox", &"ä".repeat(MAX_TEXT + 1));
        let read = parse(long.trim_end().as_bytes()).unwrap();
        assert_eq!((read.source, read.text.chars().count()), (Source::Server, MAX_TEXT));
    }

    #[test]
    fn what_is_no_line_of_ours_is_none() {
        for line in ["", "x", "2023-11-14T22:13:20Z WARN", "2023-11-14T22:13:20Z WARN guest x", "2023 WARN vmm x"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"2023-11-14T22:13:20Z WARN vmm \xff"), None);
    }
}
