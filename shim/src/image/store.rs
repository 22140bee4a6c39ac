//! The store of unpacked images: each one is unpacked once, beside the store's other images, and then shared.
//!
//! `<store>/images/<digest>/rootfs`, where the digest is the image's id. A tree is built under another name and renamed
//! when it is complete and on disk, so what has the right name is whole. A lock file for each image makes callers of the
//! same image wait for one another; a kernel lock ends with its holder, so a killed caller blocks nobody.

use super::budget::{Budget, BudgetReader};
use super::digest::{Digest, DigestReader};
use super::layer::{self, LayerError};
use super::source::{Blob, Compression};
use super::tree::Tree;
use super::{Image, ImageError, Layer};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nothing is reported before this long.
const QUIET: Duration = Duration::from_secs(2);
/// At most one report in this long.
const INTERVAL: Duration = Duration::from_secs(5);

/// How far unpacking is. Reported only when it takes longer than two seconds; `Display` makes a line of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another process unpacks the same image.
    Waiting,
    /// Layers are being unpacked.
    Unpacking {
        /// The layer being unpacked, from 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Bytes of the image's layer files read so far.
        done: u64,
        /// Bytes of all its layer files.
        total: u64,
    },
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Progress::Waiting => write!(f, "waiting for another process that unpacks this image"),
            Progress::Unpacking { layer, layers, done, total } => {
                let mb = |bytes: &u64| *bytes as f64 / 1e6;
                write!(f, "unpacking layer {layer} of {layers}: {:.1} of {:.1} MB", mb(done), mb(total))
            }
        }
    }
}

/// An unpacked image. While it lives, or for as long as the process does that was told to [`Unpacked::keep`] it, nobody removes it.
#[derive(Debug)]
pub struct Unpacked {
    /// The image's root folder.
    pub rootfs: PathBuf,
    in_use: File,
}

impl Unpacked {
    /// Keeps it in its place until this process ends, whatever becomes of it; where it is.
    pub fn keep(self) -> PathBuf {
        // The descriptor is what holds the lock.
        std::mem::forget(self.in_use);
        self.rootfs
    }

    /// What was unpacked to the folder `finished`, if it was; its lock is the folder's own, and goes with it.
    fn find(finished: &Path) -> Result<Option<Unpacked>, ImageError> {
        let rootfs = finished.join("rootfs");
        let in_use = match File::open(finished) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(finished)(error)),
        };
        in_use.lock_shared().map_err(at(finished))?;
        // It may have been removed, and unpacked anew, before the lock was ours.
        let named = fs::metadata(finished).ok().map(|named| named.ino());
        let is_named = named == in_use.metadata().ok().map(|ours| ours.ino());
        Ok((is_named && rootfs.is_dir()).then_some(Unpacked { rootfs, in_use }))
    }
}

/// Keeps what was unpacked to `rootfs` in its place until this process ends; false where there is nothing.
///
/// # Errors
/// [`ImageError::Store`].
pub fn hold(rootfs: &Path) -> Result<bool, ImageError> {
    let Some(finished) = rootfs.parent() else { return Ok(false) };
    let found = Unpacked::find(finished)?;
    Ok(found.map(Unpacked::keep).is_some())
}

/// Removes what the image `digest` was unpacked to below `store`; false when somebody uses it.
///
/// # Errors
/// [`ImageError::Store`].
pub fn forget(store: &Path, digest: &Digest) -> Result<bool, ImageError> {
    let images = images_of(store)?;
    let path = lock_path(&images, digest);
    if !path.exists() {
        return Ok(true);
    }
    let _lock = lock(&path, &mut |_| {})?;
    let (finished, partial) = (images.join(digest.hex()), partial_path(&images, digest));
    remove(&partial)?;
    if let Ok(folder) = File::open(&finished) {
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(at(&finished)(error)),
        }
        // Without the right name at once: half of it must not be taken for the whole.
        fs::rename(&finished, &partial).map_err(at(&finished))?;
    }
    remove(&partial)?;
    Ok(true)
}

fn images_of(store: &Path) -> Result<PathBuf, ImageError> {
    let images = store.join("images");
    // Private: set-id binaries and device nodes of images are nothing for this machine's users.
    DirBuilder::new().recursive(true).mode(0o700).create(&images).map_err(at(&images))?;
    Ok(images)
}

