//! A sandbox's two folders on the host, its name, and the lock that says that somebody still lives there.
//!
//! | folder | holds |
//! |---|---|
//! | `<state>/<id>` (memory) | `lock`, `sandbox.json`, `client.json`, `container.json` ([`super::kept`]), where the cgroup is, the VMM's pid, sockets, the shared folder's mount point |
//! | `<root>/sandboxes/<id>` (disk) | what its containers write |
//!
//! What is to be found after a sandbox's end is elsewhere, in [`super::kept`]. The server holds a `flock` on `lock` as long as it
//! lives. A folder whose lock nobody holds is a leftover: its undertaker removes it, or else the next start does. Knows nothing of
//! mounts or VMs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::kept;
use super::remove::remove_tree;

/// The folder below the root that holds what containers write.
const SANDBOXES: &str = "sandboxes";
/// The files in a state folder.
const LOCK: &str = "lock";
const RECORD: &str = "sandbox.json";
const CLIENT: &str = "client.json";
const VMM: &str = "vmm.pid";

/// Where Tatami keeps things on this host.
#[derive(Clone, Debug)]
pub struct Places {
    /// Unpacked images and what containers write: `TATAMI_ROOT`, else `/var/lib/tatami`.
    pub root: PathBuf,
    /// Locks, sockets and mount points: `TATAMI_STATE`, else `/run/tatami`.
    pub state: PathBuf,
}

/// What `sandbox.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    name: Option<String>,
    /// The server's process.
    pid: u32,
}

/// What a sandbox is to the client that it is for, where that has names of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The client's namespace.
    pub namespace: String,
    /// What it calls the sandbox there.
    pub id: String,
}

/// Where a sandbox's folders are, whether or not they exist.
#[derive(Clone, Debug)]
pub struct Lot {
    id: String,
    state: PathBuf,
    data: PathBuf,
}

/// A live sandbox's folders, locked as long as this lives.
#[derive(Debug)]
pub struct Folder {
    lot: Lot,
    /// Held, never read.
    _lock: File,
}

/// Why a sandbox has no folders.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Not of the form that names have.
    #[error("invalid name {0:?}: a letter or digit, then letters, digits, `_`, `.` or `-`, at most 128 in all")]
    Name(String),
    /// A living sandbox has it, or what was kept of one.
    #[error("the name {0:?} is in use by sandbox {1}")]
    Taken(String, String),
    /// The file system would not.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Places {
    /// As the environment says, or the defaults.
    pub fn from_environment() -> Places {
        let place = |variable, default: &str| {
            std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Places { root: place("TATAMI_ROOT", "/var/lib/tatami"), state: place("TATAMI_STATE", "/run/tatami") }
    }
}

impl Lot {
    /// A place for a new sandbox: twelve hexadecimal digits that nobody else has.
    ///
    /// # Errors
    /// When the host has no random numbers.
    pub fn choose(places: &Places) -> Result<Lot, FolderError> {
        let id = new_id()?;
        Ok(Lot { state: places.state.join(&id), data: places.root.join(SANDBOXES).join(&id), id })
    }

    /// Removes both folders and the cgroup, as far as they exist. Call it where none of the sandbox's mounts can be seen.
    ///
    /// # Errors
    /// What could not be removed; a second call goes on where the first stopped.
    pub fn clear(&self) -> io::Result<()> {
        // The state folder last: it says where the cgroup is, and that it is gone says that the others are.
        cgroup::remove(&self.state)?;
        remove_tree(&self.data)?;
        remove_tree(&self.state)
    }
}

impl Folder {
    /// Makes the folders of a new sandbox, called `name` if it has a name, after removing what dead ones left behind.
    ///
    /// # Errors
    /// [`FolderError::Name`] and [`FolderError::Taken`] for a name that cannot be had, [`FolderError::File`] otherwise.
    pub fn create(places: &Places, lot: Lot, name: Option<&str>) -> Result<Folder, FolderError> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let sandboxes = places.root.join(SANDBOXES);
        make(&places.state)?;
        make(&sandboxes)?;
        // One at a time in here, so that no half-made folder is taken for a leftover, and no name is given twice.
        let door = File::open(&places.state).map_err(failed("open", &places.state))?;
        rustix::fs::flock(&door, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &places.state)(error.into()))?;
        let living = sweep(places, &sandboxes)?;
        if let Some(name) = name
            && let Some(other) = kept::all(places).into_iter().find(|record| record.name.as_deref() == Some(name))
        {
            return Err(FolderError::Taken(name.to_owned(), format!("{} (`tatami rm {name}` frees it)", other.id)));
        }
        if let Some(name) = name
            && let Some(other) = living.into_iter().find(|record| record.name.as_deref() == Some(name))
        {
            return Err(FolderError::Taken(name.to_owned(), other.id));
        }
        make(&lot.state)?;
        let own = lock(&lot.state.join(LOCK), FlockOperation::NonBlockingLockExclusive)?;
        let record = Record { id: lot.id.clone(), name: name.map(str::to_owned), pid: std::process::id() };
        let path = lot.state.join(RECORD);
        let json = serde_json::to_vec(&record).expect("strings are JSON");
        fs::write(&path, json).map_err(failed("write", &path))?;
        make(&lot.data)?;
        Ok(Folder { lot, _lock: own })
    }

    /// Writes down whose it is, for others to find.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn note_client(&self, client: &Client) -> io::Result<()> {
        fs::write(self.lot.state.join(CLIENT), serde_json::to_vec(client)?)
    }

    /// Writes down which process its VMM is, for others to find.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn note_vmm(&self, pid: u32) -> io::Result<()> {
        fs::write(self.lot.state.join(VMM), pid.to_string())
    }

    /// Twelve hexadecimal digits, unique on this host.
    pub fn id(&self) -> &str {
        &self.lot.id
    }

    /// The folder in memory.
    pub fn state(&self) -> &Path {
        &self.lot.state
    }

    /// The folder on disk.
    pub fn data(&self) -> &Path {
        &self.lot.data
    }
}

