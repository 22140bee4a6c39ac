//! `docker` as the stories use it: containers by short names, answers in words that are the same for every run.

use std::cell::{Ref, RefCell};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{REFERENCE, Stage};
use tatami_tests::daemons::{Docker, IMAGE};
use tatami_tests::{Finished, Running};

/// How long what must come may take, on an emulated host.
pub(crate) const SOON: Duration = Duration::from_secs(40);
/// How long a story's command may take.
const PATIENCE: Duration = Duration::from_secs(120);

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

    /// The name of this story's container `name`.
    pub(crate) fn id(&self, name: &str) -> String {
        let letter = if self.is_ours() { 't' } else { 'r' };
        format!("{letter}{}-{name}", self.story)
    }

    /// A folder for this story's files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.daemon().containerd().home().path(&format!("scratch-{}", self.id("x")));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// `docker WORDS…`, to its end.
    pub(crate) fn docker(&self, words: &[&str]) -> Finished {
        Running::start(self.daemon().command(words)).finish_within(PATIENCE)
    }

    /// `docker run --name NAME OPTIONS… IMAGE COMMAND…`, not started.
    pub(crate) fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let id = self.id(name);
        // Of equal options the last counts, except of this one.
        let none: &[&str] = if options.contains(&"--network") { &[] } else { &["--network", "none"] };
        let first = [&["run", "--runtime", self.runtime, "--name", id.as_str()], none].concat();
        let words: Vec<&str> =
            first.into_iter().chain(options.iter().copied()).chain([IMAGE]).chain(command.iter().copied()).collect();
        self.daemon().command(&words)
    }

    /// The same, to its end.
    pub(crate) fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        Running::start(self.run_command(name, options, command)).finish_within(PATIENCE)
    }

    /// A container that runs on by itself.
    ///
    /// # Panics
    /// When it does not start: the story cannot go on.
    pub(crate) fn detached(&self, name: &str, options: &[&str], command: &[&str]) {
        let options: Vec<&str> = options.iter().copied().chain(["--detach"]).collect();
        let finished = self.run(name, &options, command);
        assert_eq!(finished.status, 0, "a detached container does not start: {}", finished.err());
    }

    /// `docker exec OPTIONS… NAME COMMAND…`, to its end.
    pub(crate) fn exec(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        let id = self.id(name);
        let words: Vec<&str> =
            ["exec"].iter().chain(options).copied().chain([id.as_str()]).chain(command.iter().copied()).collect();
        self.docker(&words)
    }

    /// `docker WORDS… NAME`: its status, and its error if it has one.
    pub(crate) fn on(&self, name: &str, words: &[&str]) -> String {
        let id = self.id(name);
        let words: Vec<&str> = words.iter().copied().chain([id.as_str()]).collect();
        let finished = self.docker(&words);
        if finished.status == 0 {
            "ok".to_owned()
        } else {
            format!("{}: {}", finished.status, self.plain(&finished.err()))
        }
    }

    /// What `docker inspect` says by a template.
    pub(crate) fn inspect(&self, name: &str, template: &str) -> String {
        let finished = self.docker(&["inspect", "--format", template, &self.id(name)]);
        if finished.status == 0 { finished.out().trim().to_owned() } else { self.plain(&finished.err()) }
    }

    /// The same, once it is `wanted`, or after a while whatever it is.
    pub(crate) fn inspect_until(&self, name: &str, template: &str, wanted: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let seen = self.inspect(name, template);
            if seen == wanted || Instant::now() > deadline {
                return seen;
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until a file is there in the container.
    pub(crate) fn wait_for_file(&self, name: &str, path: &str) {
        let script = format!("i=0; until test -e {path} || test $i -gt 300; do i=$((i+1)); sleep 0.1; done");
        self.exec(name, &[], &["sh", "-c", &script]);
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

    /// A text without the names of this story.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.id(""), "").trim().to_owned()
    }
}

impl Stage for Cli {
    fn is_ours(&self) -> bool {
        self.runtime != REFERENCE
    }

    fn clear(&mut self) -> String {
        let filter = format!("name={}", self.id(""));
        let list = || {
            let listing = self.docker(&["ps", "--all", "--quiet", "--filter", &filter]).out();
            listing.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for id in list() {
            self.docker(&["rm", "--force", "--volumes", &id]);
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
