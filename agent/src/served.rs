//! A disk that a process of the host's serves, found by where its device has its registers: what it says of itself is that
//! process's affair, and the kernel's name of it depends on what else there is.

use std::fs;

use crate::error::Error;
use crate::nodes::{Number, number_of};

/// Which device has which addresses.
const ADDRESSES: &str = "/proc/iomem";
/// Where the kernel lists its disks.
const DISKS: &str = "/sys/block";

/// The number of the disk whose virtio device has its registers at `address`.
///
/// # Errors
/// [`Error::InvalidArgument`] when there is none: the device failed before the kernel had read its size, for one.
pub(crate) fn disk_at(address: u64) -> Result<Number, Error> {
    let missing = || Error::InvalidArgument(format!("the guest has no disk at {address:#x}"));
    let text = fs::read_to_string(ADDRESSES).map_err(Error::internal(format!("read {ADDRESSES}")))?;
    let device = device_at(&text, address).ok_or_else(missing)?;
    let disks = fs::read_dir(DISKS).map_err(Error::internal(format!("list {DISKS}")))?;
    for disk in disks.flatten() {
        // Its place among devices: …/virtio-mmio.4/virtio4/block/vda.
        let place = fs::canonicalize(disk.path()).map_err(Error::internal(format!("find {:?}", disk.file_name())))?;
        if place.components().any(|part| part.as_os_str() == device) {
            return number_of(&place).ok_or_else(missing);
        }
    }
    Err(missing())
}

/// The name of the device whose addresses begin at `address`, as /proc/iomem has it.
fn device_at(text: &str, address: u64) -> Option<&str> {
    let starts_there = |line: &&str| {
        let start = line.trim_start().split_once('-').map(|(start, _)| u64::from_str_radix(start, 16));
        start == Some(Ok(address))
    };
    let (_, names) = text.lines().find(starts_there)?.split_once(" : ")?;
    names.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_where_it_begins() {
        let text = "00001000-0009ffff : System RAM\nd0000000-d0000fff : virtio-mmio.0\n  \
                    d0001000-d0001fff : a003e00.virtio_mmio a003e00.virtio_mmio@a003e00\n";
        assert_eq!(device_at(text, 0xd000_0000), Some("virtio-mmio.0"));
        assert_eq!(device_at(text, 0xd000_1000), Some("a003e00.virtio_mmio"));
        assert_eq!(device_at(text, 0xd000_0800), None);
        assert_eq!(device_at("", 0), None);
    }
}
