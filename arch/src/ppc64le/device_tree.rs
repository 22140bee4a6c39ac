//! The device tree that tells the kernel what the machine is (Devicetree Specification 0.4; LoPAR, annexes B and C): processors,
//! memory, RTAS, the interrupt controller, a virtual terminal, and a PCI host bridge with its functions.
//!
//! Nobody negotiates with this machine before the kernel runs (LoPAR's client architecture support), so the tree says outright
//! what a negotiation would have come to: radix translation, and the interrupt controller XICS.

use super::flat_tree::{FlatTree, Node};
use super::{Variant, layout, pci, rtas};
use crate::machine::{BootInputs, Device, Region};

/// The interrupt controller, as other nodes refer to it.
const INTERRUPTS: u32 = 1;

/// An edge, in the second of an interrupt's two cells (LoPAR, annex B.6.10.1; 1 would be a level). The host's interrupts are events
/// that happen, and nobody tells them that the guest has seen to a level's cause.
const EDGE: u32 = 0;

/// The whole tree; it and RTAS's code, which is at the beginning, are in `firmware`.
pub(super) fn write(inputs: &BootInputs<'_, Variant>, firmware: Region) -> Vec<u8> {
    FlatTree::write(&[firmware], |root| {
        root.text("device_type", "chrp");
        root.text("compatible", "linux,tatami-pseries");
        root.text("model", "Tatami (pseries)");
        root.cells("#address-cells", &[2]);
        root.cells("#size-cells", &[2]);
        root.cells("interrupt-parent", &[INTERRUPTS]);
        root.node("chosen", |node| chosen(node, inputs));
        root.node("rtas", |node| services(node, firmware.start));
        for region in inputs.ram {
            root.node(&format!("memory@{:x}", region.start), |node| {
                node.text("device_type", "memory");
                node.quads("reg", &[region.start, region.size]);
            });
        }
        // All memory that may come later is a device's (virtio-mem). Without a size, Linux takes up to 1 GiB for a piece.
        root.node("ibm,dynamic-reconfiguration-memory", |node| node.quads("ibm,lmb-size", &[layout::MEMORY_BLOCK]));
        root.node("cpus", |cpus| {
            cpus.cells("#address-cells", &[1]);
            cpus.cells("#size-cells", &[0]);
            for id in 0..u32::from(inputs.max_vcpus) {
                cpus.node(&format!("cpu@{id:x}"), |node| processor(node, id, &inputs.variant));
            }
        });
        root.node("hypervisor", |node| node.text("compatible", "linux,kvm"));
        root.node("interrupt-controller", |node| interrupt_controller(node, inputs.max_vcpus));
        root.node("vdevice", terminal);
        root.node(&format!("pci@{:x}", layout::BRIDGE_UNIT), |node| host_bridge(node, inputs.devices));
    })
}

fn chosen(node: &mut Node<'_>, inputs: &BootInputs<'_, Variant>) {
    node.text("bootargs", inputs.command_line);
    if let Some(initrd) = inputs.initrd {
        node.quads("linux,initrd-start", &[initrd.start]);
        node.quads("linux,initrd-end", &[initrd.end()]);
    }
    node.text("stdout-path", &format!("/vdevice/vty@{:x}", layout::TERMINAL_UNIT));
    node.bytes("rng-seed", &inputs.seed);
    node.bytes("ibm,architecture-vec-5", &option_vector_5());
}

/// What a negotiation would have come to (LoPAR, table B.14.2.3, "option vector 5"). Linux asks this of the bytes by their number
/// in the table; the first counts those after the second.
fn option_vector_5() -> [u8; 28] {
    const INTERRUPTS: usize = 23;
    const TRANSLATION: usize = 24;
    const RADIX_EXTENSIONS: usize = 26;
    let mut vector = [0; 28];
    vector[0] = vector.len() as u8 - 2;
    vector[INTERRUPTS] = 0x00; // XICS
    vector[TRANSLATION] = 0x40; // radix
    vector[RADIX_EXTENSIONS] = 0x40; // the guest invalidates translations
    vector
}

