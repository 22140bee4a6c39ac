//! `tatami ps`: which containers there are, as a table for people or as JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::super::Error;
use super::super::client::Client;
use super::super::registry::{self, Entry};
use crate::log_files::time_of;
use crate::sandbox::folder::Places;
use crate::sandbox::kept::Ended;
use crate::table::{Format, ago, printable, table};

/// The longest command that a table shows, in characters.
const COMMAND: usize = 24;

/// `tatami ps`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tatami ps                               # what runs
  tatami ps -a                            # what has ended and was not removed as well
  tatami ps -a --format json | jq -r 'select(.State == \"exited\") | .Names'
  tatami rm -f $(tatami ps -aq)           # everything")]
pub struct PsArguments {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// A table, or a JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Do not cut commands
    #[arg(long)]
    no_trunc: bool,
}

/// One container, in docker's words.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    state: &'static str,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u32>,
    names: String,
}

pub(super) async fn ps(places: &Places, arguments: &PsArguments) -> Result<u8, Error> {
    // Servers are asked at the same time: one that does not answer holds up nobody but itself.
    let rows = registry::all(places).into_iter().map(|entry| tokio::spawn(row(entry)));
    let mut shown = Vec::new();
    for row in rows.collect::<Vec<_>>() {
        shown.extend(row.await.ok().filter(|row| arguments.all || row.exit_code.is_none()));
    }
    let text = match (arguments.quiet, arguments.format) {
        (true, _) => shown.iter().fold(String::new(), |text, row| text + &row.id + "\n"),
        (false, Format::Json) => {
            let line = |row| serde_json::to_string(row).expect("texts and numbers are JSON") + "\n";
            shown.iter().map(line).collect()
        }
        (false, Format::Table) => table_of(&shown, arguments.no_trunc),
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)?;
    if !arguments.all && !arguments.quiet && shown.is_empty() && stdout.is_terminal() {
        eprintln!("Nothing runs. `tatami ps -a` also shows what has ended, `tatami run -d` starts something.");
    }
    Ok(0)
}

async fn row(entry: Entry) -> Row {
    let now = SystemTime::now();
    let record = &entry.record;
    let ended = entry.ended();
    let (state, status) = match (&ended, record.started) {
        (Some(ended), _) => describe_end(ended, now),
        (None, None) => ("created", "Created".to_owned()),
        (None, Some(started)) => {
            let up = format!("Up {}", ago(started, now));
            let paused = match Client::connect(&entry).await {
                Ok(client) => client.is_paused().await,
                Err(error) => Err(error),
            };
            match paused {
                Ok(false) => ("running", up),
                Ok(true) => ("paused", format!("{up} (Paused)")),
                // It may have ended in this moment.
                Err(_) => entry.ended().map_or_else(
                    || ("running", format!("{up} (server does not answer)")),
                    |ended| describe_end(&ended, now),
                ),
            }
        }
    };
    Row {
        id: record.id.clone(),
        image: record.image.clone(),
        command: record.command.join(" "),
        created_at: time_of(record.created),
        running_for: format!("{} ago", ago(record.created, now)),
        state,
        status,
        exit_code: ended.map(|ended| ended.status),
        names: record.name.clone().unwrap_or_default(),
    }
}

fn describe_end(ended: &Ended, now: SystemTime) -> (&'static str, String) {
    if ended.at == SystemTime::UNIX_EPOCH {
        return ("dead", format!("Dead ({}): {}", ended.status, ended.error.as_deref().unwrap_or_default()));
    }
    ("exited", format!("Exited ({}) {} ago", ended.status, ago(ended.at, now)))
}

fn table_of(rows: &[Row], whole: bool) -> String {
    let head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let command = printable(&row.command);
        let command = match whole || command.chars().count() <= COMMAND {
            true => command,
            false => command.chars().take(COMMAND - 1).chain(['…']).collect(),
        };
        let status = printable(&row.status);
        [row.id.clone(), printable(&row.image), command, row.running_for.clone(), status, row.names.clone()]
    });
    table(&std::iter::once(head).chain(cells).collect::<Vec<[String; 6]>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let row = |id: &str, command: &str| Row {
            id: id.to_owned(),
            image: "i".to_owned(),
            command: command.to_owned(),
            created_at: String::new(),
            running_for: "1 second ago".to_owned(),
            state: "running",
            status: "Up 1 second".to_owned(),
            exit_code: None,
            names: "web".to_owned(),
        };
        let text =
            table_of(&[row("0123456789ab", "sh -c 'a\nlong\u{1b}[2J command that is cut'"), row("b", "x")], false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("CONTAINER ID   IMAGE   COMMAND "), "{text}");
        assert!(lines[1].contains("sh -c 'a long [2J comma…   1 second ago"), "{text}");
        let column = |line: &str| line.find("web");
        assert!(column(lines[2]).is_some() && lines[1].ends_with("web"));
    }
}
