//! What crates know of most architectures, so that it need not be in each one's file: KVM's requests and structures, why a vCPU
//! came back, and what system calls are called.

use kvm_ioctls::VcpuExit;
use syscalls::Sysno;
use tatami_arch::Space;

use super::Exit;

pub(super) use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
pub(super) use kvm_ioctls::{Cap, IoEventAddress, Kvm as KvmFd, NoDatamatch, VcpuFd, VmFd};

/// A system call's name.
pub(crate) fn call_name(number: u32) -> Option<&'static str> {
    Sysno::new(number as usize).map(|call| call.name())
}

/// Runs the guest until it needs something.
pub(super) fn run(vcpu: &mut VcpuFd) -> Exit<'_> {
    let run: *mut kvm_bindings::kvm_run = vcpu.get_kvm_run();
    let exit = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => return Exit::Read(Space::Ports, port.into(), data),
        Ok(VcpuExit::IoOut(port, data)) => return Exit::Write(Space::Ports, port.into(), data),
        Ok(VcpuExit::MmioRead(address, data)) => return Exit::Read(Space::Memory, address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => return Exit::Write(Space::Memory, address, data),
        Ok(VcpuExit::Intr) => return Exit::Interrupted,
        Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => return Exit::Reset,
        Ok(VcpuExit::InternalError) => {
            // SAFETY: the run page is mapped for as long as `vcpu` lives, and the exit reason says that this
            // member of the union is the valid one.
            let suberror = unsafe { (*run).__bindgen_anon_1.internal.suberror };
            internal_error(suberror)
        }
        Ok(VcpuExit::FailEntry(reason, _)) => {
            format!("the processor refused to enter the guest (reason {reason:#x})")
        }
        Ok(VcpuExit::MemoryFault { gpa, .. }) => format!("guest memory at {gpa:#x} could not be had"),
        Ok(other) => format!("KVM stopped with {other:?}, which nothing here asked for"),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => return Exit::Interrupted,
            libc::EFAULT => "guest memory could not be had (is the host out of memory?)".to_owned(),
            _ => format!("KVM_RUN failed: {error}"),
        },
    };
    Exit::Failed(exit)
}

fn internal_error(suberror: u32) -> String {
    let name = match suberror {
        1 => "it could not emulate an instruction",
        2 => "two exceptions at once",
        3 => "an exception while delivering an event",
        4 => "an unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM internal error, suberror {suberror} ({name})")
}
