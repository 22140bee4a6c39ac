//! The server's log: lines into the fifo `log` of its first bundle, which containerd reads into its own log.
//!
//! When nobody reads, lines are dropped: logging never stops a server.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use log::{LevelFilter, Log, Metadata, Record};

struct LogFile {
    file: File,
    id: String,
}

impl Log for LogFile {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format(record, &self.id);
            // In one piece; a full pipe or a missing reader is nobody's concern.
            let _ = (&self.file).write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// As containerd itself writes lines.
fn format(record: &Record<'_>, id: &str) -> String {
    let level = match record.level() {
        log::Level::Warn => "warning".to_owned(),
        other => other.as_str().to_ascii_lowercase(),
    };
    format!("level={level} msg={:?} runtime=tatami id={id}\n", record.args().to_string())
}

/// Logs to `bundle`'s fifo from here on, if there is one, and panics too.
pub(super) fn start(bundle: &Path, id: &str, debug: bool) {
    let default = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    let level = std::env::var("TATAMI_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    // Reading, too: then it stays open while containerd is restarted.
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log"));
    let Ok(file) = opened else { return };
    if log::set_boxed_logger(Box::new(LogFile { file, id: id.to_owned() })).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

/// Logs what else is of use in looking for a fault, unless somebody has said how much is to be logged.
pub(super) fn say_more() {
    if log::max_level() < LevelFilter::Debug && std::env::var_os("TATAMI_LOG").is_none() {
        log::set_max_level(LevelFilter::Debug);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let record = Record::builder().level(log::Level::Warn).args(format_args!("a \"b\"\nc")).build();
        assert_eq!(format(&record, "x"), "level=warning msg=\"a \\\"b\\\"\\nc\" runtime=tatami id=x\n");
    }
}
