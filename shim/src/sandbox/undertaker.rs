//! The process that outlives the server: removes the sandbox's folders whatever happened to it.
//!
//! Forked before the server has threads, a mount namespace of its own, or anything else that could be left behind. So it
//! sees none of the sandbox's mounts and can remove what lies below their mount points. It waits for the end of a pipe, which closes when the server ends in any way.
//! It is the only one that removes, so that there is one path and not two. Knows nothing of VMs.

#![allow(unsafe_code, reason = "fork, and closing descriptors that this process does not own by type")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::termios::{SetArg, Termios};
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid};

use super::folder::Lot;

/// What the server writes before it closes the pipe in good order.
const ORDERLY: u8 = b'.';
/// How often, and how far apart, removal is tried: a VMM that dies with the server may still be writing for a moment.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// The server's handle on its undertaker.
#[derive(Debug)]
pub(super) struct Undertaker {
    pid: Pid,
    pipe: Option<File>,
}

impl Undertaker {
    /// Starts the process. If `terminal` is given, it is set to those attributes should the server die in disorder.
    ///
    /// Call it before the first thread is started and before the mount namespace is left.
    ///
    /// # Errors
    /// When the operating system has no pipe or process to give.
    pub(super) fn start(lot: &Lot, terminal: Option<(OwnedFd, Termios)>) -> io::Result<Undertaker> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: the process has one thread, so the child may do whatever the parent could.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => Ok(Undertaker { pid: child, pipe: Some(File::from(writer)) }),
            ForkResult::Child => {
                drop(writer);
                let status = wait_and_bury(File::from(reader), lot, terminal);
                // SAFETY: ends the process at once, without running what the server registered for its own end.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Lets it work now and waits until nothing is left.
    ///
    /// # Errors
    /// When something could not be removed.
    pub(super) fn bury(mut self) -> io::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(mut pipe) = self.pipe.take() else { return Ok(()) };
        // It may have died: the wait below tells.
        let _ = pipe.write_all(&[ORDERLY]);
        drop(pipe);
        match nix::sys::wait::waitpid(self.pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            status => Err(io::Error::other(format!("the process that removes the sandbox's folders: {status:?}"))),
        }
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            log::warn!("the sandbox's folders may not be removed: {error}");
        }
    }
}

/// The life of the child; returns its exit status.
fn wait_and_bury(mut pipe: File, lot: &Lot, terminal: Option<(OwnedFd, Termios)>) -> i32 {
    detach(&pipe, terminal.as_ref().map(|(fd, _)| fd));
    let mut word = [0; 1];
    let orderly = loop {
        match pipe.read(&mut word) {
            Ok(0) => break false,
            Ok(_) if word[0] == ORDERLY => break true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break false,
        }
    };
    if let (false, Some((fd, attributes))) = (orderly, &terminal) {
        let _ = nix::sys::termios::tcsetattr(fd, SetArg::TCSADRAIN, attributes);
    }
    for _ in 0..ATTEMPTS {
        if lot.clear().is_ok() {
            return 0;
        }
        std::thread::sleep(PAUSE);
    }
    1
}

/// Leaves everything of the caller's behind: session, signals, folder, descriptors.
fn detach(pipe: &File, terminal: Option<&OwnedFd>) {
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"tatami-remover");
    let _ = nix::unistd::chdir(Path::new("/"));
    let caught = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTOU,
    ];
    for signal in caught {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
    }
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // Whoever reads the caller's output waits for its end: nothing of it may stay open here.
    let mut kept: Vec<i32> = terminal.map(AsRawFd::as_raw_fd).into_iter().chain([pipe.as_raw_fd()]).collect();
    kept.sort_unstable();
    let mut first = 0u32;
    for fd in kept.iter().map(|&fd| fd as u32).chain([u32::MAX]) {
        if fd > first {
            // SAFETY: closes only descriptors that nothing in this child uses from here on.
            unsafe { libc::close_range(first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::{Folder, Places};
    use super::*;

    // `fork` in a test process with threads: the child allocates, which glibc's malloc allows after fork.
    fn start(dir: &Path) -> (Undertaker, Folder) {
        let places = Places { root: dir.join("root"), state: dir.join("state") };
        let lot = Lot::choose(&places).unwrap();
        let undertaker = Undertaker::start(&lot, None).unwrap();
        (undertaker, Folder::create(&places, lot, None).unwrap())
    }

    #[test]
    fn folders_go_when_the_server_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (undertaker, folder) = start(dir.path());
        std::fs::create_dir_all(folder.data().join("upper/etc")).unwrap();
        assert!(folder.data().exists());
        undertaker.bury().unwrap();
        assert!(!folder.data().exists() && !folder.state().exists());
    }

    #[test]
    fn folders_go_when_the_server_dies() {
        let dir = tempfile::tempdir().unwrap();
        let (mut undertaker, folder) = start(dir.path());
        // What the kernel does for a server that was killed.
        drop(undertaker.pipe.take());
        assert!(matches!(nix::sys::wait::waitpid(undertaker.pid, None).unwrap(), WaitStatus::Exited(_, 0)));
        assert!(!folder.data().exists() && !folder.state().exists());
    }
}
