//! The device tree by which the guest learns what the machine has (Devicetree Specification v0.4, and the bindings in Linux's
//! Documentation/devicetree/bindings that are named below).

use vm_fdt::{Error, FdtWriter, FdtWriterNode};

use super::{GicVersion, affinity, layout};
use crate::machine::{BootInputs, DeviceSlot, Region};

/// The nodes that others refer to.
const INTERRUPT_CONTROLLER: u32 = 1;
const BUS_CLOCK: u32 = 2;

// Interrupts are of three cells (interrupt-controller/arm,gic-v3.yaml): kind, number, and how they are signalled.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// The generic timer's private interrupts: secure, non-secure, virtual, hypervisor's (Arm BSA, section 3.6.2, less 16).
const TIMER_INTERRUPTS: [u32; 4] = [13, 14, 11, 10];
/// The GIC's own private interrupt.
const MAINTENANCE_INTERRUPT: u32 = 9;

/// What makes a 16550 tick; the guest divides it to the speed that it wants, and nobody looks.
const SERIAL_HERTZ: u32 = 1_843_200;
const BUS_HERTZ: u32 = 24_000_000;

/// The tree as the guest finds it.
///
/// # Errors
/// When something in it cannot be written, as a command line with a zero byte.
pub(super) fn device_tree(inputs: &BootInputs<'_, GicVersion>) -> Result<Vec<u8>, Error> {
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    tree.property_string("compatible", "linux,dummy-virt")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_u32("interrupt-parent", INTERRUPT_CONTROLLER)?;
    chosen(&mut tree, inputs)?;
    memory(&mut tree, inputs.ram)?;
    processors(&mut tree, inputs.max_vcpus)?;
    interrupt_controller(&mut tree, inputs.variant, inputs.max_vcpus)?;
    timer(&mut tree, inputs.variant, inputs.max_vcpus)?;
    serial(&mut tree)?;
    clock(&mut tree)?;
    for device in inputs.devices {
        virtio(&mut tree, device.slot)?;
    }
    tree.end_node(root)?;
    tree.finish()
}

fn chosen(tree: &mut FdtWriter, inputs: &BootInputs<'_, GicVersion>) -> Result<(), Error> {
    let node = tree.begin_node("chosen")?;
    tree.property_string("bootargs", inputs.command_line)?;
    tree.property("rng-seed", &inputs.seed)?;
    if let Some(initrd) = inputs.initrd {
        tree.property_u64("linux,initrd-start", initrd.start)?;
        tree.property_u64("linux,initrd-end", initrd.end())?;
    }
    tree.end_node(node)
}

fn memory(tree: &mut FdtWriter, ram: &[Region]) -> Result<(), Error> {
    let node = node_at(tree, "memory", layout::RAM)?;
    tree.property_string("device_type", "memory")?;
    let cells: Vec<_> = ram.iter().flat_map(|region| [region.start, region.size]).collect();
    tree.property_array_u64("reg", &cells)?;
    tree.end_node(node)
}

/// arm/cpus.yaml and arm/psci.yaml. How the guest starts its processors and ends the machine is one interface, at which KVM answers.
fn processors(tree: &mut FdtWriter, count: u8) -> Result<(), Error> {
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    for affinity in (0..count).map(affinity) {
        let cpu = node_at(tree, "cpu", affinity.into())?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_string("enable-method", "psci")?;
        tree.property_u32("reg", affinity)?;
        tree.end_node(cpu)?;
    }
    tree.end_node(cpus)?;
    let psci = tree.begin_node("psci")?;
    tree.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    tree.property_string("method", "hvc")?;
    tree.end_node(psci)
}

