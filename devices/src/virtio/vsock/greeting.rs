//! The line with which a host program asks for a guest port: `CONNECT <port>\n`, answered by `OK <host port>\n`.
//!
//! Takes bytes one at a time, so that a caller never takes from the socket what belongs to the stream behind the line. Knows no
//! sockets.

/// The longest line that makes sense: the word, a blank, ten digits.
const LONGEST: usize = "CONNECT 4294967295".len();

/// The line so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting {
    line: Vec<u8>,
}

/// What a further byte led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    More,
    /// The line is complete and names this guest port.
    Port(u32),
    /// This is no such line; the client is not worth an answer.
    Nonsense,
}

impl Greeting {
    /// Takes the next byte of the line.
    pub(super) fn push(&mut self, byte: u8) -> Progress {
        if byte != b'\n' {
            if self.line.len() == LONGEST + 1 {
                return Progress::Nonsense;
            }
            self.line.push(byte);
            return Progress::More;
        }
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        match line.strip_prefix(b"CONNECT ").and_then(port) {
            Some(port) => Progress::Port(port),
            None => Progress::Nonsense,
        }
    }
}

/// The number that `digits` spell. Stricter than `parse`, which takes a plus sign.
fn port(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The answer to a client whose connection the guest took, as seen from host port `host_port`.
pub(super) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Progress {
        let mut greeting = Greeting::default();
        for (at, byte) in text.bytes().enumerate() {
            match greeting.push(byte) {
                Progress::More => {}
                end => {
                    assert!(at + 1 == text.len() || end == Progress::Nonsense, "stopped early in {text:?}");
                    return end;
                }
            }
        }
        Progress::More
    }

    #[test]
    fn ports_are_read() {
        assert_eq!(read("CONNECT 1024\n"), Progress::Port(1024));
        assert_eq!(read("CONNECT 1024\r\n"), Progress::Port(1024));
        assert_eq!(read("CONNECT 0\n"), Progress::Port(0));
        assert_eq!(read("CONNECT 4294967295\n"), Progress::Port(u32::MAX));
        assert_eq!(read("CONNECT 10"), Progress::More);
    }

    #[test]
    fn nonsense_is_told_apart() {
        for text in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT +1\n",
            "CONNECT -1\n",
            "connect 1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
        ] {
            assert_eq!(read(text), Progress::Nonsense, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        assert_eq!(read(&"C".repeat(4096)), Progress::Nonsense);
    }
}
