//! `tatami logs`: what a container has written, from its log; with -f also what it will write.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::SystemTime;

use clap::Args;

use super::super::Error;
use super::super::output_log::{self, Entry, Stream};
use super::super::registry;
use crate::log_files::{Changes, time_of};
use crate::sandbox::folder::Places;

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
    since: Option<SystemTime>,
    /// Show only what was written until then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Name, id, or beginning of an id
    container: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail(pub(super) Option<usize>);

/// Reads how many of the last lines are wanted.
pub(super) fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => number.parse().map(|number| Tail(Some(number))).map_err(|_| "expected a number, or all".to_owned()),
    }
}

/// Reads a time, or how long ago it was.
pub(super) fn time(text: &str) -> Result<SystemTime, String> {
    let time = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago),
        Err(_) => humantime::parse_rfc3339_weak(text).ok(),
    };
    time.ok_or_else(|| "expected a time such as 2026-01-31T12:00:00Z, or how long ago, such as 10m".to_owned())
}

pub(super) fn logs(places: &Places, arguments: &LogsArguments) -> Result<u8, Error> {
    let entry = registry::find(places, &arguments.container)?;
    if entry.record.foreground {
        let told = format!("{} runs in the foreground: what it writes goes there, and no log is kept", entry.name());
        return Err(Error::State(told));
    }
    let mut show = Show::new(arguments.timestamps);
    show.window = (arguments.since.map(time_of), arguments.until.map(time_of));
    let mut reader = output_log::read(entry.kept.folder());
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
    use super::*;

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
        assert_eq!(time_of(time("2026-01-31T12:00:00Z").unwrap()), "2026-01-31T12:00:00.000000000Z");
        assert!(time("10m").unwrap() < SystemTime::now());
        assert!(time("yesterday").is_err());
        assert_eq!((tail("all"), tail("3")), (Ok(Tail(None)), Ok(Tail(Some(3)))));
        assert!(tail("-1").is_err());
    }
}
