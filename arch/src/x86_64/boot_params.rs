//! The page of parameters that the kernel finds at `rsi` (Linux: Documentation/arch/x86/{boot,zero-page}.rst).
//!
//! Written by offset so that it is the same bytes on every host; only what a directly entered 64-bit kernel reads.

use super::layout;
use crate::machine::BootInputs;

const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE_POINTER: usize = 0x228;
const COMMAND_LINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

const E820_RAM: u32 = 1;
const SETUP_RNG_SEED: u32 = 9;
/// "Undefined" in the list of boot loaders.
const LOADER_UNDEFINED: u8 = 0xff;
const PROTOCOL_2_15: u16 = 0x020f;

/// The random seed as a node of the `setup_data` list, the last one.
pub(super) fn seed(seed: &[u8; 32]) -> Vec<u8> {
    let mut node = Vec::with_capacity(48);
    node.extend_from_slice(&0u64.to_le_bytes());
    node.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node.extend_from_slice(&32u32.to_le_bytes());
    node.extend_from_slice(seed);
    node
}

/// The page itself.
pub(super) fn boot_params(inputs: &BootInputs<'_, ()>) -> Vec<u8> {
    let mut page = vec![0; 4096];
    put(&mut page, BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(&mut page, HEADER, b"HdrS");
    put(&mut page, VERSION, &PROTOCOL_2_15.to_le_bytes());
    put(&mut page, TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, COMMAND_LINE_POINTER, &low(layout::COMMAND_LINE));
    put(&mut page, COMMAND_LINE_SIZE, &low(inputs.command_line.len() as u64));
    put(&mut page, SETUP_DATA, &layout::SEED.to_le_bytes());
    if let Some(initrd) = inputs.initrd {
        put(&mut page, RAMDISK_IMAGE, &low(initrd.start));
        put(&mut page, RAMDISK_SIZE, &low(initrd.size));
    }
    let map = memory_map(inputs);
    page[E820_ENTRIES] = map.len() as u8;
    for (index, (start, end)) in map.into_iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_SIZE;
        put(&mut page, at, &start.to_le_bytes());
        put(&mut page, at + 8, &(end - start).to_le_bytes());
        put(&mut page, at + 16, &E820_RAM.to_le_bytes());
    }
    page
}

/// RAM as (start, end), with the PC's hole below 1 MiB cut out.
fn memory_map(inputs: &BootInputs<'_, ()>) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::LOW_RAM_END)];
    for region in inputs.ram {
        map.push((region.start.max(layout::HIGH_RAM), region.end()));
    }
    map
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The low half of `value`, for fields that hold addresses below 4 GiB.
fn low(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Extent, Machine};
    use crate::x86_64::X86_64;

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn tells_memory_command_line_and_initrd() {
        let ram = X86_64::ram(4 << 30);
        let page = boot_params(&BootInputs {
            ram: &ram,
            max_vcpus: 1,
            command_line: "quiet",
            entry: 0,
            initrd: Some(Extent { start: 0x700_0000, size: 4321 }),
            seed: [0; 32],
            devices: &[],
            variant: (),
        });
        assert_eq!(page[E820_ENTRIES], 3);
        let entry = |index: usize| {
            let at = E820_TABLE + index * 20;
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
            (word(at), word(at + 8), u32_at(&page, at + 16))
        };
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(1), (0x10_0000, 0xbff0_0000, 1));
        assert_eq!(entry(2), (0x1_0000_0000, 1 << 30, 1));
        assert_eq!(u32_at(&page, 0x228), 0x2_0000);
        assert_eq!(u32_at(&page, 0x218), 0x700_0000);
        assert_eq!(u32_at(&page, 0x21c), 4321);
        assert_eq!(&page[0x202..0x206], b"HdrS");
    }

    #[test]
    fn the_seed_is_one_node() {
        let node = seed(&[0xab; 32]);
        assert_eq!(node[..16], [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(node[16..], [0xab; 32]);
    }
}
