//! `podman` as the stories use it: containers by short names, answers in words that are the same for every run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::Stage;
use tatami_tests::daemons::{IMAGE, Podman};
use tatami_tests::{Finished, Running};

/// How long what must come may take, on an emulated host.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// How long a story's command may take.
const PATIENCE: Duration = Duration::from_secs(180);

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

    /// The name of this story's container `name`.
    pub(crate) fn id(&self, name: &str) -> String {
        let letter = if self.is_ours() { 't' } else { 'r' };
        format!("{letter}{}-{name}", self.story)
    }

    /// A folder for this story's files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.podman.home().path(&format!("scratch-{}", self.id("x")));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// `podman WORDS…`, not started.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.podman.command(&[&["--runtime", self.runtime], words].concat())
    }

    /// `podman WORDS…`, to its end.
    pub(crate) fn podman(&self, words: &[&str]) -> Finished {
        Running::start(self.command(words)).finish_within(PATIENCE)
    }

    /// `podman run --name NAME OPTIONS… IMAGE COMMAND…`, not started.
    pub(crate) fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let (id, group) = (self.id(name), self.group());
        let names_a_network = options.iter().any(|option| matches!(*option, "--network" | "--pod"));
        let none: &[&str] = if names_a_network { &[] } else { &["--network", "none"] };
        // A pod has a cgroup of its own.
        let group: &[&str] = if options.contains(&"--pod") { &[] } else { &["--cgroup-parent", &group] };
        self.command(&[&["run", "--name", id.as_str()], none, group, options, &[IMAGE], command].concat())
    }

    /// The cgroup that containers are to be in.
    pub(crate) fn group(&self) -> String {
        format!("/{}", self.podman.home().containers_cgroup())
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
        let finished = self.run(name, &[options, &["--detach"]].concat(), command);
        assert_eq!(finished.status, 0, "a detached container does not start: {}", finished.err());
    }

    /// `podman exec OPTIONS… NAME COMMAND…`, to its end.
    pub(crate) fn exec(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        let id = self.id(name);
        self.podman(&[&["exec"], options, &[id.as_str()], command].concat())
    }

    /// `podman WORDS… NAME`: its status, and its error if it has one.
    pub(crate) fn on(&self, name: &str, words: &[&str]) -> String {
        let id = self.id(name);
        let finished = self.podman(&[words, &[id.as_str()]].concat());
        if finished.status == 0 {
            "ok".to_owned()
        } else {
            format!("{}: {}", finished.status, self.plain(&finished.err()))
        }
    }

    /// What `podman inspect` says by a template.
    pub(crate) fn inspect(&self, name: &str, template: &str) -> String {
        let finished = self.podman(&["inspect", "--format", template, &self.id(name)]);
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

    /// How many of the home's processes are a VMM.
    pub(crate) fn machines(&self) -> usize {
        let processes = self.podman.home().processes();
        let program = |command: &str| command.split(' ').next().unwrap_or_default().to_owned();
        processes.iter().filter(|process| program(&process.command).ends_with("tatami-vmm")).count()
    }

    /// A text without the names of this story.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.id(""), "").trim().to_owned()
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
        self.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        self.podman(&["rm", "--all", "--force", "--volumes", "--time", "0"]);
        let mut left = self.podman.remains();
        let listed = self.podman(&["ps", "--all", "--quiet"]).out();
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
