//! The bare machine: memory, ports, page tables; and the attacks on what is no virtio device.

use core::arch::asm;

use crate::serial::{count, flood, say, tell};
use crate::virtio::{self, Device};

/// The device registers' GiB in the page tables that the VMM made (at 0x9000), with a table of our own behind it.
pub fn map_devices() {
    const DIRECTORY_POINTERS: u64 = 0xa000;
    const TABLE: u64 = 0x1e0_0000;
    for index in 0..512 {
        // Present, writable, uncached, 2 MiB.
        store(TABLE + 8 * index, (0xc000_0000 + (index << 21)) | 0x9b);
    }
    store(DIRECTORY_POINTERS + 3 * 8, TABLE | 3);
    // SAFETY: reloads the table that is in use.
    unsafe { asm!("mov rax, cr3", "mov cr3, rax", out("rax") _, options(nostack)) };
}

/// Reads memory or a register.
pub fn load<T: Copy>(address: u64) -> T {
    // SAFETY: everything below 1 GiB and in the devices' GiB is mapped; whatever is there may be read.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes memory or a register.
pub fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: as for reading; what is overwritten is not the program itself, whose addresses nobody passes.
    unsafe { (address as *mut T).write_volatile(value) };
}

/// Fills memory with a byte.
pub fn fill(address: u64, len: u64, byte: u8) {
    for at in address..address + len {
        store(at, byte);
    }
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: ports are there to be written.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Does nothing for ever: interrupts are off.
pub fn halt() -> ! {
    loop {
        // SAFETY: stops the processor, which has nothing more to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// An exception with no table to handle it, and none for the exception that follows.
pub fn triple_fault() -> ! {
    tell("triple fault", "now");
    let nothing = [0_u8; 10];
    // SAFETY: there is nothing after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &nothing, options(noreturn)) };
}

pub fn run() {
    odd_accesses();
    ports();
    kicks();
    serial();
}

/// Registers by every width, at every place, aligned or not, within the devices and beyond the last one.
fn odd_accesses() {
    let mut accesses = 0;
    for device in [0xd000_0000_u64, 0xd000_1000, 0xd000_2000, 0xd001_2000, 0xd010_0000, 0xdfff_f000] {
        // All of them on the first, a few on the others.
        let step = if device == 0xd000_0000 { 1 } else { 13 };
        for offset in (0..0x140).step_by(step).chain(0xff0..0xff8) {
            let at = device + offset;
            // Not the status register, which the reset afterwards is for, and not what a storm of its own is for.
            if offset & !3 == 0x50 {
                continue;
            }
            touch(at);
            accesses += 6;
        }
        // Half in this device, half in the next.
        touch(device + 0xffd);
    }
    count("odd MMIO accesses", accesses, "made");
    let alive = Device::find(virtio::ENTROPY).is_some_and(|device| device.works());
    tell("a device after odd accesses", if alive { "works" } else { "DEAD" });
}

/// Reads and writes 1, 2 and 8 bytes at an address that need not be aligned.
fn touch(at: u64) {
    // SAFETY: the devices' GiB is mapped, and nothing of ours is in it.
    unsafe {
        asm!(
            "mov al, [{at}]",
            "mov ax, [{at}]",
            "mov rax, [{at}]",
            "mov rax, -1",
            "mov [{at}], al",
            "mov [{at}], ax",
            "mov [{at}], rax",
            at = in(reg) at,
            out("rax") _,
            options(nostack),
        );
    }
}

/// Ports that are there and ports that are not; not the reset command.
fn ports() {
    let mut read = 0_u64;
    for port in (0..0x400_u16).chain([0xcf8, 0xcfc, 0x1000, 0xffff]) {
        if (0x60..0x65).contains(&port) || (0x3f8..0x400).contains(&port) {
            continue;
        }
        read += u64::from(in8(port) == 0xff);
        out8(port, 0xa5);
        if port < 0xfffc {
            out32(port, 0x5a5a_5a5a & !0xff);
        }
    }
    // The keyboard controller, with every command but the one that means something.
    for command in 0..=0xff_u8 {
        if command != 0xfe {
            out8(0x64, command);
            out8(0x60, command);
        }
        read += u64::from(in8(0x64) == 0xff);
    }
    // The serial line's registers, with every value; then as it was.
    for register in 1..8_u16 {
        for value in (0..=0xff_u8).step_by(5) {
            out8(0x3f8 + register, value);
            in8(0x3f8 + register);
        }
    }
    out8(0x3fb, 3);
    out8(0x3f9, 0);
    out8(0x3fc, 0);
    count("ports", read, "of them read as nothing");
}

/// Kicks of queues that exist and of some that do not, of a device at work and of one that is not.
fn kicks() {
    const KICKS: u32 = 2000;
    for kind in [virtio::ENTROPY, virtio::SOCKET, virtio::FILES, virtio::DISK, virtio::NETWORK] {
        let Some(device) = Device::find(kind) else { continue };
        device.bring_up();
        for kick in 0..KICKS {
            device.set(virtio::NOTIFY, kick & 3);
        }
        device.reset();
        for _ in 0..100 {
            device.set(virtio::NOTIFY, 0);
            device.set(virtio::NOTIFY, u32::MAX);
        }
    }
    count("kick storm", u64::from(5 * KICKS), "kicks");
    // Interrupts that nobody acknowledges, as fast as they come.
    let Some(device) = Device::find(virtio::ENTROPY) else { return };
    let mut queue = device.bring_up_queue(0);
    let mut answered = 0;
    for _ in 0..200 {
        queue.post(&[virtio::into(virtio::BUFFERS, 4)]);
        answered += u64::from(queue.wait());
    }
    count("interrupt storm", answered, "requests answered");
    device.reset();
}

/// Lines without a pause (each byte is an exit, which take their time on an emulated host), and one without an end.
fn serial() {
    for at in 0..4096 {
        store::<u8>(virtio::BUFFERS + at, if at % 64 == 63 { b'\n' } else { b'x' });
    }
    for _ in 0..2 {
        flood(virtio::BUFFERS, 4096);
    }
    fill(virtio::BUFFERS, 4096, b'y');
    for _ in 0..2 {
        flood(virtio::BUFFERS, 4096);
    }
    say("");
    tell("serial flood", "16384 bytes");
}
