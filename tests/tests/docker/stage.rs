//! `docker` as the stories use it: how it names and starts containers, and what it leaves.

use std::cell::{Ref, RefCell};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{REFERENCE, Stage};
use tatami_tests::daemons::{Docker, IMAGE};
use tatami_tests::engine::Engine;

/// A Docker and the runtime that stories are told with.
pub(crate) struct Cli {
    docker: Rc<RefCell<Docker>>,
    runtime: &'static str,
    story: u32,
}

impl Cli {
    /// On `docker`, with `runtime`.
    pub(crate) fn new(docker: Rc<RefCell<Docker>>, runtime: &'static str) -> Self {
        Self { docker, runtime, story: 0 }
    }

    /// The daemon.
    pub(crate) fn daemon(&self) -> Ref<'_, Docker> {
        self.docker.borrow()
    }

    /// A folder for this story's files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.daemon().containerd().home().path(&format!("scratch-{}", self.id("x")));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// Ends dockerd with `signal`, does `meanwhile`, and starts it again.
    pub(crate) fn restart(&self, signal: Signal, meanwhile: impl FnOnce()) {
        self.docker.borrow_mut().restart(signal, meanwhile);
    }

    /// What a container's processes live in: with ours the VMM, with the reference the container's first process.
    ///
    /// # Panics
    /// When it is not there. The container must be the only one.
    pub(crate) fn ground(&self, name: &str) -> i32 {
        if self.is_ours() { self.process("tatami-vmm") } else { self.first_process(name) }
    }

    /// The shim that serves a container.
    ///
    /// # Panics
    /// When it is not there. The container must be the only one.
    pub(crate) fn server(&self, name: &str) -> i32 {
        if self.is_ours() { self.first_process(name) } else { self.process("containerd-shim-runc-v2") }
    }

    /// The process on the host that Docker takes for a container's first.
    pub(crate) fn first_process(&self, name: &str) -> i32 {
        self.inspect(name, "{{.State.Pid}}").parse().expect("a process id")
    }

    fn process(&self, program: &str) -> i32 {
        let processes = self.daemon().containerd().home().processes();
        let runs = |command: &str| {
            let path = command.split(' ').next().unwrap_or_default();
            path.rsplit('/').next().is_some_and(|name| name.starts_with(program))
        };
        let found = processes.iter().find(|process| runs(&process.command));
        found.unwrap_or_else(|| panic!("no {program}: {processes:?}")).pid
    }
}

impl Stage for Cli {
    fn is_ours(&self) -> bool {
        self.runtime != REFERENCE
    }

    fn clear(&mut self) -> String {
        let filter = format!("name={}", self.id(""));
        let list = || {
            let listing = self.call(&["ps", "--all", "--quiet", "--filter", &filter]).out();
            listing.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for id in list() {
            self.call(&["rm", "--force", "--volumes", &id]);
        }
        let mut left = self.daemon().remains();
        left.extend(list().into_iter().map(|id| format!("container {id}")));
        if !left.is_empty() {
            left.push(format!("dockerd's last words:\n{}", self.daemon().last_words()));
            left.push(format!("containerd's last words:\n{}", self.daemon().containerd().last_words()));
            for pid in self.daemon().strangers() {
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
        self.daemon().command(words)
    }

    fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let id = self.id(name);
        // Of equal options the last counts, except of this one.
        let none: &[&str] = if options.contains(&"--network") { &[] } else { &["--network", "none"] };
        let first = ["run", "--runtime", self.runtime, "--name", id.as_str()];
        self.command(&[&first, none, options, &[IMAGE], command].concat())
    }
}
