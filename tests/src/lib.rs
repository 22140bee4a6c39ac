//! The harness: a test that runs a container in a micro-VM is a few lines.
//!
//! [`Tatami`] is an installation of its own for one test: its state and store lie in a temporary folder, its processes in a
//! cgroup of its own, so tests run side by side and [`Tatami::assert_nothing_left`] can tell what this test left behind.
//! It drives the real binary, as built by `make build`, on a real KVM; it knows nothing of what is inside.

mod built;
pub mod compare;
pub mod daemons;
pub mod engine;
mod leaks;
mod loop_disk;
mod nearby;
mod page;
mod pty;
pub mod registry;
mod running;
mod tools;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use built::{binary, checkout, guest, image, initrd, kernel, pause_image, program};
pub use leaks::Process;
pub use loop_disk::LoopDisk;
pub use nearby::on_own_disk;
pub use page::page;
pub use pty::Terminal;
pub use running::{Finished, Running};
pub use tools::pack;

/// Longest that any single command of a test may take; emulated hosts are slow, hangs are slower.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Seconds that a guest may take to boot, unless a test says otherwise: the default is made for real machines.
const BOOT_SECONDS: &str = "120";

/// Machines that have booted, for all tests of a host to go on from: each saves a boot. Tests of the boot itself say otherwise.
const TEMPLATES: &str = "/var/tmp/tatami-test-templates";

/// One test's own installation of Tatami.
pub struct Tatami {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    /// The cgroup in it in which commands start.
    started: PathBuf,
    binary: PathBuf,
}

impl Default for Tatami {
    fn default() -> Self {
        Self::new()
    }
}

impl Tatami {
    /// Sets up an empty installation.
    ///
    /// # Panics
    /// Where it cannot: not root, no cgroup v2, nothing built.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/tatami-test-{}-{number}", std::process::id()));
        let started = leaks::create_cgroup(&cgroup);
        // Not /tmp, which may be a tmpfs without what overlayfs needs.
        let folder =
            tempfile::Builder::new().prefix("tatami-test-").tempdir_in("/var/tmp").expect("a temporary folder");
        Self { folder, cgroup, started, binary: binary() }
    }

    /// A folder that the test may use, removed at its end.
    pub fn scratch(&self) -> PathBuf {
        let path = self.folder.path().join("scratch");
        fs::create_dir_all(&path).expect("a scratch folder");
        path
    }

    /// `tatami ARGUMENTS…`, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        // The shell puts itself into the test's cgroup before it becomes the binary, so that nothing can start outside it.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.started)
            .arg(&self.binary)
            .args(arguments)
            .env("TATAMI_KERNEL", kernel())
            .env("TATAMI_INITRD", initrd())
            .env("TATAMI_TEMPLATES", TEMPLATES)
            .env("TATAMI_STATE", self.folder.path().join("run"))
            .env("TATAMI_ROOT", self.folder.path().join("lib"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `tatami ARGUMENTS…` to its end.
    pub fn tatami<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Finished {
        Running::start(self.command(arguments)).finish()
    }

    /// `tatami run --rm` with the sample image and a command, to its end.
    pub fn run(&self, command: &[&str]) -> Finished {
        self.run_with(&[], command)
    }

    /// The same with options.
    pub fn run_with(&self, options: &[&str], command: &[&str]) -> Finished {
        self.start(options, command).finish()
    }

    /// The same, not waited for.
    pub fn start(&self, options: &[&str], command: &[&str]) -> Running {
        Running::start(self.command(&Self::run_arguments(options, command)))
    }

    /// `tatami run -d` with the sample image and a command; the container's id.
    pub fn detach(&self, options: &[&str], command: &[&str]) -> String {
        let mut arguments = Self::run_arguments(options, command);
        arguments[1] = "-d".to_owned();
        self.tatami(&arguments).expect_status(0).out().trim().to_owned()
    }

    /// The same on a terminal of `rows` by `columns`.
    pub fn start_on_terminal(&self, rows: u16, columns: u16, options: &[&str], command: &[&str]) -> Terminal {
        Terminal::start(self.command(&Self::run_arguments(options, command)), rows, columns)
    }

    /// The process ids of everything this installation started and that still runs.
    pub fn processes(&self) -> Vec<Process> {
        leaks::processes(&self.cgroup)
    }

    /// Waits a moment for what ends by itself, then fails the test if a process, mount, cgroup, namespace, socket or sandbox
    /// folder remains.
    pub fn assert_nothing_left(&self) {
        leaks::assert_nothing_left(&self.cgroup, self.folder.path());
    }

    /// The arguments of `tatami run --rm` with the sample image.
    pub fn run_arguments(options: &[&str], command: &[&str]) -> Vec<String> {
        let image = image().display().to_string();
        // Of equal options the last counts, so a test's own comes after this one.
        let first = ["run", "--rm", "--boot-timeout", BOOT_SECONDS];
        let words = first.iter().chain(options).copied().chain([image.as_str()]).chain(command.iter().copied());
        words.map(str::to_owned).collect()
    }
}

impl Drop for Tatami {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
        leaks::kill_all(&self.cgroup);
    }
}
