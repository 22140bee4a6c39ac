//! The start of a stdio stream: who it belongs to.
//!
//! A stream opens with a big-endian `u32` length and that many bytes of [`StreamHeader`]; the agent answers one byte,
//! [`ACCEPTED`] or [`REFUSED`] (no such process, or the stream is taken), and from there on both sides carry content only.
//! A half close (`shutdown`) is end of file in that direction. Knows nothing of sockets: bytes in, bytes out.

use protobuf::Message;

pub use crate::agent::StreamHeader;
pub use crate::agent::stream_header::Kind;

/// The longest header either side accepts, in bytes.
pub const MAX_HEADER: usize = 1024;
/// The agent's answer: the stream is attached.
pub const ACCEPTED: u8 = 0;
/// The agent's answer: no process waits for such a stream; the agent closes the connection.
pub const REFUSED: u8 = 1;

/// Why a stream's start was not understood.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The announced length is zero or beyond [`MAX_HEADER`].
    #[error("stream header of {0} bytes: must be 1 to {MAX_HEADER}")]
    Length(usize),
    /// The bytes are no header.
    #[error("malformed stream header: {0}")]
    Malformed(#[from] protobuf::Error),
}

/// The header as it goes over the wire, length first.
///
/// # Errors
/// [`HeaderError::Length`] when the ids are too long.
pub fn encode(header: &StreamHeader) -> Result<Vec<u8>, HeaderError> {
    let body = header.write_to_bytes()?;
    check_length(body.len())?;
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

/// The length of the body that follows the four bytes `prefix`.
///
/// # Errors
/// [`HeaderError::Length`] for a length no honest peer sends.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, HeaderError> {
    check_length(u32::from_be_bytes(prefix) as usize)
}

/// Reads the body whose length [`body_length`] told.
///
/// # Errors
/// [`HeaderError::Malformed`] when it is no protobuf message of that type.
pub fn decode(body: &[u8]) -> Result<StreamHeader, HeaderError> {
    Ok(StreamHeader::parse_from_bytes(body)?)
}

fn check_length(length: usize) -> Result<usize, HeaderError> {
    if (1..=MAX_HEADER).contains(&length) { Ok(length) } else { Err(HeaderError::Length(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> StreamHeader {
        StreamHeader { container_id: "c1".into(), exec_id: "e".into(), kind: Kind::STDOUT.into(), ..Default::default() }
    }

    #[test]
    fn a_header_survives_the_wire() {
        let bytes = encode(&header()).unwrap();
        let (prefix, body) = bytes.split_at(4);
        assert_eq!(body_length(prefix.try_into().unwrap()).unwrap(), body.len());
        assert_eq!(decode(body).unwrap(), header());
    }

    #[test]
    fn lengths_no_honest_peer_sends_are_refused() {
        assert!(matches!(body_length([0; 4]), Err(HeaderError::Length(0))));
        assert!(matches!(body_length([0xff; 4]), Err(HeaderError::Length(_))));
        let long = StreamHeader { container_id: "x".repeat(MAX_HEADER), ..header() };
        assert!(matches!(encode(&long), Err(HeaderError::Length(_))));
    }
}
