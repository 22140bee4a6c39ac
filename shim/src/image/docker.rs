//! Reading what `docker save` writes: manifest.json, a configuration, and layers as tar files (moby's image
//! specification v1.2, "Combined Image JSON + Filesystem Changeset Format").
//!
//! The configuration's name is its digest, and its diff_ids verify the layers.

use super::platform::host_platform;
use super::source::Source;
use super::{Digest, Documents, ImageError, Layer, MAX_DOCUMENT, Parts, parse, parse_config, platform_of};
use serde::Deserialize;

/// One image in manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Vec<String>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Saved {
    fn name(&self) -> String {
        if self.repo_tags.is_empty() { self.config.clone() } else { self.repo_tags.join(" ") }
    }
}

/// Reads the one image of the archive that is for this machine.
pub(super) fn read(source: &Source) -> Result<Parts, ImageError> {
    let saved: Vec<Saved> = parse("manifest.json", &source.small_file("manifest.json", MAX_DOCUMENT)?)?;
    let mut images: Vec<(String, Parts)> = Vec::new();
    let mut others = Vec::new();
    for saved in &saved {
        let parts = image(source, saved)?;
        if platform_of(&parts.config) != host_platform() {
            others.push(platform_of(&parts.config));
        } else if images.iter().all(|(_, other)| other.digest != parts.digest) {
            images.push((saved.name(), parts));
        }
    }
    let Some((name, parts)) = images.pop() else {
        let found = if others.is_empty() { "no image at all".to_owned() } else { others.join(", ") };
        return Err(ImageError::NoPlatform { wanted: host_platform(), found });
    };
    if images.is_empty() {
        return Ok(parts);
    }
    let names = images.into_iter().map(|(name, _)| name).chain([name]).collect();
    Err(ImageError::Ambiguous { platform: host_platform(), names })
}

fn image(source: &Source, saved: &Saved) -> Result<Parts, ImageError> {
    let bytes = source.small_file(inside(&saved.config)?, MAX_DOCUMENT)?;
    let got = Digest::of(&bytes);
    if let Some(wanted) = digest_in(&saved.config)
        && wanted != got
    {
        return Err(ImageError::WrongDigest { name: saved.config.clone(), wanted, got });
    }
    let (config, diff_ids) = parse_config(&saved.config, &bytes)?;
    if diff_ids.len() != saved.layers.len() {
        let why = format!("it lists {} layers, manifest.json {}", diff_ids.len(), saved.layers.len());
        return Err(ImageError::Document { name: saved.config.clone(), why });
    }
    let layers = saved.layers.iter().zip(diff_ids);
    let layers = layers.map(|(file, diff_id)| Ok(Layer { file: inside(file)?.to_owned(), blob: None, diff_id }));
    let layers = layers.collect::<Result<_, ImageError>>()?;
    let documents = Documents { manifest: None, config: bytes, names: saved.repo_tags.clone() };
    Ok(Parts { config, digest: got, layers, documents })
}

/// Refuses a file name that would lead out of an unpacked archive.
fn inside(name: &str) -> Result<&str, ImageError> {
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        let why = format!("the file name {name:?} leads out of the image");
        return Err(ImageError::Document { name: "manifest.json".to_owned(), why });
    }
    Ok(name)
}

/// The digest that a configuration's name states: `<hex>.json`, or `blobs/sha256/<hex>` from Docker 25 on.
fn digest_in(name: &str) -> Option<Digest> {
    let hex = name.strip_suffix(".json").or_else(|| name.strip_prefix("blobs/sha256/"))?;
    Digest::parse(&format!("sha256:{hex}"))
}
