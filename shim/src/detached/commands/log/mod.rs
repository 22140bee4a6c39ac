//! `tatami log`: what a sandbox's server, its VMM and its guest have logged, in one stream by time; with -f also what they will.
//!
//! Server and VMM write a journal ([`crate::journal`]); the guest's kernel keeps its own log, with the agent's words in it, and is asked
//! for it ([`guest`]). So nothing is recorded that nobody asks for, and a guest that is gone has taken its own with it, but for the last
//! lines of one that failed, which the server has told.

mod guest;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use log::Level;
use serde_json::json;

use self::guest::GuestLog;
use super::super::registry::{self, LookupError};
use super::super::{Error, complain};
use super::logs::{Tail, tail, time};
use super::sandboxes;
use crate::journal;
use crate::log_files::LogReader;
use crate::sandbox::folder::{Found, Places};
use crate::table::{Format, printable};

/// How often it is looked for more.
const GLANCE: Duration = Duration::from_millis(500);

/// `tatami log`.
#[derive(Args)]
#[command(after_help = "\
A line each: when, who (server, vmm, kernel, agent, or guest: a process in it that writes to the kernel's log), how grave, and what.
TATAMI_LOG=debug, where the sandbox is started, has its server say more, and `tatami run --append tatami.log=debug` the agent. What a
container writes is not in here: `tatami logs` has it. The guest's own part goes with the guest; what its server has said is kept as long
as the container is.

Examples:
  tatami log web                          # a container's machine
  tatami log -f 3f1c                      # a pod's, by the beginning of its id
  tatami log --format json web | jq -r 'select(.Level == \"error\") | .Message'")]
pub struct LogArguments {
    /// Go on with what is logged from now on, until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Show only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Show only what was logged since: a time (2026-01-31T12:00:00Z), or how long ago (10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// A line of text, or a JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Id or name, or beginning of an id: of a container of `tatami run`, or of a sandbox as its client calls it
    #[arg(value_name = "CONTAINER|SANDBOX")]
    sandbox: String,
}

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    time: SystemTime,
    source: &'static str,
    level: Level,
    text: String,
}

pub(super) async fn log(places: &Places, arguments: &LogArguments) -> Result<u8, Error> {
    let (folder, found) = whose(places, &arguments.sandbox)?;
    let mut server = journal::read(&folder);
    let mut guest = None;
    if found.lives() {
        guest = GuestLog::of(found.state()).await.inspect_err(|error| silent(arguments, error)).ok();
    }
    let mut first = true;
    loop {
        // Looked at first: what was said before the end is read after it.
        let lives = found.is_held();
        let mut lines = of_server(&mut server)?;
        if let Some(open) = &mut guest {
            match open.more().await {
                Ok(more) => lines.extend(more),
                Err(error) => {
                    guest = None;
                    if found.is_held() {
                        silent(arguments, &error);
                    }
                }
            }
        }
        lines.retain(|line| arguments.since.is_none_or(|since| line.time >= since));
        lines.sort_by_key(|line| line.time);
        let skipped = arguments.tail.0.filter(|_| first).map_or(0, |limit| lines.len().saturating_sub(limit));
        show(&lines[skipped..], arguments.format).map_err(Error::Output)?;
        first = false;
        if !arguments.follow || !lives {
            return Ok(0);
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Where the journal of the sandbox is that somebody calls so, and the sandbox, living or not.
fn whose(places: &Places, word: &str) -> Result<(PathBuf, Found), Error> {
    match registry::find(places, word) {
        Ok(entry) => Ok((entry.kept.folder().to_owned(), entry.found)),
        Err(LookupError::None(_)) => {
            let found = sandboxes::find(places, word)?;
            Ok((found.state().to_owned(), found))
        }
        Err(error) => Err(error.into()),
    }
}

fn silent(arguments: &LogArguments, error: &dyn std::fmt::Display) {
    complain(&format!(
        "{}: the guest does not tell its own log ({error}): this is its server's alone",
        arguments.sandbox
    ));
}

fn of_server(journal: &mut LogReader) -> Result<Vec<Line>, Error> {
    let mut lines = Vec::new();
    let read = journal.read(&mut |line| {
        lines.extend(journal::parse(line).map(|journal::Entry { time, level, source, text }| Line {
            time,
            source: source.name(),
            level,
            text: text.to_owned(),
        }));
        Ok(())
    });
    read.and_then(|taken| taken).map_err(|source| Error::System { action: "read the server's log", source })?;
    Ok(lines)
}

fn show(lines: &[Line], format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        out.write_all(told(line, format).as_bytes())?;
    }
    out.flush()
}

fn told(line: &Line, format: Format) -> String {
    let time = humantime::format_rfc3339_micros(line.time);
    let level = line.level.as_str().to_ascii_lowercase();
    match format {
        // Guests' words, for somebody's terminal.
        Format::Table => format!("{time}  {:<6}  {level:<5}  {}\n", line.source, printable(&line.text)),
        Format::Json => {
            let object = json!({
                "Time": time.to_string(), "Source": line.source, "Level": level, "Message": line.text,
            });
            format!("{object}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_move_a_terminals_cursor() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000);
        let line = Line { time, source: "kernel", level: Level::Error, text: "a \u{1b}[2J b".to_owned() };
        assert_eq!(told(&line, Format::Table), "1970-01-01T00:00:01.500000Z  kernel  error  a  [2J b\n");
        let json: serde_json::Value = serde_json::from_str(&told(&line, Format::Json)).unwrap();
        assert_eq!(
            (&json["Source"], &json["Level"], &json["Message"]),
            (&"kernel".into(), &"error".into(), &"a \u{1b}[2J b".into())
        );
    }
}
