//! The server's log: lines into the fifo `log` of its first bundle, which containerd reads into its own log.
//!
//! When nobody reads, lines are dropped: logging never stops a server.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use log::{LevelFilter, Record};

use crate::logging;

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
    let level = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    // Reading, too: then it stays open while containerd is restarted.
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log"));
    let id = id.to_owned();
    let started = logging::start_for(level, move |record| {
        if let Ok(mut file) = opened.as_ref() {
            // In one piece; a full pipe or a missing reader is nobody's concern.
            let _ = file.write_all(format(record, &id).as_bytes());
        }
    });
    if started {
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

/// Logs what else is of use in looking for a fault, unless somebody has said how much is to be logged.
pub(super) fn say_more() {
    logging::tell_more(LevelFilter::Debug);
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
