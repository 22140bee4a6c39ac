//! KVM's interface as powerpc has it (Linux: Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h and the files of the same name
//! under arch/powerpc): requests, what they carry, and the page that is shared with a vCPU.
//!
//! The crates that have this for other architectures have nothing for this one, and the macros that make request numbers elsewhere
//! make wrong ones here: powerpc gives the size 13 bits where most have 14, and the direction three where they have two. Plain data
//! that compiles, and is tested, everywhere. Structures have the kernel's field names.

#![allow(non_camel_case_types, reason = "the kernel's names")]

use serde::{Deserialize, Serialize};

/// A request's number (`_IOC` in arch/powerpc/include/uapi/asm/ioctl.h and asm-generic/ioctl.h): direction, size, type, number.
const fn request(direction: u64, size: usize, number: u64) -> u64 {
    const KVM: u64 = 0xae;
    assert!(size < 1 << 13 && number < 1 << 8);
    (direction << 29) | ((size as u64) << 16) | (KVM << 8) | number
}

/// One that carries nothing, or a plain number.
const fn plain(number: u64) -> u64 {
    request(1, 0, number)
}

/// One that fills in a structure.
const fn reads<T>(number: u64) -> u64 {
    request(2, size_of::<T>(), number)
}

/// One that hands over a structure.
const fn writes<T>(number: u64) -> u64 {
    request(4, size_of::<T>(), number)
}

/// One that does both.
const fn exchanges<T>(number: u64) -> u64 {
    request(6, size_of::<T>(), number)
}

/// Of /dev/kvm.
pub(crate) const GET_API_VERSION: u64 = plain(0x00);
pub(crate) const CREATE_VM: u64 = plain(0x01);
pub(crate) const CHECK_EXTENSION: u64 = plain(0x03);
pub(crate) const GET_VCPU_MMAP_SIZE: u64 = plain(0x04);

/// Of a machine.
pub(crate) const CREATE_VCPU: u64 = plain(0x41);
pub(crate) const SET_USER_MEMORY_REGION: u64 = writes::<kvm_userspace_memory_region>(0x46);
pub(crate) const IRQFD: u64 = writes::<kvm_irqfd>(0x76);
pub(crate) const IOEVENTFD: u64 = writes::<kvm_ioeventfd>(0x79);
pub(crate) const PPC_RTAS_DEFINE_TOKEN: u64 = writes::<kvm_rtas_token_args>(0xac);
pub(crate) const PPC_CONFIGURE_V3_MMU: u64 = writes::<kvm_ppc_mmuv3_cfg>(0xaf);
/// A write by its number, though the kernel fills in what it points to.
pub(crate) const PPC_GET_RMMU_INFO: u64 = writes::<kvm_ppc_rmmu_info>(0xb0);
pub(crate) const PPC_GET_CPU_CHAR: u64 = reads::<kvm_ppc_cpu_char>(0xb1);
pub(crate) const CREATE_DEVICE: u64 = exchanges::<kvm_create_device>(0xe0);

/// Of one of KVM's devices.
pub(crate) const SET_DEVICE_ATTR: u64 = writes::<kvm_device_attr>(0xe1);
/// A write by its number: where to put the value is handed over.
pub(crate) const GET_DEVICE_ATTR: u64 = writes::<kvm_device_attr>(0xe2);

/// Of a vCPU.
pub(crate) const RUN: u64 = plain(0x80);
pub(crate) const GET_REGS: u64 = reads::<kvm_regs>(0x81);
pub(crate) const SET_REGS: u64 = writes::<kvm_regs>(0x82);
pub(crate) const GET_SREGS: u64 = reads::<kvm_sregs>(0x83);
pub(crate) const ENABLE_CAP: u64 = writes::<kvm_enable_cap>(0xa3);
pub(crate) const GET_ONE_REG: u64 = writes::<kvm_one_reg>(0xab);
pub(crate) const SET_ONE_REG: u64 = writes::<kvm_one_reg>(0xac);

