//! The guest's serial output on its way to the server: whole lines where possible, and never held up.
//!
//! Called by vCPU threads, so it does not wait: what the server does not take in time is lost, and counted.

use std::io::{self, Write};
use std::sync::Arc;

use crate::control::{CONSOLE_LIMIT, Channel};

/// Bytes that are sent without waiting for the end of their line.
const LINE_LIMIT: usize = 1 << 10;

/// Where the serial line's output goes.
pub(crate) struct ConsoleOutput {
    channel: Arc<Channel>,
    line: Vec<u8>,
    lost: u64,
}

impl ConsoleOutput {
    /// Output that goes to `channel`.
    pub(crate) fn new(channel: Arc<Channel>) -> ConsoleOutput {
        ConsoleOutput { channel, line: Vec::with_capacity(LINE_LIMIT), lost: 0 }
    }

    fn send(&mut self) {
        if self.line.is_empty() {
            return;
        }
        if self.lost > 0 {
            let note = format!("\n[{} bytes of console output were lost]\n", self.lost);
            if self.channel.send_console(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        for part in self.line.chunks(CONSOLE_LIMIT) {
            if self.lost > 0 || self.channel.send_console(part).is_err() {
                self.lost += part.len() as u64;
            }
        }
        self.line.clear();
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.line.len() >= LINE_LIMIT {
            self.send();
        }
        Ok(bytes.len())
    }

    /// The serial line flushes after each byte, which says nothing about lines.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Received;

    fn received(channel: &Channel) -> Vec<String> {
        let mut texts = Vec::new();
        while let Ok(Some(Received::Console(text))) = channel.receive(false) {
            texts.push(String::from_utf8(text).unwrap());
        }
        texts
    }

    #[test]
    fn lines_arrive_whole_and_the_last_words_too() {
        let (server, vmm) = Channel::pair().unwrap();
        let mut output = ConsoleOutput::new(Arc::new(Channel::new(vmm)));
        for byte in b"one\ntwo\nthr" {
            output.write_all(&[*byte]).unwrap();
        }
        assert_eq!(received(&server), ["one\n", "two\n"]);
        drop(output);
        assert_eq!(received(&server), ["thr"]);
    }

    #[test]
    fn a_flood_that_nobody_reads_is_dropped_and_counted() {
        let (server, vmm) = Channel::pair().unwrap();
        let mut output = ConsoleOutput::new(Arc::new(Channel::new(vmm)));
        for _ in 0..100_000 {
            output.write_all(b"flood of console output\n").unwrap();
        }
        assert!(output.lost > 0 && output.line.capacity() <= 2 * LINE_LIMIT);
        let arrived = received(&server).len() as u64;
        let lost = output.lost;
        assert_eq!(arrived * 24 + lost, 2_400_000);
        output.write_all(b"dry again\n").unwrap();
        assert_eq!(
            received(&server),
            [format!("\n[{lost} bytes of console output were lost]\n"), "dry again\n".into()]
        );
    }
}
