//! Questions to a resolver and its answers, as they travel on a stream of the kind `NAMES`.
//!
//! Each is a frame: the way that it came (a byte: 0 UDP, 1 TCP), a number by which the answer finds the question (big-endian `u32`), the length
//! (big-endian `u16`) and so many bytes of a message (RFC 1035, 4). An answer has its question's number. Knows nothing of sockets, nor of what
//! the messages say.

/// Bytes before a message.
pub const PREFIX: usize = 7;

/// How a question came, which its answer goes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Short, and maybe lost.
    Udp,
    /// As long as need be.
    Tcp,
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// How it came.
    pub way: Way,
    /// Its question.
    pub number: u32,
    /// Bytes that follow.
    pub length: u16,
}

/// A frame of a message, which is cut where it is too long for one.
pub fn frame(way: Way, number: u32, message: &[u8]) -> Vec<u8> {
    let message = &message[..message.len().min(u16::MAX.into())];
    let mut frame = vec![u8::from(way == Way::Tcp)];
    frame.extend(number.to_be_bytes());
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend(message);
    frame
}

/// Reads what stands before a message; nothing where no honest peer says so.
pub fn prefix(bytes: [u8; PREFIX]) -> Option<Prefix> {
    let [way, a, b, c, d, e, f] = bytes;
    let way = match way {
        0 => Way::Udp,
        1 => Way::Tcp,
        _ => return None,
    };
    Some(Prefix { way, number: u32::from_be_bytes([a, b, c, d]), length: u16::from_be_bytes([e, f]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let frame = frame(Way::Tcp, 0x0102_0304, b"question");
        let (head, message) = frame.split_at(PREFIX);
        let expected = Prefix { way: Way::Tcp, number: 0x0102_0304, length: 8 };
        assert_eq!(prefix(head.try_into().unwrap()), Some(expected));
        assert_eq!(message, b"question");
        assert_eq!(prefix([2, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        assert_eq!(frame(Way::Udp, 1, &[0; 70_000]).len(), PREFIX + 65_535);
    }
}
