//! Control groups, version 2: one for all containers, one below it for each.
//!
//! This module delegates the controllers, makes a container's group and writes its limits, reaches every process in it, and
//! removes it. What the limits are is `limits`' business.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::events::EventFile;
use crate::limits::{PIDS_MAX, Plan, Setting};
use crate::{bpf, devices, stats, syscalls};

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// The group of all containers, as a path in the hierarchy.
const CONTAINERS: &str = "/tatami";
/// How long processes that were killed may take to leave their group, in steps of [`RETRY`].
const PATIENCE: u32 = 1000;
const RETRY: Duration = Duration::from_millis(2);
/// Stands for the device program where settings are chosen by file; it has none.
const DEVICES: &str = "devices";
/// How long processes may take to stand still; one that waits for a device cannot before that answers.
const FREEZING: Duration = Duration::from_secs(10);

/// Hands every controller that the kernel has down to the containers' groups.
///
/// # Errors
/// The kernel's, when the hierarchy is not writable.
pub fn enable_controllers() -> io::Result<()> {
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

    /// Its folder.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// Makes it, with the limits of `plan` except that of the number of processes.
    ///
    /// # Errors
    /// A limit that the kernel refuses, with its reason.
    pub(crate) fn create(&self, plan: &Plan) -> Result<(), Error> {
        let folder = self.folder();
        fs::create_dir(&folder).map_err(Error::internal(format!("create {}", folder.display())))?;
        self.set(plan, |file| file != PIDS_MAX)
    }

    /// Sets the limit of the number of processes, if `plan` has one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn limit_pids(&self, plan: &Plan) -> Result<(), Error> {
        self.set(plan, |file| file == PIDS_MAX)
    }

    /// Sets every limit of `plan`.
    ///
    /// # Errors
    /// The first that the kernel refuses, with its reason; those before it are set.
    pub(crate) fn update(&self, plan: &Plan) -> Result<(), Error> {
        self.set(plan, |_| true)
    }

    fn set(&self, plan: &Plan, wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
        let folder = self.folder();
        if let Some(limit) = plan.usage_at_most {
            let usage = fs::read_to_string(folder.join("memory.current")).unwrap_or_default();
            if usage.trim().parse::<u64>().is_ok_and(|usage| usage > limit) {
                let message = format!("memory limit {limit}: {} bytes are in use already", usage.trim());
                return Err(Error::FailedPrecondition(message));
            }
        }
        if plan.weighs_io {
            weigh_disks().map_err(Error::internal("make the guest's disks follow weights"))?;
        }
        for setting in plan.settings.iter().filter(|setting| wanted(&setting.file)) {
            write_setting(&folder, setting)?;
        }
        if !plan.devices.is_empty() && wanted(DEVICES) {
            let program = devices::program(&plan.devices);
            let governed = fs::File::open(&folder).and_then(|folder| bpf::govern_devices(folder, &program));
            governed.map_err(Error::internal("govern the container's devices"))?;
        }
        if let Some(period) = plan.period.filter(|_| wanted("cpu.max")) {
            let now = fs::read_to_string(folder.join("cpu.max")).unwrap_or_default();
            let quota = now.split_whitespace().next().unwrap_or("max");
            let value = format!("{quota} {period}");
            write_setting(&folder, &Setting { file: "cpu.max".to_owned(), value, optional: false })?;
        }
        Ok(())
    }

    /// Every process in it and below, by its id in the guest's first pid namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        collect_pids(&self.folder(), &mut pids)?;
        Ok(pids)
    }

    /// What it uses.
    pub(crate) fn stats(&self) -> tatami_protocol::agent::Stats {
        stats::read(&self.folder())
    }

    /// Makes all its processes stand still, or run again, and answers when they do.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` when a process does not stop, and then all run.
    pub(crate) async fn freeze(&self, frozen: bool) -> io::Result<()> {
        let folder = self.folder();
        let write = |frozen: bool| fs::write(folder.join("cgroup.freeze"), if frozen { "1" } else { "0" });
        let wanted = u64::from(frozen);
        let settled = async {
            let events = EventFile::open(&folder.join("cgroup.events"))?;
            write(frozen)?;
            events.until(|text| stats::keyed(text, "frozen").filter(|now| *now == wanted)).await
        };
        match tokio::time::timeout(FREEZING, settled).await {
            Ok(result) => result.map(drop),
            Err(_) => {
                write(false)?;
                Err(io::Error::new(io::ErrorKind::TimedOut, "a process does not stop; it may wait for a device"))
            }
        }
    }

    /// Waits until the kernel has killed more than `seen` of its processes for want of memory, and says how many it killed.
    ///
    /// # Errors
    /// `ENODEV` or the like once the group is gone.
    pub(crate) async fn oom_kills(&self, seen: u64) -> io::Result<u64> {
        let events = EventFile::open(&self.folder().join("memory.events"))?;
        events.until(|text| stats::keyed(text, "oom_kill").filter(|killed| *killed > seen)).await
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
        let mut result = Ok(());
        for pid in self.pids()? {
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
}

fn write_setting(folder: &Path, setting: &Setting) -> Result<(), Error> {
    let Setting { file, value, optional } = setting;
    let cause = match fs::write(folder.join(file), value) {
        Ok(()) => return Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && *optional => return Ok(()),
        Err(cause) => cause,
    };
    let reason = match cause.raw_os_error() {
        Some(libc::ENOENT) => "the guest kernel has no such limit".to_owned(),
        Some(libc::ENODEV) => "the guest has no such device (the numbers are the host's?)".to_owned(),
        _ => cause.to_string(),
    };
    Err(Error::InvalidArgument(format!("cannot set the limit {file} to {value:?}: {reason}")))
}

/// The kernel spreads a disk's time by weight only where it was told to keep account of it.
fn weigh_disks() -> io::Result<()> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"vd") {
            let numbers = fs::read_to_string(entry.path().join("dev"))?;
            fs::write(Path::new(ROOT).join("io.cost.qos"), format!("{} enable=1", numbers.trim()))?;
        }
    }
    Ok(())
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
