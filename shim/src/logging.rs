//! Messages to standard error, each a line that says who speaks and how grave it is.
//!
//! `TATAMI_LOG` (error, warn, info, debug, trace, off) says how much; warnings and errors by default.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // In one piece; and where nobody can be told, nobody is.
            let _ = io::stderr().write_all(format!("tatami {level}: {}\n", record.args()).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Says what went wrong to who has given the command.
pub(crate) fn complain(error: &dyn std::fmt::Display) {
    // In one piece: others may write to the same place. And where nobody can be told, nobody is.
    let _ = io::stderr().write_all(format!("tatami: {error}\n").as_bytes());
}

/// Starts logging. Later calls change nothing.
pub fn start() {
    let level = std::env::var("TATAMI_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(LevelFilter::Warn);
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(level);
    }
}
