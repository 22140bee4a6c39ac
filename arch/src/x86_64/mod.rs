//! The x86_64 machine: a PC without firmware or ACPI. Processors and interrupt lines are in an MP table, devices on
//! the kernel's command line unless they are behind PCI, and the kernel starts in 64-bit mode at its own entry point.
//!
//! Knows no KVM: registers and CPUID leaves are plain numbers.

mod boot_params;
pub mod cpuid;
pub mod layout;
mod mp_table;
mod registers;
mod tables;

use crate::machine::{
    Blob, BootImage, BootImageError, BootInputs, Device, DeviceSlot, Extent, FixedSlot, Machine, PlacementError,
    Region, Space,
};
use crate::{CommandLine, CommandLineError, ElfMachine, KernelFormat};

pub use registers::{Registers, Segment, TableRegister};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

impl Machine for X86_64 {
    type Registers = Registers;
    type Variant = ();

    const NAME: &'static str = "x86_64";
    const KERNEL: KernelFormat = KernelFormat::Elf(ElfMachine { number: 62, name: Self::NAME, ignored: 0 });
    // The MP table's 8-bit APIC ids, less the broadcast id and the I/O APIC's.
    const MAX_VCPUS: u8 = 254;
    const MIN_MEMORY: u64 = 32 << 20;
    const SERIAL: Option<(FixedSlot, u32)> =
        Some((FixedSlot { space: Space::Ports, address: layout::SERIAL_PORT, size: 8 }, layout::SERIAL_IRQ));
    const TERMINAL: Option<FixedSlot> = None;
    const CONSOLE: &'static str = "ttyS0";
    // The guest asks KVM's paravirtual clock.
    const CLOCK: Option<FixedSlot> = None;
    const RESET: Option<FixedSlot> = Some(FixedSlot { space: Space::Ports, address: layout::I8042_PORT, size: 5 });

    const PCI: Option<FixedSlot> = Some(FixedSlot { space: Space::Ports, address: layout::PCI_PORTS, size: 8 });

    fn ram(bytes: u64) -> Vec<Region> {
        let low = bytes.min(layout::HOLE_START);
        let mut regions = vec![Region { start: 0, size: low }];
        if bytes > low {
            regions.push(Region { start: layout::HOLE_END, size: bytes - low });
        }
        regions
    }

    fn spare_ram(ram: &[Region], bytes: u64) -> Region {
        let end = ram.last().map_or(0, Region::end).max(layout::HOLE_END);
        let size = bytes.next_multiple_of(layout::MEMORY_BLOCK);
        Region { start: end.next_multiple_of(layout::LARGEST_MEMORY_BLOCK), size }
    }

    fn device_slot(index: usize) -> Option<DeviceSlot> {
        let index = u32::try_from(index).ok()?;
        let irq = layout::FIRST_DEVICE_IRQ.checked_add(index).filter(|&irq| irq <= layout::LAST_IRQ)?;
        let address = layout::DEVICE_WINDOW + u64::from(index) * layout::DEVICE_SLOT_SIZE;
        Some(DeviceSlot { address, size: layout::DEVICE_SLOT_SIZE, irq })
    }

    fn pci_slot(index: usize) -> Option<DeviceSlot> {
        let index = u64::try_from(index).ok().filter(|&index| index < layout::PCI_SLOTS)?;
        // Interrupts are messages, so that no table has to say which line is whose.
        let address = layout::PCI_WINDOW + index * layout::PCI_SLOT_SIZE;
        Some(DeviceSlot { address, size: layout::PCI_SLOT_SIZE, irq: 0 })
    }