/// What a kernel's KVM may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cap {
    UserMemory = 3,
    NrVcpus = 9,
    Irqfd = 32,
    Ioeventfd = 36,
    MaxVcpus = 66,
    PpcPapr = 68,
    OneReg = 70,
    ReadonlyMem = 81,
    DeviceCtrl = 89,
    PpcRtas = 91,
    IrqXics = 92,
    PpcMmuRadix = 134,
    ImmediateExit = 136,
}

/// A flag of [`kvm_userspace_memory_region`]: what the guest writes there comes to user space.
pub(crate) const KVM_MEM_READONLY: u32 = 1 << 1;

/// The kind of machine whose guests run in the processor's own hypervisor mode, or a hypervisor's below that.
pub(crate) const VM_PPC_HV: u64 = 1;

/// The interrupt controller XICS, as one of KVM's devices (Documentation/virt/kvm/devices/xics.rst).
pub(crate) const DEV_TYPE_XICS: u32 = 3;
/// Its attributes that are sources; the attribute is the source's number, the value what follows.
pub(crate) const DEV_XICS_GRP_SOURCES: u32 = 1;
/// A source's priority in its value; the server is in the lowest 32 bits.
pub(crate) const XICS_PRIORITY_SHIFT: u32 = 32;
/// No interrupt comes of it until the guest unmasks it.
pub(crate) const XICS_MASKED: u64 = 1 << 41;

/// Flags of [`kvm_ppc_mmuv3_cfg`].
pub(crate) const PPC_MMUV3_RADIX: u64 = 1;
pub(crate) const PPC_MMUV3_GTSE: u64 = 2;

/// A flag of [`kvm_ioeventfd`]: only a write of that value counts.
pub(crate) const IOEVENTFD_FLAG_DATAMATCH: u32 = 1;

