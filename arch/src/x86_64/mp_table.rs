//! The MultiProcessor Specification's tables (Intel, version 1.4): which processors and interrupt lines there are.
//!
//! Chosen over ACPI because it is a few hundred bytes, and the guest's kernel needs no interpreter to read it.

use super::layout;

const VERSION_1_4: u8 = 4;
/// Version of an APIC that is part of the processor.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;

const POINTER_SIZE: u64 = 16;
const HEADER_SIZE: usize = 44;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// Floating pointer and table for processors with APIC ids 0 to `vcpus` − 1, to be put at [`layout::MP_TABLE`].
pub(super) fn mp_table(vcpus: u8) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    let mut bytes = pointer();
    bytes.extend(header(&entries, count));
    bytes.extend(entries);
    bytes
}

fn pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(((layout::MP_TABLE + POINTER_SIZE) as u32).to_le_bytes());
    pointer.extend([1, VERSION_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let mut header = b"PCMP".to_vec();
    header.extend(((HEADER_SIZE + entries.len()) as u16).to_le_bytes());
    header.extend([VERSION_1_4, 0]);
    header.extend(b"TATAMI  MICROVM     ");
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(layout::LOCAL_APIC.to_le_bytes());
    header.extend([0; 4]);
    header[7] = checksum(&header).wrapping_add(checksum(entries));
    header
}

fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    let io_apic = vcpus;
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        // Family 6, and features FPU and APIC; Linux asks CPUID for the rest.
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        add(&entry);
    }
    add(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    add(&[ENTRY_IO_APIC, io_apic, IO_APIC_VERSION, ENABLED, a, b, c, d]);
    for line in 0..=layout::LAST_IRQ as u8 {
        add(&[ENTRY_IO_INTERRUPT, INTERRUPT, 0, 0, ISA_BUS, line, io_apic, line]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);
    (bytes, count)
}

/// The byte that makes the sum of `bytes` and itself zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the table as an operating system would: follow the pointer, check sums, walk entries by type.
    fn walk(table: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&table[..4], b"_MP_");
        assert_eq!(checksum(&table[..16]), 0);
        let at = u32::from_le_bytes(table[4..8].try_into().unwrap()) - layout::MP_TABLE as u32;
        let config = &table[at as usize..];
        let length = u16::from_le_bytes([config[4], config[5]]) as usize;
        assert_eq!(length, config.len());
        assert_eq!(checksum(config), 0);
        let count = u16::from_le_bytes([config[34], config[35]]) as usize;
        let mut rest = &config[HEADER_SIZE..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let size = if rest[0] == ENTRY_PROCESSOR { 20 } else { 8 };
            entries.push(&rest[..size]);
            rest = &rest[size..];
        }
        assert_eq!(entries.len(), count);
        entries
    }

    #[test]
    fn lists_every_processor_once_and_one_boots() {
        for vcpus in [1, 2, 254] {
            let table = mp_table(vcpus);
            let entries = walk(&table);
            let ids: Vec<u8> = entries.iter().filter(|e| e[0] == ENTRY_PROCESSOR).map(|e| e[1]).collect();
            assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
            assert_eq!(entries.iter().filter(|e| e[0] == ENTRY_PROCESSOR && e[3] & BOOT_PROCESSOR != 0).count(), 1);
            let io_apic = entries.iter().find(|e| e[0] == ENTRY_IO_APIC).unwrap();
            assert!(!ids.contains(&io_apic[1]));
        }
    }

    #[test]
    fn every_line_of_the_io_apic_is_an_isa_interrupt() {
        let table = mp_table(1);
        let lines: Vec<(u8, u8)> =
            walk(&table).iter().filter(|e| e[0] == ENTRY_IO_INTERRUPT).map(|e| (e[5], e[7])).collect();
        assert_eq!(lines, (0..24).map(|line| (line, line)).collect::<Vec<_>>());
    }
}
