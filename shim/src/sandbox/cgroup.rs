//! The VMM's cgroup: bounds the number of its threads, and counts its memory and time apart from the server's.
//!
//! It lies beside the server's own, so that what bounds both (a user's slice, a service's) bounds every VMM as well; below it, it
//! could not be, because a cgroup with processes gives no controllers to others. Where a client's cgroup for the whole sandbox is to hold
//! it, both are in that one ([`Whole`]). The sandbox's folder says what was made, for whoever removes what is left. Limits that a
//! specification asks for are the guest's; knows nothing of those.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where version 2 of cgroups is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The file in a sandbox's state folder that holds their paths, a line each, in the order in which they were made.
const RECORD: &str = "cgroup";
/// What the server's is called in the whole sandbox's, and what the VMM's begins with wherever it is.
const SERVER: &str = "server";
const VMM: &str = "tatami-";
/// Controllers without which it is no use, and one that is good to have.
const NEEDED: [&str; 1] = ["pids"];
const WANTED: [&str; 1] = ["memory"];
/// Threads of a VMM beside those of its vCPUs, disks and networks.
const THREADS: u32 = 64;
const NO_CGROUPS: &str = "this host has no cgroups of version 2";
/// The end of its processes is soon after they were killed.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Makes a cgroup for the VMM of sandbox `id`, whose state folder is `state`, with room for `threads` and some more; open, to
/// start a process in.
///
/// # Errors
/// When this host has no cgroups of version 2, or this process may not make one, or not a useful one. Nothing is left then.
pub(super) fn create(id: &str, state: &Path, threads: u32) -> io::Result<OwnedFd> {
    let own = own(&fs::read_to_string("/proc/self/cgroup")?)?;
    // The root is beside nothing, and the one cgroup that may have both processes and children with controllers.
    let parent = own.parent().filter(|parent| parent.starts_with(MOUNT)).unwrap_or(&own);
    let folder = parent.join(format!("{VMM}{id}"));
    make(state, &folder)?;
    fill(parent, &folder, THREADS + threads).inspect_err(|_| {
        // It is empty.
        let _ = fs::remove_dir(&folder);
    })
}

/// Removes the cgroups of the sandbox whose state folder is `state`, and kills what is in the VMM's. One that is not there is fine.
///
/// # Errors
/// When one is not empty yet.
pub(super) fn remove(state: &Path) -> io::Result<()> {
    let Ok(record) = fs::read(state.join(RECORD)) else { return Ok(()) };
    let folders = record.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    // What is in others goes first.
    folders.rev().try_for_each(|line| remove_one(Path::new(OsStr::from_bytes(line))))
}

fn remove_one(folder: &Path) -> io::Result<()> {
    // Its processes have ended, as a rule.
    let mut outcome = remove_folder(folder);
    let is_vmms = folder.file_name().is_some_and(|name| name.as_bytes().starts_with(VMM.as_bytes()));
    if outcome.is_err() && is_vmms {
        let _ = fs::write(folder.join("cgroup.kill"), "1");
    }
    for _ in 0..ATTEMPTS {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(PAUSE);
        outcome = remove_folder(folder);
    }
    outcome
}

/// Makes a cgroup. What was there already is not removed later.
fn make(state: &Path, folder: &Path) -> io::Result<()> {
    let mut record = File::options().create(true).append(true).open(state.join(RECORD))?;
    if folder.is_dir() {
        return Ok(());
    }
    // First, so that there is never a cgroup of which nobody knows.
    record.write_all(&[folder.as_os_str().as_bytes(), b"\n"].concat())?;
    fs::create_dir(folder)
}

/// The whole sandbox among the host's cgroups: where its processes start, unless its client has a place for it.
#[derive(Debug)]
pub struct Whole {
    state: PathBuf,
    /// Where the server was before it entered the client's.
    home: Mutex<Option<PathBuf>>,
}

impl Whole {
    /// Of the sandbox whose state folder is `state`.
    pub(super) fn new(state: &Path) -> Whole {
        Whole { state: state.to_owned(), home: Mutex::default() }
    }

    /// Moves the server to a cgroup of its own in the client's, which is made if it is not there. The VMM that starts later is beside it.
    ///
    /// # Errors
    /// When this host has no cgroups of version 2, or none can be made there.
    pub fn enter(&self, place: &CgroupPlace) -> io::Result<()> {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own(&fs::read_to_string("/proc/self/cgroup")?)?;
        place.enter_by(|folder| make(&self.state, folder))?;
        home.get_or_insert(own);
        Ok(())
    }

