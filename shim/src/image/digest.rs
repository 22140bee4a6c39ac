//! Content digests: parsing them, and hashing a stream as it passes.
//!
//! OCI image specification, descriptor.md, "Digests". Knows nothing of what the bytes mean.

use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::io::{self, Read};

/// A digest of an algorithm that Tatami verifies: `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl Digest {
    /// Reads `algorithm:hex`. `None` for an unknown algorithm, a wrong length or anything but lower-case hex digits, so
    /// that a digest can always be used as a file name.
    pub fn parse(text: &str) -> Option<Digest> {
        let (name, hex) = text.split_once(':')?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|one| one.name() == name)?;
        let well_formed =
            hex.len() == algorithm.hex_len() && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        well_formed.then(|| Digest { algorithm, hex: hex.to_owned() })
    }

    /// The sha256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Hasher::new(Algorithm::Sha256).update(bytes).finish()
    }

    /// The digest of `bytes` by this digest's algorithm.
    pub(crate) fn same_algorithm(&self, bytes: &[u8]) -> Digest {
        Hasher::new(self.algorithm).update(bytes).finish()
    }

    /// The hex digits alone: a safe, unique file name.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Where an OCI image layout keeps the blob.
    pub(crate) fn blob_path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Bytes on their way to a digest.
#[derive(Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// Hashes with the algorithm of `digest`.
    pub(crate) fn like(digest: &Digest) -> Hasher {
        Hasher::new(digest.algorithm)
    }

    fn update(mut self, bytes: &[u8]) -> Hasher {
        self.feed(bytes);
        self
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Hasher::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Hasher::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        Digest { algorithm, hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

/// Passes a stream through and hashes what passes.
pub(super) struct DigestReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> DigestReader<R> {
    /// Hashes with the algorithm of `like`.
    pub(super) fn new(inner: R, like: &Digest) -> DigestReader<R> {
        DigestReader { inner, hasher: Hasher::new(like.algorithm) }
    }

    /// Reads the rest of the stream and returns the digest of all of it.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        let mut buffer = vec![0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok(self.hasher.finish())
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Ok(count) => {
                    self.hasher.feed(&buffer[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn knows_the_digest_of_nothing() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Some(Digest::of(b"")));
    }

    #[test]
    fn refuses_what_could_not_be_a_file_name() {
        let traversal = format!("sha256:../{}", "a".repeat(61));
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in ["", "sha256", "sha256:", "md5:abcd", "sha256:abc", &traversal, &upper] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }

    #[test]
    fn reader_hashes_all_of_the_stream_even_what_nobody_read() {
        let bytes = vec![7; 200_000];
        let mut reader = DigestReader::new(&bytes[..], &Digest::of(b""));
        reader.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(reader.finish().unwrap(), Digest::of(&bytes));
    }
}
