//! The VMM's process as its parent has it: started in namespaces and a cgroup of its own from its first instruction, watched,
//! ended.
//!
//! `std::process::Command` can do neither, so this forks by itself, with clone3(2). Knows nothing of what the process does.

#![allow(unsafe_code, reason = "clone3, and what a child may do before it becomes another program")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// What a child that could not become the program exits with, as a shell does.
const NOT_EXECUTED: libc::c_int = 127;

/// `linux/sched.h`; libc's is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How to start a process.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// The file.
    pub(crate) binary: &'a Path,
    /// What it is called: its only argument.
    pub(crate) name: &'a str,
    /// Its standard input; output and errors go nowhere.
    pub(crate) stdin: OwnedFd,
    /// Whether it sees no processes but its own, which takes root.
    pub(crate) own_processes: bool,
    /// The folder of the cgroup that it belongs to; the caller's if none.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// A child. Who drops it without having waited for it leaves a zombie until it ends itself.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `program` with an empty environment, `/` as its folder, no signal blocked, and in a process group of its own: a
    /// terminal's Ctrl-C is for the container, not for the machine it runs in.
    ///
    /// # Errors
    /// When there is no process to be had. A file that cannot be executed shows as a process that ends at once, with status 127.
    pub(crate) fn spawn(program: Program<'_>) -> io::Result<Child> {
        let string = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let (binary, name) = (string(program.binary.as_os_str().as_bytes())?, string(program.name.as_bytes())?);
        let nowhere = File::options().read(true).write(true).open("/dev/null")?;
        let prepared = Prepared {
            binary: &binary,
            arguments: [name.as_ptr(), std::ptr::null()],
            environment: [std::ptr::null()],
            standard: [program.stdin.as_raw_fd(), nowhere.as_raw_fd(), nowhere.as_raw_fd()],
        };
        // SAFETY: all zeros are valid arguments: no flags, no stack, no places to write to.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        if program.own_processes {
            arguments.flags |= libc::CLONE_NEWPID as u64;
        }
        if let Some(cgroup) = program.cgroup {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: the arguments are valid. Memory is not shared with the child, which other threads' locks may be held in: it makes
        // system calls only, with what was prepared before.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) } {
            -1 => Err(io::Error::last_os_error()),
            0 => prepared.become_it(),
            pid => Ok(Child { pid: pid as libc::pid_t, status: None }),
        }
    }

    /// The process id, as this process sees it.
    pub(crate) fn id(&self) -> u32 {
        self.pid as u32
    }

    /// Kills it, if it still lives.
    pub(crate) fn kill(&self) {
        if self.status.is_none() {
            // SAFETY: until it is waited for, nobody else has this number.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When somebody else has waited for it.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let mut status = 0;
        // SAFETY: the status is written to a place that is there.
        while unsafe { libc::waitpid(self.pid, &mut status, 0) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(*self.status.insert(ExitStatus::from_raw(status)))
    }
}

/// All that the child needs, so that it need not ask for memory.
struct Prepared<'a> {
    binary: &'a CString,
    arguments: [*const libc::c_char; 2],
    environment: [*const libc::c_char; 1],
    standard: [RawFd; 3],
}

impl Prepared<'_> {
    /// In the child: becomes the program or ends.
    fn become_it(&self) -> ! {
        // SAFETY: system calls with valid arguments. The descriptors are above 2, because Rust's programs have those three open.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::setpgid(0, 0);
            let placed = self.standard.iter().zip(0..).all(|(from, to)| libc::dup2(*from, to) == to);
            if placed && libc::chdir(c"/".as_ptr()) == 0 {
                libc::execve(self.binary.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
            }
            libc::_exit(NOT_EXECUTED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn start(binary: &str, stdin: OwnedFd, own_processes: bool) -> Child {
        Child::spawn(Program { binary: Path::new(binary), name: "test", stdin, own_processes, cgroup: None }).unwrap()
    }

    #[test]
    fn a_child_has_nothing_of_its_parents_but_what_it_was_given() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let script =
            b"echo env $(tr '\\0' ' ' </proc/$$/environ) in $(pwd) out $(readlink /proc/$$/fd/1) >&0; exit 3\n";
        std::io::Write::write_all(&mut ours, script).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut child = start("/bin/sh", theirs.into(), false);
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(child.wait().unwrap().code(), Some(3), "asked again");
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "env in / out /dev/null\n");
    }

    #[test]
    fn what_cannot_be_executed_ends_at_once_and_what_is_killed_says_so() {
        let mut child = start("/no/such/file", File::open("/dev/null").unwrap().into(), false);
        assert_eq!(child.wait().unwrap().code(), Some(NOT_EXECUTED));
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut child = start("/bin/cat", theirs.into(), false);
        child.kill();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        child.kill();
    }
}
