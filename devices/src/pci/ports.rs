//! Configuration access by a PC's ports, "mechanism #1" (PCI Local Bus 3.0, 3.2.2.3.2): an address in one, the data in the other.
//!
//! Knows nothing but the two; where they are is the machine's affair.

use std::sync::{Arc, Mutex, PoisonError};

use super::{ConfigAddress, NOTHING, PciBus};

/// The address register; the data register follows.
const ADDRESS: u64 = 0;
const DATA: u64 = 4;
/// Data is a function's only while the address says so.
const ENABLED: u32 = 1 << 31;
/// What of an address is kept: the rest is reserved and reads as zero.
const KEPT: u32 = ENABLED | 0x0fff_fffc;

/// Eight bytes of ports.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: Mutex<u32>,
}

impl ConfigPorts {
    /// How many ports there are.
    pub const COUNT: u64 = 8;

    /// Ports to `bus`.
    pub fn new(bus: Arc<PciBus>) -> ConfigPorts {
        ConfigPorts { bus, address: Mutex::new(0) }
    }

    /// What the guest has written to the address register, which outlives the process.
    pub fn address(&self) -> u32 {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it.
    pub fn set_address(&self, address: u32) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address & KEPT;
    }

    /// The guest reads at `offset` from the first port.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(NOTHING);
        if let (ADDRESS, Ok(register)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *register = self.address().to_le_bytes();
        } else if let Some(address) = self.meant(offset, data.len()) {
            self.bus.read(address, data);
        }
    }

    /// The guest writes there.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (ADDRESS, Ok(register)) = (offset, <[u8; 4]>::try_from(data)) {
            self.set_address(u32::from_le_bytes(register));
        } else if let Some(address) = self.meant(offset, data.len()) {
            self.bus.write(address, data);
        }
    }

    /// Which register an access to the data register means, if it is one.
    fn meant(&self, offset: u64, len: usize) -> Option<ConfigAddress> {
        let (address, byte) = (self.address(), offset.checked_sub(DATA)?);
        let fits = byte + len as u64 <= ConfigPorts::COUNT - DATA;
        (fits && address & ENABLED != 0).then(|| ConfigAddress::from_packed(address | byte as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> ConfigPorts {
        ConfigPorts::new(Arc::new(PciBus::default()))
    }

    fn read<const N: usize>(ports: &ConfigPorts, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        ports.read(offset, &mut data);
        data
    }

    #[test]
    fn a_register_is_read_through_the_data_port() {
        let ports = ports();
        assert_eq!(read(&ports, 4), [0xff; 4], "no address yet");
        ports.write(0, &0x8000_0008_u32.to_le_bytes());
        assert_eq!(read(&ports, 0), 0x8000_0008_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0, 0, 0, 6]);
        assert_eq!(read(&ports, 7), [6]);
        ports.write(0, &0x8000_0800_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0xff; 4], "nobody is there");
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let ports = ports();
        ports.write(0, &u32::MAX.to_le_bytes());
        assert_eq!(ports.address(), 0x8fff_fffc);
        assert_eq!(read(&ports, 4), [0xff; 4]);
        ports.write(0, &0x8100_0000_u32.to_le_bytes());
        assert_eq!(read(&ports, 4), [0; 4], "nothing is behind the first 256 bytes");
        ports.write(0, &0x8000_0008_u32.to_le_bytes());
        for (offset, len) in [(0, 1), (3, 1), (2, 4), (0, 8), (6, 4), (7, 2), (u64::MAX, 4)] {
            let mut data = vec![0xaa; len];
            ports.read(offset, &mut data);
            assert_eq!(data, vec![0xff; len], "{len} bytes at {offset:#x}");
            ports.write(offset, &data);
        }
        assert_eq!(ports.address(), 0x8000_0008);
    }
}
