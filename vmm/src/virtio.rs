//! The machine's virtio devices in their places: registers where the guest finds them, interrupts and kicks past this process.
//!
//! Which bus that is, memory's own (virtio-mmio) or PCI, is nothing that a device knows. Knows no device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tatami_arch::{DeviceSlot, Host, Machine, Space};
use tatami_devices::pci::{ConfigAddress, ConfigPorts, PciBus};
use tatami_devices::virtio::mmio::{ACKNOWLEDGE_OFFSET, NOTIFY_OFFSET};
use tatami_devices::virtio::pci::PciInterrupts;
use tatami_devices::virtio::spec::INTERRUPT_USED;
use tatami_devices::virtio::{
    GuestMemory, MmioTransport, PciState, PciTransport, RestoreError, SaveError, Transport, TransportState,
    VirtioDevice,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::BootError;
use crate::bus::{Bus, BusDevice};
use crate::config::VirtioBus;
use crate::kvm::{Messages, Vm};

/// All of them, in the order of their places.
#[derive(Default)]
pub(crate) struct VirtioDevices {
    devices: Vec<Registers>,
    /// The ports to PCI's configuration, where that is how it is reached.
    ports: Option<Arc<ConfigPorts>>,
}

/// What of them outlives the process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VirtioState {
    pub(crate) devices: Vec<DeviceState>,
    /// The address that the guest has written to PCI's ports.
    pub(crate) pci_address: u32,
}

/// What of one of them does.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceState {
    Mmio(TransportState),
    Pci(Box<PciState>),
}

/// Which device could not be saved or restored, and why.
pub(crate) type At<E> = (usize, E);