/// interrupt-controller/arm,gic-v3.yaml and arm,gic.yaml.
fn interrupt_controller(tree: &mut FdtWriter, version: GicVersion, vcpus: u8) -> Result<(), Error> {
    let node = node_at(tree, "interrupt-controller", layout::GIC_DISTRIBUTOR)?;
    tree.property_u32("phandle", INTERRUPT_CONTROLLER)?;
    tree.property_u32("#interrupt-cells", 3)?;
    tree.property_u32("#address-cells", 0)?;
    tree.property_null("interrupt-controller")?;
    let (name, ranges) = match version {
        GicVersion::V3 => {
            let redistributors = u64::from(vcpus) * layout::GIC_REDISTRIBUTOR_SIZE;
            let distributor = [layout::GIC_DISTRIBUTOR, layout::GICV3_DISTRIBUTOR_SIZE];
            ("arm,gic-v3", [distributor, [layout::GIC_REDISTRIBUTORS, redistributors]])
        }
        GicVersion::V2 => {
            let distributor = [layout::GIC_DISTRIBUTOR, layout::GICV2_DISTRIBUTOR_SIZE];
            ("arm,cortex-a15-gic", [distributor, [layout::GICV2_CPU_INTERFACE, layout::GICV2_CPU_INTERFACE_SIZE]])
        }
    };
    tree.property_string("compatible", name)?;
    tree.property_array_u64("reg", ranges.as_flattened())?;
    tree.property_array_u32("interrupts", &[PRIVATE, MAINTENANCE_INTERRUPT, LEVEL | targets(version, vcpus)])?;
    tree.end_node(node)
}

/// A GICv2 is told which processors have a private interrupt: all of them.
fn targets(version: GicVersion, vcpus: u8) -> u32 {
    match version {
        GicVersion::V3 => 0,
        GicVersion::V2 => ((1 << vcpus.min(8)) - 1) << 8,
    }
}

/// timer/arm,arch_timer.yaml.
fn timer(tree: &mut FdtWriter, version: GicVersion, vcpus: u8) -> Result<(), Error> {
    let node = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    let signal = LEVEL | targets(version, vcpus);
    let cells = TIMER_INTERRUPTS.map(|number| [PRIVATE, number, signal]);
    tree.property_array_u32("interrupts", cells.as_flattened())?;
    tree.property_null("always-on")?;
    tree.end_node(node)
}

/// serial/8250.yaml.
fn serial(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = node_at(tree, "serial", layout::SERIAL)?;
    tree.property_string("compatible", "ns16550a")?;
    tree.property_array_u64("reg", &[layout::SERIAL, layout::PAGE_SIZE])?;
    tree.property_u32("clock-frequency", SERIAL_HERTZ)?;
    tree.property_array_u32("interrupts", &[SHARED, layout::SERIAL_IRQ, EDGE])?;
    tree.end_node(node)
}

/// rtc/arm,pl031.yaml: without its interrupt, for nobody sets an alarm, but with the clock that drives its registers, without which
/// Linux does not look at it.
fn clock(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node("bus-clock")?;
    tree.property_u32("phandle", BUS_CLOCK)?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", BUS_HERTZ)?;
    tree.end_node(node)?;
    let node = node_at(tree, "rtc", layout::CLOCK)?;
    tree.property_string_list("compatible", vec!["arm,pl031".to_owned(), "arm,primecell".to_owned()])?;
    tree.property_array_u64("reg", &[layout::CLOCK, layout::PAGE_SIZE])?;
    tree.property_u32("clocks", BUS_CLOCK)?;
    tree.property_string("clock-names", "apb_pclk")?;
    tree.end_node(node)
}

/// virtio/mmio.yaml.
fn virtio(tree: &mut FdtWriter, slot: DeviceSlot) -> Result<(), Error> {
    let node = node_at(tree, "virtio_mmio", slot.address)?;
    tree.property_string("compatible", "virtio,mmio")?;
    tree.property_array_u64("reg", &[slot.address, slot.size])?;
    tree.property_array_u32("interrupts", &[SHARED, slot.irq, EDGE])?;
    tree.property_null("dma-coherent")?;
    tree.end_node(node)
}

