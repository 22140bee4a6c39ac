//! `tatami logs`: what a container has written, from its log; with -f also what it will write.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::super::Error;
use super::super::output_log::{self, Entry, Stream, time_of};
use super::super::registry;
use crate::sandbox::folder::Places;

/// How long after its end a container's end is noticed at the latest.
const GLANCE: Duration = Duration::from_millis(500);

/// `tatami logs`.
#[derive(Args)]
#[command(after_help = "\
Standard output and standard error of the container come out on standard output and standard error here.

Examples:
  tatami logs web
  tatami logs -f --tail 20 web
  tatami logs -t --since 10m web 2>&1 | grep -i error")]
pub struct LogsArguments {
    /// Go on with what is written from now on, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Show only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Show only what was written since: a time (2026-01-31T12:00:00Z), or how long ago (10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Show only what was written until then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
    /// Name, id, or beginning of an id
    container: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tail(Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => number.parse().map(|number| Tail(Some(number))).map_err(|_| "expected a number, or all".to_owned()),
    }
}

fn time(text: &str) -> Result<String, String> {
    let time = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago),
        Err(_) => humantime::parse_rfc3339_weak(text).ok(),
    };
    time.map(time_of)
        .ok_or_else(|| "expected a time such as 2026-01-31T12:00:00Z, or how long ago, such as 10m".to_owned())
}

pub(super) fn logs(places: &Places, arguments: &LogsArguments) -> Result<u8, Error> {
    let entry = registry::find(places, &arguments.container)?;
    if entry.record.foreground {
        let told = format!("{} runs in the foreground: what it writes goes there, and no log is kept", entry.name());
        return Err(Error::State(told));
    }
    let mut show = Show::new(arguments.timestamps);
    show.window = (arguments.since.clone(), arguments.until.clone());
    let mut reader = Reader::open(entry.kept.folder());
    // Before the log is read: what is written later is read by the next round.
    let mut over = entry.ended().is_some();
    let mut last = Last::new(arguments.tail.0);
    reader.read(&mut |line| last.take(line, &mut show)).map_err(reading)?.map_err(Error::Output)?;
    last.show(&mut show).map_err(Error::Output)?;
    if !arguments.follow {
        return Ok(0);
    }
    let changes = Changes::of(entry.kept.folder());
    loop {
        reader.read(&mut |line| show.line(line)).map_err(reading)?.map_err(Error::Output)?;
        if over {
            return Ok(0);
        }
        changes.wait();
        over = entry.ended().is_some();
    }
}

fn reading(source: io::Error) -> Error {
    Error::System { action: "read the container's log", source }
}

