//! A container as containerd sees it: its first process, those that joined, and what was laid out for it.
//!
//! Plain record-keeping; what happens to it is in [`super::tasks`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::TaskError;
use super::process::Process;
use super::translate::HostHooks;
use crate::sandbox::disks::Disk;

/// A container that exists in the guest.
pub(crate) struct Container {
    id: String,
    bundle: PathBuf,
    /// Its name in the shared folder.
    place: String,
    /// The version of its specification.
    pub(super) version: String,
    pub(super) hooks: HostHooks,
    /// How many files and folders of the host it sees.
    pub(super) volumes: usize,
    /// Its client looks for its processes on the host.
    pub(super) host_ps: bool,
    /// The host's file that says whom its processes ask for names, if its client gives it one.
    pub(super) resolv_conf: Option<PathBuf>,
    /// The process on the host that stands for it, if that is another than its server.
    pub(super) keeper: Option<u32>,
    /// Its first process's id in the guest, if it is known.
    pub(super) guest_pid: Option<u32>,
    /// The host's files of namespaces in whose place it has ones of its own, which others may be in as well.
    pub(super) kept_namespaces: Vec<PathBuf>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    disk: Mutex<Option<Disk>>,
}

/// A process that joins, or joined, a container.
#[derive(Clone)]
pub(super) struct Exec {
    pub(super) process: Arc<Process>,
    /// `process` of a specification.
    pub(super) spec: Arc<Vec<u8>>,
    /// The first size of its terminal: rows, columns.
    pub(super) size: (u32, u32),
}

impl Container {
    /// One whose first process is `init`.
    pub(super) fn new(id: &str, bundle: &Path, place: String, version: String, init: Arc<Process>) -> Container {
        Container {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            place,
            version,
            hooks: HostHooks::default(),
            volumes: 0,
            host_ps: false,
            resolv_conf: None,
            keeper: None,
            guest_pid: None,
            kept_namespaces: Vec::new(),
            init,
            execs: Mutex::default(),
            disk: Mutex::default(),
        }
    }

    /// Remembers the disk that its root is on, if it has one.
    pub(super) fn keep_disk(&self, disk: Option<Disk>) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    /// The disk that its root was on.
    pub(super) fn take_disk(&self) -> Option<Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// containerd's name for it, and the guest's.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The process on the host that stands for it.
    pub(super) fn host_pid(&self) -> u32 {
        self.keeper.unwrap_or_else(std::process::id)
    }

    /// Its bundle on the host.
    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Its name in the shared folder.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Its first process.
    pub(super) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// The process `exec`; the first for an empty id.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(super) fn process(&self, exec: &str) -> Result<Arc<Process>, TaskError> {
        if exec.is_empty() { Ok(self.init.clone()) } else { self.exec(exec).map(|exec| exec.process) }
    }

    /// One that joined.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(super) fn exec(&self, exec: &str) -> Result<Exec, TaskError> {
        let found = self.execs().get(exec).cloned();
        found.ok_or_else(|| TaskError::NotFound(format!("process {exec} of container {}", self.id)))
    }

    /// Adds one that joins.
    ///
    /// # Errors
    /// [`TaskError::AlreadyExists`].
    pub(super) fn add(&self, exec: Exec) -> Result<(), TaskError> {
        let id = exec.process.exec().to_owned();
        let mut execs = self.execs();
        if execs.contains_key(&id) {
            return Err(TaskError::AlreadyExists(format!("process {id} of container {}", self.id)));
        }
        execs.insert(id, exec);
        Ok(())
    }

    /// Forgets one that joined.
    pub(super) fn remove(&self, exec: &str) {
        self.execs().remove(exec);
    }

    /// Every process, the first one first.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let execs = self.execs();
        std::iter::once(self.init.clone()).chain(execs.values().map(|exec| exec.process.clone())).collect()
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
