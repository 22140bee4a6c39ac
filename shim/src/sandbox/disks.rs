//! Disks that containers bring: images opened here, laid one after another into one of the VM's slots, taken out again.
//!
//! Knows sizes and slots, nothing of what is on the images: nobody looks at their bytes here. One container has one disk,
//! whatever the number of its images, so there need not be more slots than containers.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use tatami_protocol::agent::{BlockDevice, CreateContainerRequest, Disk as DiskMessage, DiskPart as PartMessage};
use tatami_vmm::{DISK_PARTS_LIMIT, DiskPart, VmConfig, slot_serial};

use super::Error;
use super::agent::AgentError;
use super::disk_root::ImagePath;
use super::guest::Guest;
use super::mounts::Root;
use super::vm::{VmError, VmOrder, VmWatch};

/// Bytes of a sector, the unit of a disk's size.
const SECTOR: u64 = 512;
/// Where images may begin on a disk, in bytes: a page, so that none shares one with another.
const ALIGNMENT: u64 = 4096;

/// Why a container has no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened, or is in use.
    #[error("cannot open the disk image {}: {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not without the host's page cache.
    #[error("the disk image {} cannot be read without the host's page cache (block_device_cache_direct): {reason}", path.display())]
    Direct {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Neither a file nor a block device.
    #[error("{} is no disk image: a file or a block device is expected", .0.display())]
    Kind(PathBuf),
    /// Somebody else writes to it, or it shall be written while somebody else uses it.
    #[error("the disk image {} is in use: one that is written to can have one user only", .0.display())]
    InUse(PathBuf),
    /// Empty, or not made of sectors.
    #[error("the disk image {} has {size} bytes: a multiple of 512 is expected, and not 0", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// More than one message to the VMM carries.
    #[error("{0} disk images for one container: at most {DISK_PARTS_LIMIT} are possible")]
    TooMany(usize),
    /// Every slot has a disk.
    #[error("all {0} disk slots of the sandbox are taken")]
    NoSlot(usize),
    /// It is not on a disk, or its file system cannot become larger in a guest.
    #[error("it cannot grow: only a disk with ext4 on it can, or one that containers have as a block device")]
    NotGrown,
    /// Nobody serves it.
    #[error("the sandbox has no vhost-user device {0}")]
    NotServed(usize),
    /// The VMM.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// An open disk image.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
    file: File,
    size: u64,
    read_only: bool,
}

impl DiskImage {
    /// Opens a file or block device. A file is locked for as long as the guest has it, against a second user.
    ///
    /// # Errors
    /// [`DiskError`], but for the sandbox's part.
    pub fn open(path: &Path, read_only: bool) -> Result<DiskImage, DiskError> {
        let failed = |error: rustix::io::Errno| DiskError::Open { path: path.to_owned(), source: error.into() };
        // What is opened is not known yet, and opening a fifo would wait.
        let mode = rustix::fs::stat(path).map_err(failed)?.st_mode;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(DiskError::Kind(path.to_owned()));
        }
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        flags |= if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        if kind == FileType::BlockDevice && !read_only {
            // Fails while the host has it mounted, or gave it to another guest.
            flags |= OFlags::EXCL;
        }
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::BUSY) => return Err(DiskError::InUse(path.to_owned())),
            result => result.map_err(failed)?,
        };
        if kind == FileType::RegularFile {
            lock(&fd, read_only, path)?;
        }
        let mut file = File::from(fd);
        // Works for block devices too, whose metadata do not tell.
        let size = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Open { path: path.to_owned(), source })?;
        if size == 0 || size % SECTOR != 0 {
            return Err(DiskError::Size { path: path.to_owned(), size });
        }
        Ok(DiskImage { path: path.to_owned(), file, size, read_only })
    }

    /// Leaves the host's page cache out of it from now on.
    ///
    /// # Errors
    /// [`DiskError::Direct`] where it cannot be, or not in sectors.
    fn bypass_cache(&self) -> Result<(), DiskError> {
        let refused = |reason: String| DiskError::Direct { path: self.path.clone(), reason };
        let flags = rustix::fs::fcntl_getfl(&self.file).map_err(|errno| refused(errno.to_string()))?;
        let changed = rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT);
        changed.map_err(|errno| refused(format!("its file system has no such way ({errno})")))?;
        // Tells whether it has sectors; what is in this one nobody looks at.
        let mut buffer = vec![0; 2 * SECTOR as usize];
        let begin = buffer.as_ptr().align_offset(SECTOR as usize);
        match rustix::io::pread(&self.file, &mut buffer[begin..begin + SECTOR as usize], 0) {
            Err(rustix::io::Errno::INVAL) => Err(refused(format!("its blocks have more than {SECTOR} bytes"))),
            result => result.map(drop).map_err(|errno| refused(errno.to_string())),
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One writer, or many readers. The lock goes where the descriptor goes, and ends with its last copy.
fn lock(fd: &OwnedFd, read_only: bool, path: &Path) -> Result<(), DiskError> {
    let operation =
        if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match rustix::fs::flock(fd, operation) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse(path.to_owned())),
        // A file system without locks; then nobody else has one.
        Err(errno) => {
            log::debug!("{} is not locked: {errno}", path.display());
            Ok(())
        }
    }
}

