//! The front end of a sandbox for containerd and for what stands on it: the runtime v2 shim.
//!
//! containerd executes the binary under a name such as `containerd-shim-kata-v2`: `start` leaves a server behind and
//! prints its address, `delete` clears away what a dead server left. The server is one sandbox: it boots the guest at
//! once, and serves the Task service (versions 2 and 3, which differ in their name only) over ttrpc. Knows nothing of how
//! a sandbox does what it does.

mod address;
mod arguments;
mod bootstrap;
mod bundle;
mod container;
mod delete;
mod disk_rootfs;
mod error;
mod events;
mod hooks;
mod info;
mod lifecycle;
mod log_file;
mod logger;
mod process;
mod pump;
mod rootfs;
mod sandbox_service;
mod server;
mod start;
mod stats;
mod stdio;
mod task_service;
mod tasks;
mod translate;

use std::io::{self, Write};
use std::process::ExitCode;

use arguments::{Action, Invocation};

/// What the names under which containerd calls a shim begin with.
const NAME_PREFIX: &str = "containerd-shim-";

/// Whether a binary called so is a shim.
pub fn is_shim(name: &std::ffi::OsStr) -> bool {
    let name = std::path::Path::new(name).file_name().unwrap_or_default();
    name.to_string_lossy().starts_with(NAME_PREFIX)
}

/// Carries out one call of the shim.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let result = Invocation::parse(&words).map_err(anyhow::Error::from).and_then(carry_out);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what it reads here as the reason.
            let _ = io::stderr().write_all(format!("tatami: {error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn carry_out(invocation: Invocation) -> anyhow::Result<()> {
    match invocation.action {
        Action::Start => start::start(&invocation),
        Action::Delete => delete::delete(&invocation),
        Action::Info => info::print(),
        Action::Version => info::print_version(),
    }
}
