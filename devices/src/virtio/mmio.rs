//! virtio-mmio version 2 (virtio 1.2, 4.2.2): registers at offsets, nothing more.
//!
//! Does no I/O and knows no addresses: the bus says at which offset of the device's region a guest read or wrote. What the
//! registers mean is [`Transport`]'s. Where the guest may read them as memory ([`RegisterPage`]), they are put there whenever it
//! has written one: that is what changes them, and what a driver does before it reads what a device has changed of its
//! configuration (it acknowledges the interrupt).

use std::io;
use std::sync::Arc;

use super::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};
use super::{
    GuestMemory, Interrupt, LineInterrupt, QueueState, RestoreError, SaveError, Transport, TransportState, VirtioDevice,
};

mod page;

pub use page::RegisterPage;

/// Bytes of guest physical address space that one device takes.
pub const REGION_BYTES: u64 = 0x1000;
/// Where the driver writes a queue's index to kick it: tie [`Transport::kicks`] to writes of this register (ioeventfd, 4 bytes
/// wide, the queue's index as datamatch).
pub const NOTIFY_OFFSET: u64 = 0x050;
/// Where the driver acknowledges interrupts. Where the registers are read as memory, nobody need hear of a write of
/// [`INTERRUPT_USED`] alone: let it end in the kernel (ioeventfd, 4 bytes wide, that value as datamatch). The bit, once set, stays
/// so until a reset; a driver looks at its queues once too often, at worst.
pub const ACKNOWLEDGE_OFFSET: u64 = INTERRUPT_ACKNOWLEDGE;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"TTMI");

const MAGIC_VALUE: u64 = 0x000;
const VERSION_NUMBER: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
const STATUS: u64 = 0x070;
/// Low and high halves of a queue's three areas, in the order of [`QueueState::areas`]; and of shared memory's length and base.
const QUEUE_AREAS: [(u64, u64); 3] = [(0x080, 0x084), (0x090, 0x094), (0x0a0, 0x0a4)];
const SHARED_MEMORY_FIRST: u64 = 0x0b0;
const SHARED_MEMORY_LAST: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG_SPACE: u64 = 0x100;

/// A virtio device on the memory bus.
#[derive(Debug)]
pub struct MmioTransport {
    transport: Transport,
    page: Option<Arc<RegisterPage>>,
}

impl MmioTransport {
    /// Puts `device` behind a register file.
    ///
    /// # Errors
    /// When event descriptors are not to be had.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> io::Result<Self> {
        Ok(MmioTransport { transport: Transport::new(device, memory)?, page: None })
    }

    /// The same, with registers that the guest may read in [`MmioTransport::page`].
    ///
    /// # Errors
    /// When event descriptors or a page are not to be had.
    pub fn readable(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> io::Result<Self> {
        let page = Arc::new(RegisterPage::new()?);
        let line = Arc::new(LineInterrupt::shown(Arc::clone(&page))?);
        let transport = Transport::with_interrupt(device, memory, Arc::clone(&line), line)?;
        let transport = MmioTransport { transport, page: Some(page) };
        transport.show();
        Ok(transport)
    }

    /// Where the guest may read the registers, if it may.
    pub fn page(&self) -> Option<&Arc<RegisterPage>> {
        self.page.as_ref()
    }

    /// What is behind the registers: the interrupt, the kicks, pausing.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The same, for pausing and resuming.
    pub fn transport_mut(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// See [`Transport::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self) -> Result<TransportState, SaveError> {
        self.transport.save()
    }

    /// See [`Transport::restore`].
    ///
    /// # Errors
    /// As there.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let restored = self.transport.restore(state);
        self.show();
        restored
    }

    /// The guest reads `data.len()` bytes at `offset`. Registers are read whole; anything else reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            self.transport.read_config(offset, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.register(offset).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset`. Registers are written whole; anything else is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let was_active = self.transport.is_active();
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            self.transport.write_config(offset, data);
        } else if let Ok(register) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(register));
        }
        let changed = self.show();
        // What it read while nobody could tell it of changes may be true no more.
        if changed && !was_active && self.transport.is_active() {
            self.transport.interrupt().config();
        }
    }

    /// Puts all registers where the guest reads them; whether the configuration space was another before.
    fn show(&self) -> bool {
        let Some(page) = &self.page else { return false };
        for offset in (0..CONFIG_SPACE).step_by(4).filter(|offset| *offset != INTERRUPT_STATUS) {
            page.set(offset, self.register(offset));
        }
        if self.transport.interrupt().is_reset_needed() {
            // The device may have asked in between, and have been overwritten.
            page.ask_for_reset();
        }
        let mut space = [0; (REGION_BYTES - CONFIG_SPACE) as usize];
        self.transport.read_config(0, &mut space);
        let (words, _) = space.as_chunks();
        (CONFIG_SPACE..)
            .step_by(4)
            .zip(words)
            .fold(false, |changed, (offset, word)| page.set(offset, u32::from_le_bytes(*word)) || changed)
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION_NUMBER => VERSION,
            DEVICE_ID => self.transport.device().kind() as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => self.transport.device_features(),
            QUEUE_SIZE_MAX => u32::from(self.transport.queue_size_max()),
            QUEUE_READY => u32::from(self.transport.is_queue_ready()),
            INTERRUPT_STATUS => self.transport.interrupt().pending(),
            STATUS => u32::from(self.transport.status()),
            // No shared memory: a length of all ones says so (4.2.2).
            SHARED_MEMORY_FIRST..=SHARED_MEMORY_LAST => u32::MAX,
            CONFIG_GENERATION => self.transport.interrupt().generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SELECT => self.transport.select_device_features(value),
            DRIVER_FEATURES => self.transport.set_driver_features(value),
            DRIVER_FEATURES_SELECT => self.transport.select_driver_features(value),
            QUEUE_SELECT => self.transport.select_queue(value),
            QUEUE_SIZE => self.transport.set_up_queue(|queue| queue.size = value),
            QUEUE_READY => self.transport.set_up_queue(|queue| queue.ready = value == 1),
            NOTIFY_OFFSET => self.transport.kick(value),
            INTERRUPT_ACKNOWLEDGE => {
                self.transport.interrupt().acknowledge(value & (INTERRUPT_USED | INTERRUPT_CONFIG))
            }
            // The status has 8 bits; a driver that sets others has lost its way, and its write is ignored.
            STATUS => {
                if let Ok(status) = u8::try_from(value) {
                    self.transport.set_status(status);
                }
            }
            _ => self.set_queue_area(offset, value),
        }
    }

    fn set_queue_area(&mut self, offset: u64, value: u32) {
        let areas = QUEUE_AREAS.iter().enumerate();
        let half =
            areas.flat_map(|(area, &(low, high))| [(area, low, 0), (area, high, 32)]).find(|half| half.1 == offset);
        let Some((area, _, shift)) = half else {
            return;
        };
        self.transport.set_up_queue(|queue: &mut QueueState| {
            let mask = u64::from(u32::MAX) << shift;
            queue.areas[area] = queue.areas[area] & !mask | u64::from(value) << shift;
        });
    }
}

#[cfg(test)]
mod tests;
