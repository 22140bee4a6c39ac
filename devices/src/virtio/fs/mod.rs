//! virtio-fs (virtio 1.2, 5.11): a folder of the host, served to the guest by virtiofsd's library, on a thread for each queue of
//! requests.
//!
//! Knows nothing of FUSE beyond the header of a request: what a request means is virtiofsd's. Which folder it is, the VMM
//! decides by having made it the root of the process: a path cannot lead out of there.

mod courier;
mod request;
mod session;
mod view;

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, iter};

use event_manager::EventOps;
use serde::{Deserialize, Serialize};

use self::courier::Courier;
use self::session::Session;
use super::device::read_space;
use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceKind, Fault, GuestMemory, Interrupt, Progress, RestoreError, Ring,
    Role, SaveError, Threads, VirtioDevice, Worker,
};

/// Bytes of the tag in the configuration space (5.11.4).
pub const TAG_BYTES: usize = 36;

/// The most request queues, and so threads, that a device has.
pub const FS_QUEUES_MAX: u8 = 16;

/// The size of the queue for urgent requests, and of each request queue (5.11.2). The Linux driver fits a request's pages into one
/// ring: 1024 descriptors let a read or write have 1 MiB.
pub(super) const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Descriptors that are never the guest's: sockets, eventfds, memory, and what virtiofsd opens for the time of one request.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is the name by which the guest mounts; empty or too long ones cannot be written down.
    #[error("the tag {0:?} is empty or longer than {TAG_BYTES} bytes: choose another")]
    Tag(String),
    /// None, or more than make sense.
    #[error("a shared folder has between 1 and {FS_QUEUES_MAX} request queues, {0} were asked for")]
    Queues(u8),
    /// The file server did not start.
    #[error("cannot serve {root}: {source}")]
    Server {
        /// The folder.
        root: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Hardly a file could be open at a time.
    #[error("only {0} descriptors may be open at a time: raise RLIMIT_NOFILE before the file server starts")]
    TooFewDescriptors(u64),
}

/// How long a guest believes what it has read of a folder that the host may change as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsCache {
    /// Not at all: everything is asked for each time, and files cannot be mapped shared.
    Never,
    /// Names and attributes for a second; a file's contents until it is opened again and has changed.
    #[default]
    Auto,
    /// Names and attributes for a day, contents not at all.
    Metadata,
    /// Everything for a day: for folders that nobody else changes.
    Always,
}

/// What to serve, and what virtiofsd needs that a confined process cannot get later.
#[derive(Debug)]
pub struct FsConfig {
    /// The name by which the guest mounts it; 1 to 36 bytes.
    pub tag: String,
    /// The folder as an absolute path; `/` once the process has made the shared folder its root.
    pub root: String,
    /// What the guest may take for true without asking.
    pub cache: FsCache,
    /// Request queues, each with a thread of its own: 1 to [`FS_QUEUES_MAX`].
    pub queues: u8,
    /// `/proc/self/fd`, opened (`O_PATH` will do) by the process that serves: after its last fork, before it loses `/proc`.
    pub proc_self_fd: File,
}

/// The file system device.
///
/// What the process needs while it serves:
/// - capabilities CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETUID, SETGID, MKNOD, SETFCAP, effective on the threads that
///   serve: each takes on the guest's user and groups for the time of one call, and drops FSETID for the time of a write;
/// - RLIMIT_NOFILE raised before [`Fs::new`]: every file or folder that the guest knows costs one descriptor. The guest gets
///   all but 256 of them, then ENFILE;
/// - `unshare(CLONE_FS)` on the serving threads, each of which has a working directory and umask of its own from then on (extended
///   attributes of special files are reached by `fchdir` into `/proc/self/fd`). `Fs::new` sets the umask of the process to 0.
pub struct Fs {
    config: Arc<FsConfig>,
    space: [u8; TAG_BYTES + 4],
    threads: Arc<dyn Threads>,
    queue_sizes: Vec<u16>,
    /// None once the driver is gone: the next one's threads open another.
    session: SharedSession,
    /// The one of the first request queue serves urgent requests too.
    workers: Vec<Worker<Service>>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("config", &self.config).field("active", &!self.workers.is_empty()).finish()
    }
}

