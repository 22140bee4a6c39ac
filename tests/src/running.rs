//! A command that runs, and what it left when it ended: its streams are read all along, so it never blocks on the test.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// A command under way.
pub struct Running {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    started: Instant,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit status as a shell gives it: 128 + n for signal n.
    pub status: i32,
    /// Everything it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

/// Reads a stream to its end on a thread of its own.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts `command`, whose streams are pipes.
    pub fn start(mut command: Command) -> Self {
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Collector::start(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Collector::start(child.stderr.take().expect("stderr is a pipe"));
        Self { child, stdout, stderr, started }
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the process is there");
    }

    /// Its standard input, where it was given a pipe.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is a pipe")
    }

    /// Waits until `text` stands in what it wrote to its standard output.
    pub fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&self.stdout.bytes.lock().expect("not poisoned")).contains(text) {
            assert!(Instant::now() < deadline, "{text:?} did not come; stderr: {}", self.stderr.text());
            assert!(!self.stdout.thread.is_finished(), "ended without {text:?}; stderr: {}", self.stderr.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Feeds `bytes` to its standard input, then waits for its end.
    pub fn finish_with_input(mut self, bytes: Vec<u8>) -> Finished {
        let mut stdin = self.take_stdin();
        let writer = thread::spawn(move || stdin.write_all(&bytes));
        let finished = self.finish();
        // A command may end without reading it all.
        let _ = writer.join().expect("the writer does not panic");
        finished
    }

    /// What it has written to its standard output so far.
    pub fn out_so_far(&self) -> String {
        self.stdout.text()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes longer than [`PATIENCE`].
    pub fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes longer than `patience`, counted from its start.
    pub fn finish_within(mut self, patience: Duration) -> Finished {
        let deadline = self.started + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().expect("a child can be killed");
                self.child.wait().expect("a child can be waited for");
                panic!("still running after {patience:?}; stderr: {}", self.stderr.text());
            }
            thread::sleep(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Finished { status, stdout: self.stdout.finish(), stderr: self.stderr.finish(), took }
    }
}

impl Finished {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless it ended with `status`; gives itself back.
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.out(), self.err());
        self
    }

    /// Fails the test unless it ended with `status` and one line on standard error that holds every one of `words`.
    pub fn expect_error(self, status: i32, words: &[&str]) -> Self {
        let finished = self.expect_status(status);
        let text = finished.err();
        let line = text
            .lines()
            .find(|line| line.starts_with("tatami: "))
            .unwrap_or_else(|| panic!("no error line in: {text}"));
        for word in words {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
        finished
    }
}

impl Collector {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                sink.lock().expect("not poisoned").extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("not poisoned")).into_owned()
    }

    /// Everything up to the end of the stream. A process left behind that holds the stream open must not hang the test.
    fn finish(self) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "a process left behind holds the command's output open");
            thread::sleep(Duration::from_millis(5));
        }
        std::mem::take(&mut self.bytes.lock().expect("not poisoned"))
    }
}

/// What a program of the host's says that has to do its work: its standard output, without the line's end.
///
/// # Panics
/// With its words when it fails.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}", words.trim());
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
