//! `ctr` as the stories use it: containers by short names, answers in words that are the same for every run.

use std::cell::{Ref, RefCell};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{OURS, Stage};
use tatami_tests::daemons::{Containerd, IMAGE};
use tatami_tests::{Finished, Running};

/// How long what must come may take, on an emulated host.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long a story's command may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A server whose client was killed before it knew of it ends by itself, after a minute.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(90);

/// A containerd and the runtime that stories are told with.
pub(crate) struct Ctr {
    containerd: Rc<RefCell<Containerd>>,
    runtime: &'static str,
    story: u32,
}

impl Ctr {
    /// On `containerd`, with `runtime`.
    pub(crate) fn new(containerd: Rc<RefCell<Containerd>>, runtime: &'static str) -> Self {
        Self { containerd, runtime, story: 0 }
    }

    /// The runtime's name.
    pub(crate) fn runtime(&self) -> &'static str {
        self.runtime
    }

    /// The daemon.
    pub(crate) fn containerd(&self) -> Ref<'_, Containerd> {
        self.containerd.borrow()
    }

    /// Ends the daemon and starts it again.
    pub(crate) fn restart(&self, signal: Signal) {
        self.containerd.borrow_mut().restart(signal);
    }

    /// The id of this story's container `name`.
    pub(crate) fn id(&self, name: &str) -> String {
        let letter = if self.is_ours() { 't' } else { 'r' };
        format!("{letter}{}-{name}", self.story)
    }

    /// A folder for this story's files.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = self.containerd().home().path(&format!("scratch-{}", self.id("x")));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// `ctr WORDS…`, to its end.
    pub(crate) fn ctr(&self, words: &[&str]) -> Finished {
        Running::start(self.containerd().command(words)).finish_within(PATIENCE)
    }

    /// `ctr run OPTIONS… IMAGE ID COMMAND…`, not started.
    pub(crate) fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let id = self.id(name);
        let words = ["run", "--runtime", self.runtime].into_iter().chain(options.iter().copied());
        let words: Vec<&str> = words.chain([IMAGE, id.as_str()]).chain(command.iter().copied()).collect();
        self.containerd().command(&words)
    }

    /// The same, started.
    pub(crate) fn start(&self, name: &str, options: &[&str], command: &[&str]) -> Running {
        Running::start(self.run_command(name, options, command))
    }

    /// The same with a pipe to write to.
    pub(crate) fn start_with_input(&self, name: &str, options: &[&str], command: &[&str]) -> Running {
        let mut started = self.run_command(name, options, command);
        started.stdin(Stdio::piped());
        Running::start(started)
    }

    /// The same, to its end.
    pub(crate) fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        self.start(name, options, command).finish_within(PATIENCE)
    }

    /// A container that runs on by itself.
    ///
    /// # Panics
    /// When it does not start: the story cannot go on.
    pub(crate) fn detached(&self, name: &str, options: &[&str], command: &[&str]) {
        let options: Vec<&str> = options.iter().copied().chain(["-d", "--null-io"]).collect();
        let finished = self.run(name, &options, command);
        assert_eq!(finished.status, 0, "a detached container does not start: {}", finished.err());
    }

    /// `ctr task WORDS… ID`, to its end.
    pub(crate) fn task(&self, name: &str, words: &[&str]) -> Finished {
        let id = self.id(name);
        let words: Vec<&str> = ["task"].iter().chain(words).copied().chain([id.as_str()]).collect();
        self.ctr(&words)
    }

    /// `ctr task exec --exec-id EXEC OPTIONS… ID COMMAND…`, not started.
    pub(crate) fn exec_command(&self, name: &str, exec: &str, options: &[&str], command: &[&str]) -> Command {
        let id = self.id(name);
        let words = ["task", "exec", "--exec-id", exec].into_iter().chain(options.iter().copied());
        let words: Vec<&str> = words.chain([id.as_str()]).chain(command.iter().copied()).collect();
        self.containerd().command(&words)
    }

    /// The same, to its end.
    pub(crate) fn exec(&self, name: &str, exec: &str, options: &[&str], command: &[&str]) -> Finished {
        Running::start(self.exec_command(name, exec, options, command)).finish_within(PATIENCE)
    }

    /// What `ctr task ls` says of a container, or `none`.
    pub(crate) fn status(&self, name: &str) -> String {
        let id = self.id(name);
        let listing = self.ctr(&["task", "ls"]);
        if listing.status != 0 {
            return format!("task ls fails: {}", error(&listing));
        }
        let text = listing.out();
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(&id));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or("none").to_owned()
    }

    /// The same, once it is `wanted`, or after a while whatever it is.
    pub(crate) fn status_soon(&self, name: &str, wanted: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.status(name);
            if status == wanted || Instant::now() > deadline {
                return status;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// A container's events so far, once one of them is `last`, or after a while.
    pub(crate) fn events(&self, name: &str, last: &str) -> String {
        let id = self.id(name);
        let told = || {
            let events = self.containerd().events();
            let own = events.iter().filter(|event| event.container == id);
            own.map(|event| event.brief()).collect::<Vec<_>>()
        };
        let deadline = Instant::now() + SOON;
        while !told().iter().any(|event| event.starts_with(last)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
        // One too many would come now.
        thread::sleep(Duration::from_millis(300));
        told().join(" ")
    }

    /// Kills a detached container and removes it.
    pub(crate) fn finish(&self, name: &str) -> String {
        let killed = self.task(name, &["kill", "-s", "SIGKILL"]);
        let status = self.status_soon(name, "STOPPED");
        let removed = self.task(name, &["rm"]);
        let container = self.ctr(&["container", "rm", &self.id(name)]);
        format!("kill {}, {status}, rm {}, {}", killed.status, exit_status(&removed), error_or_ok(&container))
    }

    /// The host's process that serves a container's task: ours is the VMM's parent, others listen where the bundle says.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn server(&self, name: &str) -> i32 {
        if self.is_ours() {
            let status = fs::read_to_string(format!("/proc/{}/status", self.ground(name))).expect("the VMM is there");
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
            return parent.trim().parse().expect("a process id");
        }
        let bundle = self.containerd().bundle(&self.id(name));
        let written =
            ["address", "bootstrap.json"].map(|file| fs::read_to_string(bundle.join(file)).unwrap_or_default());
        let text = written.concat();
        let path = text.split("unix://").nth(1).expect("the bundle names a socket");
        let path = path.split(['"', '\n']).next().expect("split gives one");
        let sockets = fs::read_to_string("/proc/net/unix").expect("/proc is mounted");
        let line = sockets.lines().find(|line| line.ends_with(path)).expect("the socket is there");
        let inode = format!("socket:[{}]", line.split_whitespace().nth(6).expect("an inode"));
        let holds = |pid: i32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target.as_os_str() == inode.as_str())
        };
        let processes = self.containerd().home().processes();
        let found = processes.iter().find(|process| process.pid != self.containerd().pid() && holds(process.pid));
        found.unwrap_or_else(|| panic!("nobody listens on {path}: {processes:?}")).pid
    }

    /// What a container's processes live and die with: with runc its first process, with ours the VMM.
    ///
    /// # Panics
    /// When it is not found.
    pub(crate) fn ground(&self, name: &str) -> i32 {
        if self.is_ours() {
            let processes = self.containerd().home().processes();
            let found = processes.iter().find(|process| process.command.starts_with("tatami-vmm"));
            return found.unwrap_or_else(|| panic!("no VMM: {processes:?}")).pid;
        }
        let id = self.id(name);
        let listing = self.ctr(&["task", "ls"]).out();
        let line = listing.lines().find(|line| line.starts_with(&id)).expect("the container is listed");
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a process id")
    }
}

