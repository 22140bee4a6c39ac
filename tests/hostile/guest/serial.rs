//! The serial line, on which outcomes are told.

use core::arch::asm;

use crate::machine::out8;

const PORT: u16 = 0x3f8;

/// Says a line.
pub fn say(text: &str) {
    put(text);
    put("\n");
}

/// Says what came of an attack.
pub fn tell(name: &str, outcome: &str) {
    put("attack ");
    put(name);
    put(": ");
    say(outcome);
}

/// As [`tell`], with a number.
pub fn count(name: &str, number: u64, what: &str) {
    put("attack ");
    put(name);
    put(": ");
    let (mut digits, mut at, mut left) = ([0_u8; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    for digit in &digits[at..] {
        out8(PORT, *digit);
    }
    put(" ");
    say(what);
}

fn put(text: &str) {
    flood(text.as_ptr() as u64, text.len() as u64);
}

/// Writes `len` bytes at `address` to the line in one instruction.
pub fn flood(address: u64, len: u64) {
    // SAFETY: reads memory of ours and writes to the serial line.
    unsafe {
        asm!("rep outsb", inout("rsi") address => _, inout("rcx") len => _, in("dx") PORT, options(nostack));
    }
}
