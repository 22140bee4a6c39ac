//! The creator: a re-executed, single-threaded child of the agent in which libcontainer may fork as it pleases.
//!
//! It carries out one request, reports, and ends; what it created then belongs to PID 1. It knows nothing of the server.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::executor::CommandExecutor;
use crate::wire::{Action, Report, Request, STREAMS, Terminal, receive_request, send_report};

/// The lowest descriptor that is not a standard stream.
const FIRST_FREE: i32 = 3;

/// How many files a process may open before it asks for more. More by default makes programs slow that close them all.
const SOFT_FILES: u64 = 1024;

/// Reads a request from standard input, which is the socket to the agent, and carries it out.
pub fn main() -> ExitCode {
    match rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), FIRST_FREE) {
        Ok(socket) => answer(Rc::new(socket)),
        Err(cause) => {
            eprintln!("tatami-agent: its creator is started by the agent only: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// The agent's own limit is high; a container that asks for none starts as processes usually do.
fn lower_soft_limit() {
    let limit = getrlimit(Resource::Nofile);
    let soft = Some(limit.current.map_or(SOFT_FILES, |current| current.min(SOFT_FILES)));
    // Lowering is always allowed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: soft, ..limit });
}

fn answer(socket: Rc<OwnedFd>) -> ExitCode {
    let report = match receive_request(&*socket) {
        Ok((request, streams)) => {
            lower_soft_limit();
            carry_out(request, streams, &socket)
        }
        Err(cause) => Err(format!("malformed request: {cause}")),
    };
    let failed = report.is_err();
    let report = report.unwrap_or_else(|message| Report::Failed { message });
    // If the agent is gone, so is the guest.
    let sent = send_report(socket.as_fd(), &report);
    if failed || sent.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
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
        Action::Exec { process, terminal } => {
            let pid = builder(&request, terminal, streams, socket)?
                .as_tenant()
                .with_process(Some(process))
                .with_detach(true)
                .build()
                .map_err(describe)?;
            Ok(Report::Created { pid: pid.as_raw() })
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
pub(crate) fn describe(error: LibcontainerError) -> String {
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
