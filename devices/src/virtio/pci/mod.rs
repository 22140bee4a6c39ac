//! virtio over PCI (virtio 1.2, 4.1), without what came before version 1.0: capabilities that say where registers are, and these.
//!
//! Does no I/O and knows no addresses beyond the one that its configuration space shows: the bus says which register of that a
//! guest accessed, and at which offset into the device's memory. What registers mean is [`Transport`]'s; how interrupts reach the
//! driver is `msix.rs`'s.

mod msix;
mod registers;
pub mod spec;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceKind, GuestMemory, LineInterrupt, RestoreError, SaveError, Transport, TransportState, VirtioDevice};
use crate::pci::spec::{
    CAPABILITY_MSIX, CAPABILITY_VENDOR, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, COMMAND_NO_PIN, CONFIG_BYTES,
    INTERRUPT_LINE, INTERRUPT_PIN,
};
use crate::pci::{ConfigSpace, Identity, PciFunction};
use msix::PciInterrupt;
use spec::{
    BAR_BYTES, COMMON, COMMON_CFG, DEVICE_BASE, DEVICE_CFG, DEVICE_CONFIG, ISR, ISR_CFG, MSIX_ENABLED,
    MSIX_ENTRIES_MAX, MSIX_MASKED, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_CFG, NOTIFY_STRIDE, PCI_CFG, REVISION,
    VENDOR, class,
};

pub use msix::{Message, MessageRoutes, MsixState};

/// What a device's memory reads as while it does not answer there.
const NOTHING: u8 = 0xff;

/// All of a device behind PCI that outlives its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciState {
    /// What every transport has.
    pub transport: TransportState,
    /// The configuration space.
    pub config: Vec<u8>,
    /// The messages.
    pub messages: MsixState,
}

/// How a device on PCI interrupts.
pub enum PciInterrupts {
    /// By its pin, which [`Transport::interrupt`]'s line stands for: one write for each interrupt, whose status the driver reads.
    Pin,
    /// By messages, of one vector more than there are queues; without a pin.
    Messages(Box<dyn MessageRoutes>),
}

/// A virtio device on the PCI bus.
pub struct PciTransport {
    transport: Transport,
    interrupt: Arc<PciInterrupt>,
    config: ConfigSpace,
    /// Where the capabilities are that are not read only: the window, and MSI-X if it is there.
    window: usize,
    msix: Option<usize>,
}

impl fmt::Debug for PciTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PciTransport").field(&self.transport).finish()
    }
}

