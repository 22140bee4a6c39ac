//! The host kernel's vhost-net, opened for a VMM: it then moves the frames of a pair of a tap's queues in the VMM's place.
//!
//! Loads no modules: opening the device does that where the host is set up so.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use serde::{Deserialize, Serialize};
use tatami_vmm::vhost_lacks;

const DEVICE: &str = "/dev/vhost-net";

/// Whether it is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VhostUse {
    /// Where the host has it.
    #[default]
    Auto,
    /// Or there is no network.
    On,
    /// Never.
    Off,
}

/// Why it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// There is no such device.
    #[error("cannot open {DEVICE}: {0} (`modprobe vhost_net` loads its driver)")]
    Open(io::Error),
    /// It does not answer.
    #[error("cannot use {DEVICE}: {0}")]
    Device(io::Error),
    /// It is of an older kernel.
    #[error("{DEVICE} knows too little: it lacks features {0:#x}")]
    Lacks(u64),
}

/// Opens it for one pair of queues.
///
/// # Errors
/// [`VhostError`], with the remedy.
pub fn open() -> Result<OwnedFd, VhostError> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    let device = OwnedFd::from(device.map_err(VhostError::Open)?);
    match vhost_lacks(device.as_fd()).map_err(VhostError::Device)? {
        0 => Ok(device),
        features => Err(VhostError::Lacks(features)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_none_the_remedy_is_named() {
        let error = VhostError::Open(io::ErrorKind::NotFound.into()).to_string();
        assert!(error.contains("/dev/vhost-net") && error.contains("modprobe vhost_net"), "{error}");
    }
}
