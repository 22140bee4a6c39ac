//! The container's disk as the guest's kernel sees it: found by its slot's serial number, its parts made partitions.
//!
//! The disk carries no partition table, and none is looked for: where its parts lie, the host says.
#![allow(unsafe_code, reason = "BLKPG and BLKROSET have no safe wrapper")]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::ioctl::{Opcode, opcode};
use tatami_protocol::agent::Disk;

use crate::error::Error;

/// Where the kernel lists its disks.
const DISKS: &str = "/sys/block";
/// How long the kernel may take to see what came into a slot.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often that is looked for. The kernel tells nobody of a disk that comes into an empty slot, and needs microseconds.
const RETRY: Duration = Duration::from_millis(1);
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// linux/blkpg.h
const BLKPG: Opcode = opcode::none(0x12, 105);
const ADD_PARTITION: c_int = 1;
const DELETE_PARTITION: c_int = 2;
const RESIZE_PARTITION: c_int = 3;
/// linux/fs.h
const BLKROSET: Opcode = opcode::none(0x12, 93);

#[repr(C)]
struct Argument {
    operation: c_int,
    flags: c_int,
    length: c_int,
    partition: *const Partition,
}

#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// A disk whose parts are partitions. Dropping it leaves them.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    disk: File,
    /// How many partitions there are, numbered from 1.
    parts: u32,
}

impl Device {
    /// Finds `disk`, waits until the kernel knows what came into its slot, and makes its partitions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for parts that do not fit, [`Error::Internal`] without such a disk or with the
    /// kernel's word; nothing is left of it.
    pub(super) async fn find(disk: &Disk) -> Result<Device, Error> {
        let name = name_of(&disk.serial)?;
        let last = disk.parts.last().ok_or_else(|| invalid(disk, "has no parts"))?;
        let end = last.start.checked_add(last.length).ok_or_else(|| invalid(disk, "does not end"))?;
        await_size(&name, end).await?;
        let path = Path::new("/dev").join(&name);
        let file = File::open(&path).map_err(Error::internal(format!("open {}", path.display())))?;
        let mut device = Device { name, disk: file, parts: 0 };
        for part in &disk.parts {
            let added = device.add(part.start, part.length, part.read_only);
            if let Err(cause) = added {
                device.forget().unwrap_or_else(|rest| log::warn!("let go of {device}: {rest}"));
                return Err(invalid(disk, &format!("cannot have part {} of its parts: {cause}", device.parts)));
            }
        }
        Ok(device)
    }

    /// The device of part `index`, counted from 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not so many.
    pub(super) fn part(&self, index: u32) -> Result<PathBuf, Error> {
        match index.checked_add(1) {
            Some(number) if number <= self.parts => Ok(self.node(number)),
            _ => Err(Error::InvalidArgument(format!("{self} has {} parts, there is no part {index}", self.parts))),
        }
    }

    /// Takes the partitions away, and with them all that the kernel has cached of them.
    ///
    /// # Errors
    /// `EBUSY` while one is in use; to be tried again.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        while self.parts > 0 {
            self.partition(DELETE_PARTITION, self.parts, 0, 0)?;
            self.parts -= 1;
        }
        Ok(())
    }

    /// What it takes to have the only part grow while somebody else has the device.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn growing(&self) -> io::Result<Device> {
        Ok(Device { name: self.name.clone(), disk: self.disk.try_clone()?, parts: self.parts })
    }

    /// Has the only part be `length` bytes long, once the kernel knows that the disk is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it has not become so long, or has several parts.
    pub(super) async fn grow(&self, length: u64) -> Result<(), Error> {
        if self.parts != 1 {
            return Err(Error::InvalidArgument(format!("{self} has {} parts, of which none grows", self.parts)));
        }
        await_size(&self.name, length).await?;
        let bytes = i64::try_from(length).unwrap_or(i64::MAX);
        let grown = self.partition(RESIZE_PARTITION, 1, 0, bytes);
        grown.map_err(|cause| Error::InvalidArgument(format!("{self} cannot have a part of {length} bytes: {cause}")))
    }

    fn add(&mut self, start: u64, length: u64, read_only: bool) -> io::Result<()> {
        let number = self.parts + 1;
        let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        self.partition(ADD_PARTITION, number, signed(start)?, signed(length)?)?;
        self.parts = number;
        if read_only {
            // The device refuses writes anyway; a kernel that knows does not try, not even to replay a journal.
            set_read_only(&File::open(self.node(number))?)?;
        }
        Ok(())
    }

    fn partition(&self, operation: c_int, number: u32, start: i64, length: i64) -> io::Result<()> {
        let number = c_int::try_from(number).map_err(io::Error::other)?;
        let partition = Partition { start, length, number, device_name: [0; 64], volume_name: [0; 64] };
        let argument =
            Argument { operation, flags: 0, length: size_of::<Partition>() as c_int, partition: &raw const partition };
        // SAFETY: the kernel reads both structures, which live until it returns, and writes neither.
        unsafe { ioctl(&self.disk, BLKPG, (&raw const argument).cast()) }
    }

    fn node(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("/dev/{}{number}", self.name))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}", self.name)
    }
}

/// Waits until the kernel knows that the disk `name` has so many bytes.
async fn await_size(name: &str, bytes: u64) -> Result<(), Error> {
    let (size, sectors) = (Path::new(DISKS).join(name).join("size"), bytes / SECTOR);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = fs::read_to_string(&size).map_err(Error::internal(format!("read {}", size.display())))?;
        if found.trim().parse() == Ok(sectors) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::InvalidArgument(format!("disk {name}: it has {} sectors, not {sectors}", found.trim())));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The kernel's name of the disk with this serial number.
fn name_of(serial: &str) -> Result<String, Error> {
    let mut names: Vec<String> = fs::read_dir(DISKS)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect())
        .map_err(Error::internal(format!("list {DISKS}")))?;
    // The kernel asks the disk itself, so the likely one is asked first: slots are found in order.
    names.sort_unstable();
    let has = |name: &String| {
        let found = fs::read_to_string(Path::new(DISKS).join(name).join("serial"));
        found.is_ok_and(|found| found.trim_end_matches(['\n', '\0']) == serial)
    };
    let found = names.into_iter().filter(|name| name.starts_with("vd")).find(has);
    found.ok_or_else(|| Error::Internal(format!("the guest has no disk with the serial number {serial:?}")))
}

fn set_read_only(device: &impl AsFd) -> io::Result<()> {
    let yes: c_int = 1;
    // SAFETY: the kernel reads the integer, which lives until it returns.
    unsafe { ioctl(device, BLKROSET, (&raw const yes).cast()) }
}

/// # Safety
/// `argument` must be what `operation` reads, and live.
pub(super) unsafe fn ioctl(device: &impl AsFd, operation: Opcode, argument: *const c_void) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::ioctl(device.as_fd().as_raw_fd(), operation as libc::Ioctl, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn invalid(disk: &Disk, what: &str) -> Error {
    Error::InvalidArgument(format!("disk {}: it {what}", disk.serial))
}
