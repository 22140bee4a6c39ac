//! Machines kept at the moment when their agent began to listen, for later sandboxes of the same kind to go on from: they start
//! without booting, and what none of them changes of kernel and agent is in the host's memory once.
//!
//! A template is a folder `<templates>/<key>` with the two files of a [`Snapshot`]. The key is made of all that the machine
//! depends on, so one that is found fits. It is written under another name and renamed when it is whole, and never changed.
//! A guest that goes on from one shares its secrets with its siblings until the agent is greeted with fresh entropy, before
//! there is any container. Knows nothing of what a snapshot holds.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tatami_vmm::VmConfig;
use tatami_vmm::snapshot::Snapshot;

use super::folder::Places;
use super::remove::remove_tree;
use crate::guest_files::GuestFile;

/// `off`, or the folder to keep templates in.
pub const VARIABLE: &str = "TATAMI_TEMPLATES";
/// The files of a template.
const MEMORY: &str = "memory";
const STATE: &str = "state";
/// How many are kept; each is some 40 MB on disk.
const KEPT: usize = 4;
/// What is being written longer than this was abandoned.
const ABANDONED: Duration = Duration::from_secs(600);

/// Where templates are kept.
#[derive(Clone, Debug)]
pub struct Templates {
    folder: PathBuf,
}

/// Names a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

/// A template that is being written. Dropping it removes it, unless it was published.
#[derive(Debug)]
pub(super) struct Draft {
    folder: PathBuf,
    key: PathBuf,
}

impl Templates {
    /// As [`VARIABLE`] says, or below the root; none where they are switched off.
    pub fn from_environment(places: &Places) -> Option<Templates> {
        match std::env::var_os(VARIABLE) {
            Some(value) if value == "off" => None,
            Some(value) if !value.is_empty() => Some(Templates { folder: value.into() }),
            _ => Some(Templates { folder: places.root.join("templates") }),
        }
    }

