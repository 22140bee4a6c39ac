//! The devices that give and take memory, and the console.

use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use tatami_devices::virtio::{Backing, Balloon, BalloonSize, Console, GuestMemory, Mem, MemRegion, MemSize};
use vm_memory::{GuestAddress, GuestMemory as _};

use crate::devices::buffers;
use crate::driver::{Buffer, Driver, Rig, drive, threads};
use crate::input::Input;

/// A block of the memory device, in bytes.
const BLOCK: u64 = 2 << 20;
/// Its region: beside the driver's RAM, for nothing here reads or writes in it.
const REGION: MemRegion = MemRegion { start: 8 << 30, size: 8 * BLOCK, block: BLOCK };

/// What is behind memory, as a list of what everybody may touch; it refuses nothing.
#[derive(Default)]
struct Ledger(Mutex<Vec<Range<u64>>>);

impl Backing for Ledger {
    fn release(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> std::io::Result<()> {
        // Not by how a stretch of RAM looks: a driver may name what is none, and hears nothing of it.
        match memory.check_range(address, len as usize) {
            true => Ok(()),
            false => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    fn open(&self, _memory: &GuestMemory, address: GuestAddress, len: u64) -> std::io::Result<()> {
        let mut open = self.0.lock().expect("not poisoned");
        for at in (address.0..address.0 + len).step_by(BLOCK as usize) {
            assert!((REGION.start..REGION.start + REGION.size).contains(&at), "a block is opened that there is not");
            // A machine that comes back opens what it had, and here it is open still.
            if !open.contains(&(at..at + BLOCK)) {
                open.push(at..at + BLOCK);
            }
        }
        Ok(())
    }

    fn close(&self, _memory: &GuestMemory, address: GuestAddress, len: u64) -> std::io::Result<()> {
        let mut open = self.0.lock().expect("not poisoned");
        let there = open.len() as u64 * BLOCK;
        open.retain(|block| block.end <= address.0 || block.start >= address.0 + len);
        assert_eq!(open.len() as u64 * BLOCK, there - len, "a block is closed that was not open");
        Ok(())
    }
}

/// The balloon: page numbers and stretches of RAM, true or not, while the host wants now this much and now that.
pub fn balloon(data: &[u8]) {
    let size = BalloonSize::default();
    let device = Balloon::new(size.clone(), Arc::new(Ledger::default()), threads());
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() % 4 {
        0 => size.set(input.double()),
        1 => driver.post(2, &buffers(input, true)),
        queue => {
            // virtio 1.2, 5.5.6.1: numbers of pages.
            let numbers: Vec<u8> = (0..input.byte() % 8).flat_map(|_| u32::from(input.half()).to_le_bytes()).collect();
            driver.put(0x1000, &numbers);
            let len = if input.byte() < 240 { numbers.len() as u32 } else { input.word() };
            driver.post(usize::from(queue - 2), &[Buffer { address: 0x1000, len, writable: false }]);
        }
    };
    drive(Rig { device: Box::new(device), served: 3, request }, data);
}

/// The memory device: no block is closed that is not open, none opened that there is not, and no more are plugged than there are.
pub fn mem(data: &[u8]) {
    let (size, ledger) = (MemSize::new(REGION), Arc::new(Ledger::default()));
    let device = Mem::new(size.clone(), ledger.clone(), threads());
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| {
        if input.byte().is_multiple_of(4) {
            let _ = size.request(u64::from(input.half()) << 9);
            return;
        }
        // 5.15.6: type, address, number of blocks.
        let address = match input.byte() {
            250.. => input.double(),
            block => REGION.start + u64::from(block % 9) * BLOCK,
        };
        let mut body = u64::from(input.byte() % 5).to_le_bytes().to_vec();
        body.extend(address.to_le_bytes());
        body.extend(u64::from(input.byte() % 10).to_le_bytes());
        driver.put(0x1000, &body);
        let (asked, answered) = ((0x1000, 24, false), (0x2000, 10, true));
        let chain = [asked, answered].map(|(address, len, writable)| Buffer { address, len, writable });
        driver.post(0, &chain);
        driver.rest();
    };
    drive(Rig { device: Box::new(device), served: 1, request }, data);
    assert!(size.plugged() <= REGION.size, "{size:?}");
}

/// Counts.
struct Bounded(usize);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        assert!(self.0 < 1 << 30, "a console's output without end");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The console, which listens to the second of its queues alone.
pub fn console(data: &[u8]) {
    let device = Console::new(Box::new(Bounded(0)), threads());
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() % 8 {
        0 => driver.post(0, &buffers(input, true)),
        _ => driver.post(1, &buffers(input, false)),
    };
    drive(Rig { device: Box::new(device), served: 0, request }, data);
}