impl Stage for Ctr {
    fn is_ours(&self) -> bool {
        self.runtime == OURS
    }

    fn clear(&mut self) -> String {
        let own = |line: &str| {
            let id = line.split_whitespace().next().unwrap_or_default();
            id.starts_with(&self.id("")).then(|| id.to_owned())
        };
        let tasks: Vec<String> = self.ctr(&["task", "ls", "-q"]).out().lines().filter_map(own).collect();
        for id in &tasks {
            self.ctr(&["task", "kill", "-s", "SIGKILL", id]);
            self.ctr(&["task", "rm", "-f", id]);
        }
        let containers: Vec<String> = self.ctr(&["container", "ls", "-q"]).out().lines().filter_map(own).collect();
        for id in &containers {
            self.ctr(&["container", "rm", id]);
        }
        let mut left = self.containerd().remains();
        for what in ["task", "container"] {
            let listing = self.ctr(&[what, "ls", "-q"]);
            left.extend(listing.out().lines().filter_map(own).map(|id| format!("{what} {id}")));
        }
        if !left.is_empty() {
            left.push(format!("containerd's last words:\n{}", self.containerd().last_words()));
            for process in self.containerd().home().processes() {
                // What is left would be found after every other story too.
                if process.pid != self.containerd().pid() {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
            }
        }
        self.story += 1;
        left.join("\n")
    }
}

/// The exit status of a task, as `ctr task rm` tells it: in words, and only where it is not 0.
pub(crate) fn exit_status(removed: &Finished) -> String {
    let text = removed.err();
    match text.split("exit with non-zero exit code ").nth(1) {
        Some(rest) => rest.chars().take_while(char::is_ascii_digit).collect(),
        None => error_or_ok(removed).replace("ok", "0"),
    }
}

/// The kind of error that containerd's clients tell apart, as far as ctr's words tell it: 1.7's always do, 2.1's rarely.
pub(crate) fn error(finished: &Finished) -> String {
    let kinds = [
        "already exists",
        "not found",
        "failed precondition",
        "invalid argument",
        "not implemented",
        "unavailable",
        "deadline exceeded",
        "aborted",
        "unknown",
    ];
    let text = finished.err();
    let line = text.lines().rfind(|line| line.starts_with("ctr: ")).unwrap_or_default();
    let kind = kinds.iter().find(|kind| line.ends_with(*kind));
    match kind {
        Some(kind) => (*kind).to_owned(),
        None if line.is_empty() => format!("status {}", finished.status),
        None => "other".to_owned(),
    }
}

/// `ok`, or the kind of error.
pub(crate) fn error_or_ok(finished: &Finished) -> String {
    if finished.status == 0 { "ok".to_owned() } else { error(finished) }
}
