//! The ppc64le machine: a pseries partition as LoPAR describes it, without firmware. The kernel finds a device tree, calls the
//! hypervisor for its terminal and, through RTAS, for its processors and PCI configuration, and has its devices on PCI.
//!
//! Knows no KVM: registers and what hypercalls say are plain numbers.

mod device_tree;
mod flat_tree;
pub mod hypercall;
mod kernel_plan;
pub mod layout;
mod pci;
mod registers;
pub mod rtas;

use crate::machine::{
    Blob, BootImage, BootImageError, BootInputs, Device, DeviceSlot, Extent, FixedSlot, Machine, PlacementError,
    Region, Space,
};
use crate::{CommandLine, CommandLineError, KernelFormat};

pub use kernel_plan::{KernelPlan, KernelPlanError, Segment};
pub use registers::Registers;

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Ppc64le;

/// What of the machine is as the host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Ticks of the time base a second.
    pub timebase: u32,
    /// Bytes in a cache line.
    pub cache_line: u32,
    /// Pages that radix trees can map: the logarithm of the size, and in the top three bits how the size is encoded in instructions
    /// (Power ISA 3.0B, book III, section 5.7.7, "AP").
    pub page_encodings: Vec<u32>,
}

impl Default for Variant {
    /// POWER9.
    fn default() -> Variant {
        let page_encodings = [(0, 12), (5, 16), (1, 21), (2, 30)].map(|(code, shift)| (code << 29) | shift).to_vec();
        Variant { timebase: 512_000_000, cache_line: 128, page_encodings }
    }
}

impl Machine for Ppc64le {
    type Registers = Registers;
    type Variant = Variant;

    const NAME: &'static str = "ppc64le";
    const KERNEL: KernelFormat = KernelFormat::Elf(KernelPlan::ELF);
    const MAX_VCPUS: u8 = 254;
    const MIN_MEMORY: u64 = 64 << 20;
    const SERIAL: Option<(FixedSlot, u32)> = None;
    const TERMINAL: Option<FixedSlot> = Some(FixedSlot { space: Space::Terminal, address: 0, size: 1 });
    const CONSOLE: &'static str = "hvc0";
    // RTAS tells the time, and resets.
    const CLOCK: Option<FixedSlot> = None;
    const RESET: Option<FixedSlot> = None;
    const PCI: Option<FixedSlot> = Some(FixedSlot { space: Space::Configuration, address: 0, size: 1 << 28 });

    fn ram(bytes: u64) -> Vec<Region> {
        vec![Region { start: 0, size: bytes }]
    }

    fn spare_ram(ram: &[Region], bytes: u64) -> Region {
        let end = ram.last().map_or(0, Region::end);
        let size = bytes.next_multiple_of(layout::MEMORY_BLOCK);
        Region { start: end.next_multiple_of(layout::MEMORY_BLOCK), size }
    }

    fn device_slot(_: usize) -> Option<DeviceSlot> {
        // Linux looks for no device on memory's own bus here.
        None
    }

    fn pci_slot(index: usize) -> Option<DeviceSlot> {
        let index = u32::try_from(index).ok().filter(|index| *index < layout::DEVICE_SLOTS)?;
        let address = layout::DEVICE_WINDOW + u64::from(index) * layout::DEVICE_SLOT_SIZE;
        Some(DeviceSlot { address, size: layout::DEVICE_SLOT_SIZE, irq: layout::FIRST_DEVICE_IRQ + index })
    }

    fn command_line() -> &'static str {
        ""
    }

    fn announce_pci(_: &mut CommandLine) -> Result<(), CommandLineError> {
        Ok(())
    }

    fn announce(_: &[Device], _: &mut CommandLine) -> Result<(), CommandLineError> {
        // The device tree does.
        Ok(())
    }

    fn place_initrd(ram: &[Region], kernel: Extent, size: u64) -> Result<Extent, PlacementError> {
        let top = firmware(ram).start;
        let free = top.saturating_sub(kernel.end());
        let start = top.checked_sub(size).map(|start| start & !(layout::PAGE_SIZE - 1));
        match start {
            Some(start) if start >= kernel.end() && size > 0 => Ok(Extent { start, size }),
            _ => Err(PlacementError::InitrdTooLarge { size, free }),
        }
    }

    fn boot_image(inputs: &BootInputs<'_, Variant>) -> Result<BootImage<Registers>, BootImageError> {
        if inputs.command_line.len() >= CommandLine::CAPACITY {
            return Err(CommandLineError::TooLong(CommandLine::CAPACITY).into());
        }
        let firmware = firmware(inputs.ram);
        let tree = device_tree::write(inputs, firmware);
        if tree.len() as u64 > layout::DEVICE_TREE_SIZE {
            let limit = layout::DEVICE_TREE_SIZE as usize;
            return Err(BootImageError::DeviceTreeTooLarge { found: tree.len(), limit });
        }
        let code = rtas::CODE.iter().flat_map(|word| word.to_be_bytes()).collect();
        let tree = Blob { address: firmware.start + layout::RTAS_SIZE, bytes: tree };
        let registers = Registers::started(inputs.entry, tree.address);
        Ok(BootImage { blobs: vec![Blob { address: firmware.start, bytes: code }, tree], registers })
    }
}

