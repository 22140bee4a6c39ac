//! The aarch64 machine: processors, a GIC, the generic timer, a serial line, a clock and virtio-mmio devices, all of which a device
//! tree names. Processors are started, and the machine is ended, through PSCI.
//!
//! Knows no KVM: registers are plain numbers.

mod device_tree;
pub mod layout;
mod registers;

use crate::machine::{
    Blob, BootImage, BootImageError, BootInputs, Device, DeviceSlot, Extent, FixedSlot, Machine, PlacementError,
    Region, Space,
};
use crate::{CommandLine, CommandLineError, KernelFormat};

pub use registers::{Registers, affinity};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64;

/// Which interrupt controller the host can give a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GicVersion {
    /// Of older hosts, for at most 8 processors.
    V2,
    /// The usual one.
    #[default]
    V3,
}

impl Machine for Aarch64 {
    type Registers = Registers;
    type Variant = GicVersion;

    const NAME: &'static str = "aarch64";
    const KERNEL: KernelFormat = KernelFormat::Image { base: layout::KERNEL };
    const MAX_VCPUS: u8 = 32;
    const MIN_MEMORY: u64 = 32 << 20;
    const SERIAL: Option<(FixedSlot, u32)> =
        Some((FixedSlot { space: Space::Memory, address: layout::SERIAL, size: 8 }, layout::SERIAL_IRQ));
    const TERMINAL: Option<FixedSlot> = None;
    const CONSOLE: &'static str = "ttyS0";
    const CLOCK: Option<FixedSlot> =
        Some(FixedSlot { space: Space::Memory, address: layout::CLOCK, size: layout::PAGE_SIZE });
    const RESET: Option<FixedSlot> = None;

    const PCI: Option<FixedSlot> = None;

    fn ram(bytes: u64) -> Vec<Region> {
        vec![Region { start: layout::RAM, size: bytes }]
    }

    fn spare_ram(ram: &[Region], bytes: u64) -> Region {
        let end = ram.last().map_or(layout::RAM, Region::end);
        let size = bytes.next_multiple_of(layout::MEMORY_BLOCK);
        Region { start: end.next_multiple_of(layout::MEMORY_BLOCK), size }
    }

    fn device_slot(index: usize) -> Option<DeviceSlot> {
        let index = u32::try_from(index).ok()?;
        let irq = layout::FIRST_DEVICE_IRQ.checked_add(index).filter(|&irq| irq <= layout::LAST_IRQ)?;
        let address = layout::DEVICE_WINDOW + u64::from(index) * layout::DEVICE_SLOT_SIZE;
        Some(DeviceSlot { address, size: layout::DEVICE_SLOT_SIZE, irq })
    }

    fn pci_slot(_: usize) -> Option<DeviceSlot> {
        None
    }

