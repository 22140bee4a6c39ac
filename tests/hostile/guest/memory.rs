//! What the compiler calls when it copies or fills: there is no library to have it from.

use core::arch::asm;

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the compiler calls it for memory that is there, and does not overlap.
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack)) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: as for copying.
    unsafe { asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") byte as u8, options(nostack)) };
    to
}
