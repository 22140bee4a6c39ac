//! The interrupt controller: a GICv3, or a GICv2 where the host has nothing else; and all that it holds, as a list of registers.
//!
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst say how KVM is told; the registers are those of the GIC's
//! architecture (Arm IHI 0069, chapter 12, and IHI 0048, chapter 4). Message-signalled interrupts are left out.

use std::ops::Range;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_REGS,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use serde::{Deserialize, Serialize};
use tatami_arch::aarch64::{GicVersion, affinity, layout};

use super::{KvmError, failed};

/// KVM's GIC.
pub(in crate::kvm) struct InterruptController {
    device: DeviceFd,
    version: GicVersion,
    vcpus: u8,
}

/// All that it holds: KVM's group of attributes, the attribute, its value; in the order in which they are set.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct GicState {
    version: u8,
    registers: Vec<(u32, u64, u64)>,
}

impl InterruptController {
    /// Creates it for the machine's vCPUs, which are there already.
    ///
    /// # Errors
    /// When the host has none, or KVM refuses.
    pub(super) fn new(vm: &VmFd, vcpus: u8) -> Result<InterruptController, KvmError> {
        let (device, version) = create(vm)?;
        let controller = InterruptController { device, version, vcpus };
        controller.set_u32(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, layout::INTERRUPTS)?;
        let places = match version {
            GicVersion::V3 => [
                (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
                (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GIC_REDISTRIBUTORS),
            ],
            GicVersion::V2 => [
                (KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR),
                (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GICV2_CPU_INTERFACE),
            ],
        };
        for (part, address) in places {
            controller.set_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, part.into(), address)?;
        }
        controller.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), std::ptr::null())?;
        Ok(controller)
    }

    /// Which one the host has.
    pub(in crate::kvm) fn variant(&self) -> GicVersion {
        self.version
    }

    /// All that it holds; no vCPU may run.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(super) fn save(&self) -> Result<GicState, KvmError> {
        let mut saved = Saved { controller: self, registers: Vec::new() };
        match self.version {
            GicVersion::V3 => saved.version_3()?,
            GicVersion::V2 => saved.version_2()?,
        }
        Ok(GicState { version: number(self.version), registers: saved.registers })
    }

    /// Makes it what it was, where it was new.
    ///
    /// # Errors
    /// When it was of the other version, or whatever KVM says.
    pub(super) fn restore(&self, state: &GicState) -> Result<(), KvmError> {
        let (saved, here) = (state.version, number(self.version));
        if saved != here {
            let source = std::io::Error::other(format!("the saved one is a GICv{saved}, this host has a GICv{here}"));
            return Err(KvmError::Call { what: "restore the interrupt controller", source });
        }
        for &(group, attribute, value) in &state.registers {
            let written = match group {
                KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => self.set_u64(group, attribute, value),
                _ => self.set_u32(group, attribute, value as u32),
            };
            written.inspect_err(|_| {
                log::error!("register {attribute:#x} of the GIC's group {group} takes no {value:#x}")
            })?;
        }
        Ok(())
    }

    fn set_u32(&self, group: u32, attribute: u64, value: u32) -> Result<(), KvmError> {
        self.set(group, attribute, (&raw const value).cast())
    }

    fn set_u64(&self, group: u32, attribute: u64, value: u64) -> Result<(), KvmError> {
        self.set(group, attribute, (&raw const value).cast())
    }

    /// `value` must point to as many bytes as the attribute has.
    fn set(&self, group: u32, attr: u64, value: *const u8) -> Result<(), KvmError> {
        let attribute = kvm_device_attr { group, attr, addr: value as u64, flags: 0 };
        self.device.set_device_attr(&attribute).map_err(failed("set up the interrupt controller"))
    }

    fn get(&self, group: u32, attr: u64) -> Result<u64, KvmError> {
        // The larger of the two sizes that there are: what KVM does not write stays zero.
        let mut value = 0_u64;
        let mut attribute = kvm_device_attr { group, attr, addr: (&raw mut value) as u64, flags: 0 };
        // SAFETY: no attribute that is asked for here has more than eight bytes, and so many are there.
        unsafe { self.device.get_device_attr(&mut attribute) }.map_err(failed("read the interrupt controller"))?;
        Ok(value)
    }
}

