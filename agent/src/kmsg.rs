//! The agent's log and last words, written to the kernel's log, whose console the host reads; and that log, for the host to read.
//!
//! `tatami.log=error|warn|info|debug|trace` on the kernel command line sets the level (default warn).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tatami_protocol::stream::ACCEPTED;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::clock;
use crate::transport::Stream;

const DEVICE: &str = "/dev/kmsg";
/// The longest record, in bytes (`CONSOLE_EXT_LOG_MAX` in the kernel's printk).
const RECORD: usize = 8192;
/// An answer ends after so many bytes, which is more than a kernel keeps: one that is flooded does not keep it from its end.
const ANSWER: usize = 1 << 20;

/// Starts logging. Without the device the agent runs on, silently: there is nowhere to complain to.
pub(crate) fn start() {
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let level = level(&command_line);
    if level > LevelFilter::Warn {
        // By default the kernel drops all but a few messages a second from user space.
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    }
    if let Ok(device) = OpenOptions::new().write(true).open(DEVICE)
        && log::set_boxed_logger(Box::new(Kmsg(device))).is_ok()
    {
        log::set_max_level(level);
    }
    std::panic::set_hook(Box::new(|panic| last_words(&panic.to_string())));
}

/// Says why the guest is about to end, at the one level that `quiet` does not suppress.
pub(crate) fn last_words(message: &str) {
    let line = format!("<0>tatami-agent: {}\n", one_line(message));
    let written = OpenOptions::new().write(true).open(DEVICE).and_then(|mut device| device.write_all(line.as_bytes()));
    if written.is_err() {
        eprint!("{}", &line[3..]);
    }
}

/// Answers each byte with the time since the start, in microseconds and in a line of its own, the records that were not sent yet, as the
/// kernel has them, and a zero, which is in none; until the stream's end.
///
/// # Errors
/// What went wrong with the log, or the stream.
pub(crate) async fn serve(mut stream: Stream) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    stream.write_all(&[ACCEPTED]).await?;
    let mut record = vec![0; RECORD];
    while stream.read(&mut [0]).await? > 0 {
        let mut answer = format!("{}\n", clock::since_boot_us()).into_bytes();
        while answer.len() < ANSWER {
            match log.read(&mut record) {
                Ok(length) => answer.extend_from_slice(&record[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The next ones were overwritten before they were read: the one after them comes next.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error),
            }
        }
        answer.push(0);
        stream.write_all(&answer).await?;
    }
    Ok(())
}

struct Kmsg(File);

impl Log for Kmsg {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let priority = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        // One write is one record. A full or missing log must not stop the agent.
        let line = format!("<{priority}>tatami-agent: {}\n", one_line(&record.args().to_string()));
        let _ = (&self.0).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn level(command_line: &str) -> LevelFilter {
    let value = command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("tatami.log="));
    value.and_then(|value| value.parse().ok()).unwrap_or(LevelFilter::Warn)
}

/// A record ends at its first line break, so breaks become visible blanks.
fn one_line(message: &str) -> String {
    message.trim_end().replace('\n', " | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_valid_word_sets_the_level() {
        assert_eq!(level(""), LevelFilter::Warn);
        assert_eq!(level("quiet tatami.log=debug init=/init"), LevelFilter::Debug);
        assert_eq!(level("tatami.log=debug tatami.log=error"), LevelFilter::Error);
        assert_eq!(level("tatami.log=loud"), LevelFilter::Warn);
    }

    #[test]
    fn a_message_of_several_lines_stays_one_record() {
        assert_eq!(one_line("first\nsecond\n"), "first | second");
    }
}
