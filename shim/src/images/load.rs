//! `tatami load`: from a file that others have written to a named image in the store.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::ImagesError;
use crate::content::{Begun, Content, ContentError, Named, parse};
use crate::image::{Digest, Image, ImageError, LayerError};

/// `tatami load`.
#[derive(Args)]
#[command(after_help = "\
Takes what `docker save`, `podman save`, `skopeo copy … oci-archive:…` and `tatami image save` write.

Examples:
  tatami load image.tar
  docker save alpine | tatami load
  tatami load --name localhost/mine:1 ./layout")]
pub struct LoadArguments {
    /// Archives or layout folders, each with one image for this machine [default: an archive on standard input]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The same, as docker has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "files")]
    input: Option<PathBuf>,
    /// Give the image this name, and not the one in the file
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
}

pub(super) fn load(content: &Content, arguments: &LoadArguments) -> Result<u8, ImagesError> {
    let files: Vec<&Path> = arguments.files.iter().chain(&arguments.input).map(PathBuf::as_path).collect();
    let loaded = match files.as_slice() {
        [] => load_stream(content, arguments.name.as_deref())?,
        files => {
            let mut loaded = Vec::new();
            for file in files {
                loaded.extend(load_file(content, file, arguments.name.as_deref())?);
            }
            loaded
        }
    };
    content.sweep()?;
    let text: String = loaded.iter().map(|named| format!("{} {}\n", named.familiar(), named.id)).collect();
    io::stdout().write_all(text.as_bytes()).map_err(ImagesError::Output)?;
    Ok(0)
}

/// What comes on standard input is read in any order, so it has to be a file first.
fn load_stream(content: &Content, name: Option<&str>) -> Result<Vec<Named>, ImagesError> {
    let failed = |source| ImagesError::File { path: "standard input".into(), source };
    let folder = content.folder().join("ingest");
    let _in_use = content.in_use()?;
    let mut spool = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut spool).and_then(|_| spool.flush()).map_err(failed)?;
    load_file(content, spool.path(), name)
}

/// Takes the image of a file in, by its own names or `name`.
pub(super) fn load_file(content: &Content, path: &Path, name: Option<&str>) -> Result<Vec<Named>, ImagesError> {
    let image = Image::open(path)?;
    let own = &image.documents().names;
    let names: Vec<&str> = match name {
        Some(name) => vec![name],
        None => own.iter().map(String::as_str).collect(),
    };
    if names.is_empty() {
        return Err(ImagesError::Nameless(path.to_path_buf()));
    }
    let names = names.into_iter().map(|name| Ok(parse(name)?.whole())).collect::<Result<Vec<_>, ContentError>>()?;
    let _in_use = content.in_use()?;
    let documents = image.documents();
    content.add(image.digest(), &documents.config)?;
    let mut layers = Vec::new();
    let mut size = documents.config.len() as u64;
    for layer in image.layer_files() {
        let layer = layer?;
        let digest = match layer.stated {
            Some((digest, _)) => digest,
            None => digest_of(layer.content, path)?,
        };
        size += layer.size;
        layers.push((digest, layer.size));
    }
    for (layer, (digest, size)) in image.layer_files().zip(&layers) {
        store(content, digest, *size, layer?.content, path)?;
    }
    let (media_type, manifest) = match &documents.manifest {
        Some((media_type, manifest)) => (media_type.clone(), manifest.clone()),
        None => manifest_of(content, &image, &layers)?,
    };
    let digest = Digest::of(&manifest);
    content.add(&digest, &manifest)?;
    let named = |name: &String| Named {
        name: name.clone(),
        manifest: digest.to_string(),
        media_type: media_type.clone(),
        manifest_size: manifest.len() as u64,
        source: None,
        id: image.digest().to_string(),
        size: size + manifest.len() as u64,
        stored: SystemTime::now(),
    };
    let named: Vec<Named> = names.iter().map(named).collect();
    named.iter().try_for_each(|named| content.name(named))?;
    Ok(named)
}

fn digest_of(mut layer: impl Read, path: &Path) -> Result<Digest, ImagesError> {
    let mut hasher = crate::image::Hasher::like(&Digest::of(b""));
    copy(&mut layer, path, |bytes| {
        hasher.feed(bytes);
        Ok(())
    })?;
    Ok(hasher.finish())
}

fn store(content: &Content, digest: &Digest, size: u64, mut layer: impl Read, path: &Path) -> Result<(), ImagesError> {
    let Begun::Ingest(mut ingest) = content.begin(digest, size, &mut || {})? else { return Ok(()) };
    // What somebody else has left is no faster to get from here.
    ingest.restart()?;
    copy(&mut layer, path, |bytes| ingest.write(bytes))?;
    Ok(ingest.finish()?)
}

fn copy(
    from: &mut impl Read,
    path: &Path,
    mut write: impl FnMut(&[u8]) -> Result<(), ContentError>,
) -> Result<(), ImagesError> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => write(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ImagesError::File { path: path.to_path_buf(), source }),
        }
    }
}

/// The manifest that what `docker save` wrote goes without.
fn manifest_of(content: &Content, image: &Image, layers: &[(Digest, u64)]) -> Result<(String, Vec<u8>), ImagesError> {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let mut listed = Vec::new();
    for (digest, size) in layers {
        // Which compression it has, its first bytes say.
        let mut start = [0; 4];
        let path = content.path(digest);
        let count = File::open(&path).and_then(|mut file| file.read(&mut start));
        let count = count.map_err(|error| layer_failed(digest, error))?;
        let compression = crate::image::layer_suffix(&start[..count]);
        listed.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{compression}"),
            "digest": digest.to_string(),
            "size": size,
        }));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": image.digest().to_string(),
            "size": image.documents().config.len(),
        },
        "layers": listed,
    });
    Ok((MANIFEST.to_owned(), serde_json::to_vec(&manifest).expect("texts and numbers are JSON")))
}

fn layer_failed(digest: &Digest, error: io::Error) -> ImageError {
    ImageError::Layer { name: digest.to_string(), source: LayerError::Compression(error) }
}