impl VirtioDevices {
    /// Puts `devices` into their places on `bus`.
    pub(crate) fn place(
        bus: &mut Bus,
        vm: &mut Vm,
        kind: VirtioBus,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<VirtioDevices, BootError> {
        let mut placed = VirtioDevices::default();
        let (mut pci, mut messages) = (PciBus::default(), vm.messages());
        for (index, device) in devices.into_iter().enumerate() {
            let slot = kind.slot(index).ok_or(BootError::TooManyDevices(index))?;
            let range = slot.address..slot.address + slot.size;
            placed.devices.push(match kind {
                VirtioBus::Mmio => {
                    let registers = Arc::new(on_memory(vm, slot, device)?);
                    bus.add(Space::Memory, range, Box::new(MmioRegisters(Arc::clone(&registers))));
                    Registers::Mmio(registers)
                }
                VirtioBus::Pci => {
                    let registers = Arc::new(on_pci(vm, slot, messages.as_mut(), device)?);
                    pci.add(Arc::clone(&registers) as _).ok_or(BootError::TooManyDevices(index))?;
                    bus.add(Space::Memory, range, Box::new(PciRegisters(Arc::clone(&registers))));
                    Registers::Pci(registers)
                }
            });
        }
        if let (VirtioBus::Pci, Some(slot)) = (kind, Host::PCI) {
            let range = slot.address..slot.address + slot.size;
            let pci = Arc::new(pci);
            if slot.space == Space::Ports {
                let ports = Arc::new(ConfigPorts::new(pci));
                placed.ports = Some(Arc::clone(&ports));
                bus.add(slot.space, range, Box::new(Ports(ports)));
            } else {
                bus.add(slot.space, range, Box::new(Window(pci)));
            }
        }
        Ok(placed)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Which kind each is of (virtio 1.2, section 5).
    pub(crate) fn kinds(&self) -> impl Iterator<Item = u32> {
        self.devices.iter().map(|registers| registers.with(|transport| transport.device().kind() as u32))
    }

    /// Has all of them stand still between two requests.
    pub(crate) fn pause(&self) {
        self.devices.iter().for_each(|registers| registers.with(Transport::pause));
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.devices.iter().for_each(|registers| registers.with(Transport::resume));
    }

    /// Has all of them and their drivers look whether they have missed something.
    pub(crate) fn nudge(&self) {
        self.devices.iter().for_each(|registers| registers.with(|transport| transport.nudge()));
    }

    /// Where each of them stands, for people.
    pub(crate) fn describe(&self) -> impl Iterator<Item = String> {
        self.devices.iter().map(|registers| registers.with(|transport| transport.describe()))
    }

    /// What is to be known of devices that stand still.
    pub(crate) fn save(&self) -> Result<VirtioState, At<SaveError>> {
        let saved = self.devices.iter().enumerate().map(|(index, registers)| {
            let saved = match registers {
                Registers::Mmio(mmio) => lock(mmio).save().map(DeviceState::Mmio),
                Registers::Pci(pci) => lock(pci).save().map(|state| DeviceState::Pci(Box::new(state))),
            };
            saved.map_err(|error| (index, error))
        });
        let pci_address = self.ports.as_ref().map_or(0, |ports| ports.address());
        Ok(VirtioState { devices: saved.collect::<Result<_, _>>()?, pci_address })
    }

    /// Takes up the state of as many devices.
    pub(crate) fn restore(&self, state: &VirtioState) -> Result<(), At<RestoreError>> {
        for (index, (registers, saved)) in self.devices.iter().zip(&state.devices).enumerate() {
            let restored = match (registers, saved) {
                (Registers::Mmio(mmio), DeviceState::Mmio(state)) => lock(mmio).restore(state),
                (Registers::Pci(pci), DeviceState::Pci(state)) => lock(pci).restore(state),
                _ => Err(RestoreError::Registers),
            };
            restored.map_err(|error| (index, error))?;
        }
        if let Some(ports) = &self.ports {
            ports.set_address(state.pci_address);
        }
        Ok(())
    }
}

/// One device behind its registers.
enum Registers {
    Mmio(Arc<Mutex<MmioTransport>>),
    Pci(Arc<Mutex<PciTransport>>),
}

impl Registers {
    fn with<T>(&self, act: impl FnOnce(&mut Transport) -> T) -> T {
        match self {
            Registers::Mmio(mmio) => act(lock(mmio).transport_mut()),
            Registers::Pci(pci) => act(lock(pci).transport_mut()),
        }
    }
}

fn lock<T>(registers: &Mutex<T>) -> MutexGuard<'_, T> {
    registers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device by itself: one line, one register for all kicks, and the others as memory where that goes.
fn on_memory(vm: &mut Vm, slot: DeviceSlot, device: Box<dyn VirtioDevice>) -> Result<Mutex<MmioTransport>, BootError> {
    let new = if vm.can_show_registers() { MmioTransport::readable } else { MmioTransport::new };
    let mmio = new(device, memory_of(vm))?;
    if let Some(page) = mmio.page() {
        vm.show_registers(page, slot.address)?;
        // Nobody listens: KVM keeps what it needs of the descriptor, and the write ends there.
        let unheard = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        vm.connect_write(&unheard, slot.address + ACKNOWLEDGE_OFFSET, Some(INTERRUPT_USED))?;
    }
    vm.connect_interrupt(mmio.transport().interrupt().line(), slot.irq)?;
    for (index, kick) in mmio.transport().kicks().iter().enumerate() {
        vm.connect_write(kick, slot.address + NOTIFY_OFFSET, Some(index as u32))?;
    }
    Ok(Mutex::new(mmio))
}

/// A device on PCI: a message for each queue where the machine has them, and a register for the kicks of each.
fn on_pci(
    vm: &Vm,
    slot: DeviceSlot,
    messages: Option<&mut Messages>,
    device: Box<dyn VirtioDevice>,
) -> Result<Mutex<PciTransport>, BootError> {
    let (interrupts, first) = match messages {
        Some(messages) => {
            let (first, routes) = messages.reserve(device.queue_sizes().len() + 1);
            (PciInterrupts::Messages(routes), first)
        }
        None => (PciInterrupts::Pin, slot.irq),
    };
    // Places on this bus are below 4 GiB: that is how it is laid out.
    let pci = PciTransport::new(device, memory_of(vm), slot.address as u32, interrupts)?;
    if pci.messages().is_empty() {
        vm.connect_interrupt(pci.transport().interrupt().line(), first)?;
    }
    for (irq, event) in (first..).zip(pci.messages()) {
        vm.connect_interrupt(event, irq)?;
    }
    for (index, kick) in (0..).zip(pci.transport().kicks()) {
        vm.connect_write(kick, slot.address + PciTransport::notify_offset(index), None)?;
    }
    Ok(Mutex::new(pci))
}

fn memory_of(vm: &Vm) -> GuestMemory {
    vm.memory().clone()
}

/// A device's registers on memory's bus.
struct MmioRegisters(Arc<Mutex<MmioTransport>>);

impl BusDevice for MmioRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.0).write(offset, data);
    }
}

/// A PCI device's memory.
struct PciRegisters(Arc<Mutex<PciTransport>>);

impl BusDevice for PciRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.0).write(offset, data);
    }
}

/// PCI's configuration behind two ports.
struct Ports(Arc<ConfigPorts>);

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// PCI's configuration as a range of addresses (ECAM).
struct Window(Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match ConfigAddress::from_ecam(offset) {
            Some(address) => self.0.read(address, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(address) = ConfigAddress::from_ecam(offset) {
            self.0.write(address, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_reached_through_either() {
        let pci = Arc::new(PciBus::default());
        let (window, ports) = (Window(Arc::clone(&pci)), Ports(Arc::new(ConfigPorts::new(pci))));
        let read = |device: &dyn BusDevice, offset| {
            let mut data = [0; 4];
            device.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        ports.write(0, &0x8000_0008_u32.to_le_bytes());
        assert_eq!((read(&window, 8), read(&ports, 4)), (0x0600_0000, 0x0600_0000), "a host bridge");
        window.write(1 << 15, &[0; 4]);
        assert_eq!((read(&window, 1 << 15), read(&window, 1 << 28)), (u32::MAX, u32::MAX), "nothing else");
    }
}
