//! How a container goes, with all that belongs to it, and an exec.

use std::sync::Arc;

use containerd_shim_protos::events::task::TaskDelete;

use super::super::container::Container;
use super::super::error::TaskError;
use super::super::events::Topic;
use super::super::hooks;
use super::super::lifecycle::{Exit, KILLED, Phase};
use super::super::process::Process;
use super::{Slot, Tasks};
use crate::sandbox;
use crate::sandbox::Machine;

impl Tasks {
    /// Removes a process that has ended or was never started, or a container with all that belongs to it.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] while it runs; [`TaskError::NotFound`] for a container that is still being made: it goes as soon
    /// as it is.
    pub(in super::super) async fn delete(&self, id: &str, exec: &str) -> Result<Exit, TaskError> {
        let container = self.container(id).inspect_err(|_| self.give_up(id))?;
        let process = container.process(exec)?;
        process.life().delete()?;
        let removed = match exec.is_empty() {
            true => self.remove_container(&container).await,
            false => self.remove_exec(&container, &process).await,
        };
        if let Err(error) = removed {
            process.life().not_deleted();
            return Err(error);
        }
        let exit = process.life().exit().unwrap_or_else(|| Exit::now(if exec.is_empty() { KILLED } else { 0 }));
        if exec.is_empty() {
            self.events.publish(Topic::Delete, &deleted_event(id, exit));
            self.lock().remove(id);
        }
        Ok(exit)
    }

    pub(super) async fn remove_container(&self, container: &Container) -> Result<(), TaskError> {
        let Machine { guest, volumes, .. } = self.machine().await?;
        removed(guest.call(guest.agent().delete_container(container.id())).await)?;
        release(container).await;
        volumes.leave(&guest, container.id()).await;
        if let Some(growth) = self.growth.get() {
            growth.leave(&guest, container.id()).await;
        }
        if let Some(pinning) = &self.pinning {
            pinning.forget(container.id());
            self.pin(&guest).await;
        }
        if let Some(shared) = &self.shared
            && let Err(error) = shared.clear(container.place())
        {
            // It goes with the sandbox.
            log::warn!("what was laid out for container {} remains: {error}", container.id());
        }
        let state = hooks::state(container, "stopped");
        if let Err(error) = self.host.run(&container.hooks.poststop, &state).await {
            log::warn!("{error}");
        }
        Ok(())
    }

    async fn remove_exec(&self, container: &Container, process: &Process) -> Result<(), TaskError> {
        if process.phase() != Phase::Created {
            let guest = self.guest().await?;
            removed(guest.call(guest.agent().delete_exec(container.id(), process.exec())).await)?;
        }
        container.remove(process.exec());
        Ok(())
    }

    /// Kills every container and waits, at most `limit`, until their ends are told.
    pub(crate) async fn evict(&self, limit: std::time::Duration) {
        let containers: Vec<Arc<Container>> = self
            .lock()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(container.clone()),
                Slot::Busy | Slot::GivenUp => None,
            })
            .collect();
        let all = async {
            for container in &containers {
                if let Err(error) = self.kill(container.id(), "", libc::SIGKILL as u32, true).await {
                    log::debug!("container {}: {error}", container.id());
                }
            }
            for container in &containers {
                container.init().wait().await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            log::warn!("containers did not end within {} s", limit.as_secs());
        }
    }

    /// Who asks for a container's removal while it is made waits for it no longer: a client whose time is up, which then forgets it.
    fn give_up(&self, id: &str) {
        if let Some(slot @ Slot::Busy) = self.lock().get_mut(id) {
            log::warn!("container {id} is given up by its client while it is being created");
            *slot = Slot::GivenUp;
        }
    }
}

/// What the guest answered to a removal: what is not there any more is removed, with the guest or without.
fn removed(answer: Result<(), sandbox::Error>) -> Result<(), TaskError> {
    match answer {
        Ok(()) => Ok(()),
        Err(error) if error.is_of_dead_guest() => Ok(()),
        Err(error) => match TaskError::from(error) {
            TaskError::NotFound(_) => Ok(()),
            error => Err(error),
        },
    }
}

/// Takes out the disk of a container that is gone from the guest.
pub(super) async fn release(container: &Container) {
    if let Some(disk) = container.take_disk()
        && let Err(error) = disk.detach().await
    {
        log::debug!("the disk of container {}: {error}", container.id());
    }
}

fn deleted_event(id: &str, exit: Exit) -> TaskDelete {
    TaskDelete {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid: Tasks::pid(),
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..Default::default()
    }
}
