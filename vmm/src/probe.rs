//! Asks whether this host can run a guest at all, and says in one line why not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::kvm::{self, Kvm, KvmError};

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";
/// The module that calls itself KVM and runs only guests written for it.
const PVM_MODULE: &str = "/sys/module/kvm_pvm";

/// What there is to say of a KVM that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmInfo {
    /// The most vCPUs that a sandbox can have here.
    pub max_vcpus: usize,
}

/// Why no guest can run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No device node.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, and enable virtualisation in the firmware or for this virtual machine"
    )]
    Missing,
    /// The node may not be opened.
    #[error("no permission to open /dev/kvm: run as root or join the group kvm")]
    Permission,
    /// The node cannot be opened for another reason.
    #[error("cannot open /dev/kvm: {0}")]
    Open(io::Error),
    /// KVM lacks something or refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM-PVM.
    #[error("this host's KVM is KVM-PVM (module kvm_pvm), which runs only kernels made for it: {0}")]
    Pvm(String),
    /// It should work and does not.
    #[error("this host's KVM does not run ordinary 64-bit code: {0}")]
    Instructions(String),
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// Says why not, and what to do.
pub fn open() -> Result<OwnedFd, ProbeError> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => ProbeError::Missing,
            Some(libc::EACCES | libc::EPERM) => ProbeError::Permission,
            _ => ProbeError::Open(error),
        }),
    }
}

/// Checks everything: the device, its capabilities, and that a tiny machine runs ordinary instructions.
///
/// # Errors
/// Says why no guest can run here.
pub fn probe() -> Result<KvmInfo, ProbeError> {
    let info = KvmInfo { max_vcpus: Kvm::new(open()?)?.max_vcpus() };
    match kvm::probe_instructions(open()?)? {
        Ok(()) => Ok(info),
        Err(reason) if Path::new(PVM_MODULE).exists() => Err(ProbeError::Pvm(reason)),
        Err(reason) => Err(ProbeError::Instructions(reason)),
    }
}

/// The cheap part, for every start: the device's version and capabilities.
///
/// # Errors
/// As [`probe`].
pub fn check(device: OwnedFd) -> Result<KvmInfo, ProbeError> {
    let kvm = Kvm::new(device)?;
    if Path::new(PVM_MODULE).exists() {
        return Err(ProbeError::Pvm("a stock kernel stops at its first unusual instruction".to_owned()));
    }
    Ok(KvmInfo { max_vcpus: kvm.max_vcpus() })
}
