//! The store of unpacked images: each one is unpacked once, beside the store's other images, and then shared.
//!
//! `<store>/images/<digest>/layers/<number>`, where the digest is the image's id, are links to its [`layers`](super::layers), of which 0
//! is the uppermost. A folder is built under another name and renamed when it is complete and on disk, so what has the right name
//! is whole. A lock file for each image makes callers of the same image wait for one another; a kernel lock ends with its
//! holder, so a killed caller blocks nobody.

use super::budget::{Budget, BudgetReader};
use super::digest::{Digest, DigestReader};
use super::layer::{self, LayerError};
use super::layers::{self, Group, Held, Layers};
use super::progress::{Progress, Report};
use super::source::{Blob, Compression};
use super::tree::Tree;
use super::{Image, ImageError, Layer};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The links to an image's layers in its folder.
const LAYERS: &str = "layers";

/// An unpacked image. While it lives, or for as long as the process does that was told to [`Unpacked::keep`] it, nobody removes it.
#[derive(Debug)]
pub struct Unpacked {
    folder: PathBuf,
    in_use: File,
}

impl Unpacked {
    /// Keeps it in its place until this process ends, whatever becomes of it; where it is.
    pub fn keep(self) -> PathBuf {
        // The descriptor is what holds the lock.
        std::mem::forget(self.in_use);
        self.folder
    }

    /// What was unpacked to the folder `finished`, if it was; its lock is the folder's own, and goes with it.
    fn find(finished: &Path) -> Result<Option<Unpacked>, ImageError> {
        let held = lock_folder(finished)?.filter(|_| finished.join(LAYERS).is_dir());
        Ok(held.map(|in_use| Unpacked { folder: finished.to_owned(), in_use }))
    }
}

#[cfg(test)]
impl Unpacked {
    /// Its files as a container sees them.
    pub(crate) fn view(&self) -> layers::View {
        layers::View::of(&layers_of(&self.folder).unwrap())
    }
}

/// The folders that the image in `folder` is unpacked to, the uppermost first: each goes over those behind it.
///
/// # Errors
/// What the operating system said; that no image is there, for one.
pub fn layers_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let links = folder.join(LAYERS);
    let count = fs::read_dir(&links)?.count();
    Ok((0..count).map(|number| links.join(number.to_string())).collect())
}

/// Keeps the image in `folder` in its place until this process ends; false where there is none.
///
/// # Errors
/// [`ImageError::Store`].
pub fn hold(folder: &Path) -> Result<bool, ImageError> {
    Ok(Unpacked::find(folder)?.map(Unpacked::keep).is_some())
}

/// Removes what the image `digest` was unpacked to below `store`, but for what others are made of as well; false when somebody uses it.
///
/// # Errors
/// [`ImageError::Store`].
pub fn forget(store: &Path, digest: &Digest) -> Result<bool, ImageError> {
    let images = images_of(store)?;
    let path = lock_path(&images, digest);
    if !path.exists() {
        return Ok(true);
    }
    let _lock = lock(&path, &mut || {})?;
    let discarded = discard(&images.join(digest.hex()), &partial_path(&images, digest))?;
    sweep(store)?;
    Ok(discarded)
}

/// Removes the folder `finished`, unless somebody uses it, and what is left of one that was not; the image's lock is the caller's.
fn discard(finished: &Path, partial: &Path) -> Result<bool, ImageError> {
    remove(partial)?;
    if let Ok(folder) = File::open(finished) {
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(at(finished)(error)),
        }
        // Without the right name at once: half of it must not be taken for the whole.
        fs::rename(finished, partial).map_err(at(finished))?;
    }
    remove(partial)?;
    Ok(true)
}

/// Removes the layers that no image is made of.
fn sweep(store: &Path) -> Result<(), ImageError> {
    let images = images_of(store)?;
    Layers::of(store)?.sweep(&|| used(&images))
}

