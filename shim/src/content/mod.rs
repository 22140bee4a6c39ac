//! The content store: what was pulled or loaded, by digest, and the names by which it is asked for.
//!
//! `<root>/content` has the form of an OCI image layout without an index: `blobs/<algorithm>/<hex>` are whole and verified, so a
//! layer that several images have is there once. `names` holds a record for each name ([`names`]), `ingest` what is still
//! being written ([`ingest`]). What has no name any more is removed ([`garbage`]). A kernel lock holds its holder's place: whoever adds or
//! reads shares it, whoever removes has it alone, and a killed process holds nothing. Knows nothing of registries, nor of how
//! layers are unpacked.

mod garbage;
mod ingest;
mod names;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use ingest::{Begun, Ingest};
pub use names::{Named, parse};

use crate::image::{Digest, ImageError};

/// What goes wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A file or folder of it.
    #[error("image store {}: {source}", path.display())]
    Store {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk has no room.
    #[error(
        "{what} needs {} MB, and {} has {} MB free: make room, or put the store elsewhere with TATAMI_ROOT",
        needed.div_ceil(1_000_000), folder.display(), free / 1_000_000
    )]
    Full {
        /// What was to be written.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// More or fewer bytes than were announced.
    #[error("blob {digest} has {got} bytes where {wanted} were announced")]
    WrongSize {
        /// Whose.
        digest: Digest,
        /// Announced.
        wanted: u64,
        /// Bytes there were, or one more than announced.
        got: u64,
    },
    /// Other bytes than were announced.
    #[error("blob {wanted} is corrupt: its content has the digest {got}")]
    WrongDigest {
        /// Announced.
        wanted: Digest,
        /// What its bytes have.
        got: Digest,
    },
    /// Not a name that an image can have.
    #[error("{text:?} is not an image's name: {why}")]
    Name {
        /// As it was given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// No such image.
    #[error("no such image: {0} (see `tatami images`)")]
    NoSuch(String),
    /// The beginning of several ids.
    #[error("{0:?} is the beginning of several images' ids: give more of it")]
    Several(String),
    /// A document of a stored image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The store.
#[derive(Debug, Clone)]
pub struct Content {
    folder: PathBuf,
}

/// As long as it lives, nothing is removed from the store.
#[derive(Debug)]
pub struct InUse {
    _lock: File,
}

impl Content {
    /// The store below `root`, which it makes.
    ///
    /// # Errors
    /// [`ContentError::Store`].
    pub fn open(root: &Path) -> Result<Content, ContentError> {
        let folder = root.join("content");
        for name in ["blobs/sha256", "blobs/sha512", "ingest", "names"] {
            let path = folder.join(name);
            // Private: set-id binaries of images, and what is in private ones, are nothing for this machine's users.
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(at(&path))?;
        }
        Ok(Content { folder })
    }

    /// Where it lies: an image layout's folder, as [`crate::image`] reads it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps everything in its place as long as the answer lives. Waits for whoever removes something at the moment.
    ///
    /// # Errors
    /// [`ContentError::Store`].
    pub fn in_use(&self) -> Result<InUse, ContentError> {
        let (path, lock) = self.lock_file()?;
        lock.lock_shared().map_err(at(&path))?;
        Ok(InUse { _lock: lock })
    }

    /// The lock for whoever removes; `None` while somebody uses the store.
    fn alone(&self) -> Result<Option<File>, ContentError> {
        let (path, lock) = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(at(&path)(error)),
        }
    }

    fn lock_file(&self) -> Result<(PathBuf, File), ContentError> {
        let path = self.folder.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok((path.clone(), lock.map_err(at(&path))?))
    }

    /// Where the blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.blob_path())
    }

    /// Whether the blob is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Reads a small blob whole, and checks it.
    ///
    /// # Errors
    /// One that is not there or is not what it was.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>, ContentError> {
        let path = self.path(digest);
        let bytes = fs::read(&path).map_err(at(&path))?;
        match digest.same_algorithm(&bytes) {
            got if got == *digest => Ok(bytes),
            got => Err(ContentError::WrongDigest { wanted: digest.clone(), got }),
        }
    }

    /// Adds a small blob; its digest.
    ///
    /// # Errors
    /// [`ContentError::Store`], [`ContentError::Full`].
    pub fn add(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ContentError> {
        match self.begin(digest, bytes.len() as u64, &mut || {})? {
            Begun::There => Ok(()),
            Begun::Ingest(mut ingest) => {
                ingest.restart()?;
                ingest.write(bytes)?;
                ingest.finish()
            }
        }
    }
}

/// Says at which file or folder of the store something went wrong.
fn at(path: &Path) -> impl FnOnce(io::Error) -> ContentError {
    let path = path.to_path_buf();
    move |source| ContentError::Store { path, source }
}

/// Writes a file as a whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ContentError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder).map_err(at(folder))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(at(path))?;
    file.persist(path).map_err(|error| at(path)(error.error))?;
    sync_folder(folder)
}

/// Puts names in a folder on disk.
fn sync_folder(folder: &Path) -> Result<(), ContentError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}
