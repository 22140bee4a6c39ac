//! Daemons of one's own: containerd and Docker with private folders, in which our runtime is installed; and Podman, which has none.
//!
//! A [`Home`] is where they live: a folder for all their state, a cgroup for all their processes, the programs of one release
//! first on the path. What it was like before they came it can tell apart from what they left. It does not know what the
//! daemons are asked to do.

mod containerd;
#[cfg(feature = "clients")]
mod cri;
mod docker;
#[cfg(feature = "clients")]
mod grpc;
#[cfg(feature = "clients")]
pub mod kubelet;
mod podman;
mod thin_pool;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use containerd::{Containerd, Event, IMAGE};
#[cfg(feature = "clients")]
pub use cri::{Cri, api};
pub use docker::Docker;
#[cfg(feature = "clients")]
pub use grpc::{Grpc, field, text};
pub use podman::Podman;

use crate::compare::Selection;
use crate::leaks::{self, Process};

/// Which release of the daemons, by where the test host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// containerd 1.7 and Docker 26: Debian 13's own.
    Older,
    /// containerd 2.1 and Docker 28, from Debian's sid.
    Newer,
}

/// How long what is left of a container may take to end by itself.
pub(crate) const CLEARANCE: Duration = Duration::from_secs(8);
/// How long a daemon may take to come up or to end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);

/// Where a release's daemons live.
pub struct Home {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    /// The cgroup in it in which daemons start.
    started: PathBuf,
    release: Release,
    name: String,
}

