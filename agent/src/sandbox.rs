//! All containers of the sandbox, by id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tatami_protocol::agent::{BlockDevice, Change, ContainerFigures, CreateContainerRequest, Volume, VolumeFigures};
use tatami_protocol::stream::{Kind, StreamHeader};

use crate::container::{Container, Description};
use crate::error::Error;
use crate::figures;
use crate::launch::Launcher;
use crate::nodes::Numbers;
use crate::process::Process;
use crate::served;
use crate::storage::Storages;
use crate::volumes::{TellError, Volumes};
use crate::zygote::Zygote;

/// The longest id, in bytes: it becomes a file name.
const MAX_ID: usize = 128;

/// The sandbox's containers. One for the agent's life.
pub struct Sandbox {
    pub(crate) launcher: Launcher,
    containers: Mutex<HashMap<String, Slot>>,
    /// What is mounted for each container.
    storages: Mutex<HashMap<String, Storages>>,
    /// What is mounted as volumes, by their folders.
    mounted_volumes: Mutex<HashMap<String, Storages>>,
    /// What each container sees of the host's files.
    volumes: Mutex<HashMap<String, Arc<Volumes>>>,
    /// Whoever reaches the agent may have a shell in the guest itself.
    console: AtomicBool,
}

enum Slot {
    /// Being created or deleted: the id is taken, and there is nothing to talk to.
    Busy,
    Ready(Arc<Container>),
}

impl Sandbox {
    /// A sandbox without containers, whose processes descend from `zygote`.
    pub fn new(zygote: Zygote) -> Arc<Self> {
        Arc::new(Self {
            launcher: Launcher::new(zygote),
            containers: Mutex::default(),
            storages: Mutex::default(),
            mounted_volumes: Mutex::default(),
            volumes: Mutex::default(),
            console: AtomicBool::new(false),
        })
    }

    /// Whether a shell in the guest itself is to be had from now on.
    pub(crate) fn offer_console(&self, offered: bool) {
        self.console.store(offered, Ordering::Relaxed);
    }

    /// Whether it is.
    pub(crate) fn has_console(&self) -> bool {
        self.console.load(Ordering::Relaxed)
    }

    /// Mounts the storages asked for, makes a container and returns its first process's id.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for a taken id, else why it could not be made; nothing is left mounted.
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<i32, Error> {
        let id = request.container_id.as_str();
        check_id(id)?;
        let claim = self.claim(id)?;
        let folder = if request.folder.is_empty() { id } else { &request.folder };
        let mut mounted = Storages::mount(folder, request.disk.as_ref(), &request.storages).await?;
        let stdio = request.stdio.clone().into_option().unwrap_or_default();
        let volumes = Volumes::open(&request).await;
        self.volumes().insert(id.to_owned(), Arc::new(volumes));
        let number_of = |device: &BlockDevice| match (device.volume.as_str(), device.address) {
            ("", 0) => mounted.number(device.part),
            ("", address) => served::disk_at(address),
            (volume, _) => {
                let volumes = self.mounted_volumes();
                volumes.get(volume).ok_or_else(|| no_volume(volume))?.number(device.part)
            }
        };
        let created = match Numbers::new(&request.devices, number_of) {
            Ok(numbers) => {
                let description = Description { spec: &request.spec_json, guest_hooks: &request.guest_hooks };
                Container::create(&self.launcher, id, description, stdio, numbers).await
            }
            Err(error) => Err(error),
        };
        let container = match created {
            Ok(container) => container,
            Err(error) => {
                self.hide_volumes(id);
                mounted.unmount().await.unwrap_or_else(|rest| log::warn!("{rest}"));
                return Err(error);
            }
        };
        let pid = container.process("")?.pid().unwrap_or_default();
        self.storages().insert(id.to_owned(), mounted);
        claim.settle(Slot::Ready(Arc::new(container)));
        Ok(pid)
    }

