//! The creator: a single-threaded child of the zygote in which libcontainer may fork as it pleases.
//!
//! It carries out one request, reports, and ends; what it created then belongs to PID 1. It knows nothing of the server.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::executor::CommandExecutor;
use crate::wire::{Action, Report, Request, STREAMS, Terminal, receive_request, send_report};
use crate::{join, syscalls};

/// How many files a process may open before it asks for more. More by default makes programs slow that close them all.
const SOFT_FILES: u64 = 1024;

/// Waits for a request among `requests`, says through `take` that it has one, and carries it out.
pub(crate) fn main(requests: &OwnedFd, take: OwnedFd) -> ! {
    syscalls::notice_children();
    let _ = rustix::thread::set_name(c"tatami-creator");
    let status = match receive_request(requests) {
        Ok(Some((request, mut fds))) if !fds.is_empty() => {
            let report = Rc::new(fds.remove(0));
            // The zygote is there: it waits for this byte.
            let _ = rustix::io::write(&take, b"+");
            drop(take);
            answer(request, fds, report)
        }
        Ok(None) => 0,
        // The agent notices by the end of the report that never came.
        _ => 1,
    };
    std::process::exit(status)
}

/// The agent's own limit is high; a container that asks for none starts as processes usually do.
fn lower_soft_limit() {
    let limit = getrlimit(Resource::Nofile);
    let soft = Some(limit.current.map_or(SOFT_FILES, |current| current.min(SOFT_FILES)));
    // Lowering is always allowed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: soft, ..limit });
}

fn answer(request: Request, streams: Vec<OwnedFd>, socket: Rc<OwnedFd>) -> i32 {
    lower_soft_limit();
    // Containers are killed before the agent is, unless their specification says otherwise.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let report = carry_out(request, streams, &socket);
    let failed = report.is_err();
    let report = report.unwrap_or_else(|message| Report::Failed { message });
    // If the agent is gone, so is the guest.
    let sent = send_report(socket.as_fd(), &report);
    i32::from(failed || sent.is_err())
}

fn carry_out(request: Request, streams: Vec<OwnedFd>, socket: &Rc<OwnedFd>) -> Result<Report, String> {
    match &request.action {
        Action::Create { bundle, terminal } => {
            let container = builder(&request, terminal, streams, socket)?
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
                .map_err(describe)?;
            let pid = container.pid().ok_or("the container has no process")?;
            Ok(Report::Created { pid: pid.as_raw() })
        }
        Action::Join { joining, terminal } => {
            let pid = join::join(joining, terminal, streams, socket)?;
            Ok(Report::Created { pid })
        }
        Action::Start => load(&request)?.start().map(|()| Report::Done).map_err(describe),
        Action::Delete => load(&request)?.delete(true).map(|()| Report::Done).map_err(describe),
    }
}

fn builder(
    request: &Request,
    terminal: &Option<Terminal>,
    streams: Vec<OwnedFd>,
    socket: &Rc<OwnedFd>,
) -> Result<ContainerBuilder, String> {
    let executor = CommandExecutor { report: Rc::clone(socket), size: terminal.as_ref().map(|terminal| terminal.size) };
    let builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(&request.state)
        .map_err(describe)?
        .with_executor(executor)
        .with_console_socket(terminal.as_ref().map(|terminal| &terminal.socket));
    if terminal.is_some() {
        return Ok(builder);
    }
    let [stdin, stdout, stderr] =
        <[OwnedFd; STREAMS]>::try_from(streams).map_err(|_| "a request without its three streams")?;
    Ok(builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr))
}

fn load(request: &Request) -> Result<Container, String> {
    Container::load(request.state.join(&request.id)).map_err(describe)
}

/// The error with its causes, which libcontainer's own text often leaves out.
fn describe(error: LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
