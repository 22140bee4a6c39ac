//! The VMM's cgroup: bounds the number of its threads, and counts its memory and time apart from the server's.
//!
//! It lies beside the server's own, so that what bounds both (a user's slice, a service's) bounds every VMM as well; below it, it
//! could not be, because a cgroup with processes gives no controllers to others. The sandbox's folder says where it is, for
//! whoever removes what is left. Limits that a specification asks for are the guest's; knows nothing of those.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where version 2 of cgroups is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The file in a sandbox's state folder that holds the path.
const RECORD: &str = "cgroup";
/// Controllers without which it is no use, and one that is good to have.
const NEEDED: [&str; 1] = ["pids"];
const WANTED: [&str; 1] = ["memory"];
/// Threads of a VMM beside those of its vCPUs, disks and networks.
const THREADS: u32 = 64;
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
    let folder = parent.join(format!("tatami-{id}"));
    // First, so that there is never a cgroup of which nobody knows.
    fs::write(state.join(RECORD), folder.as_os_str().as_encoded_bytes())?;
    fs::create_dir(&folder)?;
    fill(parent, &folder, threads).inspect_err(|_| {
        // It is empty.
        let _ = fs::remove_dir(&folder);
    })
}

/// Removes the cgroup of the sandbox whose state folder is `state`, and kills what is in it. One that is not there is fine.
///
/// # Errors
/// When it is not empty yet.
pub(super) fn remove(state: &Path) -> io::Result<()> {
    let folder = match fs::read_to_string(state.join(RECORD)) {
        Ok(path) => PathBuf::from(path),
        Err(_) => return Ok(()),
    };
    // Its processes have ended, as a rule.
    let mut outcome = remove_folder(&folder);
    if outcome.is_err() {
        let _ = fs::write(folder.join("cgroup.kill"), "1");
    }
    for _ in 0..ATTEMPTS {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(PAUSE);
        outcome = remove_folder(&folder);
    }
    outcome
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn fill(parent: &Path, folder: &Path, threads: u32) -> io::Result<OwnedFd> {
    for controller in NEEDED.iter().chain(&WANTED) {
        if !folder.join(format!("{controller}.max")).exists() {
            // What the parent cannot give shows below.
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    fs::write(folder.join("pids.max"), (THREADS + threads).to_string())?;
    Ok(File::open(folder)?.into())
}

/// The folder of the cgroup that `/proc/self/cgroup` names (cgroups(7)).
fn own(listing: &str) -> io::Result<PathBuf> {
    let path = listing.lines().find_map(|line| line.strip_prefix("0::/"));
    let path =
        path.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this host has no cgroups of version 2"))?;
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
    fn one_that_was_never_made_is_fine_to_remove() {
        let state = tempfile::tempdir().unwrap();
        remove(state.path()).unwrap();
        fs::write(state.path().join(RECORD), "/sys/fs/cgroup/tatami-never").unwrap();
        remove(state.path()).unwrap();
    }
}
