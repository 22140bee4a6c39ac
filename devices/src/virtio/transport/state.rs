//! What of a transport outlives its process, and why it may not be taken up again, or a queue not work.
//!
//! Knows no registers and no steps: `transport.rs` has them.

use std::io;

use serde::{Deserialize, Serialize};

/// One queue's registers, as the driver wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Size in descriptors that the driver chose.
    pub size: u32,
    /// The driver has finished with this queue's set-up.
    pub ready: bool,
    /// Guest physical addresses of the descriptor table, the available ring and the used ring.
    pub areas: [u64; 3],
    /// How far the device has come, as (available, used) index; none while the queue is not at work.
    pub position: Option<(u16, u16)>,
}

/// All of a transport that outlives its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status.
    pub status: u8,
    /// The features that the driver accepted.
    pub driver_features: u64,
    /// Which 32 bits of the device's features the driver looks at.
    pub device_features_page: u32,
    /// Which 32 bits of its features the driver writes.
    pub driver_features_page: u32,
    /// The queue that queue registers mean.
    pub selected_queue: u32,
    /// Interrupt status bits not yet acknowledged.
    pub pending_interrupts: u32,
    /// The device has asked for a reset.
    pub needs_reset: bool,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// What the device itself remembers.
    pub device: Vec<u8>,
}

/// Why a saved state does not fit the device it is given to.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is another device's, or another version's.
    #[error("the saved state has {found} queues, the device {expected}: restore it into the device it was saved from")]
    QueueCount {
        /// Queues of the state.
        found: usize,
        /// Queues of the device.
        expected: usize,
    },
    /// It holds features that this device does not offer.
    #[error("the saved driver uses features {0:#x}, which this device does not offer")]
    Features(u64),
    /// What the device remembered is not of one like this.
    #[error("the saved state is damaged, or of a device with other settings")]
    Device,
    /// The file server does not take up what its guest knew.
    #[error("the files that the saved guest had open cannot be opened again: {0}")]
    Files(#[source] io::Error),
    /// The registers of the bus it was on.
    #[error("the saved state's registers are not of a device like this one")]
    Registers,
    /// A queue that cannot be.
    #[error("the saved state is damaged: {0}")]
    Queue(#[from] QueueFault),
    /// No descriptor left for an event, or no memory.
    #[error("the host has not what the device needs: {0}")]
    Resource(#[from] io::Error),
}

/// Why a queue cannot work as the driver set it up.
#[derive(Debug, thiserror::Error)]
pub enum QueueFault {
    /// Not a power of two, or more than the device allows.
    #[error("queue {index}: size {size} is not a power of two of at most {max}")]
    Size {
        /// Queue index.
        index: u16,
        /// What the driver asked for.
        size: u32,
        /// What it may ask for.
        max: u16,
    },
    /// An area is misaligned.
    #[error("queue {index}: address {address:#x} is not aligned to {alignment}")]
    Alignment {
        /// Queue index.
        index: u16,
        /// Guest physical address.
        address: u64,
        /// Bytes.
        alignment: u64,
    },
    /// An area is not wholly RAM.
    #[error("queue {index}: {len} bytes at {address:#x} are not wholly guest RAM")]
    NotRam {
        /// Queue index.
        index: u16,
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u64,
    },
}