    fn command_line() -> &'static str {
        // The early console is a few port writes, and unless asked to talk, only a dying kernel uses it.
        // Reset goes through the keyboard controller's port, which is one exit that says what it means, and at once (f): nobody
        // needs the interrupt controllers of a machine that ends put in order, which is some 450 exits.
        // With one vCPU the kernel would take the lock prefixes out of its code, page by page through a mapping made for each of
        // some thousand places: more than it would ever save.
        // No device here needs bounce buffers below 4 GiB, for which a guest with memory above gives away 64 MiB.
        "earlycon=uart8250,io,0x3f8 reboot=f,k tsc=reliable no_timer_check noreplace-smp swiotlb=noforce"
    }

    fn announce(devices: &[Device], line: &mut CommandLine) -> Result<(), CommandLineError> {
        line.add("pci=off")?;
        devices.iter().try_for_each(|device| line.add_device(device.slot))
    }

    fn announce_pci(line: &mut CommandLine) -> Result<(), CommandLineError> {
        // By the ports and nothing else, and only when everything is ready for it: looking twice is exits for nothing.
        line.add("pci=conf1,noearly")
    }

    fn place_initrd(ram: &[Region], kernel: Extent, size: u64) -> Result<Extent, PlacementError> {
        let top = ram.first().map_or(0, Region::end);
        let free = top.saturating_sub(kernel.end());
        let start = top.checked_sub(size).map(|start| start & !(layout::PAGE_SIZE - 1));
        match start {
            Some(start) if start >= kernel.end() && size > 0 => Ok(Extent { start, size }),
            _ => Err(PlacementError::InitrdTooLarge { size, free }),
        }
    }

    fn boot_image(inputs: &BootInputs<'_, ()>) -> Result<BootImage<Registers>, BootImageError> {
        if inputs.command_line.len() >= CommandLine::CAPACITY {
            return Err(CommandLineError::TooLong(CommandLine::CAPACITY).into());
        }
        let mut command_line = inputs.command_line.as_bytes().to_vec();
        command_line.push(0);
        let blobs = vec![
            Blob { address: layout::GDT, bytes: tables::gdt() },
            Blob { address: layout::SEED, bytes: boot_params::seed(&inputs.seed) },
            Blob { address: layout::BOOT_PARAMS, bytes: boot_params::boot_params(inputs) },
            Blob { address: layout::PAGE_TABLES, bytes: tables::page_tables() },
            Blob { address: layout::COMMAND_LINE, bytes: command_line },
            Blob { address: layout::MP_TABLE, bytes: mp_table::mp_table(inputs.max_vcpus) },
        ];
        Ok(BootImage { blobs, registers: Registers::boot(inputs.entry) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Extent = Extent { start: 0x100_0000, size: 20 << 20 };

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(X86_64::ram(128 << 20), [Region { start: 0, size: 128 << 20 }]);
        assert_eq!(X86_64::ram(3 << 30), [Region { start: 0, size: 3 << 30 }]);
        let both = X86_64::ram((3 << 30) + (1 << 20));
        assert_eq!(both, [Region { start: 0, size: 3 << 30 }, Region { start: 4 << 30, size: 1 << 20 }]);
    }

    #[test]
    fn spare_ram_lies_above_all_other_and_is_made_of_whole_pieces() {
        let spare = |ram, wanted| X86_64::spare_ram(&X86_64::ram(ram), wanted);
        assert_eq!(spare(128 << 20, 1 << 20), Region { start: 4 << 30, size: 128 << 20 });
        assert_eq!(spare(5 << 30, 129 << 20), Region { start: 6 << 30, size: 256 << 20 });
    }

    #[test]
    fn device_slots_lie_in_the_hole_and_end_with_the_io_apic() {
        let slots: Vec<_> = (0..).map_while(X86_64::device_slot).collect();
        assert_eq!(slots.len(), 19);
        assert_eq!(slots[18].irq, 23);
        for pair in slots.windows(2) {
            assert_eq!(pair[0].address + pair[0].size, pair[1].address);
        }
        assert!(slots[18].address + slots[18].size <= u64::from(layout::IO_APIC));
        assert_eq!(X86_64::device_slot(usize::MAX), None);
    }

    #[test]
    fn devices_behind_pci_lie_between_the_others_and_the_io_apic() {
        let slots: Vec<_> = (0..).map_while(X86_64::pci_slot).collect();
        assert_eq!(slots.len(), 31);
        assert!(slots.iter().all(|slot| slot.address.is_multiple_of(slot.size)));
        let last = (0..).map_while(X86_64::device_slot).last().unwrap();
        assert!(slots[0].address >= last.address + last.size);
        assert!(slots[30].address + slots[30].size <= u64::from(layout::IO_APIC));
        assert_eq!(X86_64::pci_slot(usize::MAX), None);
    }

    #[test]
    fn an_initrd_goes_to_the_top_of_low_ram() {
        let ram = X86_64::ram(5 << 30);
        let initrd = X86_64::place_initrd(&ram, KERNEL, 5000).unwrap();
        assert_eq!(initrd, Extent { start: (3 << 30) - 8192, size: 5000 });
    }

    #[test]
    fn an_initrd_larger_than_ram_is_an_error_that_says_so() {
        let ram = X86_64::ram(64 << 20);
        for size in [29 << 20, 64 << 20, 65 << 20, u64::MAX, 0] {
            let error = X86_64::place_initrd(&ram, KERNEL, size).unwrap_err();
            assert_eq!(error, PlacementError::InitrdTooLarge { size, free: 28 << 20 });
        }
        let message = X86_64::place_initrd(&ram, KERNEL, 29 << 20).unwrap_err().to_string();
        assert!(message.contains("29 MiB") && message.contains("28 MiB free"), "{message}");
    }

    #[test]
    fn nothing_in_the_boot_image_overlaps() {
        let ram = X86_64::ram(5 << 30);
        let line = "x".repeat(CommandLine::CAPACITY - 1);
        let image = X86_64::boot_image(&BootInputs {
            ram: &ram,
            max_vcpus: X86_64::MAX_VCPUS,
            command_line: &line,
            entry: 0x100_0000,
            initrd: None,
            seed: [7; 32],
            devices: &[],
            variant: (),
        })
        .unwrap();
        let mut extents: Vec<_> =
            image.blobs.iter().map(|blob| (blob.address, blob.address + blob.bytes.len() as u64)).collect();
        extents.sort_unstable();
        for pair in extents.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert!(extents.last().unwrap().1 <= 1 << 20);
    }
}
