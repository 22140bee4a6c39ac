//! Runs a container's hooks on the host, in the host's own namespaces, as the OCI runtime specification has it.
//!
//! Knows how a hook is called; nothing of when.

#![allow(unsafe_code, reason = "entering namespaces in the child, between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use nix::sched::CloneFlags;
use oci_spec::runtime::Hook;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::container::Container;

/// How long a hook may take that names no limit of its own.
const LIMIT: Duration = Duration::from_secs(120);

/// The namespaces that the server left: the host's.
#[derive(Debug)]
pub(crate) struct HostNamespaces {
    mount: OwnedFd,
    network: OwnedFd,
}

/// What a hook is told of its container.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ContainerState {
    #[serde(rename = "ociVersion")]
    pub(super) version: String,
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) pid: u32,
    pub(super) bundle: String,
}

/// A hook that did not do its work.
#[derive(Debug, thiserror::Error)]
#[error("the hook {path}: {reason}")]
pub(super) struct HookError {
    path: String,
    reason: String,
}

impl HostNamespaces {
    /// Those that this process is in; call it before they are left.
    ///
    /// # Errors
    /// Without /proc.
    pub(crate) fn current() -> io::Result<HostNamespaces> {
        let open = |name: &str| std::fs::File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from);
        Ok(HostNamespaces { mount: open("mnt")?, network: open("net")? })
    }

    /// The mount namespace, once more.
    pub(super) fn mounts(&self) -> io::Result<OwnedFd> {
        self.mount.try_clone()
    }

    /// Runs `hooks`, one after the other.
    ///
    /// # Errors
    /// The first hook's that fails; later ones do not run.
    pub(super) async fn run(&self, hooks: &[Hook], state: &ContainerState) -> Result<(), HookError> {
        for hook in hooks {
            let failed = |reason: String| HookError { path: hook.path().display().to_string(), reason };
            let limit = hook.timeout().map_or(LIMIT, |seconds| Duration::from_secs(seconds.max(0) as u64));
            match tokio::time::timeout(limit, self.run_one(hook, state)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed(error.to_string())),
                Err(_) => return Err(failed(format!("not done within {} s", limit.as_secs()))),
            }
        }
        Ok(())
    }

    async fn run_one(&self, hook: &Hook, state: &ContainerState) -> io::Result<()> {
        let mut command = Command::new(hook.path());
        let mut arguments = hook.args().iter().flatten();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        let environment = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
        command
            .args(arguments)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let (mount, network) = (self.mount.as_raw_fd(), self.network.as_raw_fd());
        // SAFETY: only system calls that may be made between fork and exec, on descriptors that are open as long as `self`.
        unsafe { command.pre_exec(move || enter(mount, network)) };
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let state = serde_json::to_vec(state)?;
            // A hook need not read it.
            let _ = stdin.write_all(&state).await;
        }
        let output = child.wait_with_output().await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{}: {}", output.status, said.trim())))
    }
}

fn enter(mount: i32, network: i32) -> io::Result<()> {
    for (fd, kind) in [(network, CloneFlags::CLONE_NEWNET), (mount, CloneFlags::CLONE_NEWNS)] {
        // SAFETY: plain system call.
        if unsafe { libc::setns(fd, kind.bits()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The state of `container` for its hooks.
pub(super) fn state(container: &Container, status: &'static str) -> ContainerState {
    ContainerState {
        version: container.version.clone(),
        id: container.id().to_owned(),
        status,
        pid: container.host_pid(),
        bundle: container.bundle().display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::containerd::process::Process;
    use crate::containerd::stdio::StdioPaths;

    fn run(json: &str) -> Result<(), HookError> {
        let hooks: Vec<Hook> = serde_json::from_str(json).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let init = Process::new("c1", "", StdioPaths::default());
        let container = Container::new("c1", Path::new("/b"), "1".to_owned(), "1.0.2".to_owned(), init);
        runtime.block_on(HostNamespaces::current().unwrap().run(&hooks, &state(&container, "created")))
    }

    #[test]
    fn a_hook_is_told_of_its_container() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let script = format!("cat > {}; echo $A >> {0}", told.display());
        run(&format!(r#"[{{"path":"/bin/sh","args":["sh","-c","{script}"],"env":["A=b"]}}]"#)).unwrap();
        let text = std::fs::read_to_string(told).unwrap();
        assert!(text.contains(r#""id":"c1""#) && text.contains(r#""status":"created""#), "{text}");
        assert!(text.ends_with("b\n"), "{text}");
    }

    #[test]
    fn the_first_that_fails_says_why_and_is_the_last() {
        let error = run(r#"[{"path":"/bin/sh","args":["sh","-c","echo no luck >&2; exit 3"]},{"path":"/no/such"}]"#);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains('3'), "{error}");
        let error = run(r#"[{"path":"/bin/sh","args":["sh","-c","sleep 9"],"timeout":0}]"#).unwrap_err().to_string();
        assert!(error.contains("not done within"), "{error}");
    }
}
