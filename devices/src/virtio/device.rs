//! The contract between a virtio device, the transport that carries it and the VMM that gives it threads.
//!
//! Knows no transport registers and no device behaviour.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_queue::Queue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::spec::TRANSPORT_FEATURES;
use super::{GuestMemory, RestoreError};

/// Device types, as numbered in virtio 1.2, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network device (5.1).
    Net = 1,
    /// Block device (5.2).
    Block = 2,
    /// Console device (5.3).
    Console = 3,
    /// Entropy device (5.4).
    Entropy = 4,
    /// Traditional memory balloon (5.5).
    Balloon = 5,
    /// Socket device (5.10).
    Vsock = 19,
    /// Memory device (5.15).
    Memory = 24,
    /// File system device (5.11).
    Fs = 26,
}

/// How a device calls for its driver's attention. Implemented by the transport; cheap, callable from any thread.
pub trait Interrupt: Send + Sync {
    /// Used buffers were added to queue `index`; event suppression has already been consulted.
    fn queue(&self, index: u16);

    /// A descriptor that does the same for queue `index` when it is written, by whomever; none where there is more to do.
    fn queue_event(&self, index: u16) -> Option<&EventFd>;

    /// The configuration space changed (virtio 1.2, 2.5).
    fn config(&self);

    /// The device has met something it cannot go on from: sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2) and tells the driver.
    fn needs_reset(&self);
}

/// What a thread does, and so which system calls it may make once the VMM confines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs a virtual CPU.
    Vcpu,
    /// Moves bytes between rings and descriptors that are already open (block, entropy).
    Io,
    /// Moves frames between rings and taps or sockets that are already open, or has the host's kernel do so (vhost-net), and tells taps
    /// what the driver wants (net).
    Frames,
    /// Accepts and moves unix-socket streams (vsock).
    Socket,
    /// Serves files: opens, creates, renames below its own root.
    Files,
    /// Speaks with a process that serves a device's queues in this one's place (vhost-user), and gives it descriptors.
    Vhost,
    /// Gives guest RAM back to the host, and lets the guest at it (balloon, memory): madvise, mmap, mprotect, fallocate.
    Memory,
}

/// Gives a device its threads. Implemented by the VMM, which names and confines them before `body` runs.
pub trait Threads: Send + Sync {
    /// Starts a thread called `name` (at most 15 bytes) doing `role`.
    ///
    /// # Errors
    /// Whatever the operating system said when it would not start one.
    fn spawn(&self, name: &str, role: Role, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;
}

/// What is behind guest RAM, for devices that give it back. Implemented by the VMM, which maps it; callable from any thread.
pub trait Backing: Send + Sync {
    /// Lets the host have what is behind the whole pages (the host's) among `len` bytes at `address`, which must be RAM. Each of
    /// their bytes reads as zero from now on, or as before; the guest may use them again at any time.
    ///
    /// # Errors
    /// When they are not RAM, or the kernel refuses; some may have been let go then.
    fn release(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()>;

    /// Lets everybody at `len` bytes at `address`, both multiples of the host's page. Where [`Backing::close`] came before, they
    /// are zeros.
    ///
    /// # Errors
    /// When they are not RAM, or the kernel refuses; all is as before then.
    fn open(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()>;

    /// Lets nobody at them any more, and the host have what was behind them.
    ///
    /// # Errors
    /// When they are not RAM, or the kernel refuses; all is as before then.
    fn close(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()>;
}

/// One queue as the driver set it up and the transport validated it.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The ring. Ready, its size a power of two within the device's limit, all three areas inside guest RAM.
    pub queue: Queue,
    /// Signalled when the driver notifies this queue.
    pub kick: EventFd,
}

/// All a device needs to go to work; given once per activation.
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The feature bits that both sides agreed on: some of [`VirtioDevice::features`] and of the transport's own.
    pub features: u64,
    /// One for each entry of [`VirtioDevice::queue_sizes`], in that order; `None` where the driver left a queue unused.
    pub queues: Vec<Option<ActiveQueue>>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// Why a device did not start. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue without which the device cannot work.
    #[error("the driver did not set up queue {0}, which this device needs")]
    MissingQueue(u16),
    /// The driver does not accept a feature without which it must not have the device.
    #[error("the driver does not agree that {0}, which this device demands")]
    MissingFeature(&'static str),
    /// A thread, an event descriptor or a duplicate of one could not be had.
    #[error("cannot set up the device's thread: {0}")]
    Resource(#[from] io::Error),
}

/// Why what a device remembers cannot be written down.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file server cannot say which files its guest knows.
    #[error("the files that the guest has open cannot be written down: {0}")]
    Files(#[source] io::Error),
    /// What another process remembers of its guest, nobody here can write down.
    #[error("another process serves it (vhost-user), which remembers what nobody here knows")]
    Elsewhere,
}

/// Fills `data` from a configuration space at byte `offset`; what lies beyond its end stays as it is.
pub(super) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    for (byte, value) in data.iter_mut().zip(space.iter().skip(offset.try_into().unwrap_or(usize::MAX))) {
        *byte = *value;
    }
}

/// A virtio device, seen by its transport.
pub trait VirtioDevice: Send {
    /// The device type.
    fn kind(&self) -> DeviceKind;

    /// Feature bits offered to the driver; the transport adds VIRTIO_F_VERSION_1 and ring features it handles itself.
    fn features(&self) -> u64 {
        0
    }

    /// What of the rings' own features those who serve the queues know; the transport offers no others.
    fn ring_features(&self) -> u64 {
        TRANSPORT_FEATURES
    }

    /// The maximum size of each queue, in descriptors; each a power of two of at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space at byte `offset`; bytes beyond its end read as zero.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// Takes a driver's write to the configuration space; most devices have nothing writable and ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts work on the queues.
    ///
    /// # Errors
    /// When a needed queue is missing or a thread cannot be had; the device is then as before the call.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops work for a while: on return nothing touches guest memory or the queues any more, and every chain taken from a
    /// queue has been answered. The queues come back as they stand, so that a later [`VirtioDevice::activate`] goes on where
    /// this one ended; what the device itself remembers (open files, connections) stays. Empty before activation.
    fn pause(&mut self) -> Vec<Option<ActiveQueue>>;

    /// What the device remembers beyond its queues and must know in a new process, for [`VirtioDevice::restore`]; it does not work
    /// meanwhile. Most remember nothing.
    ///
    /// # Errors
    /// When that cannot be written down; the device can go on nevertheless.
    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Ok(Vec::new())
    }

    /// Takes up what another device like this one saved. Before activation, which comes only if that one was at work.
    ///
    /// # Errors
    /// When it is not of a device like this; the device is then as new.
    fn restore(&mut self, saved: &[u8], _memory: &GuestMemory) -> Result<(), RestoreError> {
        if saved.is_empty() { Ok(()) } else { Err(RestoreError::Device) }
    }

    /// Stops work for good: as [`VirtioDevice::pause`], but queues and everything remembered of this driver are dropped.
    /// Idempotent; also before activation.
    fn reset(&mut self);
}