    /// The key of the machine that `config`, `kernel` and `initrd` make with this binary on this host since it booted.
    ///
    /// # Errors
    /// When one of the files is not there.
    pub(super) fn key(&self, config: &VmConfig, kernel: &GuestFile, initrd: &GuestFile) -> io::Result<Key> {
        let mut hash = Sha256::new();
        // The processor and the host's kernel are as they were; and what a crash of the host left half written is not taken up.
        hash.update(fs::read("/proc/sys/kernel/random/boot_id")?);
        hash.update(identity(&fs::metadata("/proc/self/exe")?));
        for file in [kernel, initrd] {
            match file {
                GuestFile::OnDisk(path) => hash.update(identity(&fs::metadata(path)?)),
                // The binary says it all.
                GuestFile::Embedded(_) => hash.update("embedded"),
            }
        }
        hash.update(serde_json::to_vec(config)?);
        let digest = hash.finalize();
        Ok(Key(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The template of that key, if there is one.
    pub(super) fn find(&self, key: &Key) -> Option<Snapshot> {
        let folder = self.folder.join(&key.0);
        let open = |name| File::open(folder.join(name));
        let snapshot = Snapshot { memory: open(MEMORY).ok()?, state: open(STATE).ok()? };
        // The one used last is the last to be removed.
        let _ = File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        Some(snapshot)
    }

    /// Begins to write one.
    ///
    /// # Errors
    /// When the file system would not.
    pub(super) fn draft(&self, key: &Key) -> io::Result<(Draft, Snapshot)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.prune();
        let folder = self.folder.join(format!("{}.{}", key.0, std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let draft = Draft { folder, key: self.folder.join(&key.0) };
        let create =
            |name| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(draft.folder.join(name));
        let snapshot = Snapshot { memory: create(MEMORY)?, state: create(STATE)? };
        Ok((draft, snapshot))
    }

    /// Removes a template that turned out to be of no use.
    pub(super) fn remove(&self, key: &Key) {
        if let Err(error) = remove_tree(&self.folder.join(&key.0)) {
            log::warn!("a template cannot be removed: {error}");
        }
    }

    /// Removes all but those used last. Machines that go on from one keep its files.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut found: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        found.sort();
        let (drafts, mut whole): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, path)| path.extension().is_some());
        // One is about to be added.
        whole.truncate(whole.len().saturating_sub(KEPT - 1));
        let abandoned = drafts.into_iter().filter(|(when, _)| when.elapsed().is_ok_and(|age| age > ABANDONED));
        for (_, path) in abandoned.chain(whole) {
            if let Err(error) = remove_tree(&path) {
                log::warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }
}

impl Draft {
    /// Makes it a template, unless another sandbox was quicker.
    pub(super) fn publish(self) {
        if let Err(error) = fs::rename(&self.folder, &self.key)
            && !self.key.exists()
        {
            log::warn!("{} cannot be kept: {error}", self.key.display());
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone, if it was published.
        let _ = remove_tree(&self.folder);
    }
}

/// What tells two versions of a file apart.
fn identity(metadata: &Metadata) -> Vec<u8> {
    let words = [
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime() as u64,
        metadata.mtime_nsec() as u64,
        metadata.ctime() as u64,
        metadata.ctime_nsec() as u64,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn templates() -> (tempfile::TempDir, Templates) {
        let folder = tempfile::tempdir().unwrap();
        let templates = Templates { folder: folder.path().join("templates") };
        (folder, templates)
    }

    fn key(name: &str) -> Key {
        Key(name.to_owned())
    }

    #[test]
    fn a_template_is_found_once_it_is_whole() {
        let (_folder, templates) = templates();
        let (draft, mut files) = templates.draft(&key("a")).unwrap();
        files.memory.write_all(b"memory").unwrap();
        assert!(templates.find(&key("a")).is_none());
        draft.publish();
        assert_eq!(templates.find(&key("a")).unwrap().memory.metadata().unwrap().len(), 6);
        assert!(templates.find(&key("b")).is_none());
        templates.remove(&key("a"));
        assert!(templates.find(&key("a")).is_none());
    }

    #[test]
    fn a_draft_that_is_given_up_leaves_nothing() {
        let (_folder, templates) = templates();
        drop(templates.draft(&key("a")).unwrap());
        assert_eq!(fs::read_dir(&templates.folder).unwrap().count(), 0);
    }

    #[test]
    fn the_second_of_two_equal_drafts_is_dropped() {
        let (_folder, templates) = templates();
        let (first, _files) = templates.draft(&key("a")).unwrap();
        first.publish();
        let (second, _files) = templates.draft(&key("a")).unwrap();
        second.publish();
        assert_eq!(fs::read_dir(&templates.folder).unwrap().count(), 1);
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let (_folder, templates) = templates();
        for name in ["a", "b", "c", "d", "e", "f"] {
            templates.draft(&key(name)).unwrap().0.publish();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(templates.find(&key("a")).is_none() && templates.find(&key("b")).is_none());
        assert!(["c", "d", "e", "f"].iter().all(|name| templates.find(&key(name)).is_some()));
    }

    #[test]
    fn keys_differ_when_anything_does() {
        let (folder, templates) = templates();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            GuestFile::OnDisk(path)
        };
        let (kernel, initrd) = (file("kernel"), file("initrd"));
        let first = templates.key(&VmConfig::default(), &kernel, &initrd).unwrap();
        assert_eq!(templates.key(&VmConfig::default(), &kernel, &initrd).unwrap(), first);
        assert_ne!(templates.key(&VmConfig::default(), &initrd, &kernel).unwrap(), first);
        let larger = VmConfig { memory_mib: 256, ..VmConfig::default() };
        assert_ne!(templates.key(&larger, &kernel, &initrd).unwrap(), first);
        assert_ne!(templates.key(&VmConfig::default(), &GuestFile::Embedded(b""), &initrd).unwrap(), first);
        fs::write(folder.path().join("kernel"), "another").unwrap();
        assert_ne!(templates.key(&VmConfig::default(), &kernel, &initrd).unwrap(), first);
        let none = GuestFile::OnDisk(folder.path().join("none"));
        assert!(templates.key(&VmConfig::default(), &none, &initrd).is_err());
    }
}
