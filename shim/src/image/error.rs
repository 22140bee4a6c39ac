//! What can be wrong with an image or with unpacking it.
//!
//! Messages are one line, name the blob or the archive entry, say what was wanted, and hold their causes: to print the
//! error is enough.

use super::digest::Digest;
use std::io;
use std::path::PathBuf;

/// Everything that [`super::Image`] refuses, and why.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image path cannot be opened or read.
    #[error("cannot read image {}: {source}", path.display())]
    Read {
        /// The image, as it was named.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The path is no image in any known form.
    #[error("{} is not an image: {why}", path.display())]
    NotAnImage {
        /// The image, as it was named.
        path: PathBuf,
        /// What was looked for.
        why: String,
    },
    /// A JSON document of the image does not parse, is too large or contradicts itself.
    #[error("image document {name}: {why}")]
    Document {
        /// Its name in the layout or archive, or its digest.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Nothing in the image is for this machine.
    #[error("the image holds nothing for {wanted}; it holds {found}")]
    NoPlatform {
        /// This machine's platform, as `linux/amd64`.
        wanted: String,
        /// The platforms there are.
        found: String,
    },
    /// Several images in one file, and no way to tell which one is meant.
    #[error("the file holds {count} images for {platform}, one must be left: {names}", count = names.len(), names = names.join(", "))]
    Ambiguous {
        /// This machine's platform.
        platform: String,
        /// Their names or digests.
        names: Vec<String>,
    },
    /// The image refers to content that is not in it.
    #[error("blob {name} is missing from the image")]
    MissingBlob {
        /// Digest or path.
        name: String,
    },
    /// No layer can be unpacked over others here.
    #[error("cannot mount overlayfs in the image store: {0}")]
    NoOverlay(#[source] io::Error),
    /// A digest of an unknown algorithm or form.
    #[error("{digest:?} is not a sha256 or sha512 digest")]
    BadDigest {
        /// The text found where a digest should be.
        digest: String,
    },
    /// Content that does not hash to its digest.
    #[error("blob {name} is corrupt: wanted digest {wanted}, got {got}")]
    WrongDigest {
        /// Digest or path of the blob; for a layer's unpacked content it says so.
        name: String,
        /// What the image promised.
        wanted: Digest,
        /// What the content hashes to.
        got: Digest,
    },
    /// Content that is longer or shorter than its descriptor says.
    #[error("blob {name} is corrupt: wanted {wanted} bytes, got {got}")]
    WrongSize {
        /// Digest or path of the blob.
        name: String,
        /// Bytes promised.
        wanted: u64,
        /// Bytes there are.
        got: u64,
    },
    /// A layer in a form that nobody here unpacks.
    #[error("layer {name} has media type {media_type:?}, which is not a tar, tar+gzip or tar+zstd layer")]
    UnknownMediaType {
        /// Digest of the layer.
        name: String,
        /// Its media type.
        media_type: String,
    },
    /// A layer that cannot be decompressed, read or applied.
    #[error("layer {name}: {source}")]
    Layer {
        /// Digest or path of the layer.
        name: String,
        /// Why.
        source: super::layer::LayerError,
    },
    /// The store of unpacked images cannot be used.
    #[error("image store {}: {source}", path.display())]
    Store {
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}