fn number(version: GicVersion) -> u8 {
    match version {
        GicVersion::V2 => 2,
        GicVersion::V3 => 3,
    }
}

fn create(vm: &VmFd) -> Result<(DeviceFd, GicVersion), KvmError> {
    for (kind, version) in [
        (kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, GicVersion::V3),
        (kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, GicVersion::V2),
    ] {
        let mut wanted = kvm_create_device { type_: kind, fd: 0, flags: 0 };
        match vm.create_device(&mut wanted) {
            Ok(device) => return Ok((device, version)),
            Err(error) if error.errno() == libc::ENODEV => {}
            Err(error) => return Err(failed("create the interrupt controller")(error)),
        }
    }
    Err(KvmError::Missing("an interrupt controller for guests (GICv3 or GICv2)"))
}

// Registers of distributor and redistributor alike, by their offsets; of each kind one for so many interrupts.
const GROUP: u64 = 0x80;
const SET_ENABLE: u64 = 0x100;
const CLEAR_ENABLE: u64 = 0x180;
const SET_PENDING: u64 = 0x200;
const SET_ACTIVE: u64 = 0x300;
const PRIORITY: u64 = 0x400;
const TARGETS: u64 = 0x800;
const CONFIGURATION: u64 = 0xc00;
const ROUTER: u64 = 0x6000;
const SGI_PENDING: u64 = 0xf20;

const CONTROL: u64 = 0;
/// Where in a redistributor the registers of private interrupts begin.
const PRIVATE_FRAME: u64 = 0x1_0000;

/// The interrupts of devices.
const SHARED: Range<u64> = layout::PRIVATE_INTERRUPTS as u64..layout::INTERRUPTS as u64;
const PRIVATE: Range<u64> = 0..layout::PRIVATE_INTERRUPTS as u64;

/// Registers on their way out.
struct Saved<'a> {
    controller: &'a InterruptController,
    registers: Vec<(u32, u64, u64)>,
}

