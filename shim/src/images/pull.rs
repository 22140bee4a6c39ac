//! `tatami pull`: from a reference to a named image in the store.
//!
//! The manifest for this machine, its configuration and those of its layers that are not there yet are fetched, at most
//! [`AT_ONCE`] at a time; only when all is there and fits together does the name point to it.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use clap::Args;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use super::progress::{Progress, Show};
use super::{ImagesError, credentials};
use crate::content::{Begun, Content, ContentError, Ingest, Named, parse};
use crate::image::{Digest, Image, free_bytes, host_architecture, is_image};
use crate::registry::{Client, Limits, Manifest, Options, RegistryError};

/// Blobs that are fetched at the same time.
const AT_ONCE: usize = 3;
/// How often a broken connection is made anew, as long as each brings something.
const ATTEMPTS: usize = 5;

/// `tatami pull`.
#[derive(Args)]
#[command(after_help = "\
Without a registry it is docker.io, without a tag latest. Of an image for several kinds of machines the one for this is
fetched. What was begun and did not end is gone on from.

Credentials are those that `podman login`, `docker login` and `skopeo login` have stored: in $REGISTRY_AUTH_FILE, or else
$XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json and ~/.docker/config.json ($DOCKER_CONFIG), with
credential helpers. A registry on localhost is spoken to without TLS.

Examples:
  tatami pull debian:trixie-slim
  tatami pull registry.example:5000/team/app@sha256:…
  tatami run --rm -it debian:trixie-slim bash")]
pub struct PullArguments {
    /// The image: [REGISTRY/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// Speak to the registry without TLS
    #[arg(long)]
    plain_http: bool,
    /// Trust the authorities whose certificates (*.crt) are in this folder, too
    #[arg(long, value_name = "DIR", conflicts_with = "plain_http")]
    cert_dir: Option<PathBuf>,
    /// Take credentials from this file
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// Print the image's id only
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn main(content: &Content, arguments: &PullArguments) -> Result<u8, ImagesError> {
    let options = Options {
        plain_http: arguments.plain_http,
        certificates: arguments.cert_dir.clone(),
        files: credentials(arguments.auth_file.as_deref()),
        limits: Limits::default(),
    };
    let mut show = if arguments.quiet { Show::quiet() } else { Show::new(true) };
    let named = pull(content, &arguments.reference, &options, &mut show)?;
    let text = match arguments.quiet {
        true => format!("{}\n", named.id),
        false => format!("{} {}\n", named.familiar(), named.digest()),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(ImagesError::Output)?;
    Ok(0)
}

/// Fetches what `text` refers to, and gives it that name.
pub(super) fn pull(content: &Content, text: &str, options: &Options, show: &mut Show) -> Result<Named, ImagesError> {
    let reference = parse(text)?;
    let name = reference.whole();
    let refused = |error| ImagesError::Registry { name: name.clone(), source: Box::new(error) };
    let client = Client::new(&reference, options).map_err(refused)?;
    let in_use = content.in_use()?;
    let wanted = reference.digest().or(reference.tag()).unwrap_or("latest");
    let pull = Pull { content, client: &client, name: &name };
    let top = client.manifest(wanted).map_err(refused)?;
    let source = top.digest.to_string();
    let manifest = pull.for_this_machine(top)?;
    let parsed: ImageManifest =
        serde_json::from_slice(&manifest.bytes).map_err(|error| pull.unusable(format!("its manifest: {error}")))?;
    let blobs = pull.blobs(&parsed)?;
    pull.fetch(&blobs, show)?;
    let failed = |error| pull.failed(error);
    content.add(&manifest.digest, &manifest.bytes).map_err(failed)?;
    let size = manifest.bytes.len() as u64;
    // It is for this machine, and manifest and configuration agree.
    let image =
        Image::stored(content.folder(), &manifest.digest, size).map_err(|error| pull.unusable(error.to_string()))?;
    let named = Named {
        name: name.clone(),
        manifest: manifest.digest.to_string(),
        media_type: manifest.media_type,
        manifest_size: size,
        source: Some(source),
        id: image.digest().to_string(),
        size: size + blobs.iter().map(|(_, size)| size).sum::<u64>(),
        stored: SystemTime::now(),
    };
    content.name(&named)?;
    drop(in_use);
    // What had the name before, and what others have begun and left.
    content.sweep()?;
    Ok(named)
}

struct Pull<'a> {
    content: &'a Content,
    client: &'a Client,
    name: &'a str,
}

/// What the threads of a pull have in common.
struct Work<'a> {
    blobs: &'a [(Digest, u64)],
    next: AtomicUsize,
    done: AtomicU64,
    waiting: AtomicUsize,
    stop: AtomicBool,
    error: Mutex<Option<ImagesError>>,
}

