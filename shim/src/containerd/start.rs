//! `start`: finds the server of the sandbox that a container belongs to, or leaves a new one behind, and prints its
//! address.
//!
//! The socket listens before the address is printed, so nobody has to wait for the server. Nothing but the address may
//! reach standard output or error: containerd reads both as one.

#![allow(unsafe_code, reason = "fork, and the standard streams of the process that becomes the server")]

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::ForkResult;
use oci_spec::runtime::Spec;

use super::address::Address;
use super::arguments::Invocation;
use super::bootstrap::{self, Form};
use super::{bundle, runtime_options, server};
use crate::sandbox::folder::Places;

/// What the server is started with.
pub(super) struct Start {
    pub(super) listener: UnixListener,
    pub(super) address: Address,
    pub(super) places: Places,
    pub(super) invocation: Invocation,
    pub(super) bundle: PathBuf,
    /// None where containerd's Sandbox API starts a sandbox, which has no container of its own.
    pub(super) spec: Option<Spec>,
    /// The configuration file that the client names.
    pub(super) config_path: Option<PathBuf>,
    /// How containerd spoke, which says where it takes events.
    pub(super) form: Form,
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
    let sandbox = spec.as_ref().map_or(invocation.id.as_str(), |spec| bundle::sandbox_of(&invocation.id, spec));
    let address = of(sandbox);
    if sandbox != invocation.id {
        anyhow::ensure!(address.answers(), "the sandbox {sandbox} of container {} does not run", invocation.id);
        return announce(&address, &bundle, &form);
    }
    let listener = address.bind()?;
    let start = Start { listener, address, places, invocation: invocation.clone(), bundle, spec, config_path, form };
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            // containerd waits for the end of these.
            let code = match leave_caller() {
                Ok(()) => server::main(start),
                Err(_) => 1,
            };
            std::process::exit(code)
        }
        Ok(ForkResult::Parent { .. }) => announce(&start.address, &start.bundle, &start.form),
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

fn announce(address: &Address, bundle: &Path, form: &Form) -> anyhow::Result<()> {
    let uri = address.uri();
    std::fs::write(bundle.join("address"), &uri).context("the file `address` in the bundle")?;
    io::stdout().write_all(&form.answer(&uri))?;
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
