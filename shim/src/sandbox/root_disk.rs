//! The disk that a guest's own root is on, in place of an initrd, as a guest that was saved must find it again: it has much of it in
//! memory, so nothing on it may be another.
//!
//! Knows by which marks a file is the same; nothing of what is on it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Beginning, Settings};
use crate::guest_files::GuestFile;

/// The image of such a disk, at one moment. Copied with its time to the same place, it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootDisk {
    path: PathBuf,
    length: u64,
    modified: SystemTime,
}

impl RootDisk {
    /// The one of a sandbox, as it is now, if its guest's root is on one.
    ///
    /// # Errors
    /// When it has no name, being in this binary, or is not there any more.
    pub(super) fn of(settings: &Settings) -> io::Result<Option<RootDisk>> {
        let file = match &settings.beginning {
            Beginning::Boot { initrd, .. } => settings.vm.root_disk.as_ref().map(|_| initrd),
            Beginning::Saved { root_disk, .. } => root_disk.as_ref(),
        };
        match file {
            None => Ok(None),
            Some(GuestFile::OnDisk(path)) => RootDisk::at(std::path::absolute(path)?).map(Some),
            Some(GuestFile::Embedded(_)) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn at(path: PathBuf) -> io::Result<RootDisk> {
        let metadata = fs::metadata(&path)?;
        Ok(RootDisk { path, length: metadata.len(), modified: metadata.modified()? })
    }

    /// Whether it is as it was.
    ///
    /// # Errors
    /// When it is not there any more.
    pub(super) fn is_the_same(&self) -> io::Result<bool> {
        Ok(RootDisk::at(self.path.clone())? == *self)
    }

    /// Its image.
    pub(super) fn file(&self) -> GuestFile {
        GuestFile::OnDisk(self.path.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_the_same_until_it_is_written_to_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.erofs");
        fs::write(&path, "one").unwrap();
        let disk = RootDisk::at(path.clone()).unwrap();
        assert!(disk.is_the_same().unwrap());
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(disk.modified + std::time::Duration::from_nanos(1000)).unwrap();
        assert!(!disk.is_the_same().unwrap());
        file.set_modified(disk.modified).unwrap();
        assert!(disk.is_the_same().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(disk.is_the_same().is_err());
    }
}
