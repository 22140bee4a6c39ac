//! Starts one command: its terminal or pipes, its process group, its control group.
//!
//! It does not know of connections; `session.rs` joins the two.
#![allow(unsafe_code, reason = "pre_exec: the child becomes a session leader between fork and exec")]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;
use tatami_testhost::wire::{Run, Size};

use crate::boot;

/// Bytes that a pipe holds: fewer switches between the command and us under emulation.
pub(crate) const PIPE_SIZE: usize = 1 << 20;

/// A command that runs.
pub(crate) struct Started {
    /// The process; also the number of its process group.
    pub(crate) child: Child,
    /// Where its input goes.
    pub(crate) stdin: OwnedFd,
    /// Where its output comes from.
    pub(crate) stdout: OwnedFd,
    /// Where its error output comes from; a terminal has none apart.
    pub(crate) stderr: Option<OwnedFd>,
    /// All it started, however far it forked.
    pub(crate) cgroup: Cgroup,
}

/// Why a command did not start: the status by the shells' convention, and one line.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// 127 not found, 126 not executable, 125 our own failure.
    pub(crate) status: i32,
    /// What and why.
    pub(crate) message: String,
}

/// Starts what the client asked for.
///
/// # Errors
/// [`NotStarted`].
pub(crate) fn start(run: &Run) -> Result<Started, NotStarted> {
    let Some((program, arguments)) = run.argv.split_first() else {
        return Err(NotStarted { status: 125, message: "no command given".to_owned() });
    };
    let own = |what: &str, e: &dyn std::fmt::Display| NotStarted { status: 125, message: format!("{what}: {e}") };
    let cwd = Path::new(OsStr::from_bytes(&run.cwd));
    if !cwd.is_dir() {
        return Err(own(&cwd.display().to_string(), &"there is no such folder in the test host"));
    }
    let cgroup = Cgroup::create().map_err(|e| own("making a control group", &e))?;
    let mut command = Command::new(OsStr::from_bytes(program));
    command
        .args(arguments.iter().map(|a| OsStr::from_bytes(a)))
        .env_clear()
        .envs(boot::ENVIRONMENT)
        .envs(run.env.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))))
        .current_dir(cwd);
    let terminal = match run.terminal {
        Some(size) => Some(give_terminal(&mut command, size).map_err(|e| own("opening a terminal", &e))?),
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    detach(&mut command, terminal.is_some(), &cgroup).map_err(|e| own("entering the control group", &e))?;
    let mut child = command.spawn().map_err(|e| NotStarted {
        status: if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 },
        message: format!("{}: {e}", OsStr::from_bytes(program).display()),
    })?;
    let (stdin, stdout, stderr) = match terminal {
        Some(master) => {
            let input = master.try_clone().map_err(|e| own("terminal", &e))?;
            (input, master, None)
        }
        None => {
            let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
                return Err(own("pipes", &"not opened"));
            };
            (OwnedFd::from(stdin), OwnedFd::from(stdout), Some(OwnedFd::from(stderr)))
        }
    };
    for pipe in [Some(&stdin), Some(&stdout), stderr.as_ref()].into_iter().flatten() {
        // Only speed depends on it, and terminals have no such size.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE as i32));
    }
    Ok(Started { child, stdin, stdout, stderr, cgroup })
}

/// Tells a terminal its size; the kernel sends SIGWINCH to those who are in its foreground.
pub(crate) fn resize(terminal: impl AsFd, size: Size) {
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // Nothing but a terminal comes here, and a terminal takes any size.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// Returns the terminal's other end.
fn give_terminal(command: &mut Command, size: Size) -> io::Result<OwnedFd> {
    let pty = openpty(None, None)?;
    resize(&pty.master, size);
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
    Ok(pty.master)
}

/// A session and process group of its own, its terminal if it has one, and its control group.
fn detach(command: &mut Command, terminal: bool, cgroup: &Cgroup) -> io::Result<()> {
    let procs = OpenOptions::new().write(true).open(cgroup.0.join("cgroup.procs"))?;
    let enter = move || {
        // Order: a process that joined is covered by the group's kill whatever it does next.
        (&procs).write_all(b"0")?;
        nix::unistd::setsid()?;
        if terminal {
            // Descriptor 0 is the terminal, set up by then.
            rustix::process::ioctl_tiocsctty(io::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made: write, setsid, ioctl.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Groups that still had background processes when their command ended.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A control group that holds one command and all its descendants.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).retain(|left| fs::remove_dir(left).is_err());
        let path = Path::new(boot::COMMAND_CGROUPS).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        let written = File::options().write(true).open(self.0.join("cgroup.kill")).and_then(|mut f| f.write_all(b"1"));
        if let Err(e) = written {
            eprintln!("testhost-init: {}: {e}", self.0.display());
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while background processes live in it: the next command tries again.
        if fs::remove_dir(&self.0).is_err() {
            LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
        }
    }
}