    /// Removes a container, whatever it is doing.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what could not be removed; then the container stays, to be tried again.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        self.lock().insert(id.to_owned(), Slot::Busy);
        let claim = Claim { sandbox: self, id };
        if let Err(error) = container.delete().await {
            claim.settle(Slot::Ready(container));
            return Err(error);
        }
        self.hide_volumes(id);
        // The id is taken for as long as its folder of storages is.
        let mounted = self.storages().remove(id);
        match mounted {
            Some(mut mounted) => mounted.unmount().await,
            None => Ok(()),
        }
    }

    /// Mounts what containers that come later have in common.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for a volume that is mounted, else why it cannot be; nothing is left mounted.
    pub(crate) async fn mount_volume(&self, request: &Volume) -> Result<(), Error> {
        let folder = request.folder.as_str();
        if self.mounted_volumes().contains_key(folder) {
            return Err(Error::AlreadyExists(format!("the volume {folder}")));
        }
        let mounted = Storages::mount(folder, request.disk.as_ref(), &request.storages).await?;
        self.mounted_volumes().insert(folder.to_owned(), mounted);
        Ok(())
    }

    /// Unmounts it, when no container has it any more.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what is still in use; then it stays, to be tried again.
    pub(crate) async fn unmount_volume(&self, folder: &str) -> Result<(), Error> {
        let mounted = self.mounted_volumes().remove(folder);
        let mut mounted = mounted.ok_or_else(|| no_volume(folder))?;
        let unmounted = mounted.unmount().await;
        if unmounted.is_err() {
            self.mounted_volumes().insert(folder.to_owned(), mounted);
        }
        unmounted
    }

    /// Has it become larger.
    ///
    /// # Errors
    /// [`Error::NotFound`], or why it does not.
    pub(crate) async fn grow_volume(&self, folder: &str, length: u64) -> Result<(), Error> {
        let growth = self.mounted_volumes().get(folder).ok_or_else(|| no_volume(folder))?.growth()?;
        growth.carry_out(length).await
    }

    /// Takes the volumes of a container that is gone out of the agent's mount namespace.
    fn hide_volumes(&self, id: &str) {
        let mut volumes = self.volumes();
        if let Some(gone) = volumes.remove(id) {
            gone.hide(volumes.values().map(Arc::as_ref));
        }
    }

    /// Unmounts what is mounted for containers, whose processes have been killed, and as volumes: a file system that was not
    /// unmounted needs repair by whoever mounts it next.
    pub(crate) async fn unmount_all(&self) {
        let mut all: Vec<Storages> = self.storages().drain().map(|(_, mounted)| mounted).collect();
        all.extend(self.mounted_volumes().drain().map(|(_, mounted)| mounted));
        for mut mounted in all {
            mounted.unmount().await.unwrap_or_else(|error| log::warn!("{error}"));
        }
    }

    /// Tells who watches the files concerned of changes on the host; what is gone by now is passed over. Takes as long as the
    /// host's file systems take.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub(crate) fn tell(&self, changes: &[Change]) -> Result<(), TellError> {
        for change in changes {
            let volumes = self.volumes().get(&change.container_id).cloned();
            if let Some(volumes) = volumes {
                volumes.tell(change)?;
            }
        }
        Ok(())
    }

    /// The container `id`.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            _ => Err(Error::NotFound(format!("no container {id}"))),
        }
    }

    /// What each container uses.
    pub(crate) fn figures(&self) -> Vec<ContainerFigures> {
        let ready = |slot: &Slot| match slot {
            Slot::Ready(container) => Some(Arc::clone(container)),
            Slot::Busy => None,
        };
        // Read when others may have the lock again.
        let all: Vec<_> = self.lock().iter().filter_map(|(id, slot)| Some((id.clone(), ready(slot)?))).collect();
        let figures = |(container_id, container): (String, Arc<Container>)| ContainerFigures {
            container_id,
            stats: Some(container.stats()).into(),
            ..Default::default()
        };
        all.into_iter().map(figures).collect()
    }

    /// How full each mounted volume is. What is no file system, or does not tell, is left out.
    pub(crate) fn volume_figures(&self) -> Vec<VolumeFigures> {
        let figures = |(folder, mounted): (&String, &Storages)| {
            Some(VolumeFigures { folder: folder.clone(), ..figures::volume(mounted.last()?)? })
        };
        self.mounted_volumes().iter().filter_map(figures).collect()
    }

    /// The process that waits for the stream of `header`, if one does.
    pub(crate) fn awaiting(&self, header: &StreamHeader) -> Option<(Arc<Process>, Kind)> {
        let kind = header.kind.enum_value().ok()?;
        let process = self.container(&header.container_id).ok()?.process(&header.exec_id).ok()?;
        process.awaits(kind).then_some((process, kind))
    }

    /// The machine goes on elsewhere: nobody is at the other end of processes' streams, and whoever comes may attach to them.
    pub(crate) fn lose_streams(&self) {
        for slot in self.lock().values() {
            if let Slot::Ready(container) = slot {
                container.lose_streams();
            }
        }
    }

    fn claim<'a>(&'a self, id: &'a str) -> Result<Claim<'a>, Error> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id} exists already")));
        }
        containers.insert(id.to_owned(), Slot::Busy);
        Ok(Claim { sandbox: self, id })
    }

    fn storages(&self) -> MutexGuard<'_, HashMap<String, Storages>> {
        self.storages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounted_volumes(&self) -> MutexGuard<'_, HashMap<String, Storages>> {
        self.mounted_volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<String, Arc<Volumes>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds an id; lets it go when dropped, also when a request is abandoned half-way.
struct Claim<'a> {
    sandbox: &'a Sandbox,
    id: &'a str,
}

impl Claim<'_> {
    fn settle(self, slot: Slot) {
        self.sandbox.lock().insert(self.id.to_owned(), slot);
        std::mem::forget(self);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.sandbox.lock().remove(self.id);
    }
}

/// Checks the form that ids of containers and processes have.
///
/// # Errors
/// [`Error::InvalidArgument`].
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed) && !id.starts_with('.') {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "id {id:?}: 1 to {MAX_ID} letters, digits, '_', '.' or '-', not starting with '.'"
    )))
}

fn no_volume(folder: &str) -> Error {
    Error::NotFound(format!("the volume {folder}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_file_names() {
        let longest = "x".repeat(MAX_ID);
        for good in ["a", "A-b_c.9", "0", longest.as_str()] {
            check_id(good).unwrap();
        }
        let longer = "x".repeat(MAX_ID + 1);
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", "a\0", longer.as_str()] {
            assert!(matches!(check_id(bad), Err(Error::InvalidArgument(_))), "{bad:?}");
        }
    }
}