impl Saved<'_> {
    fn version_3(&mut self) -> Result<(), KvmError> {
        const DISTRIBUTOR: u32 = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        self.take(DISTRIBUTOR, CONTROL)?;
        self.interrupts(DISTRIBUTOR, 0, SHARED)?;
        for interrupt in SHARED {
            // Eight bytes, in halves.
            self.take(DISTRIBUTOR, ROUTER + 8 * interrupt)?;
            self.take(DISTRIBUTOR, ROUTER + 8 * interrupt + 4)?;
        }
        // Whoever's processor is named: these lines are everybody's.
        for first in SHARED.step_by(32) {
            self.take(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, first)?;
        }
        for processor in (0..self.controller.vcpus).map(|id| u64::from(affinity(id)) << 32) {
            self.interrupts(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, processor | PRIVATE_FRAME, PRIVATE)?;
            self.take(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, processor)?;
            self.cpu_interface(processor)?;
        }
        Ok(())
    }

    fn version_2(&mut self) -> Result<(), KvmError> {
        const DISTRIBUTOR: u32 = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        /// Control, mask of priorities, binary point, active priorities.
        const CPU_INTERFACE: [u64; 4] = [0x0, 0x4, 0x8, 0xd0];
        self.take(DISTRIBUTOR, CONTROL)?;
        self.interrupts(DISTRIBUTOR, 0, SHARED)?;
        self.words(DISTRIBUTOR, TARGETS, SHARED, 8)?;
        for processor in (0..self.controller.vcpus).map(|id| u64::from(id) << 32) {
            self.interrupts(DISTRIBUTOR, processor, PRIVATE)?;
            self.words(DISTRIBUTOR, processor | SGI_PENDING, 0..16, 8)?;
            for register in CPU_INTERFACE {
                self.take(KVM_DEV_ARM_VGIC_GRP_CPU_REGS, processor | register)?;
            }
        }
        Ok(())
    }

    /// What there is for each interrupt, private or not, in registers that begin at `base`.
    fn interrupts(&mut self, group: u32, base: u64, which: Range<u64>) -> Result<(), KvmError> {
        self.words(group, base | GROUP, which.clone(), 1)?;
        self.words(group, base | CONFIGURATION, which.clone(), 2)?;
        self.words(group, base | PRIORITY, which.clone(), 8)?;
        // Some are enabled to begin with, and what sets clears nothing.
        for offset in offsets(which.clone(), 1) {
            let enabled = self.controller.get(group, base | SET_ENABLE | offset)?;
            self.registers.push((group, base | CLEAR_ENABLE | offset, u64::from(!(enabled as u32))));
            self.registers.push((group, base | SET_ENABLE | offset, enabled));
        }
        self.words(group, base | SET_PENDING, which.clone(), 1)?;
        self.words(group, base | SET_ACTIVE, which, 1)
    }

    /// A GICv3's system registers of one processor.
    fn cpu_interface(&mut self, processor: u64) -> Result<(), KvmError> {
        const GROUP: u32 = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
        /// How registers of op0 3, op1 0 are numbered.
        const fn register(crn: u64, crm: u64, op2: u64) -> u64 {
            (3 << 14) | (crn << 7) | (crm << 3) | op2
        }
        const CTLR: u64 = register(12, 12, 4);
        const SRE: u64 = register(12, 12, 5);
        const ENABLES: [u64; 2] = [register(12, 12, 6), register(12, 12, 7)];
        const MASK: u64 = register(4, 6, 0);
        const BINARY_POINTS: [u64; 2] = [register(12, 8, 3), register(12, 12, 3)];
        for register in [SRE, CTLR, ENABLES[0], ENABLES[1], MASK, BINARY_POINTS[0], BINARY_POINTS[1]] {
            self.take(GROUP, processor | register)?;
        }
        // Bits of priority, less one (ICC_CTLR_EL1.PRIbits): 32 levels to a register of active priorities, of which two kinds.
        let bits = ((self.controller.get(GROUP, processor | CTLR)? >> 8) & 7) + 1;
        for index in 0..1 << bits.saturating_sub(5) {
            self.take(GROUP, processor | register(12, 8, 4 + index))?;
            self.take(GROUP, processor | register(12, 9, index))?;
        }
        Ok(())
    }

    /// Registers that begin at `base`, with `bits` for each of the interrupts.
    fn words(&mut self, group: u32, base: u64, which: Range<u64>, bits: u64) -> Result<(), KvmError> {
        offsets(which, bits).try_for_each(|offset| self.take(group, base + offset))
    }

    fn take(&mut self, group: u32, attribute: u64) -> Result<(), KvmError> {
        let value = self.controller.get(group, attribute)?;
        self.registers.push((group, attribute, value));
        Ok(())
    }
}

/// Where the words lie that have `bits` for each of the interrupts.
fn offsets(which: Range<u64>, bits: u64) -> impl Iterator<Item = u64> {
    (which.start * bits / 8..which.end * bits / 8).step_by(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cover_the_interrupts() {
        assert_eq!(offsets(PRIVATE, 1).collect::<Vec<_>>(), [0]);
        assert_eq!(offsets(PRIVATE, 2).collect::<Vec<_>>(), [0, 4]);
        assert_eq!(offsets(PRIVATE, 8).count(), 8);
        assert_eq!(offsets(SHARED, 1).collect::<Vec<_>>(), [4, 8, 12]);
        assert_eq!(offsets(0..16, 8).collect::<Vec<_>>(), [0, 4, 8, 12]);
    }
}