/// A sandbox's folders, seen by another process than its server.
#[derive(Clone, Debug)]
pub struct Found {
    lot: Lot,
    record: Option<Record>,
}

/// The sandbox called `name`, living or dead, if there is one.
///
/// # Errors
/// [`FolderError::File`] when the folder of sandboxes cannot be listed.
pub fn find(places: &Places, name: &str) -> Result<Option<Found>, FolderError> {
    Ok(all(places)?.into_iter().find(|found| found.name() == Some(name)))
}

/// Every sandbox that has told who its server is, living or dead.
///
/// # Errors
/// [`FolderError::File`] when the folder of sandboxes cannot be listed.
pub fn all(places: &Places) -> Result<Vec<Found>, FolderError> {
    if !places.state.exists() {
        return Ok(Vec::new());
    }
    let all = folders_in(&places.state)?.into_iter().map(|id| at(places, &id));
    Ok(all.filter(|found| found.record.is_some()).collect())
}

/// The sandbox `id`, living, dead or gone.
pub fn at(places: &Places, id: &str) -> Found {
    let lot = Lot { state: places.state.join(id), data: places.root.join(SANDBOXES).join(id), id: id.to_owned() };
    let record = read_record(&lot.state);
    Found { lot, record }
}

/// The names of all sandboxes that have one, living or dead.
///
/// # Errors
/// [`FolderError::File`] when the folder of sandboxes cannot be listed.
pub fn names(places: &Places) -> Result<Vec<String>, FolderError> {
    let records = folders_in(&places.state)?.into_iter().filter_map(|id| read_record(&places.state.join(id)));
    Ok(records.filter_map(|record| record.name).collect())
}

impl Found {
    /// The process id of its server, which it has as long as it [`lives`](Found::lives).
    pub fn server(&self) -> i32 {
        self.record.as_ref().map_or(0, |record| record.pid as i32)
    }

    /// Twelve hexadecimal digits, unique on this host.
    pub fn id(&self) -> &str {
        &self.lot.id
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.record.as_ref()?.name.as_deref()
    }

    /// What its client calls it, if that has names of its own.
    pub fn client(&self) -> Option<Client> {
        read_json(&self.lot.state.join(CLIENT))
    }

    /// The process id that its VMM has, or had.
    pub fn vmm(&self) -> Option<i32> {
        read_json(&self.lot.state.join(VMM))
    }

    /// Its folder in memory.
    pub fn state(&self) -> &Path {
        &self.lot.state
    }

    /// Whether its server does.
    pub fn lives(&self) -> bool {
        let Ok(file) = File::open(self.lot.state.join(LOCK)) else { return false };
        // Shared: many may look at once.
        let probed = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        probed == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Whether its server lives, as [`lives`](Found::lives) says, found out by looking at the server's open files: without a lock, which
    /// somebody who clears away could take for a server's. For those who look again and again.
    pub fn is_held(&self) -> bool {
        let Ok(lock) = self.lot.state.join(LOCK).canonicalize() else { return false };
        let open = fs::read_dir(format!("/proc/{}/fd", self.server())).into_iter().flatten().flatten();
        open.map(|entry| fs::read_link(entry.path())).any(|target| target.is_ok_and(|target| target == lock))
    }

    /// Whether anything of it is left.
    pub fn remains(&self) -> bool {
        self.lot.state.exists() || self.lot.data.exists()
    }

    /// Removes what is left of a dead one.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn clear(&self) -> io::Result<()> {
        self.lot.clear()
    }
}

/// Removes what dead sandboxes left; returns the records of the living.
fn sweep(places: &Places, sandboxes: &Path) -> Result<Vec<Record>, FolderError> {
    let mut living = Vec::new();
    for id in folders_in(&places.state)? {
        let lot = Lot { state: places.state.join(&id), data: sandboxes.join(&id), id };
        match lock(&lot.state.join(LOCK), FlockOperation::NonBlockingLockExclusive) {
            Ok(_dead) => clear_leftover(&lot),
            Err(FolderError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                living.extend(read_record(&lot.state));
            }
            // Its undertaker was faster.
            Err(_) => {}
        }
    }
    // After a restart of the host the state folders are gone, and only the disk remembers.
    for id in folders_in(sandboxes)? {
        let lot = Lot { state: places.state.join(&id), data: sandboxes.join(&id), id };
        if !lot.state.exists() {
            clear_leftover(&lot);
        }
    }
    Ok(living)
}

