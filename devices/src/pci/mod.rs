//! A PCI bus with a host bridge: which function a configuration access means, whichever way it came.
//!
//! Knows no device and no machine: x86's ports ([`ConfigPorts`]), memory-mapped access (ECAM) and a hypercall all end in
//! [`PciBus::read`] and [`PciBus::write`]. Where functions answer in memory was decided before the guest started, so nothing is
//! ever moved here.

use std::sync::Arc;

mod config;
mod ports;
pub mod spec;

pub use config::{ConfigSpace, Identity};
pub use ports::ConfigPorts;

use spec::{CLASS_HOST_BRIDGE, DEVICES_PER_BUS, EXTENDED_CONFIG_BYTES};

/// What configuration space reads as where no function is (PCI Local Bus 3.0, 6.1).
const NOTHING: u8 = 0xff;

/// QEMU's register of numbers has this one for a host bridge without anything of its own (1b36:0008); no driver wants it.
const BRIDGE: Identity = Identity { vendor: 0x1b36, device: 0x0008, class: CLASS_HOST_BRIDGE, revision: 0 };

/// A function on the bus. Called from vCPU threads, several at once.
pub trait PciFunction: Send + Sync {
    /// The guest reads `data.len()` bytes of its configuration space from `register` on.
    fn read_config(&self, register: u16, data: &mut [u8]);

    /// The guest writes `data` there.
    fn write_config(&self, register: u16, data: &[u8]);
}

/// A place in the configuration space of all functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAddress {
    /// The bus.
    pub bus: u8,
    /// The device on it, below 32.
    pub device: u8,
    /// The function of the device, below 8.
    pub function: u8,
    /// The byte in its configuration space, below 4096.
    pub register: u16,
}

impl ConfigAddress {
    /// What an offset into the window of memory-mapped access means (PCI Express 3.0, 7.2.2). None beyond its end.
    pub fn from_ecam(offset: u64) -> Option<ConfigAddress> {
        let bus = u8::try_from(offset >> 20).ok()?;
        let (device, function) = ((offset >> 15) as u8 & 0x1f, (offset >> 12) as u8 & 7);
        Some(ConfigAddress { bus, device, function, register: offset as u16 & (EXTENDED_CONFIG_BYTES - 1) })
    }

    /// What a packed number means, as x86's address port and RTAS have it: the register in its lowest byte, then function, device
    /// and bus; and, as AMD's processors have it, four more bits of the register. The uppermost four bits are not looked at.
    pub fn from_packed(address: u32) -> ConfigAddress {
        let (device, function) = ((address >> 11) as u8 & 0x1f, (address >> 8) as u8 & 7);
        let register = address as u16 & 0xff | (address >> 16) as u16 & 0xf00;
        ConfigAddress { bus: (address >> 16) as u8, device, function, register }
    }
}

/// Bus 0 and what is on it: a host bridge, and behind it devices of one function each, in the order in which they were added.
pub struct PciBus {
    functions: Vec<Arc<dyn PciFunction>>,
}

impl Default for PciBus {
    /// Nothing but the bridge.
    fn default() -> PciBus {
        PciBus { functions: vec![Arc::new(HostBridge(ConfigSpace::new(BRIDGE)))] }
    }
}

impl PciBus {
    /// The most devices beside the bridge.
    pub const CAPACITY: usize = DEVICES_PER_BUS - 1;

    /// Puts `function` into the next free place and says its device number; none, and the function is dropped, if there is no place.
    pub fn add(&mut self, function: Arc<dyn PciFunction>) -> Option<u8> {
        let device = self.functions.len();
        if device > PciBus::CAPACITY {
            return None;
        }
        self.functions.push(function);
        u8::try_from(device).ok()
    }

    /// Carries out a guest's read; all ones where no function is.
    pub fn read(&self, address: ConfigAddress, data: &mut [u8]) {
        match self.find(address) {
            Some(function) => function.read_config(address.register, data),
            None => data.fill(NOTHING),
        }
    }

    /// Carries out a guest's write; lost where no function is.
    pub fn write(&self, address: ConfigAddress, data: &[u8]) {
        if let Some(function) = self.find(address) {
            function.write_config(address.register, data);
        }
    }

    fn find(&self, address: ConfigAddress) -> Option<&dyn PciFunction> {
        let function = self.functions.get(usize::from(address.device))?;
        (address.bus == 0 && address.function == 0).then_some(function.as_ref())
    }
}

/// What says that there is a bus.
struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.0.read(register, data);
    }

    fn write_config(&self, _register: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u16, Vec<u8>)>>);

    impl PciFunction for Recorder {
        fn read_config(&self, register: u16, data: &mut [u8]) {
            data.fill(register as u8);
        }

        fn write_config(&self, register: u16, data: &[u8]) {
            self.0.lock().unwrap().push((register, data.to_vec()));
        }
    }

    #[test]
    fn all_ways_lead_to_the_same_register() {
        let there = ConfigAddress { bus: 1, device: 31, function: 7, register: 0x44 };
        assert_eq!(ConfigAddress::from_ecam(0x1f_f044), Some(there));
        assert_eq!(ConfigAddress::from_packed(0x8001_ff44), there);
        assert_eq!(ConfigAddress::from_packed(0x8301_ff44), ConfigAddress { register: 0x344, ..there });
        assert_eq!(ConfigAddress::from_ecam(0xfff_ffff).unwrap().register, 0xfff);
        assert_eq!(ConfigAddress::from_ecam(0x1000_0000), None);
    }

    #[test]
    fn accesses_reach_the_function_that_is_meant() {
        let (mut bus, function) = (PciBus::default(), Arc::new(Recorder::default()));
        assert_eq!(bus.add(Arc::clone(&function) as _), Some(1));
        let at = |bus, device, function| ConfigAddress { bus, device, function, register: 8 };
        let read = |address| {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(at(0, 0, 0)), 0x0600_0000, "a host bridge comes first");
        assert_eq!(read(at(0, 1, 0)), 0x0808_0808);
        for nobody in [at(0, 2, 0), at(0, 1, 1), at(1, 1, 0), at(255, 31, 7)] {
            assert_eq!(read(nobody), u32::MAX);
            bus.write(nobody, &[1]);
        }
        bus.write(at(0, 0, 0), &[0xff; 4]);
        bus.write(at(0, 1, 0), &[1, 2]);
        assert_eq!(read(at(0, 0, 0)), 0x0600_0000);
        assert_eq!(*function.0.lock().unwrap(), [(8, vec![1, 2])]);
    }

    #[test]
    fn a_bus_has_an_end() {
        let mut bus = PciBus::default();
        for device in 1..=PciBus::CAPACITY as u8 {
            assert_eq!(bus.add(Arc::new(Recorder::default())), Some(device));
        }
        assert_eq!(bus.add(Arc::new(Recorder::default())), None);
    }
}
