//! A block device of the host that is a file's content: a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::said;

/// A loop device. Dropped, it is detached; the file stays.
pub struct LoopDisk {
    path: String,
    file: PathBuf,
}

impl LoopDisk {
    /// A device of `bytes` zeros, from a new file in `folder`.
    ///
    /// # Panics
    /// When it cannot be made: no losetup, no loop driver in the kernel.
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let file = folder.join("loop-disk");
        File::create(&file).and_then(|file| file.set_len(bytes)).expect("a file");
        LoopDisk { path: attach(&file), file }
    }

    /// The device's path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Has it grow to `bytes`, with its file.
    ///
    /// # Panics
    /// When it cannot.
    pub fn grow(&self, bytes: u64) {
        File::options().write(true).open(&self.file).and_then(|file| file.set_len(bytes)).expect("a larger file");
        said(Command::new("losetup").args(["--set-capacity", &self.path]));
    }

    /// Its first bytes, as the host reads them.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn head(&self, bytes: usize) -> String {
        let read = Command::new("head").args(["-c", &bytes.to_string(), &self.path]).output().expect("head");
        String::from_utf8_lossy(&read.stdout).into_owned()
    }
}

/// A loop device of `file`; its path. Who asks detaches it.
///
/// # Panics
/// When it cannot be made.
pub(crate) fn attach(file: &Path) -> String {
    said(Command::new("losetup").args(["--find", "--show"]).arg(file))
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        said(Command::new("losetup").args(["--detach", &self.path]));
        let _ = std::fs::remove_file(&self.file);
    }
}