/// The groups of hypercalls that there are (LoPAR, table 14.1, "Function Set").
const HYPERCALLS: [&str; 6] =
    ["hcall-interrupt", "hcall-term", "hcall-tce", "hcall-multi-tce", "hcall-splpar", "hcall-set-mode"];

fn services(node: &mut Node<'_>, code: u64) {
    for (service, name) in rtas::SERVICES {
        node.cells(name, &[service.token()]);
    }
    // Low memory, by layout.
    node.cells("linux,rtas-base", &[code as u32]);
    node.cells("linux,rtas-entry", &[code as u32]);
    node.cells("rtas-size", &[layout::RTAS_SIZE as u32]);
    node.texts("ibm,hypertas-functions", &HYPERCALLS);
}

fn processor(node: &mut Node<'_>, id: u32, variant: &Variant) {
    // Told in sysfs; nothing depends on it.
    const CLOCK: u32 = 1_000_000_000;
    node.text("device_type", "cpu");
    node.cells("reg", &[id]);
    node.cells("ibm,ppc-interrupt-server#s", &[id]);
    node.cells("timebase-frequency", &[variant.timebase]);
    node.cells("clock-frequency", &[CLOCK]);
    for name in ["d-cache-block-size", "d-cache-line-size", "i-cache-block-size", "i-cache-line-size"] {
        node.cells(name, &[variant.cache_line]);
    }
    for name in ["d-cache-size", "i-cache-size"] {
        node.cells(name, &[32 << 10]);
    }
    node.bytes("64-bit", &[]);
    // Vectors: 2 says that there are VSX's, too; and decimal floating point.
    node.cells("ibm,vmx", &[2]);
    node.cells("ibm,dfp", &[1]);
    node.bytes("ibm,pa-features", &features());
    node.cells("ibm,processor-radix-AP-encodings", &variant.page_encodings);
}

/// What the processor can beyond what its version number says, as far as Linux asks (LoPAR, annex C.6.2.1,
/// "ibm,pa-features"): after a length and a type, bytes whose highest bit is number 0.
fn features() -> [u8; 66] {
    const HEADER: usize = 2;
    let mut features = [0; 66];
    features[0] = (features.len() - HEADER) as u8;
    let mut set = |byte: usize, bits: u8| features[HEADER + byte] |= bits;
    set(0, 0xf2); // MMU, floating point, SLB, run latch, no-execute
    set(5, 0x80); // little endian
    set(40, 0x80); // radix translation
    features
}

fn interrupt_controller(node: &mut Node<'_>, max_vcpus: u8) {
    node.text("device_type", "PowerPC-External-Interrupt-Presentation");
    node.text("compatible", "IBM,ppc-xicp");
    node.bytes("interrupt-controller", &[]);
    node.cells("#address-cells", &[0]);
    node.cells("#interrupt-cells", &[2]);
    node.cells("ibm,interrupt-server-ranges", &[0, max_vcpus.into()]);
    node.cells("phandle", &[INTERRUPTS]);
}

fn terminal(node: &mut Node<'_>) {
    node.text("device_type", "vdevice");
    node.text("compatible", "IBM,vdevice");
    node.cells("#address-cells", &[1]);
    node.cells("#size-cells", &[0]);
    node.node(&format!("vty@{:x}", layout::TERMINAL_UNIT), |node| {
        node.text("device_type", "serial");
        node.text("compatible", "hvterm1");
        node.cells("reg", &[layout::TERMINAL_UNIT]);
        node.cells("interrupts", &[layout::TERMINAL_IRQ, EDGE]);
    });
}

