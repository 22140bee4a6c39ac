//! Files by which the kernel tells that something happened: read, wait for a change, read again.
//!
//! A control group's `*.events` files are such: poll(2) reports an exceptional condition until the file is read anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::syscalls::watched_for;

/// No such file is longer, in bytes.
const MAX_TEXT: usize = 4096;

/// An open file of events.
pub(crate) struct EventFile {
    file: AsyncFd<File>,
}

impl EventFile {
    /// Opens and watches the file at `path`.
    ///
    /// # Errors
    /// When there is none, or it does not report changes.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: watched_for(File::open(path)?, Interest::PRIORITY)? })
    }

    /// Waits until `met` finds in the file what it looks for.
    ///
    /// # Errors
    /// `ENODEV` when the file's group is removed meanwhile.
    pub(crate) async fn until<T>(&self, met: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let mut bytes = [0; MAX_TEXT];
        loop {
            // Reading says to the kernel what is known, so a change between here and the waiting is not lost.
            let length = self.file.get_ref().read_at(&mut bytes, 0)?;
            if let Some(found) = met(&String::from_utf8_lossy(&bytes[..length])) {
                return Ok(found);
            }
            self.file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}
