//! The devices of a container: what its specification calls by the host's numbers, called by this guest's.
//!
//! Block devices lie on the container's disk or are disks of their own, and the host says under which number the specification
//! has them. Character devices are the guest's own. Knows nothing of what a device is for; what a rule about one allows, `devices` knows.

use std::path::Path;

use libcontainer::oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use tatami_protocol::agent::BlockDevice;

use crate::error::Error;

/// Where the kernel lists its block devices, by number.
const BLOCK_DEVICES: &str = "/sys/dev/block";
/// Where the kernel lists its character devices, by number.
const CHARACTER_DEVICES: &str = "/sys/dev/char";

/// Major and minor.
pub(crate) type Number = (i64, i64);

/// What the host's numbers of block devices are here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers(Vec<Known>);

#[derive(Clone, Debug)]
struct Known {
    host: Number,
    guest: Number,
    /// The disk that it lies on, or is.
    disk: Number,
}

impl Numbers {
    /// Of these devices; `number_of` tells the number of one here.
    ///
    /// # Errors
    /// Its error; [`Error::InvalidArgument`] for two devices with one number.
    pub(crate) fn new(
        devices: &[BlockDevice],
        number_of: impl Fn(&BlockDevice) -> Result<Number, Error>,
    ) -> Result<Numbers, Error> {
        let mut numbers = Numbers::default();
        for device in devices {
            let host = (device.major, device.minor);
            if numbers.guest(host).is_some() {
                return Err(Error::InvalidArgument(format!("two block devices are {}:{}", host.0, host.1)));
            }
            let guest = number_of(device)?;
            numbers.0.push(Known { host, guest, disk: disk_of(guest).unwrap_or(guest) });
        }
        Ok(numbers)
    }

    /// One device.
    #[cfg(test)]
    pub(crate) fn of(host: Number, guest: Number) -> Numbers {
        Numbers(vec![Known { host, guest, disk: guest }])
    }

    /// What limits of input and output that speak of block device `host` are about: all of the disk that it lies on, since the kernel
    /// limits nothing less.
    pub(crate) fn limited(&self, host: Number) -> Number {
        self.known(host).map_or(host, |known| known.disk)
    }

    /// What rules that speak of block device `host` are about: one that the host does not give has the guest's number already.
    pub(crate) fn here(&self, host: Number) -> Number {
        self.guest(host).unwrap_or(host)
    }

    fn guest(&self, host: Number) -> Option<Number> {
        self.known(host).map(|known| known.guest)
    }

    fn known(&self, host: Number) -> Option<&Known> {
        self.0.iter().find(|known| known.host == host)
    }

    /// Gives the container's nodes the guest's numbers. One that the guest does not have is refused if a rule names it; otherwise
    /// the list is of all that the host has, for a container that may use any device, and the node is left out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with path and number.
    pub(crate) fn renumber_nodes(&self, linux: &mut Linux) -> Result<(), Error> {
        self.renumber_those(linux, |(major, minor)| {
            Path::new(CHARACTER_DEVICES).join(format!("{major}:{minor}")).exists()
        })
    }

    fn renumber_those(&self, linux: &mut Linux, has: impl Fn(Number) -> bool) -> Result<(), Error> {
        let rules = linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default();
        let mut kept = Vec::new();
        for mut device in linux.devices().clone().unwrap_or_default() {
            let number = (device.major(), device.minor());
            let here = match device.typ() {
                LinuxDeviceType::B => self.guest(number),
                LinuxDeviceType::C | LinuxDeviceType::U => Some(number).filter(|number| has(*number)),
                LinuxDeviceType::P | LinuxDeviceType::A => Some(number),
            };
            match here {
                Some((major, minor)) => {
                    device.set_major(major);
                    device.set_minor(minor);
                    kept.push(device);
                }
                None if rules.iter().any(|rule| names(rule, &device)) => {
                    return Err(Error::InvalidArgument(format!(
                        "linux.devices: {}: the guest has no device {}:{}",
                        device.path().display(),
                        number.0,
                        number.1
                    )));
                }
                None => log::info!("the guest has no {}: the container goes without", device.path().display()),
            }
        }
        linux.set_devices(Some(kept));
        Ok(())
    }
}

/// The disk that a partition is on.
fn disk_of((major, minor): Number) -> Option<Number> {
    let place = Path::new(BLOCK_DEVICES).join(format!("{major}:{minor}"));
    if !place.join("partition").exists() {
        return None;
    }
    number_of(place.canonicalize().ok()?.parent()?)
}

/// The number of the block device whose folder in sysfs this is.
pub(crate) fn number_of(folder: &Path) -> Option<Number> {
    let text = std::fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether `rule` allows this device and no other.
fn names(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    rule.allow() && rule.major() == Some(device.major()) && rule.minor() == Some(device.minor())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn numbers() -> Numbers {
        let device = BlockDevice { part: 1, major: 7, minor: 0, ..BlockDevice::default() };
        Numbers::new(&[device], |device| Ok((254, i64::from(device.part) + 1))).unwrap()
    }

    fn renumbered(rules: Value, devices: Value) -> Result<Vec<(i64, i64)>, String> {
        let linux = json!({ "devices": devices, "resources": { "devices": rules } });
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        let done = numbers().renumber_those(&mut linux, |number| number == (10, 229));
        done.map_err(|error| error.to_string())?;
        Ok(linux.devices().iter().flatten().map(|device| (device.major(), device.minor())).collect())
    }

    #[test]
    fn nodes_get_the_guests_numbers() {
        let devices = json!([
            { "path": "/dev/loop0", "type": "b", "major": 7, "minor": 0 },
            { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
            { "path": "/fifo", "type": "p", "major": 0, "minor": 0 },
        ]);
        assert_eq!(renumbered(json!([]), devices).unwrap(), [(254, 2), (10, 229), (0, 0)]);
    }

    #[test]
    fn what_is_not_there_is_refused_if_it_was_asked_for_by_name() {
        for (kind, major, minor) in [("b", 8, 0), ("c", 195, 0)] {
            let devices = json!([{ "path": "/dev/x", "type": kind, "major": major, "minor": minor }]);
            assert_eq!(renumbered(json!([{ "allow": true, "access": "rwm" }]), devices.clone()).unwrap(), []);
            let by_name = json!([{ "allow": true, "type": kind, "major": major, "minor": minor, "access": "r" }]);
            let error = renumbered(by_name, devices).unwrap_err();
            assert!(error.contains(&format!("/dev/x: the guest has no device {major}:{minor}")), "{error}");
        }
    }

    #[test]
    fn a_number_is_one_devices() {
        let device = BlockDevice { part: 0, major: 7, minor: 0, ..BlockDevice::default() };
        assert!(Numbers::new(&[device.clone(), device], |_| Ok((1, 1))).is_err());
    }

    #[test]
    fn numbers_are_read_from_the_kernel() {
        let disk = tempfile::tempdir().unwrap();
        std::fs::write(disk.path().join("dev"), "254:16\n").unwrap();
        assert_eq!(number_of(disk.path()), Some((254, 16)));
        assert_eq!(number_of(Path::new("/no/such/disk")), None);
    }
}
