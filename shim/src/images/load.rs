//! `tatami load`: from a file that others have written to a named image in the store.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::ImagesError;
use super::progress::{Progress, Show};
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
    /// Print the images' ids only
    #[arg(short, long)]
    quiet: bool,
}

/// What is told of while an image is taken in.
#[derive(Default)]
struct Work {
    done: AtomicU64,
    /// As soon as it is known.
    total: AtomicU64,
    waiting: AtomicBool,
}

impl Work {
    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn progress(&self) -> Progress {
        let done = self.done.load(Ordering::Relaxed);
        match self.total.load(Ordering::Relaxed) {
            _ if self.waiting.load(Ordering::Relaxed) => Progress::Waiting,
            0 => Progress::Counting { done },
            total => Progress::Moving { done, total },
        }
    }
}

pub(super) fn load(content: &Content, arguments: &LoadArguments) -> Result<u8, ImagesError> {
    let files: Vec<&Path> = arguments.files.iter().chain(&arguments.input).map(PathBuf::as_path).collect();
    let mut show = if arguments.quiet { Show::quiet() } else { Show::new(true) };
    let loaded = match files.as_slice() {
        [] => load_stream(content, arguments.name.as_deref(), &mut show)?,
        files => {
            let mut loaded = Vec::new();
            for file in files {
                loaded.extend(load_file(content, file, arguments.name.as_deref(), &mut show)?);
            }
            loaded
        }
    };
    content.sweep()?;
    let line = |named: &Named| match arguments.quiet {
        true => format!("{}\n", named.id),
        false => format!("{} {}\n", named.familiar(), named.id),
    };
    let text: String = loaded.iter().map(line).collect();
    io::stdout().write_all(text.as_bytes()).map_err(ImagesError::Output)?;
    Ok(0)
}

/// What comes on standard input is read in any order, so it has to be a file first.
fn load_stream(content: &Content, name: Option<&str>, show: &mut Show) -> Result<Vec<Named>, ImagesError> {
    let shown = Path::new("standard input");
    let failed = |source| ImagesError::File { path: shown.to_path_buf(), source };
    let folder = content.folder().join("ingest");
    let _in_use = content.in_use()?;
    let mut spool = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
    let work = Work::default();
    let mut read = || copy(&mut io::stdin().lock(), shown, &work, |bytes| spool.write_all(bytes).map_err(failed));
    show.during("reading standard input", || work.progress(), &mut read)?;
    spool.flush().map_err(failed)?;
    load_shown(content, spool.path(), shown, name, show)
}

/// Takes the image of a file in, by its own names or `name`.
pub(super) fn load_file(
    content: &Content,
    path: &Path,
    name: Option<&str>,
    show: &mut Show,
) -> Result<Vec<Named>, ImagesError> {
    load_shown(content, path, path, name, show)
}

/// The same of one that people know as `shown`.
fn load_shown(
    content: &Content,
    path: &Path,
    shown: &Path,
    name: Option<&str>,
    show: &mut Show,
) -> Result<Vec<Named>, ImagesError> {
    let work = Work::default();
    let load = || {
        let image = Image::open(path).map_err(|error| match error {
            ImageError::Read { source, .. } => ImageError::Read { path: shown.to_path_buf(), source },
            ImageError::NotAnImage { why, .. } => ImageError::NotAnImage { path: shown.to_path_buf(), why },
            error => error,
        })?;
        take_in(content, &image, shown, name, &work)
    };
    show.during(&format!("loading {}", shown.display()), || work.progress(), load)
}

fn take_in(
    content: &Content,
    image: &Image,
    path: &Path,
    name: Option<&str>,
    work: &Work,
) -> Result<Vec<Named>, ImagesError> {
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
    // One whose digest the file does not say is read once more.
    let mut total = 0;
    for layer in image.layer_files() {
        let layer = layer?;
        total += if layer.stated.is_some() { layer.size } else { 2 * layer.size };
    }
    work.total.store(total, Ordering::Relaxed);
    let mut layers = Vec::new();
    let mut size = documents.config.len() as u64;
    for layer in image.layer_files() {
        let layer = layer?;
        let digest = match layer.stated {
            Some((digest, _)) => digest,
            None => digest_of(layer.content, path, work)?,
        };
        size += layer.size;
        layers.push((digest, layer.size));
    }
    for (layer, (digest, size)) in image.layer_files().zip(&layers) {
        store(content, (digest, *size), layer?.content, path, work)?;
    }
    let (media_type, manifest) = match &documents.manifest {
        Some((media_type, manifest)) => (media_type.clone(), manifest.clone()),
        None => manifest_of(content, image, &layers)?,
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

fn digest_of(mut layer: impl Read, path: &Path, work: &Work) -> Result<Digest, ImagesError> {
    let mut hasher = crate::image::Hasher::like(&Digest::of(b""));
    copy(&mut layer, path, work, |bytes| {
        hasher.feed(bytes);
        Ok(())
    })?;
    Ok(hasher.finish())
}

fn store(
    content: &Content,
    (digest, size): (&Digest, u64),
    mut layer: impl Read,
    path: &Path,
    work: &Work,
) -> Result<(), ImagesError> {
    let begun = content.begin(digest, size, &mut || work.waiting.store(true, Ordering::Relaxed));
    work.waiting.store(false, Ordering::Relaxed);
    let Begun::Ingest(mut ingest) = begun? else {
        work.add(size);
        return Ok(());
    };
    // What somebody else has left is no faster to get from here.
    ingest.restart()?;
    copy(&mut layer, path, work, |bytes| Ok(ingest.write(bytes)?))?;
    Ok(ingest.finish()?)
}

fn copy(
    from: &mut impl Read,
    path: &Path,
    work: &Work,
    mut write: impl FnMut(&[u8]) -> Result<(), ImagesError>,
) -> Result<(), ImagesError> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                write(&buffer[..count])?;
                work.add(count as u64);
            }
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