/// Where RTAS's code and the device tree lie: at the top of the low memory that Linux uses.
fn firmware(ram: &[Region]) -> Region {
    let top = ram.first().map_or(0, Region::end).min(layout::LOW_END) & !(layout::MEMORY_SECTION - 1);
    Region { start: top.saturating_sub(layout::FIRMWARE_SIZE), size: layout::FIRMWARE_SIZE }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Extent = Extent { start: 0, size: 40 << 20 };

    #[test]
    fn device_slots_are_as_many_as_the_bus_has_devices() {
        let slots: Vec<_> = (0..).map_while(Ppc64le::pci_slot).collect();
        assert_eq!(slots.len(), 31);
        assert_eq!((slots[0].address, slots[0].irq), (0x2000_8000_0000, 0x1001));
        for pair in slots.windows(2) {
            assert_eq!(pair[0].address + pair[0].size, pair[1].address);
        }
        assert_eq!((Ppc64le::pci_slot(usize::MAX), Ppc64le::device_slot(0)), (None, None));
    }

    #[test]
    fn spare_ram_begins_and_ends_with_whole_pieces() {
        let spare = |ram, wanted| Ppc64le::spare_ram(&Ppc64le::ram(ram), wanted);
        assert_eq!(spare(300 << 20, 1), Region { start: 384 << 20, size: 128 << 20 });
        assert_eq!(spare(1 << 30, 257 << 20), Region { start: 1 << 30, size: 384 << 20 });
    }

    #[test]
    fn an_initrd_lies_below_what_stands_for_firmware() {
        let place = |ram, size| Ppc64le::place_initrd(&Ppc64le::ram(ram), KERNEL, size);
        assert_eq!(place(128 << 20, 5000), Ok(Extent { start: (127 << 20) - (64 << 10), size: 5000 }));
        assert_eq!(place(8 << 30, 64 << 10), Ok(Extent { start: (1023 << 20) - (64 << 10), size: 64 << 10 }));
        // Where memory does not end with a section of Linux's, below the last whole one.
        assert_eq!(place(140 << 20, 5000), place(128 << 20, 5000));
        for size in [88 << 20, u64::MAX, 0] {
            assert_eq!(place(128 << 20, size), Err(PlacementError::InitrdTooLarge { size, free: 87 << 20 }));
        }
    }

    #[test]
    fn the_boot_image_is_code_and_a_tree_in_low_memory() {
        let line = "x".repeat(CommandLine::CAPACITY - 1);
        let devices: Vec<_> = (0..).map_while(Ppc64le::pci_slot).map(|slot| Device { slot, kind: 2 }).collect();
        let boot = |ram: &[Region], line: &str| {
            Ppc64le::boot_image(&BootInputs {
                ram,
                max_vcpus: Ppc64le::MAX_VCPUS,
                command_line: line,
                entry: 0,
                initrd: None,
                seed: [7; 32],
                devices: &devices,
                variant: Variant::default(),
            })
        };
        for (ram, firmware) in [(64 << 20, 63 << 20), (8 << 30, 1023 << 20)] {
            let image = boot(&Ppc64le::ram(ram), &line).unwrap();
            let [code, tree] = &image.blobs[..] else { panic!("{} blobs", image.blobs.len()) };
            assert_eq!((code.address, tree.address), (firmware, firmware + layout::RTAS_SIZE));
            assert_eq!(code.bytes[..4], [0x7c, 0x64, 0x1b, 0x78]);
            assert_eq!(image.registers, Registers::started(0, tree.address));
            assert!(tree.bytes.len() as u64 <= layout::DEVICE_TREE_SIZE);
        }
        let error = boot(&Ppc64le::ram(64 << 20), &format!("{line}x")).unwrap_err();
        assert_eq!(error, CommandLineError::TooLong(CommandLine::CAPACITY).into());
    }
}