fn node_at(tree: &mut FdtWriter, name: &str, address: u64) -> Result<FdtWriterNode, Error> {
    tree.begin_node(&format!("{name}@{address:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::Aarch64;
    use crate::machine::{Device, Extent, Machine};
    use crate::testing::read_back;

    fn tree(max_vcpus: u8, variant: GicVersion, devices: &[Device], initrd: Option<Extent>) -> Vec<String> {
        let ram = Aarch64::ram(128 << 20);
        let command_line = "quiet a=\"b c\"";
        let inputs = BootInputs {
            ram: &ram,
            max_vcpus,
            command_line,
            entry: layout::KERNEL,
            initrd,
            seed: [0xab; 32],
            devices,
            variant,
        };
        read_back(&device_tree(&inputs).unwrap())
    }

    #[track_caller]
    fn has(lines: &[String], wanted: &str) {
        assert!(lines.iter().any(|line| line == wanted), "no {wanted} in:\n{}", lines.join("\n"));
    }

    #[test]
    fn tells_memory_command_line_initrd_and_seed() {
        let lines = tree(1, GicVersion::V3, &[], Some(Extent { start: 0x4700_0000, size: 0x1234 }));
        has(&lines, "/memory@40000000/reg = <0x00 0x40000000 0x00 0x8000000>");
        has(&lines, r#"/chosen/bootargs = "quiet a=\"b c\"""#);
        has(&lines, "/chosen/linux,initrd-start = <0x00 0x47000000>");
        has(&lines, "/chosen/linux,initrd-end = <0x00 0x47001234>");
        has(&lines, &format!("/chosen/rng-seed = <{}>", ["0xabababab"; 8].join(" ")));
        assert!(!tree(1, GicVersion::V3, &[], None).iter().any(|line| line.contains("initrd")));
    }

    #[test]
    fn processors_are_started_by_their_affinity() {
        let lines = tree(18, GicVersion::V3, &[], None);
        assert_eq!(lines.iter().filter(|line| line.contains("enable-method = \"psci\"")).count(), 18);
        has(&lines, "/cpus/cpu@0/reg = <0x00>");
        has(&lines, "/cpus/cpu@f/reg = <0x0f>");
        has(&lines, "/cpus/cpu@101/reg = <0x101>");
        has(&lines, "/psci/method = \"hvc\"");
    }

    #[test]
    fn a_gicv3_has_a_redistributor_for_each_processor() {
        let lines = tree(3, GicVersion::V3, &[], None);
        let node = "/interrupt-controller@8000000";
        has(&lines, &format!("{node}/compatible = \"arm,gic-v3\""));
        has(&lines, &format!("{node}/reg = <0x00 0x8000000 0x00 0x10000 0x00 0x8100000 0x00 0x60000>"));
        has(&lines, &format!("{node}/interrupts = <0x01 0x09 0x04>"));
        has(&lines, "/timer/interrupts = <0x01 0x0d 0x04 0x01 0x0e 0x04 0x01 0x0b 0x04 0x01 0x0a 0x04>");
        has(&lines, "/timer/always-on");
    }

    #[test]
    fn a_gicv2_is_told_who_has_private_interrupts() {
        let lines = tree(3, GicVersion::V2, &[], None);
        let node = "/interrupt-controller@8000000";
        has(&lines, &format!("{node}/compatible = \"arm,cortex-a15-gic\""));
        has(&lines, &format!("{node}/reg = <0x00 0x8000000 0x00 0x1000 0x00 0x8010000 0x00 0x2000>"));
        has(&lines, &format!("{node}/interrupts = <0x01 0x09 0x704>"));
    }

    #[test]
    fn devices_have_registers_and_an_edge() {
        let devices: Vec<_> = (0..2).map_while(Aarch64::device_slot).map(|slot| Device { slot, kind: 2 }).collect();
        let lines = tree(1, GicVersion::V3, &devices, None);
        has(&lines, "/virtio_mmio@a001000/reg = <0x00 0xa001000 0x00 0x1000>");
        has(&lines, "/virtio_mmio@a001000/interrupts = <0x00 0x02 0x01>");
        has(&lines, "/virtio_mmio@a001000/dma-coherent");
        has(&lines, "/serial@9000000/compatible = \"ns16550a\"");
        has(&lines, "/serial@9000000/interrupts = <0x00 0x00 0x01>");
        has(&lines, "/rtc@9010000/compatible = \"arm,pl031\\0arm,primecell\"");
    }
}
