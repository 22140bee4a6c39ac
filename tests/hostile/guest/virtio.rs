//! Virtio devices by hand (virtio 1.2, 4.2): registers, rings at fixed addresses, and no rule kept unless its caller keeps it.

use core::sync::atomic::{Ordering, fence};

use crate::machine::{fill, in8, load, store};

/// Device types.
pub const NETWORK: u32 = 1;
pub const DISK: u32 = 2;
pub const ENTROPY: u32 = 4;
pub const SOCKET: u32 = 19;
pub const FILES: u32 = 26;

/// Where the rings begin, 1 MiB each; and where buffers are. RAM ends at 64 MiB.
pub const RINGS: u64 = 32 << 20;
pub const BUFFERS: u64 = 48 << 20;
pub const RAM_END: u64 = 64 << 20;

pub const NOTIFY: u64 = 0x50;
pub const STATUS: u64 = 0x70;
/// A port that no device has, which a PC's programs read to let time pass.
const UNUSED_PORT: u16 = 0x80;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const NEEDS_RESET: u32 = 0x40;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Device(pub u64);

/// A queue as set up.
pub struct Queue {
    pub device: Device,
    pub number: u32,
    pub size: u16,
    pub table: u64,
    pub available: u64,
    pub used: u64,
    /// Chains made available so far.
    pub posted: u16,
    /// Chains taken back.
    pub taken: u16,
    next: u16,
}

/// One descriptor.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer for the device to read.
pub fn out(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// A buffer for the device to write.
pub fn into(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: WRITE, next: 0 }
}

impl Device {
    /// The first device of a kind.
    pub fn find(kind: u32) -> Option<Device> {
        (0..19).map(|slot| Device(0xd000_0000 + slot * 0x1000)).find(|d| d.get(0) == 0x7472_6976 && d.get(8) == kind)
    }

    pub fn get(&self, register: u64) -> u32 {
        load(self.0 + register)
    }

    pub fn set(&self, register: u64, value: u32) {
        store(self.0 + register, value);
    }

    pub fn reset(&self) {
        self.set(STATUS, 0);
    }

    pub fn needs_reset(&self) -> bool {
        // Reading a register does not leave the guest, and the VMM may have no other processor to work on.
        in8(UNUSED_PORT);
        self.get(STATUS) & NEEDS_RESET != 0
    }

    /// As far as FEATURES_OK.
    pub fn negotiate(&self) {
        self.reset();
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        for page in [0, 1] {
            self.set(0x14, page);
            let offered = self.get(0x10);
            self.set(0x24, page);
            self.set(0x20, offered);
        }
        self.set(STATUS, 0xb);
    }

    /// Writes a queue's registers: size, and the addresses of its areas.
    pub fn set_up(&self, queue: u32, size: u32, areas: [u64; 3]) {
        self.set(QUEUE_SELECT, queue);
        self.set(QUEUE_SIZE, size);
        for (register, area) in [0x80, 0x90, 0xa0].into_iter().zip(areas) {
            self.set(register, area as u32);
            // After a reset it is zero, and each write is an exit.
            if area >> 32 != 0 {
                self.set(register + 4, (area >> 32) as u32);
            }
        }
        self.set(0x44, 1);
    }

    /// The largest size of a queue; 0 where there is none.
    pub fn size_max(&self, queue: u32) -> u16 {
        self.set(QUEUE_SELECT, queue);
        self.get(0x34) as u16
    }

    /// The areas at which a queue is set up by [`Device::bring_up`].
    pub fn areas(&self, queue: u32) -> [u64; 3] {
        let table = RINGS + ((self.0 >> 12 & 7) << 22) % (16 << 20) + (u64::from(queue) << 20);
        [table, table + 0x1_0000, table + 0x2_0000]
    }

    /// Up to DRIVER_OK, with all queues.
    pub fn bring_up(&self) {
        self.negotiate();
        for queue in 0..4 {
            let size = self.size_max(queue);
            if size > 0 {
                let areas = self.areas(queue);
                areas.iter().for_each(|area| fill(*area, 64, 0));
                self.set_up(queue, size.into(), areas);
            }
        }
        self.set(STATUS, 0xf);
    }

    /// The same; gives one of the queues.
    pub fn bring_up_queue(&self, number: u32) -> Queue {
        self.bring_up();
        self.queue(number)
    }

    /// A queue of a device that was just brought up.
    pub fn queue(&self, number: u32) -> Queue {
        let [table, available, used] = self.areas(number);
        let size = self.size_max(number);
        Queue { device: *self, number, size, table, available, used, posted: 0, taken: 0, next: 0 }
    }

    /// Whether an entropy device gives entropy, after a reset.
    pub fn works(&self) -> bool {
        let mut queue = self.bring_up_queue(0);
        queue.post(&[into(BUFFERS, 8)]);
        let answered = queue.wait();
        self.reset();
        answered
    }
}

impl Queue {
    /// Writes descriptor `index` of a table anywhere.
    pub fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let at = table + 16 * u64::from(index);
        store(at, descriptor.address);
        store(at + 8, descriptor.len);
        store(at + 12, descriptor.flags);
        store(at + 14, descriptor.next);
    }

    /// Makes `head` available, whatever it is.
    pub fn offer(&mut self, head: u16) {
        store(self.available + 4 + 2 * u64::from(self.posted % self.size), head);
        self.posted = self.posted.wrapping_add(1);
        self.publish(self.posted);
    }

    /// Says that the available index is `index`, and kicks.
    pub fn publish(&self, index: u16) {
        fence(Ordering::SeqCst);
        store(self.available + 2, index);
        fence(Ordering::SeqCst);
        self.device.set(NOTIFY, self.number);
    }

    /// Makes a chain of these available.
    pub fn post(&mut self, descriptors: &[Descriptor]) {
        let first = self.next;
        for (at, descriptor) in descriptors.iter().enumerate() {
            let index = (first + at as u16) % self.size;
            let last = at + 1 == descriptors.len();
            let flags = descriptor.flags | if last { 0 } else { NEXT };
            self.describe(self.table, index, Descriptor { flags, next: (index + 1) % self.size, ..*descriptor });
        }
        self.next = (first + descriptors.len() as u16) % self.size;
        self.offer(first);
    }

    /// How far the device has come.
    pub fn used(&self) -> u16 {
        load(self.used + 2)
    }

    /// Waits for the next chain to come back; false if the device asks for a reset instead, or nothing happens for long.
    pub fn wait(&mut self) -> bool {
        for turn in 0..400_000_u32 {
            if self.used() != self.taken {
                self.taken = self.taken.wrapping_add(1);
                return true;
            }
            if turn % 256 == 255 && self.device.needs_reset() {
                return false;
            }
            core::hint::spin_loop();
        }
        false
    }

    /// What came of what was posted last.
    pub fn outcome(&mut self) -> &'static str {
        match self.wait() {
            true => "served",
            false if self.device.needs_reset() => "device stopped",
            false => "NOTHING HAPPENED",
        }
    }
}
