//! KVM's descriptors: /dev/kvm, a machine, a vCPU, an interrupt controller; under the names that `kvm-ioctls` gives them elsewhere,
//! as far as anything here uses them.
//!
//! Only makes requests; what they are for is in the files beside this one.

#![allow(unsafe_code, reason = "requests take addresses, and a vCPU shares a page with the kernel")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vmm_sys_util::errno::Error;
use vmm_sys_util::eventfd::EventFd;

use super::registers;
use super::spec::{self, Cap};

type Result<T> = std::result::Result<T, Error>;

/// Makes a request with a plain number.
fn ask(fd: &OwnedFd, request: u64, argument: u64) -> Result<i32> {
    // SAFETY: every request that comes here takes a number, or nothing.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) })
}

/// Makes a request that reads `structure`.
fn hand_over<T>(fd: &OwnedFd, request: u64, structure: &T) -> Result<i32> {
    // SAFETY: the structure is the one whose size is in the request's number, and the kernel only reads it.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw const *structure) })
}

/// Makes a request that fills in `structure`.
fn fill_in<T>(fd: &OwnedFd, request: u64, structure: &mut T) -> Result<i32> {
    // SAFETY: the structure is the one whose size is in the request's number; any bytes are valid in it.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut *structure) })
}

fn checked(result: i32) -> Result<i32> {
    if result < 0 { Err(Error::last()) } else { Ok(result) }
}

