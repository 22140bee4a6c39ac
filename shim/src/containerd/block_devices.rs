//! Block devices of the host that a container is given by name: found by their numbers, for the guest to read and write itself.
//!
//! A device is named when a rule allows it alone. A list of all the host's devices, which privileged containers bring, names
//! none: a guest is not handed the host's disks by the way. Knows the specification; nothing of slots.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::error::TaskError;
use crate::sandbox::disk_root::ImagePath;
use crate::sandbox::disks::{DeviceImage, DeviceSource};
use crate::sandbox::volumes::{Files, GuestVolume};

/// Where the kernel lists its block devices, by number.
const BLOCK_DEVICES: &str = "/sys/dev/block";

/// The block devices that `linux` names.
///
/// # Errors
/// [`TaskError::InvalidArgument`] for one that the host does not have.
pub(super) fn named(linux: &Linux) -> Result<Vec<DeviceImage>, TaskError> {
    named_in(Path::new(BLOCK_DEVICES), linux)
}

/// Makes volumes of `devices`, which all containers of a pod may have.
pub(super) fn share(devices: &mut [DeviceImage]) -> Vec<GuestVolume> {
    let mut volumes = Vec::new();
    for DeviceImage { source, number: (major, minor) } in devices {
        let name = format!("raw-{major}-{minor}");
        if let DeviceSource::Image(image) = source {
            let files = Files::Raw(image.clone());
            volumes.push(GuestVolume { name: name.clone(), source: image.path.clone(), files });
            *source = DeviceSource::Volume(name);
        }
    }
    volumes
}

fn named_in(listed: &Path, linux: &Linux) -> Result<Vec<DeviceImage>, TaskError> {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let mut images: Vec<DeviceImage> = Vec::new();
    for device in linux.devices().iter().flatten().filter(|device| device.typ() == LinuxDeviceType::B) {
        let number = (device.major(), device.minor());
        let allowed: Vec<&LinuxDeviceCgroup> = rules.iter().filter(|rule| names(rule, number)).collect();
        // Two nodes may be the same device.
        if allowed.is_empty() || images.iter().any(|image| image.number == number) {
            continue;
        }
        let writes = |rule: &&LinuxDeviceCgroup| rule.access().as_deref().is_none_or(|access| access.contains('w'));
        let read_only = !allowed.iter().any(writes);
        let path = find(listed, device)?;
        images.push(DeviceImage { source: DeviceSource::Image(ImagePath { path, read_only }), number });
    }
    Ok(images)
}

fn names(rule: &LinuxDeviceCgroup, (major, minor): (i64, i64)) -> bool {
    let kind = matches!(rule.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B));
    rule.allow() && kind && rule.major() == Some(major) && rule.minor() == Some(minor)
}

/// Where the host has the device: the path in the specification is the container's.
fn find(listed: &Path, device: &LinuxDevice) -> Result<PathBuf, TaskError> {
    let number = format!("{}:{}", device.major(), device.minor());
    let refused = |why: String| {
        TaskError::InvalidArgument(format!("the block device {} ({number}): {why}", device.path().display()))
    };
    let file = listed.join(&number).join("uevent");
    let properties = fs::read_to_string(&file).map_err(|error| refused(format!("{}: {error}", file.display())))?;
    let name = properties.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let path = Path::new("/dev").join(name.ok_or_else(|| refused(format!("{} does not name it", file.display())))?);
    let found = fs::metadata(&path).map_err(|error| refused(format!("{}: {error}", path.display())))?.rdev();
    let found = format!("{}:{}", rustix::fs::major(found), rustix::fs::minor(found));
    match found == number {
        true => Ok(path),
        false => Err(refused(format!("{} is {found}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(rules: Value, number: (i64, i64)) -> Result<Vec<DeviceImage>, String> {
        found_in(Path::new(BLOCK_DEVICES), rules, number)
    }

    fn found_in(listed: &Path, rules: Value, (major, minor): (i64, i64)) -> Result<Vec<DeviceImage>, String> {
        let device = json!({ "path": "/dev/data", "type": "b", "major": major, "minor": minor });
        let other = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 });
        let linux = json!({ "devices": [device, device, other], "resources": { "devices": rules } });
        named_in(listed, &serde_json::from_value(linux).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_is_asked_for_by_its_number_alone() {
        let all =
            json!([{ "allow": true, "access": "rwm" }, { "allow": true, "type": "b", "major": 8, "access": "rwm" }]);
        assert_eq!(found(all, (8, 0)).unwrap(), []);
        let denied = json!([{ "allow": false, "type": "b", "major": 8, "minor": 0, "access": "rwm" }]);
        assert_eq!(found(denied, (8, 0)).unwrap(), []);
        let character = json!([{ "allow": true, "type": "c", "major": 8, "minor": 0, "access": "rwm" }]);
        assert_eq!(found(character, (8, 0)).unwrap(), []);
    }

    #[test]
    fn a_pods_are_volumes_by_their_numbers() {
        let image = ImagePath { path: "/dev/sdb".into(), read_only: false };
        let device = |minor, source| DeviceImage { source, number: (8, minor) };
        let mut devices = [device(16, DeviceSource::Image(image.clone())), device(32, DeviceSource::Served(0))];
        let volume = GuestVolume { name: "raw-8-16".to_owned(), source: image.path.clone(), files: Files::Raw(image) };
        assert_eq!(share(&mut devices), [volume]);
        let named = DeviceSource::Volume("raw-8-16".to_owned());
        assert_eq!(devices, [device(16, named), device(32, DeviceSource::Served(0))]);
    }

    #[test]
    fn one_that_is_not_there_is_an_error() {
        let rule = json!([{ "allow": true, "type": "b", "major": 4094, "minor": 9, "access": "r" }]);
        let error = found(rule, (4094, 9)).unwrap_err();
        assert!(error.contains("/dev/data (4094:9)"), "{error}");
    }

    #[test]
    fn one_of_the_hosts_is_found_once() {
        // Not every machine has a block device; every one has a node by which numbers can be compared.
        let listed = tempfile::tempdir().unwrap();
        let number = (1, 3);
        fs::create_dir(listed.path().join("1:3")).unwrap();
        fs::write(listed.path().join("1:3/uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=null\n").unwrap();
        for (access, read_only) in [("r", true), ("rm", true), ("rw", false), ("rwm", false)] {
            let rule = json!([{ "allow": true, "type": "b", "major": 1, "minor": 3, "access": access }]);
            let images = found_in(listed.path(), rule, number).unwrap();
            let image = ImagePath { path: "/dev/null".into(), read_only };
            assert_eq!(images, [DeviceImage { source: DeviceSource::Image(image), number }]);
        }
    }
}
