//! One function's configuration space: bytes, which of their bits can be written, a list of capabilities, one base address register.
//!
//! Does nothing when it is written: whoever has it looks at what stands there now.

use super::spec::{
    BAR0, CAPABILITIES, CONFIG_BYTES, DEVICE, HEADER_END, REVISION, STATUS, STATUS_CAPABILITIES, SUBSYSTEM, VENDOR,
};

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor, of the function and of its subsystem.
    pub vendor: u16,
    /// Device number, of the function and of its subsystem.
    pub device: u16,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// A range of memory addresses that a function answers at, where it was put and stays.
#[derive(Clone, Copy, Debug)]
struct Bar {
    address: u32,
    /// The address bits that a driver finds writable: all but those below the range's size.
    mask: u32,
}

/// The registers. Accesses of any width at any place are harmless.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bar: Option<Bar>,
    /// Where the last capability says which comes after it.
    last_link: usize,
    /// The first byte that no capability has.
    free: usize,
}

impl ConfigSpace {
    /// The registers of a function without memory, capabilities or anything to write.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bar: None,
            last_link: CAPABILITIES,
            free: HEADER_END,
        };
        let Identity { vendor, device, class, revision } = identity;
        space.put(VENDOR, &vendor.to_le_bytes());
        space.put(DEVICE, &device.to_le_bytes());
        space.put(REVISION, &[revision]);
        space.put(REVISION + 1, &class.to_le_bytes()[..3]);
        space.put(SUBSYSTEM, &vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &device.to_le_bytes());
        space
    }

    /// Appends a capability of `id` whose bytes after the link are `body`; says where it begins.
    ///
    /// # Panics
    /// When there is no room, which its caller's constants decide.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        let status = STATUS_CAPABILITIES.to_le_bytes();
        self.put(STATUS, &status);
        self.put(self.last_link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.last_link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the function answer at `size` bytes (a power of two) at `address`, a multiple of that, by its first register for it. Who
    /// writes there learns the size as ever, but nobody moves the range.
    pub fn set_bar(&mut self, address: u32, size: u32) {
        let mask = !(size - 1);
        self.bar = Some(Bar { address, mask });
        self.put(BAR0, &address.to_le_bytes());
        self.let_write(BAR0, &mask.to_le_bytes());
    }

    /// Puts bytes there, whether or not a driver can.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets a driver write the bits that are set in `mask` from `at` on.
    pub fn let_write(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Bytes as they stand there.
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|index| self.bytes.get(at + index).copied().unwrap_or(0))
    }

    /// A driver reads at `register`; what lies beyond the end reads as zero.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        let bar = self.bar.map(|bar| bar.shown(u32::from_le_bytes(self.get(BAR0))).to_le_bytes());
        for (at, byte) in (usize::from(register)..).zip(data) {
            *byte = match (at.checked_sub(BAR0), bar) {
                (Some(index @ 0..4), Some(bar)) => bar[index],
                _ => self.bytes.get(at).copied().unwrap_or(0),
            };
        }
    }

    /// A driver writes at `register`; bits that it cannot write stay as they are.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(register.into());
        for ((byte, &writable), &value) in places.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
    }

    /// What drivers have written, for [`ConfigSpace::restore`].
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes up what drivers wrote into another space like this one; of what they cannot write, nothing.
    pub fn restore(&mut self, saved: &[u8; CONFIG_BYTES]) {
        self.write(0, saved);
    }
}

impl Bar {
    /// What a driver reads where it has written `written`: the size if it asked for that by writing ones (6.2.5.1), else the address.
    fn shown(self, written: u32) -> u32 {
        if written & self.mask == self.mask { self.mask } else { self.address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::spec::{CAPABILITY_VENDOR, COMMAND};

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity { vendor: 0x1234, device: 0x5678, class: 0x02_0000, revision: 1 });
        space.set_bar(0xd000_8000, 0x8000);
        space.let_write(COMMAND, &[0x06, 0x04]);
        space
    }

    fn word(space: &ConfigSpace, register: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(register as u16, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_function_says_what_it_is() {
        let space = space();
        assert_eq!(word(&space, 0x00), 0x5678_1234);
        assert_eq!(word(&space, 0x08), 0x0200_0001);
        assert_eq!(word(&space, 0x2c), 0x5678_1234);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(word(&space, STATUS) & 0x10, 0);
        let first = space.add_capability(CAPABILITY_VENDOR, &[1, 2, 3]);
        let second = space.add_capability(CAPABILITY_VENDOR, &[4]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(word(&space, 0x06) & 0x10, 0x10);
        assert_eq!(word(&space, 0x34), 0x40);
        assert_eq!(word(&space, 0x40), 0x0201_4809);
        assert_eq!(word(&space, 0x48), 0x0004_0009);
    }

    #[test]
    fn a_bar_tells_its_size_and_does_not_move() {
        let mut space = space();
        assert_eq!(word(&space, BAR0), 0xd000_8000);
        space.write(BAR0 as u16, &[0xff; 4]);
        assert_eq!(word(&space, BAR0), 0xffff_8000);
        for written in [0xd000_8000, 0x1000_0000, 0, 0xffff_0000_u32] {
            space.write(BAR0 as u16, &written.to_le_bytes());
            assert_eq!(word(&space, BAR0), 0xd000_8000, "after {written:#x}");
        }
        // Byte by byte, as nobody does.
        for byte in 0..4 {
            space.write((BAR0 + byte) as u16, &[0xff]);
        }
        assert_eq!(word(&space, BAR0), 0xffff_8000);
        for other in 1..6 {
            space.write((BAR0 + 4 * other) as u16, &[0xff; 4]);
            assert_eq!(word(&space, BAR0 + 4 * other), 0, "there is one");
        }
    }

    #[test]
    fn only_what_can_be_written_changes() {
        let mut space = space();
        let before = space.save();
        for width in [1, 2, 3, 4, 8, 300] {
            for register in 0..CONFIG_BYTES + 8 {
                if !(0x02..0x14).contains(&register) && register + width <= 0x04 || register >= 0x14 {
                    space.write(register as u16, &vec![0xff; width]);
                }
            }
        }
        assert_eq!(space.save(), before);
        space.write(0x00, &[0xff; CONFIG_BYTES]);
        assert_eq!((word(&space, 0x00), word(&space, COMMAND)), (0x5678_1234, 0x0406));
        let mut odd = [0xaa; 7];
        space.read(CONFIG_BYTES as u16 - 3, &mut odd);
        assert_eq!(odd, [0; 7]);
        space.read(u16::MAX, &mut odd);
        assert_eq!(odd, [0; 7]);
    }

    #[test]
    fn a_saved_space_brings_only_what_was_written() {
        let (mut space, mut other) = (space(), space());
        space.restore(&[0xff; CONFIG_BYTES]);
        assert_eq!((word(&space, 0x00), word(&space, COMMAND)), (0x5678_1234, 0x0406));
        let saved = space.save();
        other.restore(saved.as_slice().try_into().unwrap());
        assert_eq!(other.save(), saved);
    }
}
