//! Container images in files: an OCI image layout folder, an OCI archive or a docker archive.
//!
//! [`Image::open`] reads and verifies the small documents; [`Image::unpack_into`] verifies and unpacks the layers, once
//! for every image, into a store; what images have in common is there once. The result is shared by every container of the image and must not be written to. Knows
//! nothing of registries, of containers, or of how the unpacked tree is mounted.

mod budget;
mod digest;
mod docker;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod layer;
#[cfg(test)]
mod layer_tests;
mod layers;
mod layout;
mod platform;
mod progress;
mod source;
mod store;
pub(crate) mod tar_stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

pub use budget::BudgetError;
pub(crate) use budget::free_bytes;
pub use digest::Digest;
pub(crate) use digest::Hasher;
pub use error::ImageError;
pub use layer::LayerError;
pub(crate) use layout::is_image;
pub(crate) use platform::host_architecture;
pub use progress::Progress;
pub(crate) use source::layer_suffix;
pub use store::{Unpacked, forget, hold, layers_of};
pub use tar_stream::TarError;
pub use tree::{Tree, TreeError};

use oci_spec::image::ImageConfiguration;
use source::Source;
use std::io::Read;
use std::path::Path;

/// Bytes that an index, manifest or configuration may have.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// An image for this machine whose documents are read and verified, and whose layers are not yet.
pub struct Image {
    source: Source,
    config: ImageConfiguration,
    digest: Digest,
    layers: Vec<Layer>,
    documents: Documents,
}

/// An image's documents as they were written, whose digests others may know.
#[derive(Debug, Clone)]
pub struct Documents {
    /// Media type and text of the manifest; what `docker save` wrote has none.
    pub manifest: Option<(String, Vec<u8>)>,
    /// The configuration.
    pub config: Vec<u8>,
    /// What the image is called where it lies.
    pub names: Vec<String>,
}

/// A layer's file, with its digest and size where the image states them.
pub struct LayerFile {
    /// As the image has it.
    pub stated: Option<(Digest, u64)>,
    /// How many bytes there are.
    pub size: u64,
    /// Its bytes, compressed or not.
    pub content: Box<dyn Read>,
}

/// One layer as the image lists it, the lowest first.
struct Layer {
    /// Its file in the source.
    file: String,
    /// Digest and size of that file, where the image states them.
    blob: Option<(Digest, u64)>,
    /// Digest of the unpacked tar.
    diff_id: Digest,
}

impl Image {
    /// Opens the image at `path`: a folder with an OCI image layout, or a tar archive (also compressed with gzip or zstd)
    /// that is an OCI archive or what `docker save` writes; of an archive that is both, the OCI side is read.
    ///
    /// # Errors
    /// Anything that is no such image, has none for this machine or several, or whose documents do not match their
    /// digests.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        let source = Source::open(path)?;
        let parts = if source.has("oci-layout") && source.has("index.json") {
            layout::read(&source)?
        } else if source.has("manifest.json") {
            docker::read(&source)?
        } else {
            let why = if source.has("repositories") {
                "it was saved by a Docker older than 1.10; save it again with a newer one"
            } else {
                "it has neither an OCI layout (oci-layout, index.json) nor docker's manifest.json"
            };
            return Err(ImageError::NotAnImage { path: path.to_path_buf(), why: why.to_owned() });
        };
        Ok(Image::of(source, parts))
    }

    /// The image with this manifest in a folder that has an image layout's blobs, and needs no index.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn stored(folder: &Path, manifest: &Digest, size: u64) -> Result<Image, ImageError> {
        let source = Source::open(folder)?;
        let parts = layout::read_manifest(&source, manifest, size)?;
        Ok(Image::of(source, parts))
    }

    fn of(source: Source, parts: Parts) -> Image {
        let Parts { config, digest, layers, documents } = parts;
        Image { source, config, digest, layers, documents }
    }

    /// The documents as they were written.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The layers' files, the lowest first, each when it is asked for.
    pub fn layer_files(&self) -> impl Iterator<Item = Result<LayerFile, ImageError>> + '_ {
        self.layers.iter().map(|layer| {
            let blob = self.layer_blob(layer)?;
            Ok(LayerFile { stated: layer.blob.clone(), size: blob.len(), content: Box::new(blob) })
        })
    }

    /// The image's configuration: command, environment, user and so on.
    pub fn config(&self) -> &ImageConfiguration {
        &self.config
    }

    /// The digest of the configuration, which is the image's id: it covers the content of every layer.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// What a reader of one of the formats finds.
struct Parts {
    config: ImageConfiguration,
    digest: Digest,
    layers: Vec<Layer>,
    documents: Documents,
}

/// Parses a JSON document. Null members are dropped first: old writers put them where the specification wants nothing.
fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    let document = |error: serde_json::Error| ImageError::Document { name: name.to_owned(), why: error.to_string() };
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(document)?;
    drop_nulls(&mut value);
    serde_json::from_value(value).map_err(document)
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Parses a configuration and its list of layers.
fn parse_config(name: &str, bytes: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>), ImageError> {
    let mut value: serde_json::Value = parse(name, bytes)?;
    // Docker writes an image without layers without the list.
    if let Some(rootfs) = value.get_mut("rootfs").and_then(serde_json::Value::as_object_mut) {
        rootfs.entry("diff_ids").or_insert_with(|| serde_json::json!([]));
    }
    let config: ImageConfiguration = serde_json::from_value(value)
        .map_err(|error| ImageError::Document { name: name.to_owned(), why: error.to_string() })?;
    let diff_ids = config.rootfs().diff_ids().iter().map(|text| digest(text)).collect::<Result<_, _>>()?;
    Ok((config, diff_ids))
}

/// Parses a digest.
///
/// # Errors
/// [`ImageError::BadDigest`].
pub(crate) fn digest(text: &str) -> Result<Digest, ImageError> {
    Digest::parse(text).ok_or_else(|| ImageError::BadDigest { digest: text.to_owned() })
}

/// The platform that a configuration says it is for.
fn platform_of(config: &ImageConfiguration) -> String {
    format!("{}/{}", config.os(), config.architecture())
}