/// Why a vCPU came back.
pub(crate) const EXIT_MMIO: u32 = 6;
pub(crate) const EXIT_SHUTDOWN: u32 = 8;
pub(crate) const EXIT_FAIL_ENTRY: u32 = 9;
pub(crate) const EXIT_INTR: u32 = 10;
pub(crate) const EXIT_INTERNAL_ERROR: u32 = 17;
pub(crate) const EXIT_PAPR_HCALL: u32 = 19;
pub(crate) const EXIT_SYSTEM_EVENT: u32 = 24;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_userspace_memory_region {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    pub(crate) guest_phys_addr: u64,
    pub(crate) memory_size: u64,
    pub(crate) userspace_addr: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_irqfd {
    pub(crate) fd: u32,
    pub(crate) gsi: u32,
    pub(crate) flags: u32,
    pub(crate) resamplefd: u32,
    pub(crate) pad: [u8; 16],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_ioeventfd {
    pub(crate) datamatch: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) fd: i32,
    pub(crate) flags: u32,
    pub(crate) pad: [u8; 36],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_rtas_token_args {
    pub(crate) name: [u8; 120],
    pub(crate) token: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_ppc_mmuv3_cfg {
    pub(crate) flags: u64,
    pub(crate) process_table: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_ppc_radix_geom {
    pub(crate) page_shift: u8,
    pub(crate) level_bits: [u8; 4],
    pub(crate) pad: [u8; 3],
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_ppc_rmmu_info {
    pub(crate) geometries: [kvm_ppc_radix_geom; 8],
    pub(crate) ap_encodings: [u32; 8],
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_ppc_cpu_char {
    pub(crate) character: u64,
    pub(crate) behaviour: u64,
    pub(crate) character_mask: u64,
    pub(crate) behaviour_mask: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_create_device {
    pub(crate) type_: u32,
    pub(crate) fd: u32,
    pub(crate) flags: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_device_attr {
    pub(crate) flags: u32,
    pub(crate) group: u32,
    pub(crate) attr: u64,
    pub(crate) addr: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_enable_cap {
    pub(crate) cap: u32,
    pub(crate) flags: u32,
    pub(crate) args: [u64; 4],
    pub(crate) pad: [u8; 64],
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct kvm_one_reg {
    pub(crate) id: u64,
    pub(crate) addr: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct kvm_regs {
    pub(crate) pc: u64,
    pub(crate) cr: u64,
    pub(crate) ctr: u64,
    pub(crate) lr: u64,
    pub(crate) xer: u64,
    pub(crate) msr: u64,
    pub(crate) srr0: u64,
    pub(crate) srr1: u64,
    pub(crate) pid: u64,
    pub(crate) sprg: [u64; 8],
    pub(crate) gpr: [u64; 32],
}

/// What else a vCPU has: of it, only which processor it is matters here. The rest is of hashed page tables.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_sregs {
    pub(crate) pvr: u32,
    pub(crate) hashed: [u64; 153],
}

/// The page that is shared with a vCPU, as far as anything here looks at it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct kvm_run {
    pub(crate) request_interrupt_window: u8,
    pub(crate) immediate_exit: u8,
    pub(crate) padding1: [u8; 6],
    pub(crate) exit_reason: u32,
    pub(crate) ready_for_interrupt_injection: u8,
    pub(crate) if_flag: u8,
    pub(crate) flags: u16,
    pub(crate) cr8: u64,
    pub(crate) apic_base: u64,
    pub(crate) details: kvm_run_details,
}

/// What the exit reason tells which member of is valid.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union kvm_run_details {
    pub(crate) mmio: kvm_run_mmio,
    pub(crate) papr_hcall: kvm_run_papr_hcall,
    /// Of an entry that failed.
    pub(crate) hardware_entry_failure_reason: u64,
    /// Of an internal error.
    pub(crate) suberror: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_run_mmio {
    pub(crate) phys_addr: u64,
    pub(crate) data: [u8; 8],
    pub(crate) len: u32,
    pub(crate) is_write: u8,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kvm_run_papr_hcall {
    pub(crate) nr: u64,
    pub(crate) ret: u64,
    pub(crate) args: [u64; 9],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn requests_have_their_numbers() {
        // As a C program prints them that a compiler for powerpc64le made with the kernel's headers.
        let numbers = [
            (GET_API_VERSION, 0x2000_ae00),
            (CREATE_VM, 0x2000_ae01),
            (CHECK_EXTENSION, 0x2000_ae03),
            (GET_VCPU_MMAP_SIZE, 0x2000_ae04),
            (CREATE_VCPU, 0x2000_ae41),
            (SET_USER_MEMORY_REGION, 0x8020_ae46),
            (IRQFD, 0x8020_ae76),
            (IOEVENTFD, 0x8040_ae79),
            (RUN, 0x2000_ae80),
            (GET_REGS, 0x4188_ae81),
            (SET_REGS, 0x8188_ae82),
            (GET_SREGS, 0x44d0_ae83),
            (ENABLE_CAP, 0x8068_aea3),
            (GET_ONE_REG, 0x8010_aeab),
            (SET_ONE_REG, 0x8010_aeac),
            (PPC_RTAS_DEFINE_TOKEN, 0x8080_aeac),
            (PPC_CONFIGURE_V3_MMU, 0x8010_aeaf),
            (PPC_GET_RMMU_INFO, 0x8060_aeb0),
            (PPC_GET_CPU_CHAR, 0x4020_aeb1),
            (CREATE_DEVICE, 0xc00c_aee0),
            (SET_DEVICE_ATTR, 0x8018_aee1),
            (GET_DEVICE_ATTR, 0x8018_aee2),
        ];
        for (ours, kernels) in numbers {
            assert_eq!(ours, kernels, "{ours:#x} instead of {kernels:#x}");
        }
    }

    #[test]
    fn the_shared_page_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(offset_of!(kvm_run, immediate_exit), 1);
        assert_eq!(offset_of!(kvm_run, exit_reason), 8);
        assert_eq!(offset_of!(kvm_run, details), 0x20);
        assert_eq!(offset_of!(kvm_run_mmio, len), 0x30 - 0x20);
        assert_eq!(offset_of!(kvm_run_mmio, is_write), 0x34 - 0x20);
        assert_eq!(offset_of!(kvm_run_papr_hcall, args), 0x30 - 0x20);
        assert_eq!(offset_of!(kvm_regs, msr), 0x28);
        assert_eq!(offset_of!(kvm_regs, gpr), 0x88);
    }
}