fn lock_path(images: &Path, digest: &Digest) -> PathBuf {
    images.join(format!("{}.lock", digest.hex()))
}

fn partial_path(images: &Path, digest: &Digest) -> PathBuf {
    images.join(format!("{}.partial", digest.hex()))
}

impl Image {
    /// Unpacks the image below `store` unless that was done before, and returns its root folder, which nobody removes as long
    /// as the answer lives. The folder is shared:
    /// mount it read-only or as the lower layer of an overlay. Needs root, since files get the owners they have in the
    /// image.
    ///
    /// # Errors
    /// A layer that is missing, corrupt, malicious or larger than the free disk space; nothing of it stays.
    pub fn unpack_into(&self, store: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Unpacked, ImageError> {
        let images = images_of(store)?;
        let finished = images.join(self.digest.hex());
        loop {
            if let Some(unpacked) = Unpacked::find(&finished)? {
                return Ok(unpacked);
            }
            let _lock = lock(&lock_path(&images, &self.digest), progress)?;
            if !finished.exists() {
                self.unpack_as(&images, &finished, progress)?;
            }
        }
    }

    /// Unpacks to another name, and gives it the right one.
    fn unpack_as(&self, images: &Path, finished: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), ImageError> {
        let partial = partial_path(images, &self.digest);
        remove(&partial)?;
        let unpacked = self.unpack_to(&partial, progress).and_then(|()| {
            // The rename must not reach the disk before what it names.
            File::open(images).and_then(|fd| Ok(rustix::fs::syncfs(fd)?)).map_err(at(images))?;
            fs::rename(&partial, finished).map_err(at(finished))
        });
        if let Err(error) = unpacked {
            // The first error is the one to tell; the next caller removes what stays now.
            let _ = remove(&partial);
            return Err(error);
        }
        Ok(())
    }

    fn unpack_to(&self, partial: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), ImageError> {
        DirBuilder::new().mode(0o700).create(partial).map_err(at(partial))?;
        let rootfs = partial.join("rootfs");
        DirBuilder::new().mode(0o755).create(&rootfs).map_err(at(&rootfs))?;
        let tree = Tree::open(&rootfs).map_err(|error| at(&rootfs)(io::Error::other(error)))?;
        let budget = Budget::of(tree.root()).map_err(at(&rootfs))?;
        // All of them are looked at before the first is unpacked, and none stays open meanwhile: there may be many.
        let sizes = self.layers.iter().map(|layer| Ok(self.layer_blob(layer)?.len()));
        let total = sizes.sum::<Result<u64, ImageError>>()?;
        let mut report = Report { progress, start: Instant::now(), last: None, done: 0, total, layer: 0 };
        let layers = self.layers.len();
        for (number, layer) in self.layers.iter().enumerate() {
            report.layer = number + 1;
            let blob = self.layer_blob(layer)?;
            apply(&tree, layer, Counted { inner: blob, report: &mut report, layers }, &budget)?;
        }
        Ok(())
    }

    /// Opens a layer's file and checks its size.
    pub(super) fn layer_blob(&self, layer: &Layer) -> Result<Blob, ImageError> {
        let name = layer.name();
        let blob = self.source.blob(&layer.file).map_err(|error| match error {
            ImageError::MissingBlob { .. } => ImageError::MissingBlob { name: name.clone() },
            error => error,
        })?;
        match layer.blob {
            Some((_, wanted)) if wanted != blob.len() => Err(ImageError::WrongSize { name, wanted, got: blob.len() }),
            _ => Ok(blob),
        }
    }
}

impl Layer {
    fn name(&self) -> String {
        self.blob.as_ref().map_or_else(|| self.file.clone(), |(digest, _)| digest.to_string())
    }
}

/// Applies one layer and verifies it while it streams by. A corrupt file usually breaks its compression or its tar
/// first; the digest then tells that as the cause.
fn apply(tree: &Tree, layer: &Layer, blob: impl Read, budget: &Budget) -> Result<(), ImageError> {
    let name = layer.name();
    let wanted = layer.blob.as_ref().map_or(&layer.diff_id, |(digest, _)| digest);
    let mut packed = DigestReader::new(blob, wanted);
    let applied = apply_stream(tree, layer, &mut packed, budget);
    if layer.blob.is_some() {
        let got = packed.finish().map_err(|error| failed(&name, LayerError::Compression(error)))?;
        if got != *wanted {
            return Err(ImageError::WrongDigest { name, wanted: wanted.clone(), got });
        }
    }
    match applied.map_err(|error| failed(&name, error))? {
        got if got == layer.diff_id => Ok(()),
        got => Err(ImageError::WrongDigest { name: format!("{name} (unpacked)"), wanted: layer.diff_id.clone(), got }),
    }
}

/// Decompresses and applies; returns the digest of the whole unpacked stream.
fn apply_stream(tree: &Tree, layer: &Layer, packed: impl Read, budget: &Budget) -> Result<Digest, LayerError> {
    let mut packed = io::BufReader::with_capacity(128 * 1024, packed);
    let compression = Compression::of(io::BufRead::fill_buf(&mut packed).map_err(LayerError::Compression)?);
    let plain = compression.reader(packed).map_err(LayerError::Compression)?;
    let mut plain = DigestReader::new(BudgetReader::new(plain, budget), &layer.diff_id);
    let applied = layer::apply(tree, io::BufReader::with_capacity(64 * 1024, &mut plain), budget);
    match (applied, plain.finish()) {
        (Ok(()), digest) => digest.map_err(LayerError::Compression),
        (Err(_), Ok(digest)) if digest != layer.diff_id => Ok(digest),
        (Err(error), _) => Err(error),
    }
}

fn failed(name: &str, source: LayerError) -> ImageError {
    ImageError::Layer { name: name.to_owned(), source }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Store { path, source }
}

fn remove(folder: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

/// Takes the lock, waiting for whoever has it. The file stays: removing it would let two callers hold two locks.
fn lock(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, ImageError> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(at(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(at(path))?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(at(path)(error)),
    }
}

struct Report<'a> {
    progress: &'a mut dyn FnMut(Progress),
    start: Instant,
    last: Option<Instant>,
    layer: usize,
    done: u64,
    total: u64,
}

/// Counts the bytes of layer files read, and reports when it is time.
struct Counted<'a, 'b, R> {
    inner: R,
    report: &'a mut Report<'b>,
    layers: usize,
}

impl<R: Read> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let report = &mut *self.report;
        report.done += count as u64;
        let due = report.last.map_or(report.start + QUIET, |last| last + INTERVAL);
        let now = Instant::now();
        if now >= due {
            report.last = Some(now);
            let (layer, layers, done, total) = (report.layer, self.layers, report.done, report.total);
            (report.progress)(Progress::Unpacking { layer, layers, done, total });
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Tar, zstd};

    #[test]
    fn a_decompression_bomb_ends_at_the_budget() {
        let tar = Tar::new().file("bomb", &vec![0; 16 << 20]).finish();
        let packed = zstd(&tar);
        assert!(packed.len() < 64 << 10, "no bomb: {} bytes", packed.len());
        let layer = Layer {
            file: "bomb".to_owned(),
            blob: Some((Digest::of(&packed), packed.len() as u64)),
            diff_id: Digest::of(&tar),
        };
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let error = apply(&tree, &layer, &packed[..], &Budget::new(4 << 20, 10)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("more than the free disk space"), "{text}");
        assert!(fs::metadata(dir.path().join("bomb")).unwrap().len() <= 4 << 20);
    }

    #[test]
    fn progress_is_quiet_at_first_and_then_rare() {
        let mut lines = Vec::new();
        let mut progress = |progress: Progress| lines.push(progress.to_string());
        let start = Instant::now();
        let mut report = Report { progress: &mut progress, start, last: None, layer: 2, done: 0, total: 3_000_000 };
        let content = vec![0; 750_000];
        io::copy(&mut Counted { inner: &content[..], report: &mut report, layers: 3 }, &mut io::sink()).unwrap();
        assert_eq!((report.done, report.last), (750_000, None));
        report.start -= QUIET;
        io::copy(&mut Counted { inner: &content[..], report: &mut report, layers: 3 }, &mut io::sink()).unwrap();
        assert_eq!(lines, ["unpacking layer 2 of 3: 0.8 of 3.0 MB"]);
    }
}
