//! Reading an OCI image layout: index, manifest, configuration (OCI image specification, image-layout.md,
//! image-index.md, manifest.md).
//!
//! Every document is verified against its descriptor before it is parsed. Layers are only listed here.

use super::platform::host_platform;
use super::source::Source;
use super::{Digest, Documents, ImageError, Layer, MAX_DOCUMENT, Parts, digest, parse, parse_config, platform_of};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

/// Indexes inside indexes: `docker save` needs one level.
const MAX_NESTED: usize = 4;
/// Annotations that name an image, the more telling first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYERS: [&str; 4] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// An image manifest that may be the one.
struct Candidate {
    name: String,
    is_named: bool,
    digest: Digest,
    manifest: Manifest,
}

/// A manifest, and as it was written.
struct Manifest {
    parsed: ImageManifest,
    media_type: String,
    text: Vec<u8>,
}

impl Manifest {
    fn read(source: &Source, descriptor: &Descriptor) -> Result<Manifest, ImageError> {
        let text = verified(source, descriptor)?;
        let parsed = parse(descriptor.digest().as_ref(), &text)?;
        Ok(Manifest { parsed, media_type: descriptor.media_type().to_string(), text })
    }
}

/// What was found on the way through the indexes.
#[derive(Default)]
struct Found {
    candidates: Vec<Candidate>,
    /// Platforms of the images that are not for this machine.
    others: Vec<String>,
}

/// Reads the one image of the layout that is for this machine.
pub(super) fn read(source: &Source) -> Result<Parts, ImageError> {
    let index: ImageIndex = parse("index.json", &source.small_file("index.json", MAX_DOCUMENT)?)?;
    let mut found = Found::default();
    collect(source, &index, None, 0, &mut found)?;
    let Found { mut candidates, mut others } = found;
    let Some(candidate) = candidates.pop() else {
        others.sort();
        others.dedup();
        let found = if others.is_empty() { "no image at all".to_owned() } else { others.join(", ") };
        return Err(ImageError::NoPlatform { wanted: host_platform(), found });
    };
    if !candidates.is_empty() {
        candidates.push(candidate);
        let names = candidates.into_iter().map(|candidate| candidate.name).collect();
        return Err(ImageError::Ambiguous { platform: host_platform(), names });
    }
    let names = if candidate.is_named { vec![candidate.name] } else { Vec::new() };
    image(source, candidate.manifest, names)
}

/// Reads the image that has this manifest.
pub(super) fn read_manifest(source: &Source, manifest: &Digest, size: u64) -> Result<Parts, ImageError> {
    let text = manifest.to_string();
    let digest = text.parse::<oci_spec::image::Digest>().map_err(|_| ImageError::BadDigest { digest: text.clone() })?;
    let mut manifest = Manifest::read(source, &Descriptor::new(MediaType::ImageManifest, size, digest))?;
    // Docker's are of another type, and say so.
    if let Some(media_type) = manifest.parsed.media_type() {
        manifest.media_type = media_type.to_string();
    }
    image(source, manifest, Vec::new())
}

fn collect(
    source: &Source,
    index: &ImageIndex,
    outer_name: Option<&str>,
    depth: usize,
    found: &mut Found,
) -> Result<(), ImageError> {
    for descriptor in index.manifests() {
        if let Some(platform) = descriptor.platform() {
            let platform = format!("{}/{}", platform.os(), platform.architecture());
            if platform != host_platform() {
                // Build attestations are listed as images for an unknown platform.
                if platform != "unknown/unknown" {
                    found.others.push(platform);
                }
                continue;
            }
        }
        let name = name_of(descriptor).or(outer_name);
        match descriptor.media_type() {
            MediaType::ImageIndex => nested(source, descriptor, name, depth, found)?,
            MediaType::Other(other) if other == DOCKER_INDEX => nested(source, descriptor, name, depth, found)?,
            MediaType::ImageManifest => candidate(source, descriptor, name, found)?,
            MediaType::Other(other) if other == DOCKER_MANIFEST => candidate(source, descriptor, name, found)?,
            // Signatures and the like lie beside images.
            _ => {}
        }
    }
    Ok(())
}

