//! The boot vCPU's registers on entry to a 64-bit kernel (Linux: Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use super::{layout, tables};

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The descriptor's type, four bits.
    pub kind: u8,
    /// Code or data, not a system segment.
    pub code_or_data: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit operands (of a data segment: a stack of 32 bits).
    pub big: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// Everything in the boot vCPU that differs from its state after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The kernel's entry point.
    pub rip: u64,
    /// The address of `boot_params`.
    pub rsi: u64,
    /// Flags: interrupts off.
    pub rflags: u64,
    /// Protected mode with paging.
    pub cr0: u64,
    /// The page tables.
    pub cr3: u64,
    /// Physical address extension.
    pub cr4: u64,
    /// Long mode, enabled and active.
    pub efer: u64,
    /// The descriptor table.
    pub gdt: TableRegister,
    /// No interrupt table yet.
    pub idt: TableRegister,
    /// `cs`.
    pub code: Segment,
    /// `ds`, `es`, `fs`, `gs`, `ss`.
    pub data: Segment,
    /// The task register.
    pub task: Segment,
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 1 << 1;

impl Registers {
    /// The registers with which a kernel whose entry point is `entry` starts.
    #[must_use]
    pub fn boot(entry: u64) -> Registers {
        Registers {
            rip: entry,
            rsi: layout::BOOT_PARAMS,
            rflags: RFLAGS,
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3: layout::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            gdt: TableRegister { base: layout::GDT, limit: tables::GDT_LIMIT },
            idt: TableRegister { base: 0, limit: 0 },
            code: Segment { selector: tables::CODE_SELECTOR, kind: 0xb, code_or_data: true, long: true, big: false },
            data: Segment { selector: tables::DATA_SELECTOR, kind: 0x3, code_or_data: true, long: false, big: true },
            task: Segment { selector: tables::TASK_SELECTOR, kind: 0xb, code_or_data: false, long: false, big: false },
        }
    }
}
