//! gRPC as far as a story needs it: one call at a time over a unix socket, for what containerd offers and `ctr` does not.
//!
//! Messages are bytes; the few fields that stories write and read are put in and taken out here. Knows no service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::net::UnixStream;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What stands before a message: that it is not compressed, and its length.
const PREFIX: usize = 5;

/// A server of gRPC, in one of containerd's namespaces.
pub struct Grpc {
    socket: PathBuf,
    namespace: String,
}

impl Grpc {
    /// The one at `socket`; nothing is connected yet.
    pub fn new(socket: &Path, namespace: &str) -> Self {
        Self { socket: socket.to_owned(), namespace: namespace.to_owned() }
    }

    /// Calls `/package.Service/Method` with a message.
    ///
    /// # Errors
    /// What the server says: its code and its words.
    ///
    /// # Panics
    /// When it says nothing.
    pub fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let call = async { tokio::time::timeout(PATIENCE, self.converse(method, message)).await };
        let answer = runtime.block_on(call).unwrap_or_else(|_| panic!("{method}: no answer"));
        let (body, status) = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
        let word = |name: &str| status.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        match word("grpc-status").as_str() {
            "0" => Ok(body.get(PREFIX..).unwrap_or_default().to_vec()),
            code => Err(format!("{code}: {}", word("grpc-message"))),
        }
    }

    /// The answer's body and the headers that tell the status.
    async fn converse(&self, method: &str, message: &[u8]) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.socket.display()));
        let (mut client, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.namespace)
            .body(())
            .expect("a request");
        let (answer, mut sending) = client.send_request(request, false)?;
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len()).expect("a small message").to_be_bytes());
        body.extend_from_slice(message);
        sending.send_data(Bytes::from(body), true)?;
        let (head, mut stream) = answer.await?.into_parts();
        let mut body = Vec::new();
        while let Some(piece) = stream.data().await {
            let piece = piece?;
            stream.flow_control().release_capacity(piece.len())?;
            body.extend_from_slice(&piece);
        }
        // What failed at once has no body, and tells the status in its first headers.
        Ok((body, stream.trailers().await?.unwrap_or(head.headers)))
    }
}

/// A field of a message: a text, or another message.
pub fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

/// The text in the field `number` of a message, empty if there is none; of small messages only, with numbers and texts in them.
pub fn text(mut message: &[u8], number: u8) -> String {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for place in 0.. {
            let Some((byte, rest)) = message.split_first() else { break };
            *message = rest;
            value |= u64::from(byte & 0x7f) << (7 * place).min(63);
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    while !message.is_empty() {
        let tag = varint(&mut message);
        let value = varint(&mut message);
        if tag & 7 != 2 {
            continue;
        }
        let (content, rest) = message.split_at((value as usize).min(message.len()));
        if tag >> 3 == u64::from(number) {
            return String::from_utf8_lossy(content).into_owned();
        }
        message = rest;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::{field, text};

    #[test]
    fn fields_come_out_as_they_went_in() {
        let long = "x".repeat(300);
        let message = [field(1, b"one"), vec![2 << 3, 0x96, 1], field(3, long.as_bytes()), field(10, b"ten")].concat();
        assert_eq!((text(&message, 1).as_str(), text(&message, 3)), ("one", long));
        assert_eq!((text(&message, 10).as_str(), text(&message, 4).as_str()), ("ten", ""));
    }
}