fn nested(
    source: &Source,
    descriptor: &Descriptor,
    name: Option<&str>,
    depth: usize,
    found: &mut Found,
) -> Result<(), ImageError> {
    let digest_text = descriptor.digest().to_string();
    if depth == MAX_NESTED {
        let why = format!("more than {MAX_NESTED} indexes inside one another");
        return Err(ImageError::Document { name: digest_text, why });
    }
    let index = parse(&digest_text, &verified(source, descriptor)?)?;
    collect(source, &index, name, depth + 1, found)
}

fn candidate(
    source: &Source,
    descriptor: &Descriptor,
    name: Option<&str>,
    found: &mut Found,
) -> Result<(), ImageError> {
    let digest_text = descriptor.digest().to_string();
    let digest = digest(&digest_text)?;
    if found.candidates.iter().any(|other| other.digest == digest) {
        return Ok(());
    }
    let manifest = Manifest::read(source, descriptor)?;
    let config = manifest.parsed.config();
    if !is_image(config.media_type()) {
        // An artifact that is stored in the form of an image.
        return Ok(());
    }
    if descriptor.platform().is_none() {
        let config_name = config.digest().to_string();
        let (config, _) = parse_config(&config_name, &verified(source, config)?)?;
        if platform_of(&config) != host_platform() {
            found.others.push(platform_of(&config));
            return Ok(());
        }
    }
    let is_named = name.is_some();
    let name = name.map_or_else(|| digest_text.clone(), str::to_owned);
    found.candidates.push(Candidate { name, is_named, digest, manifest });
    Ok(())
}

/// Whether what has a configuration of this type is a container's image.
pub(crate) fn is_image(config: &MediaType) -> bool {
    matches!(config, MediaType::ImageConfig) || matches!(config, MediaType::Other(other) if other == DOCKER_CONFIG)
}

fn name_of(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    NAMES.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}

fn image(source: &Source, written: Manifest, names: Vec<String>) -> Result<Parts, ImageError> {
    let manifest = &written.parsed;
    let name = manifest.config().digest().to_string();
    let config_text = verified(source, manifest.config())?;
    let (config, diff_ids) = parse_config(&name, &config_text)?;
    if platform_of(&config) != host_platform() {
        return Err(ImageError::NoPlatform { wanted: host_platform(), found: platform_of(&config) });
    }
    if diff_ids.len() != manifest.layers().len() {
        let why = format!("it lists {} layers, the manifest {}", diff_ids.len(), manifest.layers().len());
        return Err(ImageError::Document { name, why });
    }
    let layers = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| {
        let name = layer.digest().to_string();
        let digest = digest(&name)?;
        if !is_layer(layer.media_type()) {
            return Err(ImageError::UnknownMediaType { name, media_type: layer.media_type().to_string() });
        }
        Ok(Layer { file: digest.blob_path(), blob: Some((digest, layer.size())), diff_id })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    let documents = Documents { manifest: Some((written.media_type, written.text)), config: config_text, names };
    Ok(Parts { config, digest: digest(&name)?, layers, documents })
}

/// Whether the media type is a layer's. Which compression it has is then told by its first bytes: they cannot lie.
fn is_layer(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageLayer
        | MediaType::ImageLayerGzip
        | MediaType::ImageLayerZstd
        | MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => true,
        MediaType::Other(other) => DOCKER_LAYERS.contains(&other.as_str()),
        _ => false,
    }
}

/// Reads a document and checks it against its descriptor.
fn verified(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let name = descriptor.digest().to_string();
    let wanted = digest(&name)?;
    let missing = |error| match error {
        ImageError::MissingBlob { .. } => ImageError::MissingBlob { name: name.clone() },
        error => error,
    };
    let bytes = source.small_file(&wanted.blob_path(), MAX_DOCUMENT).map_err(missing)?;
    if bytes.len() as u64 != descriptor.size() {
        return Err(ImageError::WrongSize { name, wanted: descriptor.size(), got: bytes.len() as u64 });
    }
    let got = wanted.same_algorithm(&bytes);
    if got == wanted { Ok(bytes) } else { Err(ImageError::WrongDigest { name, wanted, got }) }
}