/// Why a blob is not there.
enum BlobError {
    Registry(RegistryError),
    Content(ContentError),
    /// Another one has failed.
    Stopped,
}

impl From<RegistryError> for BlobError {
    fn from(error: RegistryError) -> BlobError {
        BlobError::Registry(error)
    }
}

impl From<ContentError> for BlobError {
    fn from(error: ContentError) -> BlobError {
        BlobError::Content(error)
    }
}

impl Pull<'_> {
    fn unusable(&self, why: String) -> ImagesError {
        ImagesError::Unusable { name: self.name.to_owned(), host: self.client.host().to_owned(), why }
    }

    fn refused(&self, error: RegistryError) -> ImagesError {
        ImagesError::Registry { name: self.name.to_owned(), source: Box::new(error) }
    }

    fn failed(&self, error: ContentError) -> ImagesError {
        let (name, host) = (self.name.to_owned(), self.client.host().to_owned());
        ImagesError::Pulled { name, host, source: Box::new(error) }
    }

    /// The manifest itself, or the one that an index has for this machine.
    fn for_this_machine(&self, top: Manifest) -> Result<Manifest, ImagesError> {
        match top.media_type.as_str() {
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                return Ok(top);
            }
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            }
            other => {
                return Err(self.unusable(format!("{other:?} is neither an image's manifest nor an index of them")));
            }
        }
        let index: ImageIndex =
            serde_json::from_slice(&top.bytes).map_err(|error| self.unusable(format!("its index: {error}")))?;
        let platform_of = |one: &Descriptor| {
            one.platform().as_ref().map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
        };
        let wanted = format!("linux/{}", host_architecture());
        let fitting = index.manifests().iter().filter(|one| platform_of(one).as_deref() == Some(wanted.as_str()));
        // Of several the one that asks least of a processor: "v2" is less than "v3", and nothing less than either.
        let variant = |one: &&Descriptor| one.platform().as_ref().and_then(|platform| platform.variant().clone());
        let Some(found) = fitting.min_by_key(variant) else {
            let mut others: Vec<String> = index.manifests().iter().filter_map(platform_of).collect();
            others.retain(|platform| platform != "unknown/unknown");
            others.dedup();
            let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
            return Err(self.unusable(format!("it holds nothing for {wanted}; it holds {others}")));
        };
        let digest: &str = found.digest().as_ref();
        // One of another kind could not be checked.
        let digest = Digest::parse(digest)
            .ok_or_else(|| self.unusable(format!("{digest:?} in its index is not a sha256 or sha512 digest")))?;
        let manifest = self.client.manifest(&digest.to_string()).map_err(|error| self.refused(error))?;
        match manifest.bytes.len() as u64 {
            got if got == found.size() => Ok(manifest),
            got => Err(self.unusable(format!(
                "manifest {} has {got} bytes, its index says {}",
                found.digest(),
                found.size()
            ))),
        }
    }

    /// What the image consists of, each once.
    fn blobs(&self, manifest: &ImageManifest) -> Result<Vec<(Digest, u64)>, ImagesError> {
        let media_type = manifest.config().media_type();
        if !is_image(media_type) {
            return Err(self.unusable(format!("it is not a container's image, but {media_type}")));
        }
        let mut blobs = Vec::new();
        for one in std::iter::once(manifest.config()).chain(manifest.layers()) {
            let text = one.digest().to_string();
            let digest = Digest::parse(&text)
                .ok_or_else(|| self.unusable(format!("{text:?} is not a sha256 or sha512 digest")))?;
            if blobs.iter().all(|(other, _)| *other != digest) {
                blobs.push((digest, one.size()));
            }
        }
        Ok(blobs)
    }

    /// Fetches the blobs that are not there.
    fn fetch(&self, blobs: &[(Digest, u64)], show: &mut Show) -> Result<(), ImagesError> {
        self.check_room(blobs)?;
        let total = blobs.iter().map(|(_, size)| size).sum();
        let work = Work {
            blobs,
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            error: Mutex::default(),
        };
        let progress = || match work.waiting.load(Ordering::Relaxed) {
            0 => Progress::Moving { done: work.done.load(Ordering::Relaxed), total },
            _ => Progress::Waiting,
        };
        show.during(&format!("pulling {}", self.name), progress, || {
            std::thread::scope(|scope| {
                for _ in 0..AT_ONCE.min(blobs.len()) {
                    scope.spawn(|| self.fetch_one_after_the_other(&work));
                }
            });
        });
        match work.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What cannot fit is not begun.
    fn check_room(&self, blobs: &[(Digest, u64)]) -> Result<(), ImagesError> {
        let missing = blobs.iter().filter(|(digest, _)| !self.content.has(digest)).map(|(_, size)| size);
        let needed = missing.fold(0_u64, |sum, size| sum.saturating_add(*size));
        let folder = self.content.folder().to_owned();
        let store = |source| ImagesError::from(ContentError::Store { path: folder.clone(), source });
        let free = std::fs::File::open(&folder).and_then(free_bytes).map_err(store)?;
        if needed <= free {
            return Ok(());
        }
        Err(self.failed(ContentError::Full { what: "it".to_owned(), needed, free, folder }))
    }

    fn fetch_one_after_the_other(&self, work: &Work<'_>) {
        while let Some((digest, size)) = work.blobs.get(work.next.fetch_add(1, Ordering::Relaxed)) {
            let source = match self.fetch_blob(digest, *size, work) {
                Ok(()) => continue,
                Err(BlobError::Stopped) => return,
                Err(BlobError::Registry(error)) => self.refused(error),
                Err(BlobError::Content(error)) => self.failed(error),
            };
            work.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(source);
            work.stop.store(true, Ordering::Relaxed);
            return;
        }
    }

    fn fetch_blob(&self, digest: &Digest, size: u64, work: &Work<'_>) -> Result<(), BlobError> {
        loop {
            let mut has_waited = false;
            let begun = self.content.begin(digest, size, &mut || {
                has_waited = true;
                work.waiting.fetch_add(1, Ordering::Relaxed);
            });
            if has_waited {
                work.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            let mut ingest = match begun? {
                Begun::Ingest(ingest) => ingest,
                Begun::There => {
                    work.done.fetch_add(size, Ordering::Relaxed);
                    return Ok(());
                }
            };
            let went_on = ingest.written() > 0;
            work.done.fetch_add(ingest.written(), Ordering::Relaxed);
            if let Err(error) = self.transfer(&mut ingest, digest, size, work) {
                ingest.abandon();
                return Err(error);
            }
            match ingest.finish() {
                // Nobody knows what the machine was at when it stopped in the middle: once more, from the first byte.
                Err(ContentError::WrongDigest { .. }) if went_on => {
                    work.done.fetch_sub(size, Ordering::Relaxed);
                }
                finished => return Ok(finished?),
            }
        }
    }

    /// Writes all that is missing, over several connections if one breaks.
    fn transfer(&self, ingest: &mut Ingest, digest: &Digest, size: u64, work: &Work<'_>) -> Result<(), BlobError> {
        let mut attempts = 0;
        while ingest.written() < size {
            let before = ingest.written();
            match self.transfer_some(ingest, digest, work) {
                Ok(()) => return Ok(()),
                Err(BlobError::Registry(error)) if error.is_interruption() => {
                    attempts += 1;
                    if ingest.written() <= before || attempts == ATTEMPTS {
                        return Err(error.into());
                    }
                    log::info!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transfer_some(&self, ingest: &mut Ingest, digest: &Digest, work: &Work<'_>) -> Result<(), BlobError> {
        let (mut reader, from) = self.client.blob(digest, ingest.written())?;
        if from < ingest.written() {
            work.done.fetch_sub(ingest.written(), Ordering::Relaxed);
            ingest.restart()?;
        }
        let mut buffer = vec![0; 128 * 1024];
        loop {
            if work.stop.load(Ordering::Relaxed) {
                return Err(BlobError::Stopped);
            }
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            ingest.write(&buffer[..count])?;
            work.done.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}
