//! The last steps of a process: is the command there, is it executable, become it.
//!
//! Runs inside the container, with the user's rights; for a container's first process as libcontainer's workload. It reports
//! over the creator's socket what a caller must be able to tell apart.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::syscalls;
use crate::wire::{CommandFailure, Report, Size, send_report};

/// Where commands are sought when the environment has no PATH, as execvp(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Executes the specification's command.
#[derive(Clone)]
pub(crate) struct CommandExecutor {
    /// Where failures are reported; closes when the command runs.
    pub(crate) report: Rc<OwnedFd>,
    /// The size of the terminal on standard input, if that is one.
    pub(crate) size: Option<Size>,
}

impl Executor for CommandExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some(size) = self.size {
            set_size(size);
        }
        match process_of(spec).and_then(find) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(ExecutorValidationError::ArgValidationError(tell(&self.report, refusal))),
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let environment = || std::env::vars_os().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
        match process_of(spec).and_then(|process| become_command(process, environment().collect())) {
            Ok(never) => match never {},
            Err(refusal) => Err(ExecutorError::Other(tell(&self.report, refusal))),
        }
    }
}

/// Becomes the command of `process`; returns only when that failed and `report` was told why.
pub(crate) fn execute(process: &Process, environment: Vec<Vec<u8>>, report: &OwnedFd) {
    match become_command(process, environment) {
        Ok(never) => match never {},
        Err(refusal) => drop(tell(report, refusal)),
    }
}

/// Reports the refusal; returns its message.
fn tell(report: &OwnedFd, refusal: Refusal) -> String {
    let Refusal { failure, message } = refusal;
    // If the agent is gone, so is the guest.
    let _ = send_report(report, &Report::CommandFailed { failure, message: message.clone() });
    message
}

/// Why the command does not run.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    failure: CommandFailure,
    message: String,
}

impl Refusal {
    fn new(name: &str, cause: Errno) -> Self {
        let failure = match cause {
            Errno::NOENT | Errno::NOTDIR => CommandFailure::NotFound,
            _ => CommandFailure::NotExecutable,
        };
        let reason = match cause {
            Errno::NOENT => "no such file or directory".to_owned(),
            Errno::NOTDIR => "not a directory".to_owned(),
            Errno::ACCESS | Errno::PERM => "permission denied".to_owned(),
            Errno::NOEXEC => "exec format error".to_owned(),
            Errno::ISDIR => "is a directory".to_owned(),
            other => other.to_string(),
        };
        Self { failure, message: format!("exec: {name:?}: {reason}") }
    }

    fn no_command() -> Self {
        Self { failure: CommandFailure::NotFound, message: "exec: no command given".to_owned() }
    }

    fn not_in_path(name: &str) -> Self {
        let message = format!("exec: {name:?}: executable file not found in $PATH");
        Self { failure: CommandFailure::NotFound, message }
    }
}

fn process_of(spec: &Spec) -> Result<&Process, Refusal> {
    spec.process().as_ref().ok_or_else(Refusal::no_command)
}

fn find(process: &Process) -> Result<PathBuf, Refusal> {
    let name = process.args().as_ref().and_then(|args| args.first()).ok_or_else(Refusal::no_command)?;
    let path = process.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH="));
    locate(name, path.unwrap_or(DEFAULT_PATH))
}

/// The file that `name` means, given the search `path`.
fn locate(name: &str, path: &str) -> Result<PathBuf, Refusal> {
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| name.into()).map_err(|cause| Refusal::new(name, cause));
    }
    let mut refused = None;
    for folder in path.split(':').filter(|_| !name.is_empty()) {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // Remembered: the search goes on, but "permission denied" says more than "not found".
            Err(cause) => refused = refused.or(Some(cause)),
        }
    }
    Err(refused.map_or_else(|| Refusal::not_in_path(name), |cause| Refusal::new(name, cause)))
}

fn executable(path: &Path) -> Result<(), Errno> {
    let found = stat(path)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => return Err(Errno::ISDIR),
        FileType::RegularFile => {}
        _ => return Err(Errno::ACCESS),
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Replaces this process by the command; returns only to say why not.
fn become_command(process: &Process, environment: Vec<Vec<u8>>) -> Result<Infallible, Refusal> {
    let path = find(process)?;
    let args = process.args().clone().unwrap_or_default();
    let name = args.first().cloned().unwrap_or_default();
    let refuse = |cause| Refusal::new(&name, cause);
    let strings = |words: Vec<Vec<u8>>| -> Result<Vec<CString>, Refusal> {
        words.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| refuse(Errno::INVAL))
    };
    let file = CString::new(path.as_os_str().as_bytes()).map_err(|_| refuse(Errno::INVAL))?;
    let arguments = strings(args.into_iter().map(String::into_bytes).collect())?;
    let environment = strings(environment)?;
    syscalls::restore_default_pipe();
    // Not execvp(3): that would hand a file of unknown format to /bin/sh, which no other OCI runtime does.
    match syscalls::execute(&file, &arguments, &environment) {
        Ok(never) => Ok(never),
        Err(cause) => Err(refuse(Errno::from_io_error(&cause).unwrap_or(Errno::IO))),
    }
}

/// Sets the size of the terminal on standard input; zero rows or columns leave it as it is.
pub(crate) fn set_size(size: Size) {
    if size.rows > 0 && size.columns > 0 {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal of the wrong size is better than no process.
        let _ = tcsetwinsize(std::io::stdin(), size);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("run", 0o755), ("data", 0o644)] {
            fs::write(folder.path().join(name), "").unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        folder
    }

    fn refusal(name: &str, path: &str) -> (CommandFailure, String) {
        let Refusal { failure, message } = locate(name, path).unwrap_err();
        (failure, message)
    }

    #[test]
    fn commands_are_sought_along_the_path() {
        let folder = folder();
        let path = format!("/nonexistent:{}", folder.path().display());
        assert_eq!(locate("run", &path).unwrap(), folder.path().join("run"));
        let expected = "exec: \"walk\": executable file not found in $PATH".to_owned();
        assert_eq!(refusal("walk", &path), (CommandFailure::NotFound, expected.clone()));
        assert_eq!(refusal("walk", ""), (CommandFailure::NotFound, expected));
        assert_eq!(refusal("", &path).0, CommandFailure::NotFound);
    }

    #[test]
    fn what_is_there_but_no_program_is_told_apart() {
        let folder = folder();
        let path = folder.path().display().to_string();
        let denied = "exec: \"data\": permission denied".to_owned();
        assert_eq!(refusal("data", &path), (CommandFailure::NotExecutable, denied));
        let (failure, message) = refusal(&format!("{path}/folder"), "");
        assert_eq!(failure, CommandFailure::NotExecutable);
        assert!(message.ends_with("is a directory"), "{message}");
        let (failure, message) = refusal(&format!("{path}/absent"), "");
        assert_eq!(failure, CommandFailure::NotFound);
        assert!(message.ends_with("no such file or directory"), "{message}");
    }
}