/// First cell of a PCI address (PCI Bus Binding to IEEE 1275, section 2.2.1.1): 32-bit memory.
const MEMORY: u32 = 2 << 24;
/// Offset of the first base address register in a function's configuration (PCI Local Bus 3.0, figure 6-1).
const BAR_0: u32 = 0x10;
/// The first of a function's four interrupt pins.
const PIN_A: u32 = 1;

fn host_bridge(node: &mut Node<'_>, devices: &[Device]) {
    let window = layout::DEVICE_WINDOW;
    let window_size = layout::DEVICE_SLOT_SIZE * u64::from(layout::DEVICE_SLOTS);
    node.text("device_type", "pci");
    node.text("compatible", "IBM,Logical_PHB");
    node.cells("#address-cells", &[3]);
    node.cells("#size-cells", &[2]);
    node.cells("#interrupt-cells", &[1]);
    node.quads("reg", &[layout::BRIDGE_UNIT, 0]);
    node.cells("bus-range", &[0, 0]);
    node.bytes("used-by-rtas", &[]);
    // None is ever given out, for RTAS has no call that would. But where a bridge says nothing of messages, Linux since 6.2 takes the
    // controller of lines for theirs, and stumbles over what it does not find there.
    node.cells("ibm,pe-total-#msi", &[layout::DEVICE_SLOTS]);
    node.cells("ibm,pci-config-space-type", &[1]);
    // Linux takes it for an error when there is no table, though virtio devices are not behind one (virtio 1.2, section 6,
    // VIRTIO_F_ACCESS_PLATFORM): so there is a small one, which stays empty.
    node.cells("ibm,#dma-address-cells", &[2]);
    node.cells("ibm,#dma-size-cells", &[2]);
    node.cells("ibm,dma-window", &[layout::DMA_TABLE, 0, 0, 0, layout::DMA_WINDOW_SIZE]);
    node.cells("ranges", &[&[MEMORY, 0, layout::BUS_WINDOW], &cells(window)[..], &cells(window_size)].concat());
    node.cells("interrupt-map-mask", &[0x1f << 11, 0, 0, 7]);
    let numbered = || (layout::FIRST_DEVICE..).zip(devices);
    let routes = numbered().flat_map(|(number, device)| [number << 11, 0, 0, PIN_A, INTERRUPTS, device.slot.irq, EDGE]);
    node.cells("interrupt-map", &routes.collect::<Vec<_>>());
    for (number, device) in numbered() {
        let name = format!("{}@{number:x}", pci::name(device.kind));
        node.node(&name, |node| pci_function(node, number << 11, device));
    }
}

/// Function 0 of a device that is `number` in the first cell of PCI addresses. Linux does not ask the function for what is told here.
fn pci_function(node: &mut Node<'_>, number: u32, device: &Device) {
    // On the bus, addresses are the lower halves.
    let address = device.slot.address as u32;
    let memory = |address: u32| [number | MEMORY | BAR_0, 0, address, 0, layout::BAR_SIZE];
    node.text("compatible", &pci::name(device.kind));
    node.cells("vendor-id", &[pci::VENDOR]);
    node.cells("device-id", &[pci::device(device.kind)]);
    node.cells("subsystem-vendor-id", &[pci::VENDOR]);
    node.cells("subsystem-id", &[pci::device(device.kind)]);
    node.cells("revision-id", &[pci::REVISION]);
    node.cells("class-code", &[pci::class(device.kind)]);
    node.cells("interrupts", &[PIN_A]);
    node.cells("reg", &[[number, 0, 0, 0, 0], memory(0)].concat());
    node.cells("assigned-addresses", &memory(address));
}