impl PciTransport {
    /// Puts `device` behind registers that are found at `address`, a multiple of [`spec::BAR_BYTES`].
    ///
    /// # Errors
    /// When event descriptors are not to be had, or the device has more queues than there is place for vectors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        address: u32,
        interrupts: PciInterrupts,
    ) -> io::Result<PciTransport> {
        let queues = device.queue_sizes().len();
        if queues >= MSIX_ENTRIES_MAX {
            return Err(io::Error::other(format!("a device of {queues} queues does not fit behind PCI")));
        }
        let (routes, pin) = match interrupts {
            PciInterrupts::Pin => (None, 1),
            PciInterrupts::Messages(routes) => (Some(routes), 0),
        };
        let line = Arc::new(LineInterrupt::new()?);
        let mut config = config_space(device.kind(), address);
        config.put(INTERRUPT_PIN, &[pin]);
        let msix = routes.as_ref().map(|_| add_msix(&mut config, queues + 1));
        let window = add_structures(&mut config);
        let interrupt = Arc::new(PciInterrupt::new(Arc::clone(&line), queues, routes)?);
        let raised = Arc::clone(&interrupt);
        let transport = Transport::with_interrupt(device, memory, line, raised)?;
        Ok(PciTransport { transport, interrupt, config, window, msix })
    }

    /// What is behind the registers: the kicks, the pin's line, pausing.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The same, for pausing and resuming.
    pub fn transport_mut(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// One event descriptor a vector, to be tied to an interrupt controller as [`MessageRoutes`] says; none where there is a pin.
    pub fn messages(&self) -> &[EventFd] {
        self.interrupt.events()
    }

    /// Where in the device's memory the driver notifies queue `index`, whatever it writes there: to be tied to [`Transport::kicks`].
    pub fn notify_offset(index: u16) -> u64 {
        u64::from(NOTIFY.0 + u32::from(index) * NOTIFY_STRIDE)
    }

    /// As [`Transport::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self) -> Result<PciState, SaveError> {
        let (config, messages) = (self.config.save(), self.interrupt.save());
        Ok(PciState { transport: self.transport.save()?, config, messages })
    }

    /// As [`Transport::restore`].
    ///
    /// # Errors
    /// As there; also when the registers are not of a device like this one.
    pub fn restore(&mut self, state: &PciState) -> Result<(), RestoreError> {
        self.interrupt.forget_driver();
        let config = <&[u8; CONFIG_BYTES]>::try_from(state.config.as_slice());
        let (Ok(config), true) = (config, self.interrupt.fits(&state.messages)) else {
            self.transport.set_status(0);
            return Err(RestoreError::Registers);
        };
        self.transport.restore(&state.transport)?;
        self.config.restore(config);
        self.heed_config();
        self.interrupt.restore(&state.messages);
        Ok(())
    }

    /// The guest reads `data.len()` bytes of the device's memory at `offset`. Registers are read whole; anything else reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if self.answers() { self.read_memory(offset, data) } else { data.fill(NOTHING) }
    }

    /// The guest writes `data` there. Registers are written whole; anything else is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if self.answers() {
            self.write_memory(offset, data);
        }
    }

    /// The guest reads its configuration space.
    pub fn read_config(&self, register: u16, data: &mut [u8]) {
        self.config.read(register, data);
        let Some((offset, len)) = self.through_window(register, data.len()) else {
            return;
        };
        let (mut bytes, place) = (self.config.get::<4>(self.window + 16), self.window + 16);
        self.read_memory(offset, &mut bytes[..len]);
        for (at, byte) in (usize::from(register)..).zip(data) {
            if let Some(&seen) = at.checked_sub(place).and_then(|index| bytes.get(index)) {
                *byte = seen;
            }
        }
    }

    /// The guest writes its configuration space.
    pub fn write_config(&mut self, register: u16, data: &[u8]) {
        self.config.write(register, data);
        self.heed_config();
        if let Some((offset, len)) = self.through_window(register, data.len()) {
            let bytes = self.config.get::<4>(self.window + 16);
            self.write_memory(offset, &bytes[..len]);
        }
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes(self.config.get(COMMAND))
    }

    /// Whether the driver has the device answer at its memory addresses.
    fn answers(&self) -> bool {
        self.command() & COMMAND_MEMORY != 0
    }

    /// Tells the interrupts what the driver has written to the registers that govern them.
    fn heed_config(&self) {
        let control = self.msix.map_or(0, |msix| u16::from_le_bytes(self.config.get(msix + 2)));
        self.interrupt.set_control(control, self.command() & COMMAND_NO_PIN != 0);
    }

    /// What of the device's memory an access to configuration space goes on to (4.1.4.9), as offset and length, if it touches the
    /// window's data and the driver has set the window to something that can be.
    fn through_window(&self, register: u16, len: usize) -> Option<(u64, usize)> {
        let (data, register) = (self.window + 16, usize::from(register));
        let touched = register < data + 4 && register + len > data;
        let [bar] = self.config.get(self.window + 4);
        let [offset, length] = [8, 12].map(|at| u32::from_le_bytes(self.config.get(self.window + at)));
        let possible = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let inside = u64::from(offset) + u64::from(length) <= u64::from(BAR_BYTES);
        (touched && possible && inside).then_some((offset.into(), length as usize))
    }

    fn read_memory(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Structure::at(offset) {
            Some((Structure::Common, at)) => self.read_common(at, data),
            Some((Structure::Isr, _)) => {
                if let [status, ..] = data {
                    *status = self.transport.interrupt().take_pending() as u8;
                }
            }
            Some((Structure::Device, at)) => self.transport.read_config(at.into(), data),
            Some((Structure::Table, at)) => self.interrupt.read_table(at, data),
            Some((Structure::Pending, at)) => self.interrupt.read_pending(at, data),
            Some((Structure::Notify, _)) | None => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        match Structure::at(offset) {
            Some((Structure::Common, at)) => self.write_common(at, data),
            Some((Structure::Device, at)) => self.transport.write_config(at.into(), data),
            Some((Structure::Table, at)) => self.interrupt.write_table(at, data),
            Some((Structure::Notify, at)) if at.is_multiple_of(NOTIFY_STRIDE) && matches!(data.len(), 2 | 4) => {
                self.transport.kick(at / NOTIFY_STRIDE);
            }
            Some((Structure::Notify | Structure::Isr | Structure::Pending, _)) | None => {}
        }
    }
}

