//! The guest's serial output, as much of its end as is worth keeping.
//!
//! What a guest prints is untrusted: it is bounded here and made printable before it reaches a message. Knows nothing of
//! where the bytes come from.

use std::collections::VecDeque;

/// How much of the end of the output is kept, in bytes.
pub const KEPT: usize = 64 * 1024;
/// The longest line that [`ConsoleRing::tail`] hands out, in characters.
const MAX_LINE: usize = 400;

/// The last [`KEPT`] bytes that a guest printed.
#[derive(Debug, Default)]
pub struct ConsoleRing {
    bytes: VecDeque<u8>,
}

impl ConsoleRing {
    /// Takes in what the guest printed next.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let surplus = (self.bytes.len() + bytes.len()).saturating_sub(KEPT);
        self.bytes.drain(..surplus);
        self.bytes.extend(bytes);
    }

    /// The last `count` lines that are not empty, oldest first, with control characters replaced so that they cannot
    /// reach a terminal.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let (front, back) = self.bytes.as_slices();
        let all = [front, back].concat();
        let text = String::from_utf8_lossy(&all);
        let mut lines: Vec<String> =
            text.split(['\n', '\r']).rev().map(printable).filter(|line| !line.is_empty()).take(count).collect();
        lines.reverse();
        lines
    }
}

fn printable(line: &str) -> String {
    let clean: String = line
        .chars()
        .take(MAX_LINE)
        .map(|c| if c == '\t' { ' ' } else { c })
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    clean.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_in_order() {
        let mut ring = ConsoleRing::default();
        ring.push(b"one\r\ntwo\r\n\r\nthr");
        ring.push(b"ee\r\nfour");
        assert_eq!(ring.tail(3), ["two", "three", "four"]);
        assert_eq!(ring.tail(99).len(), 4);
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut ring = ConsoleRing::default();
        ring.push(b"first\n");
        ring.push(&vec![b'x'; KEPT - 5]);
        ring.push(b"\nlast\n");
        assert_eq!(ring.bytes.len(), KEPT);
        assert_eq!(ring.tail(1), ["last"]);
        assert!(!ring.tail(10).iter().any(|line| line.contains("first")));
        ring.push(&vec![b'y'; 3 * KEPT]);
        assert_eq!(ring.bytes.len(), KEPT);
    }

    #[test]
    fn what_could_steer_a_terminal_is_replaced() {
        let mut ring = ConsoleRing::default();
        ring.push(b"\x1b]0;title\x07 \x9b2J \xff ok\tthere\n");
        let line = ring.tail(1).remove(0);
        assert!(line.ends_with("ok there"), "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut ring = ConsoleRing::default();
        ring.push(&[b'z'; 5000]);
        assert_eq!(ring.tail(1)[0].len(), MAX_LINE);
    }
}
