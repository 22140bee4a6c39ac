//! virtio-fs (virtio 1.2, 5.11): a folder of the host, served to the guest by virtiofsd's library on the device's own thread.
//!
//! Knows nothing of FUSE beyond the header of a request: what a request means is virtiofsd's. Which folder it is, the VMM
//! decides by having made it the root of the process: a path cannot lead out of there.

mod courier;
mod request;
mod session;
mod view;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_manager::EventOps;

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

/// hiprio and one request queue (5.11.2). The Linux driver fits a request's pages into one ring: 1024 descriptors let a read or
/// write have 1 MiB.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// How long the guest may take names and attributes for true without asking, as virtiofsd's own `--cache=auto`.
const CACHE_TIME: Duration = Duration::from_secs(1);
/// Descriptors that are never the guest's: sockets, eventfds, memory, and what virtiofsd opens for the time of one request.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is the name by which the guest mounts; empty or too long ones cannot be written down.
    #[error("the tag {0:?} is empty or longer than {TAG_BYTES} bytes: choose another")]
    Tag(String),
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

/// What to serve, and what virtiofsd needs that a confined process cannot get later.
#[derive(Debug)]
pub struct FsConfig {
    /// The name by which the guest mounts it; 1 to 36 bytes.
    pub tag: String,
    /// The folder as an absolute path; `/` once the process has made the shared folder its root.
    pub root: String,
    /// `/proc/self/fd`, opened (`O_PATH` will do) by the process that serves: after its last fork, before it loses `/proc`.
    pub proc_self_fd: File,
}

/// The file system device.
///
/// What the process needs while it serves:
/// - capabilities CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETUID, SETGID, MKNOD, SETFCAP, effective on the thread that
///   serves: it takes on the guest's user and groups for the time of one call, and drops FSETID for the time of a write;
/// - RLIMIT_NOFILE raised before [`Fs::new`]: every file or folder that the guest knows costs one descriptor. The guest gets
///   all but 256 of them, then ENFILE;
/// - `unshare(CLONE_FS)` on the serving thread, which has a working directory and umask of its own from then on (extended
///   attributes of special files are reached by `fchdir` into `/proc/self/fd`). `Fs::new` sets the umask of the process to 0.
pub struct Fs {
    config: Arc<FsConfig>,
    threads: Arc<dyn Threads>,
    /// A session that waits for a thread: the first one, or a paused one.
    server: Option<Session>,
    worker: Option<Worker<Service>>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("config", &self.config).field("active", &self.worker.is_some()).finish()
    }
}

impl Fs {
    /// A device that serves as `config` says. Call it with the process confined as it is to stay.
    ///
    /// # Errors
    /// When the tag will not do or virtiofsd's library does not start.
    pub fn new(config: FsConfig, threads: Arc<dyn Threads>) -> Result<Self, FsError> {
        if config.tag.is_empty() || config.tag.len() > TAG_BYTES {
            return Err(FsError::Tag(config.tag));
        }
        let server = Some(session::open(&config)?);
        Ok(Fs { config: Arc::new(config), threads, server, worker: None })
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; TAG_BYTES + 4];
        space[..self.config.tag.len()].copy_from_slice(self.config.tag.as_bytes());
        let request_queues = QUEUE_SIZES.len() as u32 - 1;
        space[TAG_BYTES..].copy_from_slice(&request_queues.to_le_bytes());
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let rings = rings(queues, &memory, &interrupt)?;
        let mut kicks = Vec::new();
        for ring in &rings {
            kicks.push((ring.index(), ring.kick().try_clone()?));
        }
        let courier = Courier::new(&memory, QUEUE_SIZES[1])?;
        let work = Service { config: Arc::clone(&self.config), server: self.server.take(), rings, courier };
        self.worker = Some(Worker::spawn(self.threads.as_ref(), "virtio-fs", Role::Files, kicks, interrupt, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let Some(work) = self.worker.take().and_then(Worker::stop) else {
            return Vec::new();
        };
        self.server = work.server;
        work.rings.into_iter().map(|ring| Some(ring.into_active())).collect()
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        match &self.server {
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
        self.server = Some(server);
        Ok(())
    }

    fn reset(&mut self) {
        // With its session go all files and folders that the driver knew; the next thread opens a new one.
        if self.worker.take().is_some() {
            self.server = None;
        }
    }
}

fn rings(
    queues: Vec<Option<ActiveQueue>>,
    memory: &GuestMemory,
    interrupt: &Arc<dyn Interrupt>,
) -> Result<Vec<Ring>, ActivateError> {
    let mut rings = Vec::new();
    for (index, queue) in (0..).zip(queues) {
        let queue = queue.ok_or(ActivateError::MissingQueue(index))?;
        rings.push(Ring::new(index, queue, memory.clone(), Arc::clone(interrupt)));
    }
    Ok(rings)
}

/// What the thread does.
struct Service {
    config: Arc<FsConfig>,
    server: Option<Session>,
    rings: Vec<Ring>,
    courier: Courier,
}

impl Work for Service {
    fn start(&mut self, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        view::own_working_directory()?;
        if self.server.is_none() {
            self.server = Some(session::open(&self.config).map_err(io::Error::other)?);
        }
        Ok(())
    }

    fn kicked(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let (Some(server), Some(ring)) = (&self.server, self.rings.get_mut(usize::from(index))) else {
            return Ok(Progress::Idle);
        };
        ring.drain(|chain| self.courier.carry(chain, server))
    }
}

#[cfg(test)]
mod tests;
