//! Devices whose queues another process serves (vhost-user): it is given guest RAM and the rings.
//!
//! Here are the device's registers, and the life of its queues: they go to the back end when the driver is ready, and come back from
//! it on pause or reset. What the driver asks for is never seen here, until the back end is gone: then every request fails.
//! Which process that is, and what it may do, is not known; what it says is believed as little as what a guest writes.

mod backend;
mod ledger;
mod orphans;
mod service;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::backend::Backend;
pub use self::backend::BackendError;
use self::ledger::Ledger;
use self::orphans::Failing;
use self::service::{Line, Service, Surroundings};
use super::blk::{BLK_QUEUES_MAX, spec};
use super::device::read_space;
use super::fs::{self, FS_QUEUES_MAX};
use super::spec::{FEATURE_VERSION_1, TRANSPORT_FEATURES};
use super::{ActivateError, Activation, ActiveQueue, DeviceKind, Role, SaveError, Threads, VirtioDevice, Worker};

/// What may be offered to a disk's driver if the back end offers it: what these two settle between them. VIRTIO_BLK_F_CONFIG_WCE is
/// not: it would have the driver write to the configuration space.
const DISK_FEATURES: u64 = spec::FEATURE_SIZE_MAX
    | spec::FEATURE_SEGMENTS_MAX
    | spec::FEATURE_GEOMETRY
    | spec::FEATURE_READ_ONLY
    | spec::FEATURE_BLOCK_SIZE
    | spec::FEATURE_FLUSH
    | spec::FEATURE_TOPOLOGY
    | spec::FEATURE_QUEUES
    | spec::FEATURE_DISCARD
    | spec::FEATURE_WRITE_ZEROES;
/// Where the number of queues is in a disk's configuration space (5.2.4).
const DISK_QUEUES_AT: usize = 34;

/// A device whose queues another process serves.
pub struct VhostUser {
    kind: Kind,
    backend: Backend,
    space: Vec<u8>,
    queue_sizes: Vec<u16>,
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Service>>,
}

/// What kinds of device differ in.
struct Kind {
    device: DeviceKind,
    /// Of the device's own features, those that the driver may know of.
    features: u64,
    /// As the thread is called, and the device in the log.
    name: &'static str,
    failing: Failing,
}

const DISK: Kind = Kind {
    device: DeviceKind::Block,
    features: DISK_FEATURES,
    name: "vhost-user-blk",
    failing: orphans::fail_disk_request,
};

const FILES: Kind =
    Kind { device: DeviceKind::Fs, features: 0, name: "vhost-user-fs", failing: orphans::fail_file_request };

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser")
            .field("kind", &self.kind.device)
            .field("backend", &self.backend)
            .field("active", &self.worker.is_some())
            .finish_non_exhaustive()
    }
}

impl VhostUser {
    /// A disk that the process at the other end of `socket`, a connected stream, serves. A driver of `vcpus` vCPUs uses as many
    /// queues, if there are so many. With `read_only`, the back end must not let anybody write.
    ///
    /// # Errors
    /// When it does not answer within seconds, or is not what is needed.
    pub fn disk(
        socket: UnixStream,
        vcpus: u8,
        read_only: bool,
        threads: Arc<dyn Threads>,
    ) -> Result<Self, BackendError> {
        let wanted = u16::from(vcpus.clamp(1, BLK_QUEUES_MAX));
        let backend = introduced(socket, wanted, threads.as_ref())?;
        if read_only && backend.features() & spec::FEATURE_READ_ONLY == 0 {
            return Err(BackendError::Writable);
        }
        let mut space = backend.config::<{ spec::CONFIG_BYTES }>()?.to_vec();
        let queues = match backend.features() & spec::FEATURE_QUEUES {
            0 => 1,
            _ => backend.queues()?.min(wanted),
        };
        space[DISK_QUEUES_AT..DISK_QUEUES_AT + 2].copy_from_slice(&queues.to_le_bytes());
        let queue_sizes = vec![spec::QUEUE_SIZE; queues.into()];
        Ok(VhostUser { kind: DISK, backend, space, queue_sizes, threads, worker: None })
    }

    /// A file system, which the guest mounts by the name `tag` of 1 to 36 bytes. A driver of `vcpus` vCPUs uses as many queues of requests,
    /// if there are so many.
    ///
    /// # Errors
    /// As [`VhostUser::disk`].
    pub fn files(socket: UnixStream, tag: &str, vcpus: u8, threads: Arc<dyn Threads>) -> Result<Self, BackendError> {
        let mut space = fs::config_space(tag, 1)?;
        // Beside these, there is the one for what is urgent.
        let wanted = u16::from(vcpus.clamp(1, FS_QUEUES_MAX));
        let backend = introduced(socket, wanted + 1, threads.as_ref())?;
        let queues = backend.queues()?.saturating_sub(1).clamp(1, wanted);
        space[fs::TAG_BYTES..].copy_from_slice(&u32::from(queues).to_le_bytes());
        let [urgent, requests] = fs::QUEUE_SIZES;
        let queue_sizes = std::iter::once(urgent).chain(std::iter::repeat_n(requests, queues.into())).collect();
        Ok(VhostUser { kind: FILES, backend, space: space.to_vec(), queue_sizes, threads, worker: None })
    }

    fn halt(&mut self) -> Vec<Option<ActiveQueue>> {
        self.worker.take().and_then(Worker::stop).map(Service::into_queues).unwrap_or_default()
    }
}

impl VirtioDevice for VhostUser {
    fn kind(&self) -> DeviceKind {
        self.kind.device
    }

    fn features(&self) -> u64 {
        self.backend.features() & self.kind.features
    }

    fn ring_features(&self) -> u64 {
        self.backend.features() & TRANSPORT_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(ActivateError::MissingQueue(0));
        }
        let line = |active: ActiveQueue| {
            let ledger = Ledger::new(&active.queue);
            Ok(Line { active, call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, ledger })
        };
        let lines = queues.into_iter().map(|queue| queue.map(line).transpose());
        let lines = lines.collect::<Result<_, ActivateError>>()?;
        let surroundings =
            Surroundings { features, memory, interrupt: Arc::clone(&interrupt), failing: self.kind.failing };
        let work = Service::new(self.backend.clone(), lines, surroundings);
        // No kicks: they are the back end's to hear.
        let (threads, kicks) = (self.threads.as_ref(), Vec::new());
        self.worker = Some(Worker::spawn(threads, self.kind.name, Role::Vhost, kicks, interrupt, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        self.halt()
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Err(SaveError::Elsewhere)
    }

    fn reset(&mut self) {
        self.halt();
    }
}

/// Who is on the other side, if it will do.
fn introduced(socket: UnixStream, queues: u16, threads: &dyn Threads) -> Result<Backend, BackendError> {
    let backend = Backend::new(socket, queues, threads)?;
    if backend.features() & FEATURE_VERSION_1 == 0 {
        return Err(BackendError::Lacks("virtio 1.0"));
    }
    Ok(backend)
}

#[cfg(test)]
mod tests;
