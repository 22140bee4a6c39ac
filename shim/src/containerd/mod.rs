//! The front end of a sandbox for containerd and for what stands on it: the runtime v2 shim.
//!
//! containerd executes the binary under a name such as `containerd-shim-kata-v2`: `start` leaves a server behind and
//! prints its address, `delete` clears away what a dead server left. The server is one sandbox: it boots the guest at
//! once, and serves the Task service (versions 2 and 3, which differ in their name only) over ttrpc. Knows nothing of how
//! a sandbox does what it does.

pub(crate) mod address;
pub(crate) mod arguments;
mod block_devices;
mod bootstrap;
pub(crate) mod bundle;
mod container;
pub(crate) mod delete;
pub(crate) mod direct_volumes;
mod disk_rootfs;
mod empty_dirs;
pub(crate) mod error;
pub(crate) mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod growth;
pub(crate) mod hooks;
mod host_ps;
mod info;
pub(crate) mod keeper;
pub(crate) mod lifecycle;
mod log_file;
mod logger;
mod loopback;
pub(crate) mod membership;
mod memory_watch;
pub(crate) mod message;
pub(crate) mod network;
mod pinning;
mod pod;
pub(crate) mod process;
mod pump;
mod rootfs;
mod runtime_options;
mod sandbox_service;
mod server;
mod share;
pub(crate) mod start;
mod stats;
pub(crate) mod stdio;
pub(crate) mod task_service;
pub(crate) mod tasks;
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
            let _ = io::stderr().write_all(format!("tatami: {}\n", explain(&error)).as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The error with its causes, each said once: some say theirs themselves.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.ends_with(&cause) {
        _ if said.is_empty() => cause,
        true => said,
        false => format!("{said}: {cause}"),
    })
}

fn carry_out(invocation: Invocation) -> anyhow::Result<()> {
    match invocation.action {
        Action::Start => start::start(&invocation),
        Action::Delete => delete::delete(&invocation),
        Action::Info => info::print(),
        Action::Version => info::print_version(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let missing = bundle::read(std::path::Path::new("/no/such")).unwrap_err();
        let text = explain(&anyhow::Error::from(missing));
        assert_eq!(text, "cannot read /no/such/config.json: No such file or directory (os error 2)");
        let wrapped = anyhow::Error::from(io::Error::from_raw_os_error(libc::ENOENT)).context("the bundle");
        assert_eq!(explain(&wrapped), "the bundle: No such file or directory (os error 2)");
    }

    #[test]
    fn a_shim_is_known_by_its_name() {
        assert!(is_shim("/usr/bin/containerd-shim-kata-v2".as_ref()) && is_shim("containerd-shim-tatami-v2".as_ref()));
        assert!(!is_shim("/usr/bin/tatami".as_ref()));
    }
}
