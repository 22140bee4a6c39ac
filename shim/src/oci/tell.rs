//! How errors reach whoever called: a line on standard error, and one in the log file, if one is named, as runc writes it.
//!
//! Podman and Docker read the log, and show its last line as the reason.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use super::options::Global;
use super::{Error, FAILED};

/// Where errors go.
#[derive(Debug, Default)]
pub(super) struct Teller {
    log: Option<PathBuf>,
    json: bool,
}

impl Teller {
    /// As the command line says.
    pub(super) fn new(global: &Global) -> Teller {
        Teller { log: global.log.clone(), json: global.log_json }
    }

    /// Tells `error`; the exit status that says so.
    pub(super) fn fail(&self, error: &Error) -> u8 {
        let text = plain(&error.to_string());
        if let Some(path) = &self.log {
            let line = line(&text, self.json, SystemTime::now());
            let file = File::options().append(true).create(true).open(path);
            if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
                let _ = io::stderr().write_all(format!("tatami: the log {}: {error}\n", path.display()).as_bytes());
            }
        }
        // In one piece; and where nobody can be told, nobody is.
        let _ = io::stderr().write_all(format!("tatami: {text}\n").as_bytes());
        FAILED
    }
}

/// In one line, without what containerd's clients look for: these callers say it themselves.
fn plain(text: &str) -> String {
    let text = match text.split_once("OCI runtime ").map(|(before, rest)| (before, rest.split_once(" failed: "))) {
        Some((before, Some((_, message)))) => format!("{before}{message}"),
        _ => text.to_owned(),
    };
    text.replace('\n', " ")
}

fn line(text: &str, json: bool, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now);
    match json {
        true => format!("{}\n", serde_json::json!({ "level": "error", "msg": text, "time": time.to_string() })),
        false => format!("time=\"{time}\" level=error msg={text:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_has_runcs_form() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(line("a \"b\"", false, now), "time=\"1970-01-01T00:00:00Z\" level=error msg=\"a \\\"b\\\"\"\n");
        let json: serde_json::Value = serde_json::from_str(&line("a \"b\"", true, now)).unwrap();
        assert_eq!(json["msg"], "a \"b\"");
        assert_eq!(json["level"], "error");
    }

    #[test]
    fn an_error_is_one_line_without_containerds_words() {
        assert_eq!(
            plain("exec failed: OCI runtime exec failed: exec: \"x\": not\nfound"),
            "exec failed: exec: \"x\": not found"
        );
        assert_eq!(plain("container not running"), "container not running");
    }
}
