//! `start`: finds the server of the sandbox that a container belongs to, or leaves a new one behind, and prints its
//! address. Other front ends leave servers behind in the same way.
//!
//! The socket listens before the address is printed, so nobody has to wait for the server. Nothing but the address may
//! reach standard output or error: containerd reads both as one.

#![allow(unsafe_code, reason = "fork, and the descriptors of the process that becomes the server")]

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::ForkResult;
use oci_spec::runtime::Spec;

use super::address::Address;
use super::arguments::Invocation;
use super::bootstrap::{self, Form};
use super::{bundle, membership, runtime_options, server};
use crate::sandbox::folder::Places;

/// What the server is started with.
pub(crate) struct Start {
    pub(crate) listener: UnixListener,
    pub(crate) address: Address,
    pub(crate) places: Places,
    /// The client's namespace.
    pub(crate) namespace: String,
    /// What the client calls the sandbox there.
    pub(crate) id: String,
    pub(crate) debug: bool,
    pub(crate) bundle: PathBuf,
    /// The folder with the file or fifo `log`, if it is to log.
    pub(crate) log: PathBuf,
    /// None where containerd's Sandbox API starts a sandbox, which has no container of its own.
    pub(crate) spec: Option<Spec>,
    /// The configuration file that the client names.
    pub(crate) config_path: Option<PathBuf>,
    /// Where events go, if anywhere.
    pub(crate) events: String,
}

/// Carries out `start`. In the process that becomes the server it does not return.
///
/// # Errors
/// Why there is no server.
pub(super) fn start(invocation: &Invocation) -> anyhow::Result<()> {
    let bundle = match &invocation.bundle {
        Some(bundle) => std::path::absolute(bundle)?,
        None => std::env::current_dir().context("the bundle")?,
    };
    let spec = match bundle::read(&bundle) {
        Ok(spec) => Some(spec),
        Err(_) if bundle::is_of_sandbox(&bundle) && is_without_specification(&bundle) => None,
        Err(error) => return Err(error.into()),
    };
    let input = bootstrap::read_input().context("standard input")?;
    let form = Form::shown_by(&input, &bundle, invocation);
    let config_path = runtime_options::config_path(&input, &form)?;
    let places = Places::from_environment();
    let of = |id: &str| Address::of(&places, &invocation.address, &invocation.namespace, id);
    let Invocation { id, namespace, .. } = invocation;
    let sandbox = spec.as_ref().map_or_else(|| id.clone(), |spec| membership::sandbox_of(&places, namespace, id, spec));
    let address = of(&sandbox);
    if sandbox != *id {
        anyhow::ensure!(address.answers(), "the sandbox {sandbox} of container {id} does not run");
        return announce(&address.uri(), &bundle, &form);
    }
    // It was the first in a sandbox in which others are still, and comes back.
    if address.answers() && membership::is_left_to_others(&address, id) {
        return announce(&address.uri(), &bundle, &form);
    }
    let listener = address.bind()?;
    let uri = address.uri();
    let start = Start {
        listener,
        address,
        places,
        namespace: invocation.namespace.clone(),
        id: invocation.id.clone(),
        debug: invocation.debug,
        log: bundle.clone(),
        bundle: bundle.clone(),
        spec,
        config_path,
        events: form.event_address(),
    };
    leave_server(start)?;
    announce(&uri, &bundle, &form)
}

/// Leaves a server behind, in a process of its own that has nothing of this one's but its listening socket. Call it while this process
/// has one thread.
///
/// # Errors
/// When there is no process to be had.
pub(crate) fn leave_server(start: Start) -> anyhow::Result<()> {
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            // The caller waits for the end of these.
            let code = match leave_caller().and_then(|()| close_all_but(&[start.listener.as_raw_fd()])) {
                Ok(()) => server::main(start),
                Err(_) => 1,
            };
            std::process::exit(code)
        }
        Ok(ForkResult::Parent { .. }) => Ok(()),
        Err(error) => {
            start.address.remove();
            Err(error).context("no process for the server")
        }
    }
}

/// Whether nothing, or nothing but an empty specification, lies in `bundle`.
fn is_without_specification(bundle: &Path) -> bool {
    match std::fs::read(bundle.join("config.json")) {
        Ok(text) => matches!(text.trim_ascii(), b"" | b"{}" | b"null"),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn announce(uri: &str, bundle: &Path, form: &Form) -> anyhow::Result<()> {
    std::fs::write(bundle.join("address"), uri).context("the file `address` in the bundle")?;
    io::stdout().write_all(&form.answer(uri))?;
    io::stdout().flush()?;
    Ok(())
}

/// Leaves the caller's session, folder and streams.
fn leave_caller() -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: replaces a standard stream, which nobody in this process has a handle to that would be confused by it.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes every descriptor but the standard streams and `kept`: whatever else the caller had open, somebody may wait for its end.
///
/// # Errors
/// When it cannot.
pub(crate) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        // Up to the one before it, and at the end to the last that there can be.
        let last = if fd == u32::MAX { fd } else { fd - 1 };
        // SAFETY: who calls this uses none of the descriptors that it closes, nor drops what holds them.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}
