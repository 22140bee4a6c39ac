//! The front end of a sandbox for what calls an OCI runtime by its command line: Podman, Docker with a runtime's path, CRI-O.
//!
//! There is no daemon: `create` leaves the server of a sandbox behind, the same that containerd's shim has, and beside it a process
//! that stands for the container on the host ([`keeper`]); every other command is a client of that server. What is to be known of a
//! container lies in a folder below `--root` ([`store`]). Words, answers and exit statuses are runc's, which callers look at. Knows
//! nothing of how a sandbox does what it does.

mod commands;
mod create;
mod exec;
mod figures;
mod keeper;
mod namespaces;
mod options;
mod remove;
mod spec;
mod store;
mod streams;
mod tell;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::containerd::start::close_all_but;
use crate::detached::client::ClientError;
use options::{Global, UsageError};
use tell::Teller;

/// The names under which the binary is a runtime.
const NAMES: [&str; 2] = ["tatami-runtime", "kata-runtime"];
/// What containers of this front end are in, as containerd's are in its namespaces.
const NAMESPACE: &str = "oci";
/// Of the specification that this follows.
const SPEC_VERSION: &str = "1.2.0";
/// The exit status of what failed, and of an exec that did.
const FAILED: u8 = 1;
const EXEC_FAILED: u8 = 255;

/// Why a command fails, in runc's words where callers know those.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("root privileges are needed: containers of rootless users are not supported")]
    NotRoot,
    #[error("container does not exist")]
    None,
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    #[error("invalid container ID format: {0:?}")]
    Id(String),
    #[error("container {0} was left half made: `delete --force {0}` removes it")]
    Half(String),
    /// Not in this state, not possible, or not understood.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("cannot {action}: {source}")]
    System { action: String, source: io::Error },
    /// A process that cannot join.
    #[error("exec failed: {0}")]
    Exec(#[source] Box<Error>),
}

/// For `map_err`: what was attempted.
fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |error| Error::System { action: action.into(), source: error.into() }
}

fn system_at<E: Into<io::Error>>(action: &str, path: &Path) -> impl FnOnce(E) -> Error {
    system(format!("{action} {}", path.display()))
}

/// Whether a binary called so is a runtime.
pub fn is_runtime(name: &OsStr) -> bool {
    Path::new(name).file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

/// Carries out one command, which `words` say.
pub fn main(words: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let (global, rest) = match Global::parse(&words) {
        Ok(parsed) => parsed,
        Err(error) => return ExitCode::from(Teller::default().fail(&Error::Usage(error))),
    };
    let teller = Teller::new(&global);
    // What this leaves behind is to have nothing of its caller's but the standard streams, whose end somebody may wait for.
    let closed = close_all_but(&[]).map_err(system("close the caller's files"));
    let result = closed.and_then(|()| commands::carry_out(&global, rest));
    ExitCode::from(result.unwrap_or_else(|error| {
        let status = teller.fail(&error);
        if matches!(error, Error::Exec(_)) { EXEC_FAILED } else { status }
    }))
}

/// Where containers' folders are unless `--root` says otherwise.
fn default_root() -> PathBuf {
    crate::sandbox::folder::Places::from_environment().state.join("oci")
}

/// Has `work` done in a runtime of this thread's. None of its threads is left afterwards: the process may fork.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("start the runtime"))?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_known_by_its_name() {
        assert!(is_runtime("/usr/bin/kata-runtime".as_ref()) && is_runtime("tatami-runtime".as_ref()));
        assert!(!is_runtime("/usr/bin/tatami".as_ref()));
    }
}
