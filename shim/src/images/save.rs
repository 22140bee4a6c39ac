//! `tatami image save`: images as an archive that `tatami load`, Docker, Podman and skopeo read.
//!
//! It is an OCI archive that has docker's manifest.json as well.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use oci_spec::image::ImageManifest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::ImagesError;
use crate::content::{Content, ContentError, Named};
use crate::image::{Digest, ImageError, digest};

/// `tatami image save`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tatami image save -o alpine.tar alpine:3.20
  tatami image save alpine | ssh host tatami load")]
pub struct SaveArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write to this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn save(content: &Content, arguments: &SaveArguments) -> Result<u8, ImagesError> {
    let _in_use = content.in_use()?;
    let mut images = Vec::new();
    for word in &arguments.images {
        images.push(content.find(word)?);
    }
    match &arguments.output {
        Some(path) => {
            let failed = |source| ImagesError::File { path: path.clone(), source };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
            write(content, &images, &mut file, path)?;
            file.as_file().sync_all().map_err(failed)?;
            file.persist(path).map_err(|error| failed(error.error))?;
        }
        None if io::stdout().is_terminal() => return Err(ImagesError::Terminal),
        None => write(content, &images, &mut io::stdout().lock(), Path::new("standard output"))?,
    }
    Ok(0)
}

/// Writes the archive to `target`, which messages call `path`.
pub(super) fn write(
    content: &Content,
    images: &[Named],
    target: &mut dyn Write,
    path: &Path,
) -> Result<(), ImagesError> {
    let failed = |source| ImagesError::File { path: path.to_path_buf(), source };
    let mut blobs = BTreeSet::new();
    let (mut manifests, mut saved) = (Vec::new(), Vec::new());
    for named in images {
        let (descriptor, docker) = describe(content, named, &mut blobs)?;
        manifests.push(descriptor);
        saved.push(docker);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let mut tar = Builder::new(BufWriter::new(target));
    let documents = [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", index),
        ("manifest.json", saved.into()),
    ];
    for (name, document) in documents {
        let text = document.to_string();
        append(&mut tar, name, text.len() as u64, text.as_bytes()).map_err(failed)?;
    }
    for (name, file) in blobs {
        let blob = File::open(&file).and_then(|blob| Ok((blob.metadata()?.len(), blob)));
        let (size, blob) = blob.map_err(|source| ContentError::Store { path: file, source })?;
        append(&mut tar, &name, size, blob).map_err(failed)?;
    }
    tar.into_inner().and_then(|mut target| target.flush()).map_err(failed)
}

/// What the index says of an image, and what manifest.json does; adds its blobs, by their names in the archive.
fn describe(
    content: &Content,
    named: &Named,
    blobs: &mut BTreeSet<(String, PathBuf)>,
) -> Result<(Value, Value), ImagesError> {
    let mut add = |digest: &Digest| {
        let name = digest.blob_path();
        blobs.insert((name.clone(), content.path(digest)));
        name
    };
    let manifest_digest = digest(&named.manifest)?;
    let manifest: ImageManifest = serde_json::from_slice(&content.document(&manifest_digest)?)
        .map_err(|error| ImageError::Document { name: named.manifest.clone(), why: error.to_string() })?;
    add(&manifest_digest);
    let config = add(&digest(&named.id)?);
    let mut layers = Vec::new();
    for layer in manifest.layers() {
        layers.push(add(&digest(layer.digest().as_ref())?));
    }
    let descriptor = json!({
        "mediaType": named.media_type,
        "digest": named.manifest,
        "size": named.manifest_size,
        "annotations": {
            "io.containerd.image.name": named.name,
            "org.opencontainers.image.ref.name": named.name,
        },
    });
    let tags: Vec<&str> = named.parts().1.map(|_| named.familiar()).into_iter().collect();
    Ok((descriptor, json!({ "Config": config, "RepoTags": tags, "Layers": layers })))
}

fn append(tar: &mut Builder<impl Write>, name: &str, size: u64, content: impl io::Read) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content)
}