/// The names of all layers that images in the folder `images` are made of.
fn used(images: &Path) -> Result<HashSet<String>, ImageError> {
    let mut used = HashSet::new();
    for image in fs::read_dir(images).map_err(at(images))?.flatten() {
        // One that is being removed names none any more.
        let links = fs::read_dir(image.path().join(LAYERS)).into_iter().flatten().flatten();
        let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
        used.extend(targets.filter_map(|target| Some(Layers::named_by(&target)?.to_str()?.to_owned())));
    }
    Ok(used)
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
    /// Unpacks the image below `store` unless that was done before. Nobody removes it as long as the answer lives. Its folder is for
    /// [`layers_of`], and those are shared: mount them read-only or as the lower layers of an overlay. Needs root, since files get the
    /// owners they have in the image.
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
            let _lock = lock(&lock_path(&images, &self.digest), &mut || progress(Progress::Waiting))?;
            if Unpacked::find(&finished)?.is_some() {
                continue;
            }
            let partial = partial_path(&images, &self.digest);
            // What is there all the same is another version's.
            if !discard(&finished, &partial)? {
                return Err(at(&finished)(io::Error::other("another version of tatami has unpacked it, and uses it")));
            }
            self.unpack_as(store, &partial, &finished, progress).inspect_err(|_| {
                // The first error is the one to tell; the next caller removes what stays now.
                let _ = remove(&partial);
                let _ = sweep(store);
            })?;
        }
    }

    /// Unpacks the layers, and makes the folder with links to them: as `partial`, until it is `finished`.
    fn unpack_as(
        &self,
        store: &Path,
        partial: &Path,
        finished: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ImageError> {
        // All of them are looked at before the first is unpacked, and none stays open meanwhile: there may be many.
        let sizes = self.layers.iter().map(|layer| Ok(self.layer_blob(layer)?.len()));
        let sizes: Vec<u64> = sizes.collect::<Result<_, ImageError>>()?;
        let mut report = Report::new(progress, sizes.len(), sizes.iter().sum());
        let layers = Layers::of(store)?;
        let held = match self.unpack_groups(layers::groups(&self.layers, false), &layers, &sizes, &mut report) {
            Err(ImageError::NoOverlay(error)) => {
                // Who unpacks here may have no container here.
                log::info!("layers are unpacked together, since this store can hold none over others: {error}");
                self.unpack_groups(layers::groups(&self.layers, true), &layers, &sizes, &mut report)?
            }
            held => held?,
        };
        let links = partial.join(LAYERS);
        DirBuilder::new().recursive(true).mode(0o700).create(&links).map_err(at(&links))?;
        for (number, layer) in held.iter().rev().enumerate() {
            let link = links.join(number.to_string());
            std::os::unix::fs::symlink(Layers::link_to(layer), &link).map_err(at(&link))?;
        }
        publish(partial, finished)
    }

    fn unpack_groups(
        &self,
        groups: Vec<Group<'_>>,
        layers: &Layers,
        sizes: &[u64],
        report: &mut Report<'_>,
    ) -> Result<Vec<Held>, ImageError> {
        let (mut held, mut count) = (Vec::new(), 0);
        for group in groups {
            let layer = layers.obtain(&group.name, &held, report, |tree, budget, report| {
                group.layers.iter().try_for_each(|layer| {
                    let blob = self.layer_blob(layer)?;
                    apply(tree, layer, report.count(blob), budget)
                })
            })?;
            held.push(layer);
            count += group.layers.len();
            report.reached(count, sizes[..count].iter().sum());
        }
        Ok(held)
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

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Store { path, source }
}

pub(super) fn remove(folder: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder)(error)),
        _ => Ok(()),
    }
}

/// The folder with a lock on it that others may have as well, and nobody who would remove it; none if it is not there.
pub(super) fn lock_folder(folder: &Path) -> Result<Option<File>, ImageError> {
    let open = match File::open(folder) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(folder)(error)),
    };
    open.lock_shared().map_err(at(folder))?;
    // It may have been removed, and unpacked anew, before the lock was ours.
    let named = fs::metadata(folder).ok().map(|named| named.ino());
    let is_named = named == open.metadata().ok().map(|ours| ours.ino());
    Ok(is_named.then_some(open))
}

/// Gives the folder `partial`, which is complete, the name that says so.
pub(super) fn publish(partial: &Path, finished: &Path) -> Result<(), ImageError> {
    // The rename must not reach the disk before what it names.
    File::open(partial).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)).map_err(at(partial))?;
    fs::rename(partial, finished).map_err(at(finished))
}

/// Takes the lock, and says if that means to wait for whoever has it. The file stays: removing it would let two callers hold two
/// locks.
pub(super) fn lock(path: &Path, waiting: &mut dyn FnMut()) -> Result<File, ImageError> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(at(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock().map_err(at(path))?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(at(path)(error)),
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
}