    /// Moves the server back to where it was, so that the client's can be removed.
    pub(super) fn leave(&self) {
        let home = self.home.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(home) = home
            && let Err(error) = fs::write(home.join("cgroup.procs"), std::process::id().to_string())
        {
            log::warn!("the server stays in the sandbox's cgroup: {}: {error}", home.display());
        }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Where a client wants a whole sandbox among the host's cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlace(PathBuf);

impl CgroupPlace {
    /// By `linux.cgroupsPath` of a specification: a path below the root, or `SLICE:PREFIX:NAME` for the scope that systemd would make.
    /// Nothing for what is neither.
    pub fn of(path: &str) -> Option<CgroupPlace> {
        let below = match path.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] => {
                let slice = if slice.is_empty() { "system.slice" } else { slice };
                let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
                slice_path(slice)?.join(scope)
            }
            _ => PathBuf::from(path),
        };
        let mut folder = PathBuf::from(MOUNT);
        for part in below.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => folder.push(name),
                Component::ParentDir | Component::Prefix(_) => return None,
            }
        }
        (folder != Path::new(MOUNT)).then_some(CgroupPlace(folder))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Moves this process, and with it those that it leaves behind, to where a server is in it. What is made for that is the caller's to
    /// remove.
    ///
    /// # Errors
    /// As for [`Whole::enter`].
    pub fn enter(&self) -> io::Result<()> {
        self.enter_by(|folder| fs::create_dir_all(folder))
    }

    /// The same by cgroups that `make` makes.
    fn enter_by(&self, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        // What is mounted there on a host with version 1 takes folders, too.
        if !Path::new(MOUNT).join("cgroup.controllers").exists() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, NO_CGROUPS));
        }
        let above = self.0.parent().unwrap_or(&self.0);
        fs::create_dir_all(above)?;
        let ancestors: Vec<&Path> = above.ancestors().take_while(|path| path.starts_with(MOUNT)).collect();
        ancestors.iter().rev().for_each(|ancestor| give_controllers(ancestor));
        make(&self.0)?;
        // Not in the cgroup itself: the VMM's lies beside this one, with controllers of its own.
        let servers = self.0.join(SERVER);
        make(&servers)?;
        fs::write(servers.join("cgroup.procs"), std::process::id().to_string())
    }
}

/// Where systemd has a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let parts: Vec<&str> = name.split('-').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    Some((1..=parts.len()).map(|count| format!("{}.slice", parts[..count].join("-"))).collect())
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn fill(parent: &Path, folder: &Path, threads: u32) -> io::Result<OwnedFd> {
    if NEEDED.iter().chain(&WANTED).any(|controller| !folder.join(format!("{controller}.max")).exists()) {
        give_controllers(parent);
    }
    fs::write(folder.join("pids.max"), threads.to_string())?;
    Ok(File::open(folder)?.into())
}

/// Has what is in `parent` have controllers. What it cannot give shows where it is used.
fn give_controllers(parent: &Path) {
    for controller in NEEDED.iter().chain(&WANTED) {
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The folder of the cgroup that `/proc/self/cgroup` names (cgroups(7)).
fn own(listing: &str) -> io::Result<PathBuf> {
    let path = listing.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, NO_CGROUPS))?;
    Ok(if path.is_empty() { PathBuf::from(MOUNT) } else { Path::new(MOUNT).join(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_among_those_of_version_1() {
        let folder = |text| own(text).unwrap();
        assert_eq!(folder("0::/user.slice/a\n"), Path::new("/sys/fs/cgroup/user.slice/a"));
        assert_eq!(folder("3:cpu:/x\n0::/y\n"), Path::new("/sys/fs/cgroup/y"));
        assert_eq!(folder("0::/\n"), Path::new("/sys/fs/cgroup"));
        assert!(own("1:name=systemd:/x\n").is_err());
    }

    #[test]
    fn a_clients_place_is_a_path_or_a_scope() {
        let folder = |text| CgroupPlace::of(text).map(|place| place.0);
        assert_eq!(folder("/kubepods/pod1/c"), Some("/sys/fs/cgroup/kubepods/pod1/c".into()));
        let scope = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c.scope";
        assert_eq!(folder("kubepods-burstable-pod1.slice:cri-containerd:c"), Some(scope.into()));
        assert_eq!(folder(":docker:c"), Some("/sys/fs/cgroup/system.slice/docker-c.scope".into()));
        for none in ["", "/", "/a/../../b", "../b", "a:b:c", "a/b.slice:c:d", "a--b.slice:c:d"] {
            assert_eq!(folder(none), None, "{none}");
        }
    }

    #[test]
    fn one_that_was_never_made_is_fine_to_remove() {
        let state = tempfile::tempdir().unwrap();
        remove(state.path()).unwrap();
        fs::write(state.path().join(RECORD), "/sys/fs/cgroup/tatami-never").unwrap();
        remove(state.path()).unwrap();
    }
}