impl Fs {
    /// A device that serves as `config` says. Call it with the process confined as it is to stay.
    ///
    /// # Errors
    /// When the tag will not do or virtiofsd's library does not start.
    pub fn new(config: FsConfig, threads: Arc<dyn Threads>) -> Result<Self, FsError> {
        let space = config_space(&config.tag, config.queues)?;
        if config.queues == 0 || config.queues > FS_QUEUES_MAX {
            return Err(FsError::Queues(config.queues));
        }
        let session = Arc::new(Mutex::new(Some(session::open(&config)?)));
        let [urgent, requests] = QUEUE_SIZES;
        let queue_sizes = iter::once(urgent).chain(iter::repeat_n(requests, config.queues.into())).collect();
        Ok(Fs { config: Arc::new(config), space, threads, queue_sizes, session, workers: Vec::new() })
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let mut urgent: Vec<Ring> = Vec::new();
        for (index, queue) in (0..).zip(queues) {
            // A driver need not have as many queues as it could.
            let queue = match queue {
                Some(queue) => queue,
                None if index > 1 => continue,
                None => return Err(self.give_up(ActivateError::MissingQueue(index))),
            };
            let ring = Ring::new(index, queue, memory.clone(), Arc::clone(&interrupt));
            if index == 0 {
                urgent.push(ring);
                continue;
            }
            let rings = urgent.drain(..).chain([ring]).collect();
            let started = self.start(index, rings, &memory, &interrupt);
            started.map_err(|error| self.give_up(error))?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        if self.workers.is_empty() {
            return Vec::new();
        }
        let mut queues: Vec<Option<ActiveQueue>> = self.queue_sizes.iter().map(|_| None).collect();
        for ring in self.workers.drain(..).filter_map(Worker::stop).flat_map(|work| work.rings) {
            let index = usize::from(ring.index());
            queues[index] = Some(ring.into_active());
        }
        queues
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        match &*lock(&self.session) {
            Some(server) => session::save(server, self.threads.as_ref()).map_err(SaveError::Files),
            None => Ok(Vec::new()),
        }
    }

    fn restore(&mut self, saved: &[u8], _memory: &GuestMemory) -> Result<(), RestoreError> {
        if saved.is_empty() {
            return Ok(());
        }
        let server = session::open(&self.config).map_err(|error| RestoreError::Files(io::Error::other(error)))?;
        session::restore(&server, saved, self.threads.as_ref()).map_err(RestoreError::Files)?;
        *lock(&self.session) = Some(server);
        Ok(())
    }

    fn reset(&mut self) {
        // With its session go all files and folders that the driver knew; the next thread opens a new one.
        if !self.workers.is_empty() {
            self.workers.clear();
            *lock(&self.session) = None;
        }
    }
}

impl Fs {
    /// Starts the thread of request queue `index`, which serves `rings`.
    fn start(
        &mut self,
        index: u16,
        rings: Vec<Ring>,
        memory: &GuestMemory,
        interrupt: &Arc<dyn Interrupt>,
    ) -> Result<(), ActivateError> {
        let mut kicks = Vec::new();
        for ring in &rings {
            kicks.push((ring.index(), ring.kick().try_clone()?));
        }
        let name = if index == 1 { "virtio-fs".to_owned() } else { format!("virtio-fs-{index}") };
        let work = Service {
            config: Arc::clone(&self.config),
            shared: Arc::clone(&self.session),
            session: None,
            rings,
            courier: Courier::new(memory, QUEUE_SIZES[1])?,
        };
        let interrupt = Arc::clone(interrupt);
        self.workers.push(Worker::spawn(self.threads.as_ref(), &name, Role::Files, kicks, interrupt, work)?);
        Ok(())
    }

    /// Stops those that have started.
    fn give_up(&mut self, error: ActivateError) -> ActivateError {
        self.workers.clear();
        error
    }
}

/// The configuration space (5.11.4) of a file system of this tag with so many request queues.
///
/// # Errors
/// [`FsError::Tag`].
pub(super) fn config_space(tag: &str, queues: u8) -> Result<[u8; TAG_BYTES + 4], FsError> {
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return Err(FsError::Tag(tag.to_owned()));
    }
    let mut space = [0; TAG_BYTES + 4];
    space[..tag.len()].copy_from_slice(tag.as_bytes());
    space[TAG_BYTES..].copy_from_slice(&u32::from(queues).to_le_bytes());
    Ok(space)
}

/// The session, which all threads of the device share.
type SharedSession = Arc<Mutex<Option<Session>>>;

fn lock(session: &SharedSession) -> MutexGuard<'_, Option<Session>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread does.
struct Service {
    config: Arc<FsConfig>,
    shared: SharedSession,
    /// The shared one, once the thread has begun.
    session: Option<Session>,
    rings: Vec<Ring>,
    courier: Courier,
}

impl Work for Service {
    fn start(&mut self, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        view::own_working_directory()?;
        let mut shared = lock(&self.shared);
        if shared.is_none() {
            *shared = Some(session::open(&self.config).map_err(io::Error::other)?);
        }
        self.session.clone_from(&shared);
        Ok(())
    }

    fn kicked(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let ring = self.rings.iter_mut().find(|ring| ring.index() == index);
        let (Some(server), Some(ring)) = (&self.session, ring) else {
            return Ok(Progress::Idle);
        };
        ring.drain(|chain| self.courier.carry(chain, server))
    }
}

#[cfg(test)]
mod tests;
