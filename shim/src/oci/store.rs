//! What is to be known of containers between two commands: a folder for each below the root, with a record that is whole or not there.
//!
//! The folder is made first and says that the id is taken; the record is written when the container exists. A folder without a
//! record is one that is being made, or whose maker was killed. Knows nothing of servers.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, system_at};

/// The file in a container's folder.
const RECORD: &str = "state.json";
/// The folder in it with one for each process that has joined.
const JOINED: &str = "exec";
/// The file in such a folder with the process that stands for it on the host.
const PID: &str = "pid";

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    /// Of the specification that its bundle follows.
    pub(super) version: String,
    pub(super) bundle: PathBuf,
    /// The process that stands for it on the host.
    pub(super) keeper: Pid,
    /// The container that its sandbox was made for: itself, or the first of its pod.
    pub(super) sandbox: String,
    /// Where its server listens.
    pub(super) socket: PathBuf,
    /// In RFC 3339.
    pub(super) created: String,
    pub(super) rootfs: PathBuf,
    /// Its cgroup on the host, if one was made.
    pub(super) cgroup: Option<PathBuf>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// A process of the host, which another of the same number is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pid {
    pub(super) number: i32,
    /// In the kernel's ticks since it started.
    started: u64,
}

/// The folders below a root.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// A container's folder.
#[derive(Clone, Debug)]
pub(super) struct Place {
    folder: PathBuf,
}

impl Store {
    pub(super) fn at(root: &Path) -> Store {
        Store { root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()) }
    }

    /// The root, which tells this store's containers from another's of the same name.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the id for a container that is to be.
    ///
    /// # Errors
    /// [`Error::Exists`] when another has it.
    pub(super) fn claim(&self, id: &str) -> Result<Place, Error> {
        let root = DirBuilder::new().recursive(true).mode(0o711).create(&self.root);
        root.map_err(system_at("create the folder", &self.root))?;
        let place = self.place(id);
        match DirBuilder::new().mode(0o700).create(&place.folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists(id.to_owned())),
            made => made.map_err(system_at("create the folder", &place.folder)).map(|()| place),
        }
    }

    /// The folder that the container `id` has or would have.
    pub(super) fn place(&self, id: &str) -> Place {
        Place { folder: self.root.join(id) }
    }

    /// The container `id`.
    ///
    /// # Errors
    /// [`Error::None`], [`Error::Half`].
    pub(super) fn find(&self, id: &str) -> Result<Record, Error> {
        if !crate::containerd::arguments::is_id(id) {
            return Err(Error::Id(id.to_owned()));
        }
        let place = self.place(id);
        match place.read() {
            Some(record) => Ok(record),
            None if place.folder.is_dir() => Err(Error::Half(id.to_owned())),
            None => Err(Error::None),
        }
    }

    /// Every container that exists; what is half made, or no container's, is not among them.
    pub(super) fn all(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut all: Vec<Record> = entries.filter_map(|entry| Place { folder: entry.path() }.read()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }
}

impl Place {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is written down, if it is there and whole.
    fn read(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.folder.join(RECORD)).ok()?).ok()
    }

    /// Writes it down, wholly or not at all.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec(record).map_err(system_at("write", &self.folder))?;
        write_whole(&self.folder.join(RECORD), &text)
    }

    /// Removes the folder, if it is there.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system_at("remove", &self.folder)(error)),
            _ => Ok(()),
        }
    }

    /// Makes a folder for a process that is to join.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn joining(&self, exec: &str) -> Result<Place, Error> {
        let folder = self.folder.join(JOINED).join(exec);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(system_at("create the folder", &folder)).map(|()| Place { folder })
    }

    /// Writes down which process stands for it, of the folder of one that joins.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn note_keeper(&self, pid: i32) -> Result<(), Error> {
        write_whole(&self.folder.join(PID), pid.to_string().as_bytes())
    }

    /// The processes on the host that stand for those that have joined.
    pub(super) fn joined(&self) -> Vec<i32> {
        let entries = fs::read_dir(self.folder.join(JOINED)).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_to_string(entry.path().join(PID)).ok()?.parse().ok()).collect()
    }
}

impl Pid {
    /// The living process of that number.
    pub(super) fn of(number: i32) -> Option<Pid> {
        Some(Pid { number, started: started(number)? })
    }

    /// Whether it has not ended.
    pub(super) fn lives(self) -> bool {
        started(self.number) == Some(self.started)
    }
}

/// When a process started that has not ended: field 22 of its line in proc(5), after a name in parentheses that may hold anything.
fn started(pid: i32) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !ended)
}

/// Writes a file that others find whole or not at all.
///
/// # Errors
/// What the operating system said.
pub(super) fn write_whole(path: &Path, text: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let other = path.with_file_name(format!(".{name}.new"));
    fs::write(&other, text).map_err(system_at("write", &other))?;
    fs::rename(&other, path).map_err(system_at("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            version: "1.0.2".to_owned(),
            bundle: "/b".into(),
            keeper: Pid::of(std::process::id() as i32).unwrap(),
            sandbox: id.to_owned(),
            socket: "/s".into(),
            created: String::new(),
            rootfs: "/r".into(),
            cgroup: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn an_id_is_taken_once_and_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("root"));
        assert!(matches!(store.find("c1"), Err(Error::None)));
        let place = store.claim("c1").unwrap();
        assert!(matches!(store.claim("c1"), Err(Error::Exists(_))));
        place.write(&record("c1")).unwrap();
        assert_eq!(store.find("c1").unwrap().id, "c1");
        place.remove().unwrap();
        place.remove().unwrap();
        assert!(matches!(store.find("c1"), Err(Error::None)));
    }

    #[test]
    fn what_is_half_made_is_known_as_such_and_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        store.claim("whole").unwrap().write(&record("whole")).unwrap();
        let half = store.claim("half").unwrap();
        fs::write(half.folder().join(RECORD), "{\"id\":\"ha").unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(store.find("half"), Err(Error::Half(_))));
        assert_eq!(store.all().iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["whole"]);
    }

    #[test]
    fn an_id_is_no_path() {
        for id in ["a/b", "..", "", "../x"] {
            assert!(matches!(Store::at(Path::new("/")).find(id), Err(Error::Id(_))), "{id}");
        }
    }

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let own = Pid::of(std::process::id() as i32).unwrap();
        assert!(own.lives());
        assert!(!Pid { started: own.started + 1, ..own }.lives());
    }

    #[test]
    fn processes_that_joined_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let place = Store::at(dir.path()).claim("c1").unwrap();
        assert!(place.joined().is_empty());
        let joining = place.joining("e1").unwrap();
        joining.note_keeper(7).unwrap();
        assert_eq!(place.joined(), [7]);
    }
}
