//! Control groups, version 2: one for all containers, one below it for each.
//!
//! libcontainer makes a container's group and sets its limits; this module delegates the controllers, reaches every
//! process of a container, and removes the group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::syscalls;

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// The group of all containers, as a path in the hierarchy.
const CONTAINERS: &str = "/tatami";
/// How long processes that were killed may take to leave their group, in steps of [`RETRY`].
const PATIENCE: u32 = 1000;
const RETRY: Duration = Duration::from_millis(2);

/// Hands every controller that the kernel has down to the containers' groups.
///
/// # Errors
/// The kernel's, when the hierarchy is not writable.
pub(crate) fn enable_controllers() -> io::Result<()> {
    let root = Path::new(ROOT);
    let containers = root.join(&CONTAINERS[1..]);
    fs::create_dir_all(&containers)?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let words: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    if words.is_empty() {
        return Ok(());
    }
    fs::write(root.join("cgroup.subtree_control"), words.join(" "))?;
    fs::write(containers.join("cgroup.subtree_control"), words.join(" "))
}

/// Kills every process of every container.
///
/// # Errors
/// The kernel's; none when there has never been a container.
pub(crate) fn kill_all_containers() -> io::Result<()> {
    Cgroup { path: CONTAINERS.into() }.kill()
}

/// One container's group.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of the container `id`, whether it exists yet or not.
    pub(crate) fn of(id: &str) -> Self {
        Self { path: Path::new(CONTAINERS).join(id) }
    }

    /// Its path in the hierarchy, as a specification's `cgroupsPath` wants it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in it and below, also ones that are just being forked.
    ///
    /// # Errors
    /// The kernel's; a group that does not exist holds nothing to kill.
    pub(crate) fn kill(&self) -> io::Result<()> {
        ignore_missing(fs::write(self.folder().join("cgroup.kill"), "1"))
    }

    /// Sends signal `number` to every process in it and below.
    ///
    /// # Errors
    /// The first process's that could not be signalled, after trying all; one that has just ended is no error.
    pub(crate) fn signal(&self, number: i32) -> io::Result<()> {
        if number == libc::SIGKILL {
            return self.kill();
        }
        let mut pids = Vec::new();
        collect_pids(&self.folder(), &mut pids)?;
        let mut result = Ok(());
        for pid in pids {
            if let Err(cause) = syscalls::send(pid, number)
                && cause.raw_os_error() != Some(libc::ESRCH)
                && result.is_ok()
            {
                result = Err(cause);
            }
        }
        result
    }

    /// Removes it and every group below it, once its processes, which are killed, are gone.
    ///
    /// # Errors
    /// `EBUSY` when a process stays for seconds; a group that does not exist is no error.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        let folder = self.folder();
        let mut attempts = 0;
        loop {
            match ignore_missing(remove_tree(&folder)) {
                Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) && attempts < PATIENCE => {
                    attempts += 1;
                    tokio::time::sleep(RETRY).await;
                    // Also what was on its way in when its processes were killed.
                    self.kill()?;
                }
                result => return result,
            }
        }
    }

    fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }
}

fn collect_pids(folder: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let listing = fs::read_to_string(folder.join("cgroup.procs"))?;
    // Zero stands for a process that our pid namespace cannot see.
    pids.extend(listing.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for child in children(folder)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in children(folder)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(folder)
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