/// A disk that a container has as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceImage {
    /// Where its bytes are.
    pub source: DeviceSource,
    /// Major and minor, by which the container's specification means it: no other device of the container has them.
    pub number: (i64, i64),
}

/// Where a block device's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    /// On a file or block device, which becomes a part of the container's disk.
    Image(ImagePath),
    /// With the process that serves the VM's device of this number.
    Served(usize),
    /// They are the volume that is called so, which the container has.
    Volume(String),
}

/// The slots of a sandbox's VM. Cloning is cheap; clones are the same slots.
#[derive(Clone)]
pub struct Disks {
    vm: VmWatch,
    /// Which slots are taken.
    taken: Arc<Mutex<Vec<bool>>>,
    /// Images are in no cache of the host's.
    direct: bool,
    /// Where in the guest those are that other processes serve.
    served: Vec<u64>,
}

/// A disk in a slot. Dropping it leaves the slot taken for the sandbox's life: only who knows that the guest has let go of
/// the disk may [`detach`](Disk::detach) it.
#[must_use = "its slot stays taken until it is detached"]
pub struct Disk {
    slot: usize,
    parts: Vec<PartMessage>,
    disks: Disks,
}

impl Disks {
    /// The empty slots of `vm`, which is configured so.
    pub(super) fn new(vm: VmWatch, config: &VmConfig) -> Disks {
        let taken = Arc::new(Mutex::new(vec![false; config.disk_slots.into()]));
        Disks { vm, taken, direct: config.disk_direct, served: config.vhost_user_addresses() }
    }