/// A daemon that runs. Dropped, it is killed.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Release {
    /// Has `tell` tell the cases that are asked for with the newer release, and with the older one the same if something in
    /// particular or everything is asked for, else those of these names. `TATAMI_CLIENTS_RELEASE` (`older`, `newer`) leaves the
    /// other one out, aloud. It returns how many fail.
    ///
    /// # Panics
    /// When one of the variables is something else.
    pub fn tell_on_each(names_on_both: &[&str], tell: impl Fn(Release, &Selection) -> usize) -> ExitCode {
        let selection = Selection::from_environment();
        let fewer = match selection.full || !selection.names.is_empty() {
            true => None,
            false => Some(selection.narrowed_to(names_on_both)),
        };
        let asked = std::env::var("TATAMI_CLIENTS_RELEASE").unwrap_or_default();
        let releases: &[Release] = match asked.as_str() {
            "" => &[Release::Newer, Release::Older],
            "newer" => &[Release::Newer],
            "older" => &[Release::Older],
            other => panic!("TATAMI_CLIENTS_RELEASE={other}: it is 'older', 'newer' or unset, for both"),
        };
        if !asked.is_empty() {
            println!("(the {asked} release alone: TATAMI_CLIENTS_RELEASE)");
        }
        let of = |release| if release == Release::Older { fewer.as_ref().unwrap_or(&selection) } else { &selection };
        let failures: usize = releases.iter().map(|&release| tell(release, of(release))).sum();
        if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// The folder of its programs.
    pub fn programs(self) -> &'static str {
        match self {
            Self::Older => "/usr/bin",
            Self::Newer => "/opt/sid/bin",
        }
    }

    /// What `program` of this release says of its version, in one line.
    ///
    /// # Panics
    /// When it is not there: outside the test host, or in one whose packages have changed.
    pub fn version_of(self, program: &str) -> String {
        let path = [self.programs(), "/usr/sbin"].map(|folder| Path::new(folder).join(program));
        let found = path.iter().find(|path| path.exists());
        let found = found.unwrap_or_else(|| panic!("{program} is not in {}: see tests/host/packages", self.programs()));
        let output = Command::new(found).arg("--version").output().expect("a program that is there starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Home {
    /// An empty home, with our runtime under its names.
    ///
    /// # Panics
    /// When it cannot be made: not root, no cgroup v2, nothing built.
    pub fn new(release: Release) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let name = format!("tatami-test-{}-d{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Not /tmp, which may be a tmpfs without what overlayfs needs; and short, for sockets lie in it.
        let folder = tempfile::Builder::new().prefix("tt-").tempdir_in("/var/tmp").expect("a temporary folder");
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/{name}"));
        let started = leaks::create_cgroup(&cgroup);
        let home = Self { folder, cgroup, started, release, name };
        let shims = home.path("bin");
        fs::create_dir(&shims).expect("a folder");
        for name in ["containerd-shim-kata-v2", "containerd-shim-tatami-v2"] {
            std::os::unix::fs::symlink(crate::binary(), shims.join(name)).expect("a link");
        }
        home
    }

    /// `name` in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its release.
    pub fn release(&self) -> Release {
        self.release
    }

    /// A name that no other home has: for namespaces and cgroups.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program` with the path and settings that all programs of this home share; its streams are pipes, its input is empty.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.settle(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same in the home's cgroup, for a program that is to leave processes behind.
    pub(crate) fn command_within(&self, program: &str) -> Command {
        // The shell puts itself there before it becomes the program, so that nothing starts outside it.
        let mut command = self.command("/bin/sh");
        command.args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.started).arg(program);
        command
    }

    /// Makes the runtime `name` by its command line, for engines that pass no environment on to it; its path.
    pub(crate) fn runtime(&self, name: &str) -> PathBuf {
        let mut command = Command::new("true");
        self.settle(&mut command);
        let variables = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
        let set: String = variables.map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        let path = self.path("bin").join(name);
        let script = format!("#!/bin/sh\n{set}exec {} oci \"$@\"\n", crate::binary().display());
        fs::write(&path, script).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        path
    }

    /// All processes that were started here and still run.
    pub fn processes(&self) -> Vec<Process> {
        let theirs = Path::new("/sys/fs/cgroup").join(self.containers_cgroup());
        [leaks::processes(&self.cgroup), leaks::processes(&theirs)].concat()
    }

    /// Starts a daemon whose words go to the file `name.log`.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Daemon {
        let log = self.path(&format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = self.command_within(name);
        command.args(arguments);
        let err = file.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(file).stderr(err).current_dir("/");
        Daemon { child: command.spawn().expect("a shell starts"), log }
    }

    /// What is there of containers: processes other than `daemons`, mounts, control groups, sockets, folders of sandboxes.
    /// Waits, at most `patience`, for what ends by itself.
    pub(crate) fn remains(&self, daemons: &[i32], folders: &[PathBuf], patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = self.remains_now(daemons, folders);
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn remains_now(&self, daemons: &[i32], folders: &[PathBuf]) -> Vec<String> {
        let strangers = self.processes().into_iter().filter(|process| !daemons.contains(&process.pid));
        let mut left: Vec<String> =
            strangers.map(|process| format!("process {} {}", process.pid, process.command)).collect();
        left.extend(leaks::further_cgroups(&self.cgroup).iter().map(|path| format!("cgroup {}", path.display())));
        // Where the runtimes put containers' groups: below the namespace's name.
        let theirs = Path::new("/sys/fs/cgroup").join(self.containers_cgroup());
        if theirs.exists() {
            left.extend(leaks::cgroups(&theirs).iter().skip(1).map(|path| format!("cgroup {}", path.display())));
        }
        let folder = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        left.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")));
        // Below the state folder, the shim's sockets have a folder that stays, and so has the runtime's command line.
        let staying = ["run/containerd", "run/oci"].map(|name| self.path(name));
        let own = [self.path("run"), self.path("lib/sandboxes")];
        for place in folders.iter().chain(&own).chain(&staying) {
            let entries = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
            left.extend(entries.filter(|path| !staying.contains(path)).map(|path| format!("file {}", path.display())));
        }
        for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            // The pool's own stay as long as the pool.
            if backing.contains(&folder) && !backing.contains(thin_pool::FILES) {
                left.push(format!("loop device of {}", backing.trim()));
            }
        }
        left
    }

    /// The control group, below the root, that the containers of this home's clients are told to be in.
    pub fn containers_cgroup(&self) -> String {
        format!("{}-c", self.name)
    }

    fn settle(&self, command: &mut Command) {
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.path("bin").display(),
            self.release.programs()
        );
        command
            .env("PATH", path)
            .env("TATAMI_KERNEL", crate::kernel())
            .env("TATAMI_INITRD", crate::initrd())
            .env("TATAMI_STATE", self.path("run"))
            .env("TATAMI_ROOT", self.path("lib"))
            .envs(thin_pool::environment());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        leaks::kill_all(&self.cgroup);
        let theirs = Path::new("/sys/fs/cgroup").join(self.containers_cgroup());
        if theirs.exists() {
            leaks::kill_all(&theirs);
        }
        // Whatever is still mounted would be emptied with the folder.
        let folder = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.contains(&folder));
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Ends what homes left whose test was killed: nobody else would, and the host lives on.
fn sweep() {
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("tatami-test-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            leaks::kill_all(&entry.path());
            thin_pool::remove(&name);
        }
    }
}

impl Daemon {
    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits until `ready` says so.
    ///
    /// # Panics
    /// When the daemon ends or is not ready in time; with its last words.
    pub(crate) fn wait_until(&mut self, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + DAEMON_PATIENCE;
        while !ready() {
            let ended = self.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the daemon ended: {}", self.last_words());
            assert!(Instant::now() < deadline, "the daemon does not come up: {}", self.last_words());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub(crate) fn end(&mut self, signal: Signal) {
        if self.child.try_wait().expect("a child can be waited for").is_some() {
            return;
        }
        kill(Pid::from_raw(self.pid()), signal).expect("a child can be signalled");
        let deadline = Instant::now() + DAEMON_PATIENCE;
        while self.child.try_wait().expect("a child can be waited for").is_none() {
            assert!(Instant::now() < deadline, "the daemon does not end: {}", self.last_words());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what it logged.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
