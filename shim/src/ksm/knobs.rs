//! The kernel's knobs of the merging of equal pages (Linux: Documentation/admin-guide/mm/ksm.rst).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::KsmError;

const RUN: &str = "run";
const PAGES_TO_SCAN: &str = "pages_to_scan";
const SLEEP: &str = "sleep_millisecs";
const FULL_SCANS: &str = "full_scans";
const SHARING: &str = "pages_sharing";

/// How fast the kernel looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Speed {
    /// Pages before each rest.
    pub(super) pages_to_scan: u64,
    /// How long a rest is, in milliseconds.
    pub(super) sleep_millisecs: u64,
}

/// The knobs, which nobody else of this program has meanwhile.
#[derive(Debug)]
pub(super) struct Knobs {
    folder: PathBuf,
    /// Locked as long as this lives.
    _lock: File,
}

impl Knobs {
    /// Takes them.
    ///
    /// # Errors
    /// When the kernel has none, or another process has taken them.
    pub(super) fn take(folder: &Path) -> Result<Knobs, KsmError> {
        let path = folder.join(RUN);
        let lock = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => KsmError::None,
            _ => KsmError::File { action: "open", path: path.clone(), source },
        })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Knobs { folder: folder.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(KsmError::Another),
            Err(errno) => Err(KsmError::File { action: "lock", path, source: errno.into() }),
        }
    }

    /// What says whether it merges: 0 no, 1 yes, 2 no, and what was merged is taken apart.
    pub(super) fn run(&self) -> Result<String, KsmError> {
        self.text(RUN)
    }

    /// Whether it merges.
    pub(super) fn is_on(&self) -> Result<bool, KsmError> {
        Ok(self.run()? == "1")
    }

    /// How fast it looks.
    pub(super) fn speed(&self) -> Result<Speed, KsmError> {
        Ok(Speed { pages_to_scan: self.number(PAGES_TO_SCAN)?, sleep_millisecs: self.number(SLEEP)? })
    }

    /// Sets that.
    pub(super) fn set(&self, speed: Speed) -> Result<(), KsmError> {
        for (name, value) in [(PAGES_TO_SCAN, speed.pages_to_scan), (SLEEP, speed.sleep_millisecs)] {
            let path = self.folder.join(name);
            // The kernel refuses it where its own advisor sets it (advisor_mode).
            std::fs::write(&path, value.to_string()).map_err(|source| KsmError::File {
                action: "set",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// How often it has looked at all there is.
    pub(super) fn full_scans(&self) -> Result<u64, KsmError> {
        self.number(FULL_SCANS)
    }

    /// Pages that there would be, and are not.
    pub(super) fn saved(&self) -> Result<u64, KsmError> {
        self.number(SHARING)
    }

    fn text(&self, name: &str) -> Result<String, KsmError> {
        let path = self.folder.join(name);
        let text = std::fs::read_to_string(&path).map_err(|source| KsmError::File { action: "read", path, source })?;
        Ok(text.trim().to_owned())
    }

    fn number(&self, name: &str) -> Result<u64, KsmError> {
        let text = self.text(name)?;
        text.parse().map_err(|_| KsmError::File {
            action: "read",
            path: self.folder.join(name),
            source: io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")),
        })
    }
}
