//! Segment descriptors and page tables for the kernel's first steps (Intel SDM volume 3, chapters 3 and 4).
//!
//! The kernel replaces both within its first milliseconds.

use super::layout;

/// Selector of the code segment that Linux's boot protocol asks for.
pub(super) const CODE_SELECTOR: u16 = 0x10;
/// Selector of its data segment.
pub(super) const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state, which the processor wants to exist.
pub(super) const TASK_SELECTOR: u16 = 0x20;

const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 64-bit code, present, readable
    0x00cf_9300_0000_ffff, // data, present, writable
    0x008f_8b00_0000_ffff, // busy 64-bit task state
];

/// Offset of the last byte of the descriptors.
pub(super) const GDT_LIMIT: u16 = 8 * DESCRIPTORS.len() as u16 - 1;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

/// The descriptors, for [`layout::GDT`].
pub(super) fn gdt() -> Vec<u8> {
    DESCRIPTORS.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect()
}

/// The first GiB mapped onto itself in pages of 2 MiB: three tables, for [`layout::PAGE_TABLES`].
pub(super) fn page_tables() -> Vec<u8> {
    let mut words = vec![0u64; 3 * ENTRIES as usize];
    words[0] = (layout::PAGE_TABLES + layout::PAGE_SIZE) | PRESENT_WRITABLE;
    words[ENTRIES as usize] = (layout::PAGE_TABLES + 2 * layout::PAGE_SIZE) | PRESENT_WRITABLE;
    for index in 0..ENTRIES {
        words[(2 * ENTRIES + index) as usize] = (index * LARGE_PAGE) | PRESENT_WRITABLE | LARGE;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the processor does.
    fn translate(tables: &[u8], address: u64) -> Option<u64> {
        let word = |at: u64| {
            let at = (at - layout::PAGE_TABLES) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30] {
            let entry = word(table + 8 * ((address >> shift) & 511));
            if entry & 1 == 0 {
                return None;
            }
            table = entry & !0xfff;
        }
        let entry = word(table + 8 * ((address >> 21) & 511));
        assert_eq!(entry & LARGE, LARGE);
        (entry & 1 == 1).then_some((entry & !(LARGE_PAGE - 1)) + (address & (LARGE_PAGE - 1)))
    }

    #[test]
    fn the_first_gibibyte_is_mapped_onto_itself() {
        let tables = page_tables();
        for address in [0, layout::BOOT_PARAMS, 0x100_0000, (1 << 30) - 1] {
            assert_eq!(translate(&tables, address), Some(address));
        }
        assert_eq!(translate(&tables, 1 << 30), None);
    }

    #[test]
    fn selectors_point_at_what_they_should() {
        let gdt = gdt();
        assert_eq!(gdt.len(), usize::from(GDT_LIMIT) + 1);
        // Byte 5 of a descriptor: present, code (bit 3) or data; byte 6, bit 5: 64-bit.
        assert_eq!(gdt[usize::from(CODE_SELECTOR) + 5] & 0x98, 0x98);
        assert_eq!(gdt[usize::from(CODE_SELECTOR) + 6] & 0x20, 0x20);
        assert_eq!(gdt[usize::from(DATA_SELECTOR) + 5] & 0x98, 0x90);
        assert_eq!(gdt[usize::from(TASK_SELECTOR) + 5] & 0x9f, 0x8b);
    }
}
