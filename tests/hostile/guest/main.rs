//! A guest without a kernel and without manners: a program that the VMM boots in a kernel's place, and that does to its devices by
//! hand what no driver would. What it does is chosen by the word `attack=…` on its command line; what came of each attack it says on
//! the serial line, a line each: `attack NAME: OUTCOME`.
//!
//! It is its own world: no standard library, no interrupts, no memory but what is at fixed addresses.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "ports, device registers and memory at fixed addresses: all there is on the bare machine"
)]

mod files;
mod machine;
mod memory;
mod queues;
mod serial;
mod sockets;
mod virtio;

use core::arch::global_asm;

use serial::say;

// A stack, and the processor's leave to use SSE, which the compiler takes for granted (CR4.OSFXSR and OSXMMEXCPT).
global_asm!(
    ".pushsection .entry, \"ax\"",
    ".globl _start",
    "_start:",
    "lea rsp, [rip + stack_end]",
    "mov rax, cr4",
    "or rax, 0x600",
    "mov cr4, rax",
    "mov rdi, rsi",
    "call {main}",
    ".popsection",
    ".pushsection .bss, \"aw\", @nobits",
    ".balign 16",
    ".skip 65536",
    "stack_end:",
    ".popsection",
    main = sym main,
);

extern "C" fn main(boot_params: u64) -> ! {
    machine::map_devices();
    // Linux's boot protocol: the command line's address is at 0x228 of the parameters.
    let command_line = u64::from(machine::load::<u32>(boot_params + 0x228));
    match attack(command_line) {
        b'q' => queues::run(),
        b'f' => files::run(),
        b's' => sockets::run(),
        b'm' => machine::run(),
        b't' => machine::triple_fault(),
        b'p' => sockets::answer_politely(),
        _ => say("no attack that is known"),
    }
    say("done");
    machine::halt()
}

/// The letter behind `attack=`.
fn attack(command_line: u64) -> u8 {
    for at in command_line..command_line + 2048 {
        if (0..7).all(|i| machine::load::<u8>(at + i) == b"attack="[i as usize]) {
            return machine::load::<u8>(at + 7);
        }
    }
    0
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    say("the hostile guest itself is wrong");
    machine::halt()
}