fn clear_leftover(lot: &Lot) {
    log::info!("removing what sandbox {} left behind", lot.id);
    // Its undertaker may be at it at the same time, and each finds things gone that it has just seen.
    if lot.clear().is_err()
        && let Err(error) = lot.clear()
    {
        log::warn!("cannot remove what sandbox {} left behind: {error}", lot.id);
    }
}

/// The sandbox folders in `folder`; other things that may lie there are left alone.
fn folders_in(folder: &Path) -> Result<Vec<String>, FolderError> {
    let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| is_id(name)).collect())
}

fn read_record(state: &Path) -> Option<Record> {
    read_json(&state.join(RECORD))
}

/// What a small file says, if it is there and whole.
fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn make(folder: &Path) -> Result<(), FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create the folder", folder))
}

fn lock(path: &Path, operation: FlockOperation) -> Result<File, FolderError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path).map_err(failed("open", path))?;
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(error) => Err(failed("lock", path)(error.into())),
    }
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> FolderError + 'p {
    move |source| FolderError::File { action, path: path.to_owned(), source }
}

const ID_LENGTH: usize = 12;

pub(super) fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Twelve hexadecimal digits that nobody else has.
///
/// # Errors
/// When the host has no random numbers.
pub fn new_id() -> Result<String, FolderError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; ID_LENGTH / 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn check_name(name: &str) -> Result<(), FolderError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && name.len() <= 128 { Ok(()) } else { Err(FolderError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(places: &Places, name: Option<&str>) -> Result<Folder, FolderError> {
        Folder::create(places, Lot::choose(places)?, name)
    }

    fn places() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        (dir, places)
    }

    #[test]
    fn names_are_checked_as_docker_checks_them() {
        for good in ["a", "0", "web-1", "A_b.c", &"x".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "ü", "a\n", &"x".repeat(129)] {
            assert!(matches!(check_name(bad), Err(FolderError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn a_name_is_free_again_when_its_sandbox_is_gone() {
        let (_dir, places) = places();
        let first = create(&places, Some("web")).unwrap();
        let error = create(&places, Some("web")).unwrap_err();
        assert!(matches!(&error, FolderError::Taken(name, id) if name == "web" && id == first.id()), "{error}");
        let other = create(&places, Some("db")).unwrap();
        assert_ne!(first.id(), other.id());
        first.lot.clear().unwrap();
        first.lot.clear().unwrap();
        assert!(!first.state().exists() && !first.data().exists());
        drop(first);
        create(&places, Some("web")).unwrap();
    }

    #[test]
    fn a_sandbox_is_found_with_what_was_written_down_of_it() {
        let (_dir, places) = places();
        assert!(all(&places).unwrap().is_empty() && find(&places, "web").unwrap().is_none());
        let folder = create(&places, Some("web")).unwrap();
        let found = find(&places, "web").unwrap().unwrap();
        assert_eq!((found.id(), found.name(), found.server()), (folder.id(), Some("web"), std::process::id() as i32));
        assert_eq!((found.client(), found.vmm()), (None, None));
        let client = Client { namespace: "k8s.io".to_owned(), id: "a\"b".to_owned() };
        folder.note_client(&client).unwrap();
        folder.note_vmm(7).unwrap();
        assert_eq!((found.client(), found.vmm()), (Some(client), Some(7)));
        // Half of it is none.
        fs::write(found.state().join(CLIENT), "{\"name").unwrap();
        assert_eq!(found.client(), None);
        fs::create_dir(places.state.join("0123456789ab")).unwrap();
        assert_eq!(all(&places).unwrap().len(), 1);
    }

    #[test]
    fn who_holds_a_sandbox_is_seen_without_taking_its_lock() {
        let (_dir, places) = places();
        let folder = create(&places, None).unwrap();
        let found = at(&places, folder.id());
        assert!(found.is_held() && found.lives());
        drop(folder);
        assert!(!found.is_held() && !found.lives());
    }

    #[test]
    fn leftovers_go_with_the_next_start_and_the_living_stay() {
        let (_dir, places) = places();
        let dead = create(&places, Some("dead")).unwrap();
        let (state, data) = (dead.state().to_owned(), dead.data().to_owned());
        fs::create_dir_all(data.join("upper/x")).unwrap();
        drop(dead);
        let rebooted = places.root.join("sandboxes/0123456789ab");
        fs::create_dir(&rebooted).unwrap();
        let foreign = places.state.join("something else");
        fs::create_dir(&foreign).unwrap();

        let living = create(&places, None).unwrap();
        let _further = create(&places, Some("dead")).unwrap();
        assert!(!state.exists() && !data.exists() && !rebooted.exists());
        assert!(living.state().exists() && living.data().exists() && foreign.exists());
    }
}
