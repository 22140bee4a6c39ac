//! Finds the device that answers at an address. Fixed once the machine is built, so vCPUs share it without a lock.
//!
//! Knows no device: each has a lock of its own if it needs one.

use std::ops::Range;

use tatami_arch::Space;

/// Something that answers at addresses. Called from vCPU threads, several at once.
pub(crate) trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` into the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What an address space reads as where nothing is, as on a PC.
const NOTHING: u8 = 0xff;

/// The devices of a machine by address.
#[derive(Default)]
pub(crate) struct Bus {
    devices: Vec<(Space, Range<u64>, Box<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `range`, which must be free.
    pub(crate) fn add(&mut self, space: Space, range: Range<u64>, device: Box<dyn BusDevice>) {
        debug_assert!(self.devices.iter().all(|(other_space, other, _)| {
            *other_space != space || range.end <= other.start || other.end <= range.start
        }));
        self.devices.push((space, range, device));
    }

    /// Carries out a guest's read; all ones where no device is.
    pub(crate) fn read(&self, space: Space, address: u64, data: &mut [u8]) {
        match self.find(space, address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(NOTHING),
        }
    }

    /// Carries out a guest's write; lost where no device is.
    pub(crate) fn write(&self, space: Space, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(space, address) {
            device.write(offset, data);
        }
    }

    fn find(&self, space: Space, address: u64) -> Option<(u64, &dyn BusDevice)> {
        // Few ranges: looking at all is quicker than anything clever.
        let (_, range, device) = self.devices.iter().find(|(at, range, _)| *at == space && range.contains(&address))?;
        Some((address - range.start, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Writes = Vec<(u64, Vec<u8>)>;

    struct Recorder(Arc<Mutex<Writes>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_that_owns_the_address() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut bus = Bus::default();
        bus.add(Space::Memory, 0x1000..0x2000, Box::new(Recorder(Arc::clone(&written))));
        bus.add(Space::Ports, 0x1000..0x1008, Box::new(Recorder(Arc::default())));
        let mut data = [0; 2];
        bus.read(Space::Memory, 0x1010, &mut data);
        assert_eq!(data, [0x10; 2]);
        bus.write(Space::Memory, 0x1fff, &[1, 2, 3, 4]);
        bus.write(Space::Memory, 0x2000, &[5]);
        bus.write(Space::Ports, 0x1000, &[6]);
        assert_eq!(*written.lock().unwrap(), [(0xfff, vec![1, 2, 3, 4])]);
        bus.read(Space::Ports, 0x1008, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
