//! Has a process join a running container: its namespaces, its control group, and all that a process is given by the
//! specification, then the command.
//!
//! libcontainer's own way of joining leaves out the user namespace and the seccomp profile. The creator enters the namespaces
//! and forks once, straight into the group; the child becomes the command.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxPersonality, LinuxSeccomp, Process};
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{apparmor, seccomp};
use rustix::fs::{CWD, Mode, OFlags, Uid, fchown, fstatfs, openat};
use rustix::process::{Pid, PidfdFlags, ioctl_tiocsctty, pidfd_open, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces, set_no_new_privs};
use serde::{Deserialize, Serialize};
use tatami_files::Order;

use crate::executor::{execute, set_size};
use crate::wire::{Report, STREAMS, Terminal, send_fd, send_report};
use crate::{copy, priority, rights, syscalls};

/// `f_type` of devpts, from the kernel's magic.h.
const DEVPTS: i64 = 0x1cd1;
/// No honest /etc/passwd is longer, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// What a process that joins is made from: its own description, and what it shares with the container's first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Joining {
    pub(crate) process: Process,
    pub(crate) shared: Shared,
    /// The container's first process, in the guest's first pid namespace.
    pub(crate) init: i32,
    /// The folder of the container's control group.
    pub(crate) cgroup: PathBuf,
}

/// What every process of a container has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shared {
    /// `CLONE_NEW*` of each namespace that the specification names.
    pub(crate) namespaces: u32,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) personality: Option<LinuxPersonality>,
}

impl Shared {
    /// The flags of `namespaces`.
    pub(crate) fn flags(namespaces: &[LinuxNamespace]) -> u32 {
        namespaces.iter().map(|namespace| flag(namespace.typ()).bits()).fold(0, |flags, flag| flags | flag)
    }
}

fn flag(kind: LinuxNamespaceType) -> ThreadNameSpaceType {
    match kind {
        LinuxNamespaceType::Mount => ThreadNameSpaceType::MOUNT,
        LinuxNamespaceType::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
        LinuxNamespaceType::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        LinuxNamespaceType::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        LinuxNamespaceType::User => ThreadNameSpaceType::USER,
        LinuxNamespaceType::Pid => ThreadNameSpaceType::PROCESS_ID,
        LinuxNamespaceType::Network => ThreadNameSpaceType::NETWORK,
        LinuxNamespaceType::Time => ThreadNameSpaceType::TIME,
    }
}

/// Forks the process that `file` describes. It reports over `report` why it does not become its command.
///
/// # Errors
/// Why there is no such process.
pub(crate) fn join(
    file: &Path,
    terminal: &Option<Terminal>,
    streams: Vec<OwnedFd>,
    report: &OwnedFd,
) -> Result<i32, String> {
    let joining: Joining = fs::read(file)
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from))
        .map_err(said("read the process's description"))?;
    let console = terminal.as_ref().map(|terminal| UnixStream::connect(&terminal.socket)).transpose();
    let console = console.map_err(said("connect to the terminal's socket"))?;
    let init = member(joining.init, &joining.cgroup).map_err(said("find the container's first process"))?;
    let cgroup = File::open(&joining.cgroup).map_err(said("open the container's control group"))?.into();
    // All that takes rights over the guest, or its /proc, comes before the namespaces are entered.
    let process = &joining.process;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(said("set oomScoreAdj"))?;
    }
    priority::set(process)?;
    let syscall = create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(said(&format!("set the limit {}", limit.typ())))?;
    }
    let all = ThreadNameSpaceType::from_bits_retain(joining.shared.namespaces);
    // The group's namespace last, from inside the group: seen from within, the group we come from is out of reach.
    let first = all - ThreadNameSpaceType::CONTROL_GROUP;
    if !first.is_empty() {
        move_into_thread_name_spaces(init.as_fd(), first).map_err(said("enter the container's namespaces"))?;
    }
    let pid = syscalls::fork_into(&cgroup).map_err(said("fork into the container"))?;
    if pid == 0 {
        let child = Child { joining, init, syscall, report, streams, console, terminal };
        child.run();
    }
    Ok(pid)
}

/// The process `pid`, which must be in the group: the number may have passed on to a stranger.
fn member(pid: i32, cgroup: &Path) -> io::Result<OwnedFd> {
    let ended = || io::Error::from_raw_os_error(libc::ESRCH);
    let handle = pidfd_open(Pid::from_raw(pid).ok_or_else(ended)?, PidfdFlags::empty())?;
    let listing = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = listing.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    // The path in the hierarchy, which need not be mounted from its top.
    let wanted = cgroup.strip_prefix(crate::cgroup::ROOT).unwrap_or(cgroup);
    if format!("{group}/").contains(&format!("/{}/", wanted.display())) { Ok(handle) } else { Err(ended()) }
}

/// The forked process, until it becomes its command.
struct Child<'a> {
    joining: Joining,
    init: OwnedFd,
    syscall: Box<dyn Syscall>,
    report: &'a OwnedFd,
    streams: Vec<OwnedFd>,
    console: Option<UnixStream>,
    terminal: &'a Option<Terminal>,
}