    fn command_line() -> &'static str {
        // As on x86_64: the early console has the last words, and no device needs bounce buffers.
        "earlycon=uart8250,mmio,0x9000000 swiotlb=noforce"
    }

    fn announce_pci(_: &mut CommandLine) -> Result<(), CommandLineError> {
        Ok(())
    }

    fn announce(_: &[Device], _: &mut CommandLine) -> Result<(), CommandLineError> {
        // The device tree has them.
        Ok(())
    }

    fn place_initrd(ram: &[Region], kernel: Extent, size: u64) -> Result<Extent, PlacementError> {
        let top = ram.first().map_or(0, Region::end).min(layout::RAM + layout::REACH);
        let free = top.saturating_sub(kernel.end());
        let start = top.checked_sub(size).map(|start| start & !(layout::PAGE_SIZE - 1));
        match start {
            Some(start) if start >= kernel.end() && size > 0 => Ok(Extent { start, size }),
            _ => Err(PlacementError::InitrdTooLarge { size, free }),
        }
    }

    fn boot_image(inputs: &BootInputs<'_, GicVersion>) -> Result<BootImage<Registers>, BootImageError> {
        if inputs.command_line.len() >= CommandLine::CAPACITY {
            return Err(CommandLineError::TooLong(CommandLine::CAPACITY).into());
        }
        let tree = device_tree::device_tree(inputs);
        let bytes = tree.map_err(|error| BootImageError::DeviceTree(error.to_string()))?;
        if bytes.len() as u64 > layout::DEVICE_TREE_LIMIT {
            let limit = layout::DEVICE_TREE_LIMIT as usize;
            return Err(BootImageError::DeviceTreeTooLarge { found: bytes.len(), limit });
        }
        let blobs = vec![Blob { address: layout::DEVICE_TREE, bytes }];
        Ok(BootImage { blobs, registers: Registers::boot(inputs.entry) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Extent = Extent { start: layout::KERNEL, size: 20 << 20 };

    #[test]
    fn ram_is_one_piece_above_all_devices() {
        assert_eq!(Aarch64::ram(5 << 30), [Region { start: 1 << 30, size: 5 << 30 }]);
        let slots: Vec<_> = (0..).map_while(Aarch64::device_slot).collect();
        assert_eq!((slots.len(), slots[94].irq), (95, 95));
        for pair in slots.windows(2) {
            assert_eq!(pair[0].address + pair[0].size, pair[1].address);
        }
        assert!(slots[94].address + slots[94].size <= layout::RAM);
        assert_eq!(Aarch64::device_slot(usize::MAX), None);
    }

    #[test]
    fn fixed_places_do_not_overlap() {
        let redistributors = u64::from(Aarch64::MAX_VCPUS) * layout::GIC_REDISTRIBUTOR_SIZE;
        let places = [
            (layout::GIC_DISTRIBUTOR, layout::GICV3_DISTRIBUTOR_SIZE),
            (layout::GICV2_CPU_INTERFACE, layout::GICV2_CPU_INTERFACE_SIZE),
            (layout::GIC_REDISTRIBUTORS, redistributors),
            (layout::SERIAL, layout::PAGE_SIZE),
            (layout::CLOCK, layout::PAGE_SIZE),
            (layout::DEVICE_WINDOW, 95 * layout::DEVICE_SLOT_SIZE),
            (layout::RAM, 0),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert_eq!(layout::INTERRUPTS % 32, 0);
        assert_eq!(layout::KERNEL % (2 << 20), 0);
    }

    #[test]
    fn spare_ram_lies_above_all_other_and_is_made_of_whole_pieces() {
        let spare = |ram, wanted| Aarch64::spare_ram(&Aarch64::ram(ram), wanted);
        assert_eq!(spare(128 << 20, 1 << 20), Region { start: (1 << 30) + (128 << 20), size: 128 << 20 });
        assert_eq!(spare(130 << 20, 129 << 20), Region { start: (1 << 30) + (256 << 20), size: 256 << 20 });
    }

    #[test]
    fn an_initrd_goes_to_the_top_of_what_the_kernel_reaches() {
        let place = |ram, size| Aarch64::place_initrd(&Aarch64::ram(ram), KERNEL, size);
        assert_eq!(place(1 << 30, 5000), Ok(Extent { start: (2 << 30) - 8192, size: 5000 }));
        assert_eq!(place(64 << 30, 4096), Ok(Extent { start: (33 << 30) - 4096, size: 4096 }));
        for size in [43 << 20, 64 << 20, 3 << 30, u64::MAX, 0] {
            assert_eq!(place(64 << 20, size), Err(PlacementError::InitrdTooLarge { size, free: 42 << 20 }));
        }
    }

    fn image(max_vcpus: u8, command_line: &str) -> Result<BootImage<Registers>, BootImageError> {
        let devices: Vec<_> = (0..).map_while(Aarch64::device_slot).map(|slot| Device { slot, kind: 2 }).collect();
        Aarch64::boot_image(&BootInputs {
            ram: &Aarch64::ram(64 << 20),
            max_vcpus,
            command_line,
            entry: layout::KERNEL,
            initrd: None,
            seed: [7; 32],
            devices: &devices,
            variant: GicVersion::V3,
        })
    }

    #[test]
    fn the_largest_device_tree_fits_below_the_kernel() {
        let image = image(Aarch64::MAX_VCPUS, &"x".repeat(CommandLine::CAPACITY - 1)).unwrap();
        assert_eq!(image.blobs.len(), 1);
        assert_eq!(image.blobs[0].address, image.registers.x0);
        assert!(image.blobs[0].bytes.len() < 64 << 10);
    }

    #[test]
    fn what_the_kernel_would_not_read_is_refused() {
        let long = image(1, &"x".repeat(CommandLine::CAPACITY)).unwrap_err();
        assert_eq!(long, BootImageError::CommandLine(CommandLineError::TooLong(CommandLine::CAPACITY)));
        assert!(matches!(image(1, "a\0b"), Err(BootImageError::DeviceTree(_))));
    }
}
