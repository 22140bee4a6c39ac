//! The end of a container: its process, its server if it was the sandbox's last, and what was laid out for it on the host.
//!
//! Each step finds done what an earlier attempt has done, so a removal that was interrupted can be repeated.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{DeleteRequest, ShutdownRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::commands::{Status, status_of};
use super::store::Store;
use super::{Error, NAMESPACE, block_on};
use crate::containerd::address::Address;
use crate::containerd::{bundle, delete};
use crate::detached::client::Client;
use crate::sandbox::folder::Places;

/// How long a container may take to end that was killed, and a sandbox that has none any more.
const KILLED: Duration = Duration::from_secs(30);
const ENDING: Duration = Duration::from_secs(20);
/// How long a keeper may take to end after its process, and what cleared a sandbox away after that.
pub(super) const KEEPER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// `delete`.
///
/// # Errors
/// [`Error::Refused`] without `force` for what runs.
pub(super) fn delete(store: &Store, id: &str, force: bool) -> Result<(), Error> {
    let record = match store.find(id) {
        Ok(record) => record,
        Err(Error::None) if force => return Ok(()),
        Err(Error::Half(_)) if force => return remove_half(store, id),
        Err(error) => return Err(error),
    };
    let status = status_of(&record)?;
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::Refused(format!("cannot delete container {id} that is not stopped: {status}")));
    }
    let last = store.all().iter().all(|other| other.id == id || other.sandbox != record.sandbox);
    block_on(async {
        // Without a server there is nothing to ask for.
        if let Ok(client) = Client::at(&record.socket, id).await {
            end(&client, status).await?;
            if last {
                let request = ShutdownRequest { id: id.to_owned(), ..Default::default() };
                // It ends before it answers, as a rule.
                drop(client.task().0.shutdown(ttrpc::context::with_duration(ENDING), &request).await);
            }
        }
        Ok(())
    })?;
    if last {
        clear_sandbox(store, &record.sandbox, Some(&record.bundle))?;
    }
    let end = Instant::now() + KEEPER;
    while record.keeper.lives() && record.keeper.number != std::process::id() as i32 {
        if Instant::now() > end {
            let _ = kill(Pid::from_raw(record.keeper.number), Signal::SIGKILL);
            break;
        }
        std::thread::sleep(PAUSE);
    }
    if let Some(cgroup) = &record.cgroup {
        // The sandbox may go on in its first container's.
        remove_cgroup(cgroup, if last { KEEPER } else { Duration::ZERO });
    }
    store.place(id).remove()
}

/// Ends the container and has the server forget it.
async fn end(client: &Client, status: Status) -> Result<(), Error> {
    if status != Status::Stopped {
        match client.kill("", libc::SIGKILL as u32, true).await {
            Err(error) if !error.is_gone() => return Err(error.into()),
            _ => {}
        }
        // One that was never started has nobody who tells of its end.
        if status != Status::Created && tokio::time::timeout(KILLED, client.wait("")).await.is_err() {
            return Err(Error::Refused("the container does not end, not even by KILL".to_owned()));
        }
    }
    let (task, id) = client.task();
    let request = DeleteRequest { id: id.to_owned(), ..Default::default() };
    let deleted = task.delete(ttrpc::context::with_duration(KILLED), &request).await;
    match deleted.map_err(crate::detached::client::ClientError::from) {
        Err(error @ crate::detached::client::ClientError::Refused(..)) if !error.is_gone() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes what is left of a container whose making was interrupted.
fn remove_half(store: &Store, id: &str) -> Result<(), Error> {
    clear_sandbox(store, id, None)?;
    store.place(id).remove()
}

/// Waits for the end of the sandbox that was made for `id`, or ends it, and takes away what is left of it.
///
/// # Errors
/// When something is left.
pub(super) fn clear_sandbox(store: &Store, id: &str, bundle: Option<&Path>) -> Result<(), Error> {
    let places = Places::from_environment();
    let address = Address::of(&places, &store.root().display().to_string(), NAMESPACE, id);
    let spec = bundle.and_then(|bundle| bundle::read(bundle).ok());
    let cleared = delete::clear_away(&places, &address, spec.as_ref(), ENDING);
    cleared.map_err(|error| Error::Refused(crate::containerd::explain(&error)))
}

/// Removes a container's cgroup, with those in it, once they are empty, for which it waits as long as is said.
pub(super) fn remove_cgroup(folder: &Path, patience: Duration) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    if root.join(own).starts_with(folder) {
        // This process made it, and is about to end.
        drop(std::fs::write(root.join("cgroup.procs"), "0"));
    }
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in below.filter(|path| path.is_dir()).collect::<Vec<_>>().iter().map(|path| path.as_path()).chain([folder])
    {
        let end = Instant::now() + patience;
        // Others may have removed it, or be in it: what ends a sandbox is the last to end.
        while let Err(error) = std::fs::remove_dir(path) {
            if error.kind() != ErrorKind::ResourceBusy || Instant::now() > end {
                log::debug!("the cgroup {}: {error}", path.display());
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
}
