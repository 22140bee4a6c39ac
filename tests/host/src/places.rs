//! Where things lie: the cache of images and snapshots, the folder of a running host, and the locks on them.
//!
//! ```text
//! $TATAMI_CACHE/testhost/            (default ~/.cache/tatami/testhost)
//!   images-HASH/                     what build-images makes; HASH of its inputs
//!   snapshot-HASH/                   a booted host: RAM, disk, device state; HASH of images, init and machine
//!   run/HASH/                        one running host; HASH of the checkout's path and the machine
//! ```
//! A folder is made under another name and renamed when whole. This module does not know what is in them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A lock held; dropped, it is released, and so it is when the process dies.
pub(crate) type Lock = Flock<File>;

/// The root of everything cached.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    /// `$TATAMI_CACHE`, or `~/.cache/tatami`: other parts keep their builds here too, so the host sees it.
    pub(crate) shared: PathBuf,
    folder: PathBuf,
}

impl Cache {
    /// Finds the cache and makes its folder.
    ///
    /// # Errors
    /// No home folder, or no permission.
    pub(crate) fn open() -> Result<Self> {
        let shared = match std::env::var_os("TATAMI_CACHE").filter(|v| !v.is_empty()) {
            Some(path) => std::path::absolute(path)?,
            None => PathBuf::from(std::env::var_os("HOME").context("neither TATAMI_CACHE nor HOME is set")?)
                .join(".cache/tatami"),
        };
        let folder = shared.join("testhost");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { shared, folder })
    }

    /// A folder of the cache, which need not be there yet.
    #[must_use]
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder of one host, readable by its owner only: its secret lies there.
    ///
    /// # Errors
    /// No permission.
    pub(crate) fn run_folder(&self, key: &str) -> Result<PathBuf> {
        let path = self.folder.join("run").join(key);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Removes what interrupted builds of `name` left. The caller holds the lock under which `name` is built.
    pub(crate) fn sweep_parts(&self, name: &str) {
        self.entries().filter(|(file, _)| file.starts_with(&format!("{name}.part"))).for_each(|(_, path)| {
            let _ = fs::remove_dir_all(path);
        });
    }

    /// Notes that `folder` is in use now, for [`Cache::prune`].
    pub(crate) fn mark_used(&self, folder: &Path) {
        // Where this fails (somebody else's cache), the folder only seems older than it is.
        let _ = lock_file(&folder.join("lock")).and_then(|file| Ok(file.set_modified(SystemTime::now())?));
    }

    /// Keeps the `keep` folders `PREFIX-…` used last, and removes the others that nobody has locked.
    pub(crate) fn prune(&self, prefix: &str, keep: usize) {
        let mut found: Vec<(SystemTime, PathBuf)> = self
            .entries()
            .filter(|(file, _)| file.starts_with(&format!("{prefix}-")) && !file.contains('.'))
            .filter_map(|(_, path)| {
                let used = fs::metadata(path.join("lock")).or_else(|_| fs::metadata(&path));
                Some((used.ok()?.modified().ok()?, path))
            })
            .collect();
        found.sort();
        found.reverse();
        for (_, path) in found.into_iter().skip(keep) {
            if let Ok(Some(_lock)) = try_lock(&path.join("lock"), true) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = (String, PathBuf)> {
        fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
    }
}

/// Takes a lock if nobody else has it. `exclusive`: alone; else together with other sharers.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn try_lock(path: &Path, exclusive: bool) -> Result<Option<Lock>> {
    let how = if exclusive { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    match Flock::lock(lock_file(path)?, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// Waits for a lock, and says what for where that takes long.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn wait_lock(path: &Path, exclusive: bool, what: &str) -> Result<Lock> {
    let start = Instant::now();
    let mut told = false;
    loop {
        if let Some(lock) = try_lock(path, exclusive)? {
            return Ok(lock);
        }
        if !told && start.elapsed() > Duration::from_secs(2) {
            eprintln!("testhost: waiting: {what}");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// A hash for names in the cache (FNV-1a, 64 bits: against accidents, not against enemies).
#[derive(Debug, Clone)]
pub(crate) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds bytes, and their number, so that neighbouring pieces cannot trade bytes.
    #[must_use]
    pub(crate) fn with(mut self, bytes: &[u8]) -> Self {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// Adds a file's content.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn with_file(self, path: &Path) -> Result<Self> {
        Ok(self.with(&fs::read(path).with_context(|| path.display().to_string())?))
    }

    /// The name: 16 hexadecimal digits.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Hash;

    #[test]
    fn hash_is_fnv_1a_and_tells_pieces_apart() {
        // The published test vector of FNV-1a 64 for the empty string, before any length is added.
        assert_eq!(Hash::default().name(), "cbf29ce484222325");
        assert_ne!(Hash::default().with(b"ab").with(b"c").name(), Hash::default().with(b"a").with(b"bc").name());
        assert_ne!(Hash::default().with(b"").name(), Hash::default().name());
    }
}