impl Child<'_> {
    fn run(mut self) -> ! {
        match self.prepare() {
            Ok(environment) => {
                if let Some(order) = self.joining.process.args().as_deref().and_then(Order::of) {
                    std::process::exit(copy::carry_out(&order));
                }
                execute(&self.joining.process, environment, self.report);
            }
            // If the agent is gone, so is the guest.
            Err(message) => drop(send_report(self.report, &Report::Failed { message })),
        }
        std::process::exit(1)
    }

    /// Becomes what the description says, in the order in which each step still has the rights it needs.
    fn prepare(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let Shared { namespaces, .. } = self.joining.shared;
        let namespaces = ThreadNameSpaceType::from_bits_retain(namespaces);
        let group = namespaces & ThreadNameSpaceType::CONTROL_GROUP;
        if !group.is_empty() {
            move_into_thread_name_spaces(self.init.as_fd(), group).map_err(said("enter the cgroup namespace"))?;
        }
        setsid().map_err(said("start a session"))?;
        if namespaces.contains(ThreadNameSpaceType::USER) {
            // The root we were is nobody here. A namespace without a root of its own leaves us nobody, with all rights.
            let _ = rights::set_ids(0, 0);
        }
        self.connect_streams().map_err(said("set up standard streams"))?;
        let process = &self.joining.process;
        let protected = process.no_new_privileges() == Some(true);
        if protected {
            set_no_new_privs(true).map_err(said("set noNewPrivileges"))?;
        }
        if let Some(personality) = &self.joining.shared.personality {
            priority::set_personality(personality, &*self.syscall)?;
        }
        if let Some(profile) = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty()) {
            apparmor::apply_profile(profile).map_err(said("apply the AppArmor profile"))?;
        }
        if let Some(mask) = process.user().umask() {
            umask(Mode::from_bits_truncate(mask));
        }
        let environment = environment(process);
        let entered = enter(process.cwd());
        let user = process.user();
        rights::become_user(user).map_err(said(&format!("become user {}:{}", user.uid(), user.gid())))?;
        self.syscall.close_range(0).map_err(said("close descriptors"))?;
        let filter = || match &self.joining.shared.seccomp {
            Some(profile) => seccomp::initialize_seccomp(profile).map(drop).map_err(said("load the seccomp profile")),
            None => Ok(()),
        };
        // Without noNewPrivileges a filter takes the rights that are dropped next; with it, the later the better.
        if !protected {
            filter()?;
        }
        if let Some(wanted) = process.capabilities() {
            rights::limit(wanted).map_err(said("limit capabilities"))?;
        }
        // Root without its overriding capabilities may be let in where it was not, as when the folder is on a user's share.
        entered.or_else(|_| enter(process.cwd())).map_err(said(&format!("enter {}", process.cwd().display())))?;
        std::env::current_dir().map_err(said("find out where the working folder is"))?;
        if protected {
            filter()?;
        }
        Ok(environment)
    }

    fn connect_streams(&mut self) -> io::Result<()> {
        let streams = match (&self.console, &self.terminal) {
            (Some(console), Some(terminal)) => {
                let slave = open_terminal(console, self.joining.process.user().uid())?;
                ioctl_tiocsctty(&slave)?;
                let streams = [slave.try_clone()?, slave.try_clone()?, slave];
                (streams, Some(terminal.size))
            }
            _ => {
                let streams = std::mem::take(&mut self.streams);
                let wrong = |_| io::Error::new(io::ErrorKind::InvalidInput, "a request without its three streams");
                (<[OwnedFd; STREAMS]>::try_from(streams).map_err(wrong)?, None)
            }
        };
        let ([stdin, stdout, stderr], size) = streams;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        if let Some(size) = size {
            set_size(size);
        }
        Ok(())
    }
}

/// Opens a terminal of the container, sends its master side over `console` and returns its other side.
fn open_terminal(console: &UnixStream, owner: u32) -> io::Result<OwnedFd> {
    let master = openat(CWD, "/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // What lies at that path is the container's to choose.
    if fstatfs(&master)?.f_type as i64 != DEVPTS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the container's /dev/pts/ptmx is no terminal"));
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&slave, Some(Uid::from_raw(owner)), None)?;
    send_fd(console, master.as_fd())?;
    Ok(slave)
}

fn enter(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() { Ok(()) } else { std::env::set_current_dir(folder) }
}

/// The description's environment, with a HOME.
fn environment(process: &Process) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = process
        .env()
        .iter()
        .flatten()
        .filter(|entry| *entry != "HOME=")
        .map(|entry| entry.clone().into_bytes())
        .collect();
    if !entries.iter().any(|entry| entry.starts_with(b"HOME=")) {
        let home = home(process.user().uid()).unwrap_or_else(|| "/".to_owned());
        entries.push(format!("HOME={home}").into_bytes());
    }
    entries
}

/// The home that /etc/passwd has for `uid`; a file of the container, which may be anything.
fn home(uid: u32) -> Option<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let mut entries = passwd.lines().map(|line| line.split(':'));
    let mut entry = entries.find(|fields| fields.clone().nth(2).is_some_and(|id| id.parse() == Ok(uid)))?;
    entry.nth(5).filter(|home| !home.is_empty()).map(str::to_owned)
}

/// Puts what was tried before what was said about it.
pub(crate) fn said<E: std::fmt::Display>(tried: &str) -> impl FnOnce(E) -> String {
    move |cause| format!("{tried}: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nuser:x:1000:1000::/home/user:/bin/sh\nnone:x:7:7:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/user"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }
}
