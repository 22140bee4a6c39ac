//! `podman` as the stories use it: how it names and starts containers, and what it leaves.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::Stage;
use tatami_tests::daemons::{IMAGE, Podman};
use tatami_tests::engine::Engine;

/// A Podman and the runtime that stories are told with.
pub(crate) struct Cli {
    podman: Rc<Podman>,
    runtime: &'static str,
    story: u32,
}

impl Cli {
    /// On `podman`, with `runtime`.
    pub(crate) fn new(podman: Rc<Podman>, runtime: &'static str) -> Self {
        Self { podman, runtime, story: 0 }
    }

    /// A folder for this story's files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.podman.home().path(&format!("scratch-{}", self.id("x")));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// The cgroup that containers are to be in.
    pub(crate) fn group(&self) -> String {
        format!("/{}", self.podman.home().containers_cgroup())
    }

    /// How many of the home's processes are a VMM.
    pub(crate) fn machines(&self) -> usize {
        let processes = self.podman.home().processes();
        let program = |command: &str| command.split(' ').next().unwrap_or_default().to_owned();
        processes.iter().filter(|process| program(&process.command).ends_with("tatami-vmm")).count()
    }
}

impl Stage for Cli {
    fn is_ours(&self) -> bool {
        self.runtime == Podman::OURS
    }

    fn reference(&self) -> &'static str {
        Podman::REFERENCE
    }

    fn clear(&mut self) -> String {
        self.call(&["pod", "rm", "--all", "--force", "--time", "0"]);
        self.call(&["rm", "--all", "--force", "--volumes", "--time", "0"]);
        let mut left = self.podman.remains();
        let listed = self.call(&["ps", "--all", "--quiet"]).out();
        left.extend(listed.lines().map(|id| format!("container {id}")));
        if !left.is_empty() {
            for pid in self.podman.strangers() {
                // What is left would be found after every other story too.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.story += 1;
        left.join("\n")
    }
}

impl Engine for Cli {
    fn id(&self, name: &str) -> String {
        let letter = if self.is_ours() { 't' } else { 'r' };
        format!("{letter}{}-{name}", self.story)
    }

    fn command(&self, words: &[&str]) -> Command {
        self.podman.command(&[&["--runtime", self.runtime], words].concat())
    }

    fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let (id, group) = (self.id(name), self.group());
        let names_a_network = options.iter().any(|option| matches!(*option, "--network" | "--pod"));
        let none: &[&str] = if names_a_network { &[] } else { &["--network", "none"] };
        // A pod has a cgroup of its own.
        let group: &[&str] = if options.contains(&"--pod") { &[] } else { &["--cgroup-parent", &group] };
        self.command(&[&["run", "--name", id.as_str()], none, group, options, &[IMAGE], command].concat())
    }
}