fn cells(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Machine;
    use crate::ppc64le::Ppc64le;
    use crate::testing::read_back;

    const FIRMWARE: Region = Region { start: 0x3ff0_0000, size: 0x10_0000 };

    fn inputs<'a>(ram: &'a [Region], devices: &'a [Device]) -> BootInputs<'a, Variant> {
        BootInputs {
            ram,
            max_vcpus: 2,
            command_line: "quiet a=b",
            entry: 0,
            initrd: Some(Region { start: 0x800_0000, size: 0x1234 }),
            seed: [7; 32],
            devices,
            variant: Variant::default(),
        }
    }

    #[track_caller]
    fn has(lines: &[String], wanted: &str) {
        assert!(lines.iter().any(|line| line == wanted), "no {wanted} in:\n{}", lines.join("\n"));
    }

    #[test]
    fn the_tree_says_what_the_machine_is() {
        let ram = [Region { start: 0, size: 0x4000_0000 }];
        let device = |index, kind| Device { slot: Ppc64le::pci_slot(index).unwrap(), kind };
        let devices = [device(0, 2), device(1, 26)];
        let lines = read_back(&write(&inputs(&ram, &devices), FIRMWARE));
        let has = |wanted: &str| has(&lines, wanted);
        has("//memreserve/\t0x000000003ff00000 0x0000000000100000");
        has("/device_type = \"chrp\"");
        has("/chosen/bootargs = \"quiet a=b\"");
        has("/chosen/linux,initrd-start = <0x00 0x8000000>");
        has("/chosen/linux,initrd-end = <0x00 0x8001234>");
        has("/chosen/stdout-path = \"/vdevice/vty@30000000\"");
        has("/chosen/ibm,architecture-vec-5 = <0x1a000000 0x00 0x00 0x00 0x00 0x00 0x40004000>");
        has("/rtas/linux,rtas-base = <0x3ff00000>");
        has("/rtas/start-cpu = <0x2001>");
        has("/memory@0/reg = <0x00 0x00 0x00 0x40000000>");
        has("/ibm,dynamic-reconfiguration-memory/ibm,lmb-size = <0x00 0x8000000>");
        has("/cpus/cpu@1/ibm,ppc-interrupt-server#s = <0x01>");
        has("/cpus/cpu@1/timebase-frequency = <0x1e848000>");
        has("/cpus/cpu@0/ibm,processor-radix-AP-encodings = <0x0c 0xa0000010 0x20000015 0x4000001e>");
        has("/interrupt-controller/ibm,interrupt-server-ranges = <0x00 0x02>");
        has("/vdevice/vty@30000000/interrupts = <0x1000 0x00>");
        has("/pci@800000020000000/reg = <0x8000000 0x20000000 0x00 0x00>");
        has("/pci@800000020000000/ranges = <0x2000000 0x00 0x80000000 0x2000 0x80000000 0x00 0x1f0000>");
        has(
            "/pci@800000020000000/interrupt-map = <0x800 0x00 0x00 0x01 0x01 0x1001 0x00 0x1000 0x00 0x00 0x01 0x01 0x1002 0x00>",
        );
        has("/pci@800000020000000/ibm,pe-total-#msi = <0x1f>");
        has("/pci@800000020000000/pci1af4,1042@1/class-code = <0x18000>");
        has("/pci@800000020000000/pci1af4,105a@2/device-id = <0x105a>");
        has("/pci@800000020000000/pci1af4,105a@2/reg = <0x1000 0x00 0x00 0x00 0x00 0x2001010 0x00 0x00 0x00 0x8000>");
        has("/pci@800000020000000/pci1af4,105a@2/assigned-addresses = <0x2001010 0x00 0x80010000 0x00 0x8000>");
    }

    #[test]
    fn without_an_initrd_there_is_no_word_of_it() {
        let ram = [Region { start: 0, size: 0x4000_0000 }];
        let lines = read_back(&write(&BootInputs { initrd: None, ..inputs(&ram, &[]) }, FIRMWARE));
        assert!(!lines.iter().any(|line| line.contains("initrd")), "{lines:#?}");
    }

    #[test]
    fn features_are_where_linux_looks_for_them() {
        let features = features();
        assert_eq!((usize::from(features[0]), features[1]), (features.len() - 2, 0));
        assert_eq!(features[2 + 40] & 0x80, 0x80);
    }
}
