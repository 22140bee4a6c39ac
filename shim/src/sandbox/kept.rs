//! What is kept of a container after its sandbox's end, until somebody removes it: a record, and its output.
//!
//! It lies in `<root>/containers/<id>`, on disk: it is there after a restart of the host. The server alone writes it, and
//! others read it, so every change arrives in one piece. Of a container in the foreground nothing is kept: its record lies in its
//! sandbox's folder in memory, and goes with it. Knows nothing of how the container came to run.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::folder::{Places, is_id};
use super::remove::remove_tree;

/// The folder below the root, and the file in each folder there.
const CONTAINERS: &str = "containers";
const RECORD: &str = "container.json";
/// More than this is no record.
const MAX_RECORD: u64 = 4 << 20;

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox's id, and so the container's.
    pub id: String,
    /// What the guest knows the container as, if that is not the sandbox's id: it goes on from another sandbox.
    #[serde(default)]
    pub container: Option<String>,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The image, folder or disk that it is made of, as it was named.
    pub image: String,
    /// The command with its arguments.
    pub command: Vec<String>,
    /// When it was asked for.
    pub created: SystemTime,
    /// When its command began.
    pub started: Option<SystemTime>,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    /// The record goes with the sandbox.
    pub auto_remove: bool,
    /// A person's terminal is at the other end, and no log is written.
    #[serde(default)]
    pub foreground: bool,
    /// Its command has a terminal.
    pub tty: bool,
    /// Its standard input is kept open.
    pub interactive: bool,
    /// The signal that asks it to end.
    pub stop_signal: String,
    /// How long it may take for that, in seconds.
    pub stop_timeout: u64,
    /// The machine's memory, MiB.
    pub memory_mib: u32,
    /// The machine's CPUs.
    pub cpus: u8,
    /// Where the server finds its root file system; None where only the guest does.
    pub host_root: Option<PathBuf>,
    /// The runtime specification that it was made with, in the guest's terms.
    pub spec: serde_json::Value,
}

impl Record {
    /// What the guest knows the container as.
    pub fn container(&self) -> &str {
        self.container.as_deref().unwrap_or(&self.id)
    }
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// 0 to 255, or 128 + n for signal n.
    pub status: u32,
    /// When.
    pub at: SystemTime,
    /// Why, if that was not its command's doing.
    pub error: Option<String>,
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Makes the folder of the container `id`.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn create(places: &Places, id: &str) -> io::Result<Kept> {
        let kept = Kept::at(places, id);
        DirBuilder::new().recursive(true).mode(0o700).create(&kept.folder)?;
        Ok(kept)
    }

    /// The folder of the container `id`, whether or not it exists.
    pub fn at(places: &Places, id: &str) -> Kept {
        Kept { folder: places.root.join(CONTAINERS).join(id) }
    }

    /// The folder of a container of which nothing is kept: the record lies in `state`, its sandbox's folder in memory, and goes with that.
    pub fn passing(state: &Path) -> Kept {
        Kept { folder: state.to_owned() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The record, if there is one.
    pub fn read(&self) -> Option<Record> {
        let path = self.folder.join(RECORD);
        let fits = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_RECORD);
        serde_json::from_slice(&fits.then(|| fs::read(&path).ok()).flatten()?).ok()
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// What the operating system said; then the old one is still there.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let draft = self.folder.join("container.json.new");
        fs::write(&draft, serde_json::to_vec(record)?)?;
        fs::rename(draft, self.folder.join(RECORD))
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn remove(&self) -> io::Result<()> {
        // The record last: what is half removed can be named, and removed again.
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != RECORD) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        remove_tree(&self.folder)
    }
}

/// Every record, in no order. Folders without one are passed over: they are being made.
pub fn all(places: &Places) -> Vec<Record> {
    let entries = fs::read_dir(places.root.join(CONTAINERS)).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_id(name));
    ids.filter_map(|id| Kept::at(places, &id).read()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: &str, name: Option<&str>) -> Record {
        Record {
            id: id.to_owned(),
            container: None,
            name: name.map(str::to_owned),
            image: "image.tar".to_owned(),
            command: vec!["sleep".to_owned(), "9".to_owned()],
            created: SystemTime::UNIX_EPOCH,
            started: None,
            ended: None,
            auto_remove: false,
            foreground: false,
            tty: false,
            interactive: false,
            stop_signal: "SIGTERM".to_owned(),
            stop_timeout: 10,
            memory_mib: 512,
            cpus: 1,
            host_root: None,
            spec: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_record_is_kept_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        assert!(all(&places).is_empty());
        let kept = Kept::create(&places, "0123456789ab").unwrap();
        assert!(kept.read().is_none() && all(&places).is_empty());
        kept.write(&record("0123456789ab", Some("web"))).unwrap();
        fs::write(kept.folder().join("output.log"), "x").unwrap();
        assert_eq!(all(&places)[0].name.as_deref(), Some("web"));
        kept.remove().unwrap();
        kept.remove().unwrap();
        assert!(!kept.folder().exists() && all(&places).is_empty());
    }
}
