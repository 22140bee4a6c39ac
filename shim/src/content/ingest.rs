//! A blob on its way into the store: under another name until it is whole, right and on disk.
//!
//! `ingest/<hex>.partial` is locked by whoever writes it: two that want the same blob wait for one another. What a killed process or a
//! broken connection leaves there, the next one goes on from. Knows nothing of where the bytes come from.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::{Content, ContentError, at, sync_folder};
use crate::image::{Digest, Hasher, free_bytes};

/// What there is to be done for a blob.
#[derive(Debug)]
pub enum Begun {
    /// Nothing: it is there.
    There,
    /// Its bytes are wanted.
    Ingest(Box<Ingest>),
}

/// A blob that is being written. Dropped, as by a process that is killed, it leaves what it has for the next one.
#[derive(Debug)]
pub struct Ingest {
    content: Content,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
}

impl Content {
    /// Begins to write a blob of `size` bytes; calls `waiting` if somebody else is at it.
    ///
    /// # Errors
    /// [`ContentError::Full`] where it does not fit, [`ContentError::Store`].
    pub fn begin(&self, digest: &Digest, size: u64, waiting: &mut dyn FnMut()) -> Result<Begun, ContentError> {
        let path = self.folder.join("ingest").join(format!("{}.partial", digest.hex()));
        loop {
            if self.has(digest) {
                return Ok(Begun::There);
            }
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.map_err(at(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    file.lock().map_err(at(&path))?;
                }
                Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
            }
            // It may have got its name, or have been removed, before the lock was ours.
            let is_ours =
                fs::metadata(&path).ok().map(|named| named.ino()) == file.metadata().ok().map(|ours| ours.ino());
            if is_ours && !self.has(digest) {
                let hasher = Hasher::like(digest);
                let content = self.clone();
                let mut ingest = Ingest { content, digest: digest.clone(), size, path, file, hasher, written: 0 };
                ingest.take_up()?;
                return Ok(Begun::Ingest(Box::new(ingest)));
            }
        }
    }
}

impl Ingest {
    /// Reads what is there already; checks that there is room for the rest.
    fn take_up(&mut self) -> Result<(), ContentError> {
        let there = self.file.metadata().map_err(at(&self.path))?.len();
        if there > self.size {
            self.restart()?;
        } else {
            let mut buffer = vec![0; 128 * 1024];
            loop {
                let count = self.file.read(&mut buffer).map_err(at(&self.path))?;
                if count == 0 {
                    break;
                }
                self.hasher.feed(&buffer[..count]);
                self.written += count as u64;
            }
        }
        let free = free_bytes(&self.file).map_err(at(&self.path))?;
        let needed = self.size - self.written;
        if needed > free {
            self.discard();
            return Err(self.full(free));
        }
        Ok(())
    }

    /// Bytes that are there.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Begins again with the first byte.
    ///
    /// # Errors
    /// [`ContentError::Store`].
    pub fn restart(&mut self) -> Result<(), ContentError> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(at(&self.path))?;
        self.hasher = Hasher::like(&self.digest);
        self.written = 0;
        Ok(())
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`ContentError::WrongSize`] when they are more than were announced, [`ContentError::Full`]; nothing stays then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        if self.written + bytes.len() as u64 > self.size {
            self.discard();
            let (digest, wanted) = (self.digest.clone(), self.size);
            return Err(ContentError::WrongSize { digest, wanted, got: wanted + 1 });
        }
        if let Err(error) = self.file.write_all(bytes) {
            let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            self.discard();
            return Err(if full { self.full(0) } else { at(&self.path)(error) });
        }
        self.hasher.feed(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Gives it its name, if it is right.
    ///
    /// # Errors
    /// [`ContentError::WrongSize`], [`ContentError::WrongDigest`]; nothing stays then.
    pub fn finish(self) -> Result<(), ContentError> {
        if self.written != self.size {
            self.discard();
            return Err(ContentError::WrongSize { digest: self.digest, wanted: self.size, got: self.written });
        }
        let got = self.hasher.finish();
        if got != self.digest {
            // As `discard`, of which the hasher is gone.
            let _ = fs::remove_file(&self.path);
            return Err(ContentError::WrongDigest { wanted: self.digest, got });
        }
        self.file.sync_all().map_err(at(&self.path))?;
        let target = self.content.path(&self.digest);
        fs::rename(&self.path, &target).map_err(at(&target))?;
        sync_folder(target.parent().unwrap_or(&self.content.folder))
    }

    /// Gives it up: what has come stays for the next one, and where nothing has, nothing.
    pub fn abandon(self) {
        if self.written == 0 {
            self.discard();
        }
    }

    /// Leaves nothing. A failure is the next one's to meet, who has the same file before him.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn full(&self, free: u64) -> ContentError {
        let needed = self.size - self.written;
        ContentError::Full { what: format!("blob {}", self.digest), needed, free, folder: self.content.folder.clone() }
    }
}
