//! `--device HOST[:CONTAINER][:r|rw]`, as text and as the specification's device.
//!
//! What is there is found out when the disk is opened; how it reaches the guest is [`crate::sandbox::disks`]'s.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use tatami_vmm::VhostUserKind;

use super::served::Served;
use super::volume::in_container;
use crate::sandbox::disk_root::ImagePath;
use crate::sandbox::disks::{DeviceImage, DeviceSource};
use crate::spec;

/// One `--device`: a disk that the host has, and where the container has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A disk image, a block device, or the socket of a process that serves a disk (vhost-user); relative paths are the caller's.
    pub host: PathBuf,
    /// Absolute path in the container.
    pub container: PathBuf,
    /// The container may not write to it.
    pub read_only: bool,
}

/// Why a `--device` is not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// Not of the form that is expected.
    #[error("expected HOST, HOST:CONTAINER or HOST:CONTAINER:r, with r, rw or rwm at the end")]
    Form,
    /// A file whose path in the container is not said.
    #[error("where shall the container have it? Say HOST:CONTAINER, such as {0}:/dev/xvda")]
    Where(String),
    /// A container path that is relative, climbs, or is the root.
    #[error("the path in the container must be absolute and without `..`, such as /dev/xvda")]
    Container,
}

impl Device {
    /// What it is for the VMM and for the specification: the `index`th of the container's devices, and perhaps one of those
    /// `served`. Its owner and mode are those that it has on the host.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn describe(&self, index: usize, served: &mut Served) -> io::Result<(DeviceImage, spec::Device)> {
        let found = std::fs::metadata(&self.host)?;
        let source = if found.file_type().is_socket() {
            DeviceSource::Served(served.add(&self.host, VhostUserKind::Disk { read_only: self.read_only })?)
        } else {
            DeviceSource::Image(ImagePath { path: std::path::absolute(&self.host)?, read_only: self.read_only })
        };
        // A disk image has no number on the host; one is needed to speak of it, and no device has the major number 0.
        let number = (0, index as i64);
        let device = spec::Device {
            path: self.container.clone(),
            number,
            read_only: self.read_only,
            mode: found.mode() & 0o666,
            owner: (found.uid(), found.gid()),
        };
        Ok((DeviceImage { source, number }, device))
    }
}

impl std::str::FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Device, DeviceError> {
        let mut parts: Vec<&str> = text.split(':').collect();
        let read_only = match parts.last() {
            Some(&("r" | "ro")) => true,
            Some(&("rw" | "rwm")) => false,
            _ => {
                parts.push("rw");
                false
            }
        };
        let (host, container) = match parts[..] {
            [host, _] if host.starts_with("/dev/") => (host, host),
            [host, _] if !host.is_empty() => return Err(DeviceError::Where(host.to_owned())),
            [host, container, _] if !host.is_empty() => (host, container),
            _ => return Err(DeviceError::Form),
        };
        let container = in_container(container).filter(|path| path.parent().is_some()).ok_or(DeviceError::Container)?;
        Ok(Device { host: host.into(), container, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, String, bool), DeviceError> {
        let device: Device = text.parse()?;
        Ok((device.host.display().to_string(), device.container.display().to_string(), device.read_only))
    }

    #[test]
    fn a_device_has_a_place_on_the_host_and_one_in_the_container() {
        let expect = |text: &str, (host, container, read_only): (&str, &str, bool)| {
            assert_eq!(read(text), Ok((host.to_owned(), container.to_owned(), read_only)), "{text}");
        };
        expect("/dev/sdb", ("/dev/sdb", "/dev/sdb", false));
        expect("/dev/sdb:r", ("/dev/sdb", "/dev/sdb", true));
        expect("/dev/sdb:/dev/xvda", ("/dev/sdb", "/dev/xvda", false));
        expect("./a.img:/dev/x/./y:ro", ("./a.img", "/dev/x/y", true));
        expect("a.img:/dev/x:rwm", ("a.img", "/dev/x", false));
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        assert_eq!(read("a.img"), Err(DeviceError::Where("a.img".to_owned())));
        for text in ["", ":", ":/dev/x", "a:/dev/x:rw:r", "a:/dev/x:w"] {
            assert_eq!(read(text), Err(DeviceError::Form), "{text}");
        }
        for text in ["a:x", "a:/dev/../x", "a:/"] {
            assert_eq!(read(text), Err(DeviceError::Container), "{text}");
        }
    }

    #[test]
    fn a_socket_is_a_disk_that_somebody_serves() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let device = Device { host: socket.clone(), container: "/dev/x".into(), read_only: true };
        let mut served = Served::default();
        for (index, number) in [(0, 0), (5, 1)] {
            let (image, described) = device.describe(index, &mut served).unwrap();
            assert_eq!(image, DeviceImage { source: DeviceSource::Served(number), number: (0, index as i64) });
            assert!(described.read_only && described.mode & 0o111 == 0);
        }
        assert_eq!(served.kinds, [VhostUserKind::Disk { read_only: true }; 2]);
        assert_eq!(served.sockets, [socket.clone(), socket]);
    }

    #[test]
    fn it_belongs_to_whom_it_belongs_on_the_host() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = Device { host: file.path().to_owned(), container: "/dev/x".into(), read_only: true };
        let mut served = Served::default();
        let (image, described) = device.describe(3, &mut served).unwrap();
        let source = DeviceSource::Image(ImagePath { path: file.path().to_owned(), read_only: true });
        assert_eq!(image, DeviceImage { source, number: (0, 3) });
        assert_eq!((described.number, described.mode, described.read_only), ((0, 3), 0o600, true));
        assert!(Device { host: "/no/such/image".into(), ..device }.describe(0, &mut served).is_err());
        assert!(served.kinds.is_empty());
    }
}
