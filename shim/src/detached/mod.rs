//! Containers in the background: `tatami run -d`, and the commands about them, and about those in the foreground ([`foreground`]).
//!
//! A detached container is a sandbox server of its own ([`server`]), which serves the same Task service that containerd's shim
//! does on a socket in its sandbox's folder; every command here is a client of that ([`client`]). What is to be known after the
//! sandbox's end lies on disk ([`crate::sandbox::kept`], [`output_log`]). There is no daemon: which containers there are is
//! found out by looking ([`registry`]).

pub(crate) mod client;
mod commands;
pub(crate) mod foreground;
pub(crate) mod launch;
pub(crate) mod output_log;
mod registry;
mod server;

use std::io;
use std::process::ExitCode;

pub use commands::Commands;

use crate::logging::complain;
use crate::privilege::{self, NotRoot};
use client::ClientError;
use registry::LookupError;

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("{0}: {1}")]
    Client(String, #[source] ClientError),
    /// Not in this state.
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Usage(String),
    /// The command cannot be executed, with the status that says how.
    #[error("{0}")]
    Command(String, u8),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    /// Nobody reads what is written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    #[error("interrupted")]
    Interrupted(i32),
}

/// Exit status of a command that failed, as docker has it.
const FAILED: u8 = 1;

impl Error {
    fn status(&self) -> u8 {
        match self {
            Error::Command(_, status) => *status,
            Error::Interrupted(signal) => 128 + *signal as u8,
            _ => FAILED,
        }
    }
}

/// Carries out one of the commands.
pub fn main(command: Commands) -> ExitCode {
    let result = privilege::root().map_err(Error::from).and_then(|()| command.carry_out());
    let status = result.unwrap_or_else(|error| {
        let unread = matches!(&error, Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe);
        if !unread {
            complain(&error);
        }
        error.status()
    });
    ExitCode::from(status)
}

/// What a failure of the Task service says of a command that cannot be executed: the message, and the exit status that
/// docker's users know, 127 if it is not there, 126 if it may not be executed.
fn command_failure(text: &str) -> Option<(&str, u8)> {
    let (_, message) = text.strip_prefix("OCI runtime ")?.split_once(" failed: ")?;
    let missing = ["not found in $PATH", "no such file or directory", "not a directory"];
    Some((message, if missing.iter().any(|end| message.ends_with(end)) { 127 } else { 126 }))
}

/// The number of a signal that is named with or without SIG, or is a number.
pub(crate) fn signal_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match name {
        "RTMIN" => return Some(34),
        "RTMAX" => return Some(64),
        _ => {}
    }
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse::<u32>().ok().filter(|offset| *offset <= 30).map(|offset| 34 + offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_be_executed_has_its_own_status() {
        let status = |text: &str| command_failure(text).map(|(_, status)| status);
        assert_eq!(status("OCI runtime start failed: exec: \"x\": executable file not found in $PATH"), Some(127));
        assert_eq!(status("OCI runtime exec failed: exec: \"/x\": no such file or directory"), Some(127));
        assert_eq!(status("OCI runtime exec failed: exec: \"/etc\": permission denied"), Some(126));
        assert_eq!(status("no matching entries"), None);
        let (message, _) = command_failure("OCI runtime exec failed: exec: \"x\": permission denied").unwrap();
        assert_eq!(message, "exec: \"x\": permission denied");
    }

    #[test]
    fn signals_are_named_as_kill_names_them() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal_number(text), Some(15), "{text}");
        }
        assert_eq!(signal_number("RTMIN+3"), Some(37));
        for text in ["", "0", "65", "SIGNONE", "-9", "RTMIN+31"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