/// Takes over what a request has opened.
fn opened(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just opened it for the caller, who has it nowhere else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// /dev/kvm.
pub(crate) struct Kvm(OwnedFd);

impl FromRawFd for Kvm {
    unsafe fn from_raw_fd(fd: RawFd) -> Kvm {
        // SAFETY: the caller vouches for it.
        Kvm(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Kvm {
    /// The interface's version, or what is no version.
    pub(crate) fn get_api_version(&self) -> i32 {
        ask(&self.0, spec::GET_API_VERSION, 0).unwrap_or(-1)
    }

    /// Whether it has that.
    pub(crate) fn check_extension(&self, capability: Cap) -> bool {
        self.extent(capability) > 0
    }

    /// The most vCPUs that a machine can have.
    pub(crate) fn get_max_vcpus(&self) -> usize {
        let told = [Cap::MaxVcpus, Cap::NrVcpus].map(|capability| self.extent(capability));
        // Who tells neither has four (Documentation/virt/kvm/api.rst, KVM_CREATE_VCPU).
        told.into_iter().find(|vcpus| *vcpus > 0).and_then(|vcpus| usize::try_from(vcpus).ok()).unwrap_or(4)
    }

    fn extent(&self, capability: Cap) -> i32 {
        ask(&self.0, spec::CHECK_EXTENSION, capability as u64).unwrap_or(0)
    }

    /// A machine whose guest runs in the processor, not in an emulation of its unprivileged mode.
    pub(crate) fn create_vm(&self) -> Result<VmFd> {
        let run_size = ask(&self.0, spec::GET_VCPU_MMAP_SIZE, 0)? as usize;
        let fd = opened(ask(&self.0, spec::CREATE_VM, spec::VM_PPC_HV)?);
        Ok(VmFd { fd: Arc::new(fd), run_size })
    }
}

/// Stands for any value that is written.
pub(crate) struct NoDatamatch;

impl From<NoDatamatch> for u64 {
    fn from(_: NoDatamatch) -> u64 {
        0
    }
}

/// Where a write becomes an event.
pub(crate) enum IoEventAddress {
    /// In physical memory.
    Mmio(u64),
}

/// A machine; a copy is the same one.
#[derive(Clone)]
pub(crate) struct VmFd {
    fd: Arc<OwnedFd>,
    run_size: usize,
}

impl VmFd {
    /// Gives the machine memory.
    ///
    /// # Safety
    /// The region must be mapped for as long as the machine exists.
    pub(crate) unsafe fn set_user_memory_region(&self, region: spec::kvm_userspace_memory_region) -> Result<()> {
        hand_over(&self.fd, spec::SET_USER_MEMORY_REGION, &region).map(drop)
    }

    /// Lets each write to `event` raise interrupt source `gsi` once.
    pub(crate) fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        let request = spec::kvm_irqfd { fd: event.as_raw_fd() as u32, gsi, ..Default::default() };
        hand_over(&self.fd, spec::IRQFD, &request).map(drop)
    }

    /// Turns writes of `value`, of its width, or with [`NoDatamatch`] whatever is written, into writes to `event`.
    pub(crate) fn register_ioevent<T: Into<u64>>(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        value: T,
    ) -> Result<()> {
        let IoEventAddress::Mmio(addr) = *address;
        let len = size_of::<T>() as u32;
        let flags = if len > 0 { spec::IOEVENTFD_FLAG_DATAMATCH } else { 0 };
        let request =
            spec::kvm_ioeventfd { datamatch: value.into(), addr, len, fd: event.as_raw_fd(), flags, pad: [0; 36] };
        hand_over(&self.fd, spec::IOEVENTFD, &request).map(drop)
    }

    /// Vcpu number `id`, as it is after a reset.
    pub(super) fn create_vcpu(&self, id: u64) -> Result<VcpuFd> {
        let fd = opened(ask(&self.fd, spec::CREATE_VCPU, id)?);
        let run = RunPage::map(&fd, self.run_size)?;
        Ok(VcpuFd { run, fd: RegistersFd(Arc::new(fd)) })
    }

    /// Has the kernel answer RTAS's service `name` when it is called by `token`.
    pub(super) fn define_rtas_token(&self, name: &str, token: u64) -> Result<()> {
        let mut request = spec::kvm_rtas_token_args { name: [0; 120], token };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        hand_over(&self.fd, spec::PPC_RTAS_DEFINE_TOKEN, &request).map(drop)
    }

    /// Where the guest's process table is.
    pub(super) fn configure_mmu(&self, table: &spec::kvm_ppc_mmuv3_cfg) -> Result<()> {
        hand_over(&self.fd, spec::PPC_CONFIGURE_V3_MMU, table).map(drop)
    }

    /// What radix trees can be like.
    pub(super) fn get_rmmu_info(&self) -> Result<spec::kvm_ppc_rmmu_info> {
        let mut info = spec::kvm_ppc_rmmu_info::default();
        fill_in(&self.fd, spec::PPC_GET_RMMU_INFO, &mut info)?;
        Ok(info)
    }

    /// What the processor does about speculation.
    pub(super) fn get_cpu_char(&self) -> Result<spec::kvm_ppc_cpu_char> {
        let mut character = spec::kvm_ppc_cpu_char::default();
        fill_in(&self.fd, spec::PPC_GET_CPU_CHAR, &mut character)?;
        Ok(character)
    }

    /// The interrupt controller.
    pub(super) fn create_xics(&self) -> Result<XicsFd> {
        let mut request = spec::kvm_create_device { type_: spec::DEV_TYPE_XICS, ..Default::default() };
        fill_in(&self.fd, spec::CREATE_DEVICE, &mut request)?;
        Ok(XicsFd(opened(request.fd as i32)))
    }
}

/// The interrupt controller.
pub(super) struct XicsFd(OwnedFd);

impl XicsFd {
    /// Makes interrupt source `number` what `value` says.
    pub(super) fn set_source(&self, number: u32, value: u64) -> Result<()> {
        let addr = (&raw const value) as u64;
        let request = spec::kvm_device_attr { flags: 0, group: spec::DEV_XICS_GRP_SOURCES, attr: number.into(), addr };
        hand_over(&self.0, spec::SET_DEVICE_ATTR, &request).map(drop)
    }

    /// What it is, for [`Self::set_source`].
    pub(super) fn source(&self, number: u32) -> Result<u64> {
        let mut value = 0u64;
        let addr = (&raw mut value) as u64;
        let request = spec::kvm_device_attr { flags: 0, group: spec::DEV_XICS_GRP_SOURCES, attr: number.into(), addr };
        hand_over(&self.0, spec::GET_DEVICE_ATTR, &request)?;
        Ok(value)
    }
}

/// A vCPU.
pub(super) struct VcpuFd {
    run: RunPage,
    fd: RegistersFd,
}

impl VcpuFd {
    /// Lets the guest run until it needs something.
    pub(super) fn run(&mut self) -> Result<()> {
        ask(&self.fd.0, spec::RUN, 0).map(drop)
    }

    /// What is shared with the kernel; valid between two runs.
    pub(super) fn page(&mut self) -> &mut spec::kvm_run {
        // SAFETY: the page is mapped for as long as `self` lives, the kernel leaves it alone but during `run`, and any bytes are
        // valid in it.
        unsafe { self.run.address.as_mut() }
    }

    /// Its registers.
    pub(super) fn registers(&self) -> &RegistersFd {
        &self.fd
    }

    /// Has the kernel answer the platform's hypercalls that it can.
    pub(super) fn enable_papr(&self) -> Result<()> {
        self.enable(Cap::PpcPapr, [0; 4])
    }

    /// Makes this vCPU number `server` of the interrupt controller.
    pub(super) fn connect(&self, controller: &XicsFd, server: u64) -> Result<()> {
        self.enable(Cap::IrqXics, [controller.0.as_raw_fd() as u64, server, 0, 0])
    }

    fn enable(&self, capability: Cap, args: [u64; 4]) -> Result<()> {
        let request = spec::kvm_enable_cap { cap: capability as u32, flags: 0, args, pad: [0; 64] };
        hand_over(&self.fd.0, spec::ENABLE_CAP, &request).map(drop)
    }
}

/// The registers of a vCPU, for whoever has to do with it while it does not run; a copy is of the same one.
#[derive(Clone)]
pub(super) struct RegistersFd(Arc<OwnedFd>);

impl RegistersFd {
    /// The general registers and those that go with them.
    pub(super) fn general(&self) -> Result<spec::kvm_regs> {
        let mut regs = spec::kvm_regs::default();
        fill_in(&self.0, spec::GET_REGS, &mut regs)?;
        Ok(regs)
    }

    /// Sets them.
    pub(super) fn set_general(&self, regs: &spec::kvm_regs) -> Result<()> {
        hand_over(&self.0, spec::SET_REGS, regs).map(drop)
    }

    /// Which processor this is (Power ISA 3.0B, book III, section 4.3.1, "Processor Version Register").
    pub(super) fn processor_version(&self) -> Result<u32> {
        let mut sregs = spec::kvm_sregs { pvr: 0, hashed: [0; 153] };
        fill_in(&self.0, spec::GET_SREGS, &mut sregs)?;
        Ok(sregs.pvr)
    }

    /// A register that has a number, in as many bytes as it has.
    pub(super) fn read(&self, register: u64) -> Result<Vec<u8>> {
        let mut value = vec![0; registers::bytes(register)];
        let request = spec::kvm_one_reg { id: register, addr: value.as_mut_ptr() as u64 };
        hand_over(&self.0, spec::GET_ONE_REG, &request)?;
        Ok(value)
    }

    /// Sets it.
    pub(super) fn write(&self, register: u64, value: &[u8]) -> Result<()> {
        // Of what is shorter, the kernel would read more than there is.
        if value.len() != registers::bytes(register) {
            return Err(Error::new(libc::EINVAL));
        }
        let request = spec::kvm_one_reg { id: register, addr: value.as_ptr() as u64 };
        hand_over(&self.0, spec::SET_ONE_REG, &request).map(drop)
    }

    /// One that has 64 bits at most.
    pub(super) fn number(&self, register: u64) -> Result<u64> {
        let value = self.read(register)?;
        Ok(value.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// Sets one that has 64 bits.
    pub(super) fn set_number(&self, register: u64, value: u64) -> Result<()> {
        self.write(register, &value.to_le_bytes())
    }
}

/// The pages that are shared with a vCPU, the first of which matters.
struct RunPage {
    address: NonNull<spec::kvm_run>,
    size: usize,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for RunPage {}

impl RunPage {
    fn map(vcpu: &OwnedFd, size: usize) -> Result<RunPage> {
        if size < size_of::<spec::kvm_run>() {
            return Err(Error::new(libc::EINVAL));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        match NonNull::new(address.cast()) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED.cast() => Ok(RunPage { address, size }),
            _ => Err(io::Error::last_os_error().into()),
        }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing refers to it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
    }
}