/// Reads a log from its oldest line, across its files, and goes on where it stopped.
pub(super) struct Reader {
    folder: PathBuf,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Reader {
    pub(super) fn open(folder: &Path) -> Reader {
        let oldest = (0..).take_while(|number| output_log::file_of(folder, *number).exists()).last();
        let file = oldest.and_then(|number| File::open(output_log::file_of(folder, number)).ok());
        Reader { folder: folder.to_owned(), file: file.map(BufReader::new), line: Vec::new() }
    }

    /// At the end of what there is now.
    pub(super) fn at_end(folder: &Path) -> io::Result<Reader> {
        let mut reader = Reader { folder: folder.to_owned(), file: None, line: Vec::new() };
        if let Ok(mut file) = File::open(output_log::file_of(folder, 0)) {
            io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
            reader.file = Some(BufReader::new(file));
        }
        Ok(reader)
    }

    /// Gives every line that there is to `take`, until that fails; the outer error is of reading, the inner one of `take`.
    pub(super) fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<io::Result<()>> {
        loop {
            let Some(file) = &mut self.file else {
                match File::open(output_log::file_of(&self.folder, 0)) {
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
            let Ok(other) = File::open(output_log::file_of(&self.folder, number)) else { break };
            if identity(&other.metadata()?) == present {
                return Ok(newer);
            }
            newer = Some(other);
        }
        Ok(newer)
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Tells when something happens in a container's folder.
pub(super) struct Changes(Option<OwnedFd>);

impl Changes {
    pub(super) fn of(folder: &Path) -> Changes {
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
    pub(super) fn wait(&self) {
        let Some(inotify) = &self.0 else { return std::thread::sleep(GLANCE) };
        let limit = Timespec { tv_sec: 0, tv_nsec: GLANCE.subsec_nanos().into() };
        // Whatever it says, the log is looked at.
        let _ = rustix::event::poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&limit));
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        while reader.next().is_ok() {}
    }
}

/// The last lines, if not all are wanted.
struct Last {
    limit: Option<usize>,
    lines: VecDeque<Vec<u8>>,
    /// Entries that end a line.
    count: usize,
}

impl Last {
    fn new(limit: Option<usize>) -> Last {
        Last { limit, lines: VecDeque::new(), count: 0 }
    }

    fn take(&mut self, line: &[u8], show: &mut Show) -> io::Result<()> {
        let Some(limit) = self.limit else { return show.line(line) };
        let Some(entry) = Entry::parse(line).filter(|entry| show.wants(entry)) else { return Ok(()) };
        self.count += usize::from(entry.whole);
        self.lines.push_back(line.to_owned());
        // A piece at the end, without the line's, counts as a line as well.
        let open = usize::from(!entry.whole);
        while self.count + open > limit {
            let Some(first) = self.lines.pop_front() else { break };
            self.count -= usize::from(Entry::parse(&first).is_some_and(|entry| entry.whole));
            if limit == 0 && self.lines.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn show(self, show: &mut Show) -> io::Result<()> {
        self.lines.iter().try_for_each(|line| show.line(line))
    }
}

/// Writes entries to the streams that they came from.
pub(super) struct Show {
    timestamps: bool,
    /// From and to these times.
    window: (Option<String>, Option<String>),
    /// Whether the next text of standard output, and of standard error, begins a line.
    begins: [bool; 2],
}

impl Show {
    pub(super) fn new(timestamps: bool) -> Show {
        Show { timestamps, window: (None, None), begins: [true; 2] }
    }

    fn wants(&self, entry: &Entry<'_>) -> bool {
        let (since, until) = &self.window;
        since.as_deref().is_none_or(|since| entry.time >= since)
            && until.as_deref().is_none_or(|until| entry.time <= until)
    }

    pub(super) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = Entry::parse(line).filter(|entry| self.wants(entry)) else { return Ok(()) };
        let begins = &mut self.begins[entry.stream as usize];
        let mut text = Vec::with_capacity(entry.text.len() + 40);
        if self.timestamps && *begins {
            write!(text, "{} ", entry.time)?;
        }
        text.extend_from_slice(entry.text);
        if entry.whole {
            text.push(b'\n');
        }
        *begins = entry.whole;
        match entry.stream {
            Stream::Stdout => {
                let mut stdout = io::stdout();
                stdout.write_all(&text)?;
                stdout.flush()
            }
            Stream::Stderr => io::stderr().write_all(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::output_log::{Limits, OutputLog};
    use super::*;

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut texts = Vec::new();
        let mut take = |line: &[u8]| {
            texts.push(String::from_utf8_lossy(Entry::parse(line).unwrap().text).into_owned());
            Ok(())
        };
        reader.read(&mut take).unwrap().unwrap();
        texts
    }

    #[test]
    fn a_reader_follows_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(dir.path());
        assert!(texts(&mut reader).is_empty());
        let mut log = OutputLog::create(dir.path(), Limits { size: 200, files: 3 }).unwrap();
        log.write(Stream::Stdout, b"one\n").unwrap();
        assert_eq!(texts(&mut reader), ["one"]);
        for number in 0..9 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes()).unwrap();
        }
        let expected: Vec<_> = (0..9).map(|number| format!("line {number}")).collect();
        assert_eq!(texts(&mut reader), expected);
        assert!(texts(&mut reader).is_empty());
        let from_start = texts(&mut Reader::open(dir.path()));
        assert!(from_start.ends_with(&expected[4..]), "{from_start:?}");
        // One that is left far behind goes on with what is still there.
        for number in 0..50 {
            log.write(Stream::Stdout, format!("more {number}\n").as_bytes()).unwrap();
        }
        let late = texts(&mut reader);
        assert!(late.len() < 50 && late.last().is_some_and(|text| text == "more 49"), "{late:?}");
        let mut end = Reader::at_end(dir.path()).unwrap();
        log.write(Stream::Stdout, b"new\n").unwrap();
        assert_eq!(texts(&mut end), ["new"]);
    }

    #[test]
    fn the_last_lines_are_lines_and_not_pieces() {
        let mut show = Show::new(false);
        let kept = |limit, lines: &[&str], show: &mut Show| {
            let mut last = Last::new(Some(limit));
            for line in lines {
                last.take(format!("T stdout {line}").as_bytes(), show).unwrap();
            }
            last.lines.iter().map(|line| String::from_utf8_lossy(line)[9..].to_owned()).collect::<Vec<_>>()
        };
        let lines = ["F a", "P b", "F b", "F c"];
        assert_eq!(kept(2, &lines, &mut show), ["P b", "F b", "F c"]);
        assert_eq!(kept(1, &lines, &mut show), ["F c"]);
        assert!(kept(0, &lines, &mut show).is_empty());
        assert_eq!(kept(1, &["F a", "P $ "], &mut show), ["P $ "]);
    }

    #[test]
    fn times_are_points_or_distances() {
        assert_eq!(time("2026-01-31T12:00:00Z").unwrap(), "2026-01-31T12:00:00.000000000Z");
        assert!(time("10m").unwrap() < time_of(SystemTime::now()));
        assert!(time("yesterday").is_err());
        assert_eq!((tail("all"), tail("3")), (Ok(Tail(None)), Ok(Tail(Some(3)))));
        assert!(tail("-1").is_err());
    }
}
