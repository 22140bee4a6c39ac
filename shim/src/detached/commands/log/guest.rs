//! The log of a guest's kernel, as the agent sends it: records of `/dev/kmsg`, whose times are turned into the host's.
//!
//! All of it is a guest's word: what is malformed is passed over, and what is too much is no answer.

use std::path::Path;
use std::time::{Duration, SystemTime};

use log::Level;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::Line;
use crate::sandbox::door::{Door, DoorError};

/// How long an agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer, in bytes: some times what a kernel keeps.
const MAX_ANSWER: u64 = 8 << 20;
/// What ends an answer; no record has it.
const END: u8 = 0;
/// What the agent's records begin with.
const AGENT: &str = "tatami-agent: ";

/// A guest's log that is being read.
pub(super) struct GuestLog(BufReader<UnixStream>);

/// Why there is nothing of the guest's.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestLogError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("its answer breaks off: {0}")]
    Stream(#[from] std::io::Error),
    #[error("it does not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("its answer has no end, or no time")]
    Malformed,
}

impl GuestLog {
    /// That of the sandbox whose folder in memory is `state`, from its oldest record.
    pub(super) async fn of(state: &Path) -> Result<GuestLog, GuestLogError> {
        let opened = async { Door::of(state)?.log().await };
        let stream = tokio::time::timeout(PATIENCE, opened).await.map_err(|_| GuestLogError::Silent)?;
        Ok(GuestLog(BufReader::new(stream?)))
    }

    /// What has come since this was asked last.
    pub(super) async fn more(&mut self) -> Result<Vec<Line>, GuestLogError> {
        let mut answer = Vec::new();
        let asked = async {
            self.0.get_mut().write_u8(b'?').await?;
            (&mut self.0).take(MAX_ANSWER).read_until(END, &mut answer).await
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| GuestLogError::Silent)??;
        lines(&answer, SystemTime::now()).ok_or(GuestLogError::Malformed)
    }
}

/// The records of an answer that came at the time `now`; none of one that is not whole.
fn lines(answer: &[u8], now: SystemTime) -> Option<Vec<Line>> {
    let text = String::from_utf8_lossy(answer.strip_suffix(&[END])?);
    let (uptime, records) = text.split_once('\n')?;
    let uptime = Duration::from_micros(uptime.parse().ok()?);
    // When its clock was at zero; a guest of which that cannot be has no times.
    let zero = now.checked_sub(uptime).filter(|zero| *zero >= SystemTime::UNIX_EPOCH)?;
    Some(records.lines().filter_map(|record| line(record, zero, now)).collect())
}

/// One record: `PRIORITY,NUMBER,MICROSECONDS,FLAGS[,…];TEXT` (the kernel's Documentation/ABI/testing/dev-kmsg). What follows it, and
/// says more, begins with a blank, and is none.
fn line(record: &str, zero: SystemTime, now: SystemTime) -> Option<Line> {
    let (head, text) = record.split_once(';')?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    // What is said was not said later than now.
    let time = zero.checked_add(Duration::from_micros(head.nth(1)?.parse().ok()?))?.min(now);
    let level = match priority & 7 {
        0..=3 => Level::Error,
        4 => Level::Warn,
        5 | 6 => Level::Info,
        _ => Level::Debug,
    };
    let (source, text) = match (priority >> 3, text.strip_prefix(AGENT)) {
        (0, _) => ("kernel", text),
        (_, Some(text)) => ("agent", text),
        _ => ("guest", text),
    };
    Some(Line { time, source, level, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn records_are_told_by_the_hosts_time() {
        let answer = b"4000500\n6,0,0,-;Linux version\n SUBSYSTEM=x\n12,7,3000000,-;tatami-agent: a; b\n\
                       11,8,3500000,-,caller=T1;other\n\0";
        let now = at(104) + Duration::from_micros(500);
        let line = |time, source, level, text: &str| Line { time, source, level, text: text.to_owned() };
        let expected = [
            line(at(100), "kernel", Level::Info, "Linux version"),
            line(at(103), "agent", Level::Warn, "a; b"),
            line(at(103) + Duration::from_millis(500), "guest", Level::Error, "other"),
        ];
        assert_eq!(lines(answer, now).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_passed_over_and_half_an_answer_is_none() {
        let good = |answer: &[u8]| lines(answer, at(100)).map(|lines| lines.len());
        assert_eq!(good(b"1\n6,0,0,-;x\n"), None);
        assert_eq!(good(b"6,0,0,-;x\0"), None);
        assert_eq!(good(b"99999999999999999999\n\0"), None);
        assert_eq!(good(b"-1\n\0"), None);
        assert_eq!(good(b"100000001\n\0"), None, "a guest from before 1970");
        let nonsense = b"1\n;\n6;x\n6,0;x\nx,0,0,-;x\n6,0,99999999999999999999,-;x\n\0";
        assert_eq!(good(nonsense), Some(0));
        let late = lines(b"1\n6,0,18446744073709551615,-;x\n\0", at(100)).unwrap();
        assert_eq!(late[0].time, at(100));
        assert_eq!(good(b"1\n6,0,0,-;\xff\n\0"), Some(1));
    }
}