    /// Has the agent create a container with the disk that its root and its block devices need, which was laid out under the
    /// name `folder`. Returns its first process's id in the guest, and the disk, which is to be detached when the agent has
    /// answered that the container is deleted.
    ///
    /// # Errors
    /// [`Error::Disk`]; [`Error::Command`] when its command cannot be executed, [`Error::Agent`], [`Error::Vm`]. A guest that
    /// refuses has let go of the disk, which is detached then.
    pub async fn create_container(
        &self,
        guest: &Guest,
        mut request: CreateContainerRequest,
        (root, devices): (&Root, &[DeviceImage]),
        folder: &str,
    ) -> Result<(u32, Option<Disk>), Error> {
        request.folder = folder.to_owned();
        let mut images = Vec::new();
        if let Root::Disk(root) = root {
            images = root.open()?;
            request.storages = root.storages.clone();
        }
        for DeviceImage { source, number: (major, minor) } in devices {
            let mut device = BlockDevice { major: *major, minor: *minor, ..BlockDevice::default() };
            match source {
                DeviceSource::Image(image) => {
                    device.part = images.len() as u32;
                    images.push(image.open()?);
                }
                DeviceSource::Served(number) => device.address = self.served_at(*number)?,
                DeviceSource::Volume(name) => device.volume.clone_from(name),
            }
            request.devices.push(device);
        }
        let disk = match images.is_empty() {
            true => None,
            false => {
                let disk = self.attach(images).await?;
                request.disk = Some(disk.message()).into();
                Some(disk)
            }
        };
        match (guest.call(guest.agent().create_container(request)).await, disk) {
            (Ok(pid), disk) => Ok((pid, disk)),
            (Err(error @ (Error::Command { .. } | Error::Agent(AgentError::Refused { .. }))), Some(disk)) => {
                disk.detach().await?;
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Puts a disk made of `images` into a free slot; part n of it is image n. The guest must have booted: its kernel looks for
    /// a partition table on a disk that is there when it comes up.
    ///
    /// # Errors
    /// [`DiskError::NoSlot`], [`DiskError::TooMany`], [`DiskError::Vm`]; the slot stays free.
    pub async fn attach(&self, images: Vec<DiskImage>) -> Result<Disk, DiskError> {
        if images.len() > DISK_PARTS_LIMIT {
            return Err(DiskError::TooMany(images.len()));
        }
        if self.direct {
            images.iter().try_for_each(DiskImage::bypass_cache)?;
        }
        let slot = self.take()?;
        let parts = lay_out(images);
        let describe = |part: &DiskPart| {
            let DiskPart { start, length, read_only, .. } = *part;
            PartMessage { start, length, read_only, ..PartMessage::default() }
        };
        let disk = Disk { slot, parts: parts.iter().map(describe).collect(), disks: self.clone() };
        match self.vm.order(VmOrder::Attach(slot as u8, parts)).await {
            Ok(()) => Ok(disk),
            Err(error) => {
                self.taken()[slot] = false;
                Err(error.into())
            }
        }
    }

    fn served_at(&self, number: usize) -> Result<u64, DiskError> {
        self.served.get(number).copied().ok_or(DiskError::NotServed(number))
    }

    fn take(&self) -> Result<usize, DiskError> {
        let mut taken = self.taken();
        let slot = taken.iter().position(|taken| !taken).ok_or(DiskError::NoSlot(taken.len()))?;
        taken[slot] = true;
        Ok(slot)
    }

    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// What the agent has to know of it.
    pub fn message(&self) -> DiskMessage {
        DiskMessage { serial: slot_serial(self.slot as u8), parts: self.parts.clone(), ..DiskMessage::default() }
    }

    /// Has it end with `length` bytes of its last image, no fewer than before. The agent knows nothing of it yet.
    ///
    /// # Errors
    /// [`DiskError::Vm`], when the image has not so many bytes, for instance.
    pub async fn grow(&mut self, length: u64) -> Result<(), DiskError> {
        self.disks.vm.order(VmOrder::Grow(self.slot as u8, length)).await?;
        if let Some(last) = self.parts.last_mut() {
            last.length = length;
        }
        Ok(())
    }

    /// Takes it out of its slot. The agent must have answered that the container which it was for is deleted, or was not made.
    ///
    /// # Errors
    /// [`DiskError::Vm`].
    pub async fn detach(self) -> Result<(), DiskError> {
        self.disks.vm.order(VmOrder::Detach(self.slot as u8)).await?;
        self.disks.taken()[self.slot] = false;
        Ok(())
    }
}

/// One after another, each at the next place where one may begin.
fn lay_out(images: Vec<DiskImage>) -> Vec<DiskPart> {
    let mut end = 0_u64;
    let place = |image: DiskImage| {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + image.size;
        DiskPart { image: image.file, start, length: image.size, read_only: image.read_only }
    };
    images.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn what_cannot_be_a_disk_is_named() {
        let error = |path: &Path| DiskImage::open(path, true).unwrap_err().to_string();
        assert!(error(Path::new("/no/such/image")).contains("/no/such/image: No such file"));
        assert!(error(Path::new("/dev/null")).ends_with("is no disk image: a file or a block device is expected"));
        let folder = tempfile::tempdir().unwrap();
        assert!(error(folder.path()).contains("no disk image"));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(error(&fifo).contains("no disk image"));
        for size in [0, 1, 511, 1000] {
            let file = image(size);
            assert!(error(file.path()).contains(&format!("has {size} bytes: a multiple of 512")), "{size}");
        }
    }

    #[test]
    fn one_writes_or_many_read() {
        let file = image(4096);
        let open = |read_only| DiskImage::open(file.path(), read_only);
        let (first, second) = (open(true).unwrap(), open(true).unwrap());
        assert!(matches!(open(false), Err(DiskError::InUse(_))));
        drop((first, second));
        let writer = open(false).unwrap();
        assert!(matches!(open(true), Err(DiskError::InUse(_))));
        drop(writer);
        open(true).unwrap();
    }

    #[test]
    fn the_page_cache_can_be_left_out_of_a_file() {
        let file = image(1024);
        let disk = DiskImage::open(file.path(), false).unwrap();
        match disk.bypass_cache() {
            Ok(()) => assert!(rustix::fs::fcntl_getfl(&disk.file).unwrap().contains(OFlags::DIRECT)),
            // As the file system of temporary files has it.
            Err(error) => {
                let path = format!("the disk image {} cannot be read without", file.path().display());
                assert!(error.to_string().starts_with(&path), "{error}");
            }
        }
    }

    #[test]
    fn images_lie_one_after_another() {
        let files = [image(512), image(8192), image(4608), image(512)];
        let images = files.iter().enumerate().map(|(n, file)| DiskImage::open(file.path(), n > 0).unwrap());
        let parts = lay_out(images.collect());
        let places: Vec<_> = parts.iter().map(|part| (part.start, part.length, part.read_only)).collect();
        assert_eq!(places, [(0, 512, false), (4096, 8192, true), (12288, 4608, true), (20480, 512, true)]);
    }

    #[test]
    fn a_slot_is_taken_once() {
        let config = VmConfig { disk_slots: 2, ..VmConfig::default() };
        let disks = Disks::new(super::super::vm::tests::watch(), &config);
        assert_eq!((disks.take().unwrap(), disks.take().unwrap()), (0, 1));
        assert!(matches!(disks.take(), Err(DiskError::NoSlot(2))));
        disks.taken()[0] = false;
        assert_eq!(disks.take().unwrap(), 0);
    }
}