impl PciFunction for Mutex<PciTransport> {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read_config(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write_config(register, data);
    }
}

/// What a device's memory consists of.
#[derive(Clone, Copy)]
enum Structure {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

impl Structure {
    /// Which one is at `offset`, and how far into it that is.
    fn at(offset: u64) -> Option<(Structure, u32)> {
        const ALL: [(Structure, (u32, u32)); 6] = [
            (Structure::Common, COMMON),
            (Structure::Isr, ISR),
            (Structure::Device, DEVICE_CONFIG),
            (Structure::Notify, NOTIFY),
            (Structure::Table, MSIX_TABLE),
            (Structure::Pending, MSIX_PENDING),
        ];
        let offset = u32::try_from(offset).ok()?;
        let range = |(start, len): (u32, u32)| -> Range<u32> { start..start + len };
        let (structure, (start, _)) = ALL.into_iter().find(|(_, place)| range(*place).contains(&offset))?;
        Some((structure, offset - start))
    }
}

fn config_space(kind: DeviceKind, address: u32) -> ConfigSpace {
    let identity =
        Identity { vendor: VENDOR, device: DEVICE_BASE + kind as u16, class: class(kind), revision: REVISION };
    let mut config = ConfigSpace::new(identity);
    config.set_bar(address, BAR_BYTES);
    config.let_write(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_PIN).to_le_bytes());
    config.let_write(INTERRUPT_LINE, &[0xff]);
    // Its place is settled, so it may answer there, as devices do that firmware has seen to.
    config.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    config
}

/// MSI-X's capability (PCI Local Bus 3.0, 6.8.2); its table and pending bits are in the first range of memory.
fn add_msix(config: &mut ConfigSpace, vectors: usize) -> usize {
    let mut body = ((vectors - 1) as u16).to_le_bytes().to_vec();
    body.extend([MSIX_TABLE.0, MSIX_PENDING.0].map(u32::to_le_bytes).as_flattened());
    let at = config.add_capability(CAPABILITY_MSIX, &body);
    config.let_write(at + 2, &(MSIX_ENABLED | MSIX_MASKED).to_le_bytes());
    at
}

/// The capabilities that say where virtio's structures are (4.1.4), all in the first range of memory. Returns where the last of them
/// is, the window to the others.
fn add_structures(config: &mut ConfigSpace) -> usize {
    let mut add = |kind: u8, (offset, length): (u32, u32), more: &[u8]| {
        let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
        body.extend([offset, length].map(u32::to_le_bytes).as_flattened());
        body.extend(more);
        config.add_capability(CAPABILITY_VENDOR, &body)
    };
    add(COMMON_CFG, COMMON, &[]);
    add(NOTIFY_CFG, NOTIFY, &NOTIFY_STRIDE.to_le_bytes());
    add(ISR_CFG, ISR, &[]);
    add(DEVICE_CFG, DEVICE_CONFIG, &[]);
    let window = add(PCI_CFG, (0, 0), &[0; 4]);
    // Its range, offset and length, and the data.
    config.let_write(window + 4, &[0xff]);
    config.let_write(window + 8, &[0xff; 12]);
    window
}

#[cfg(test)]
mod tests;
