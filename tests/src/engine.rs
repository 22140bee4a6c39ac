//! An engine's command line (`docker`, `podman`) as stories use it: containers by short names, answers in words that are the same for every run.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::compare::{Notes, Stage};
use crate::{Finished, Running};

/// How long what must come may take, on an emulated host.
pub const SOON: Duration = Duration::from_secs(60);
/// How long a story's command may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// An engine, and the runtime that stories are told with.
pub trait Engine: Stage {
    /// The name of this story's container `name`.
    fn id(&self, name: &str) -> String;

    /// `ENGINE WORDS…`, not started.
    fn command(&self, words: &[&str]) -> Command;

    /// `ENGINE run --name NAME OPTIONS… IMAGE COMMAND…`, not started.
    fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Command;

    /// `ENGINE WORDS…`, to its end.
    fn call(&self, words: &[&str]) -> Finished {
        Running::start(self.command(words)).finish_within(PATIENCE)
    }

    /// `ENGINE run …`, to its end.
    fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        Running::start(self.run_command(name, options, command)).finish_within(PATIENCE)
    }

    /// A container that runs on by itself.
    ///
    /// # Panics
    /// When it does not start: the story cannot go on.
    fn detached(&self, name: &str, options: &[&str], command: &[&str]) {
        let finished = self.run(name, &[options, &["--detach"]].concat(), command);
        assert_eq!(finished.status, 0, "a detached container does not start: {}", finished.err());
    }

    /// `ENGINE exec OPTIONS… NAME COMMAND…`, to its end.
    fn exec(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        let id = self.id(name);
        self.call(&[&["exec"], options, &[id.as_str()], command].concat())
    }

    /// `ENGINE WORDS… NAME`: its status, and its error if it has one.
    fn on(&self, name: &str, words: &[&str]) -> String {
        let id = self.id(name);
        let finished = self.call(&[words, &[id.as_str()]].concat());
        if finished.status == 0 {
            "ok".to_owned()
        } else {
            format!("{}: {}", finished.status, self.plain(&finished.err()))
        }
    }

    /// What `ENGINE inspect` says by a template.
    fn inspect(&self, name: &str, template: &str) -> String {
        let finished = self.call(&["inspect", "--format", template, &self.id(name)]);
        if finished.status == 0 { finished.out().trim().to_owned() } else { self.plain(&finished.err()) }
    }

    /// The same, once it is `wanted`, or after a while whatever it is.
    fn inspect_until(&self, name: &str, template: &str, wanted: &str) -> String {
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
    fn wait_for_file(&self, name: &str, path: &str) {
        let script = format!("i=0; until test -e {path} || test $i -gt 300; do i=$((i+1)); sleep 0.1; done");
        self.exec(name, &[], &["sh", "-c", &script]);
    }

    /// A text without the names of this story.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.id(""), "").trim().to_owned()
    }
}

/// A story: a root that is only read, and a folder in memory on it.
pub fn read_only(cli: &mut impl Engine, notes: &mut Notes) {
    let options = ["--rm", "--read-only", "--tmpfs", "/tmp"];
    let finished = cli.run("a", &options, &["sh", "-c", "touch /file; touch /tmp/file && echo but here"]);
    notes.want("output", finished.out(), "but here\n");
    notes.want("errors", finished.err(), "touch: /file: Read-only file system\n");
}

/// A story: the engine's own program, by this name, is the container's first.
pub fn init(cli: &mut impl Engine, notes: &mut Notes, program: &str) {
    // A grandchild that outlives its parent and ends: without an init it stays a zombie.
    let script = "sh -c 'sleep 0.2 &'; sleep 1; cat /proc/1/comm; ps -o stat | grep -c Z";
    let finished = cli.run("a", &["--rm", "--init"], &["sh", "-c", script]);
    notes.want("output", finished.out(), format!("{program}\n0\n"));
}
