//! Removing what nothing is named after: blobs of removed images, what killed processes left.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::path::PathBuf;

use oci_spec::image::ImageManifest;

use super::{Content, ContentError, at};
use crate::image::Digest;

impl Content {
    /// Removes blobs of no named image, and whatever was begun by somebody who is no more. Does nothing while somebody uses the
    /// store: the next one will.
    ///
    /// # Errors
    /// [`ContentError::Store`]; nothing is removed that a name needs.
    pub fn sweep(&self) -> Result<(), ContentError> {
        let Some(_alone) = self.alone()? else { return Ok(()) };
        let wanted = self.wanted()?;
        for folder in ["blobs/sha256", "blobs/sha512"] {
            for path in self.files(folder)? {
                let is_wanted =
                    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| wanted.contains(name));
                if !is_wanted {
                    fs::remove_file(&path).map_err(at(&path))?;
                }
            }
        }
        for path in self.files("ingest")? {
            let file = File::options().write(true).open(&path).map_err(at(&path))?;
            match file.try_lock() {
                Ok(()) => fs::remove_file(&path).map_err(at(&path))?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
            }
        }
        for path in self.files("names")? {
            if path.extension().is_none_or(|extension| extension != "json") {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// The hex digits of all blobs that named images consist of.
    fn wanted(&self) -> Result<HashSet<String>, ContentError> {
        let mut wanted = HashSet::new();
        let mut want = |text: &str| {
            wanted.extend(Digest::parse(text).map(|digest| digest.hex().to_owned()));
        };
        for named in self.names()? {
            want(&named.manifest);
            want(&named.id);
            let manifest = Digest::parse(&named.manifest).map(|digest| self.document(&digest));
            // One that cannot be read has no layers to keep: a pull brings it again.
            let Some(Ok(bytes)) = manifest else { continue };
            if let Ok(manifest) = serde_json::from_slice::<ImageManifest>(&bytes) {
                manifest.layers().iter().for_each(|layer| want(layer.digest().as_ref()));
            }
        }
        Ok(wanted)
    }

    fn files(&self, folder: &str) -> Result<Vec<PathBuf>, ContentError> {
        let folder = self.folder.join(folder);
        let entries = fs::read_dir(&folder).map_err(at(&folder))?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(at(&folder))).collect()
    }
}
