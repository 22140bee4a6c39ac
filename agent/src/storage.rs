//! The file systems of one container, or of a volume that several have: on its disk, in memory, or laid over each other. Mounted
//! before the container is made, unmounted when it is gone.
//!
//! What a file system contains is the kernel's business; which ones it is asked to read is decided here. Knows nothing of
//! where the host took the disk from.

mod device;
mod group;
mod growth;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tatami_protocol::agent::storage::Kind;
use tatami_protocol::agent::{BlockStorage, Disk, OverlayStorage, Place, Storage, TmpfsStorage};

use crate::error::Error;
use crate::mounts::SHARED;
use crate::nodes::Number;
use crate::sandbox::check_id;
use device::Device;
pub(crate) use growth::Growth;

/// Where they are mounted, by the container's or volume's folder and the storage's name.
const STORAGES: &str = "/run/tatami/storages";
/// What may lie on a disk. Every file system's code reads what others wrote, so there are few.
const ON_DISK: [&str; 3] = ["erofs", "ext4", "xfs"];
/// How long what is unmounted may stay in use: by the mount namespace of a process that just ended, for one.
const LINGERING: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(1);

/// What is mounted for a container or as a volume. Dropping it unmounts as far as that is possible at once.
#[derive(Debug)]
pub(crate) struct Storages {
    folder: PathBuf,
    /// The container's part of the shared folder.
    shared: PathBuf,
    /// In the order in which they were mounted.
    mounted: Vec<PathBuf>,
    device: Option<Device>,
}

impl Storages {
    /// Mounts `storages`, which may lie on parts of `disk`, in a folder that is called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what cannot be, [`Error::Internal`] with the kernel's word; nothing is left mounted.
    pub(crate) async fn mount(name: &str, disk: Option<&Disk>, storages: &[Storage]) -> Result<Self, Error> {
        check_id(name)?;
        let (folder, shared) = (Path::new(STORAGES).join(name), Path::new(SHARED).join(name));
        let mut new = Storages { folder, shared, mounted: Vec::new(), device: None };
        match new.mount_all(disk, storages).await {
            Ok(()) => Ok(new),
            Err(error) => {
                new.unmount().await.unwrap_or_else(|rest| log::warn!("{rest}"));
                Err(error)
            }
        }
    }

    /// The number of the disk's part `part`, counted from 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such part.
    pub(crate) fn number(&self, part: u32) -> Result<Number, Error> {
        let path = self.device()?.part(part)?;
        let number = fs::metadata(&path).map_err(Error::internal(format!("look at {}", path.display())))?.rdev();
        Ok((i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number))))
    }

    /// Where that is which was mounted last, if anything was.
    pub(crate) fn last(&self) -> Option<&Path> {
        self.mounted.last().map(PathBuf::as_path)
    }

    /// What it takes to have all of it grow: a volume's.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what is on no disk.
    pub(crate) fn growth(&self) -> Result<Growth, Error> {
        let device = self.device()?.growing().map_err(Error::internal("look at the disk"))?;
        Ok(Growth { device, mounted: self.last().map(Path::to_owned) })
    }

    /// Unmounts all. Then nothing uses the disk any more.
    ///
    /// # Errors
    /// What is still in use.
    pub(crate) async fn unmount(&mut self) -> Result<(), Error> {
        while let Some(target) = self.mounted.last() {
            // At once for whoever looks for it; its end may have to wait for those who use it.
            unmount(target, UnmountFlags::DETACH)
                .map_err(|cause| Error::Internal(format!("unmount {}: {cause}", target.display())))?;
            fs::remove_dir(target).map_err(Error::internal(format!("remove {}", target.display())))?;
            self.mounted.pop();
        }
        if let Some(device) = &mut self.device {
            let deadline = tokio::time::Instant::now() + LINGERING;
            while let Err(cause) = device.forget() {
                if cause.kind() != io::ErrorKind::ResourceBusy || tokio::time::Instant::now() > deadline {
                    return Err(Error::Internal(format!("let go of {device}: {cause}")));
                }
                tokio::time::sleep(RETRY).await;
            }
            self.device = None;
        }
        match fs::remove_dir(&self.folder) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(format!("remove {}", self.folder.display()))(cause))
            }
            _ => Ok(()),
        }
    }

    async fn mount_all(&mut self, disk: Option<&Disk>, storages: &[Storage]) -> Result<(), Error> {
        if let Some(disk) = disk {
            self.device = Some(Device::find(disk).await?);
        }
        for storage in storages {
            check_id(&storage.name)?;
            let target = self.folder.join(&storage.name);
            if target.exists() {
                return Err(Error::InvalidArgument(format!("two storages are called {}", storage.name)));
            }
            let plan = match &storage.kind {
                Some(Kind::Block(block)) => self.plan_block(block)?,
                Some(Kind::Overlay(overlay)) => self.plan_overlay(overlay)?,
                Some(Kind::Tmpfs(TmpfsStorage { options, .. })) => Plan::tmpfs(options)?,
                _ => return Err(Error::InvalidArgument(format!("storage {}: of no kind known here", storage.name))),
            };
            fs::create_dir_all(&target).map_err(Error::internal(format!("create {}", target.display())))?;
            if let Err(error) = plan.mount(&target) {
                fs::remove_dir(&target).map_err(Error::internal(format!("remove {}", target.display())))?;
                return Err(error);
            }
            self.mounted.push(target.clone());
            if let Some(Kind::Block(BlockStorage { read_only: false, group, .. })) = &storage.kind
                && let Some(group) = group.clone().into_option()
            {
                let volume = target.clone();
                let given = tokio::task::spawn_blocking(move || group::give(&volume, &group)).await;
                let given = given.map_err(io::Error::from).flatten();
                given.map_err(Error::internal(format!("change the group of {}", target.display())))?;
            }
        }
        Ok(())
    }

    fn device(&self) -> Result<&Device, Error> {
        self.device.as_ref().ok_or_else(|| Error::InvalidArgument("a part of a disk without a disk".to_owned()))
    }

    fn plan_block(&self, block: &BlockStorage) -> Result<Plan, Error> {
        let kind = ON_DISK.into_iter().find(|kind| *kind == block.type_).ok_or_else(|| {
            Error::InvalidArgument(format!("file system {:?} on a disk: only {} are", block.type_, ON_DISK.join(", ")))
        })?;
        let device = self.device()?;
        let mut data = join(&block.options)?;
        for &part in &block.devices {
            append(&mut data, &format!("device={}", device.part(part)?.display()));
        }
        Ok(Plan { kind, source: device.part(block.part)?, read_only: block.read_only, data })
    }

    fn plan_overlay(&self, overlay: &OverlayStorage) -> Result<Plan, Error> {
        let mut data = join(&overlay.options)?;
        if overlay.lower.is_empty() {
            return Err(Error::InvalidArgument("an overlay over nothing".to_owned()));
        }
        let mut lower = String::new();
        for place in &overlay.lower {
            let path = self.locate(place)?;
            let separator = if lower.is_empty() { "" } else { ":" };
            lower += &format!("{separator}{}", written(&path)?);
        }
        append(&mut data, &format!("lowerdir={lower}"));
        match (overlay.upper.as_ref(), overlay.work.as_ref()) {
            (Some(upper), Some(work)) => {
                for (key, place) in [("upperdir", upper), ("workdir", work)] {
                    let path = self.locate(place)?;
                    fs::create_dir_all(&path).map_err(Error::internal(format!("create {}", path.display())))?;
                    append(&mut data, &format!("{key}={}", written(&path)?));
                }
                if upper.storage.is_empty() {
                    // The host's file server may not write trusted attributes.
                    append(&mut data, "userxattr");
                }
            }
            (None, None) => {}
            _ => return Err(Error::InvalidArgument("an overlay with one of upper and work folder".to_owned())),
        }
        let read_only = overlay.upper.is_none();
        Ok(Plan { kind: "overlay", source: PathBuf::from("overlay"), read_only, data })
    }

    /// Where a place is: in a storage that is mounted, or in the container's part of the shared folder.
    fn locate(&self, place: &Place) -> Result<PathBuf, Error> {
        let path = Path::new(&place.path);
        if !path.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(Error::InvalidArgument(format!("the place {:?} is not below its storage", place.path)));
        }
        let base = if place.storage.is_empty() {
            self.shared.clone()
        } else {
            check_id(&place.storage)?;
            self.folder.join(&place.storage)
        };
        if !place.storage.is_empty() && !self.mounted.contains(&base) {
            return Err(Error::InvalidArgument(format!("no storage {} before this one", place.storage)));
        }
        let mut whole = base;
        for component in path.components() {
            whole.push(component);
            // What lies there was perhaps made by a container, and must not lead to another's.
            if whole.is_symlink() {
                return Err(Error::InvalidArgument(format!("{} is a symbolic link", whole.display())));
            }
        }
        Ok(whole)
    }
}

impl Drop for Storages {
    fn drop(&mut self) {
        for target in self.mounted.drain(..).rev() {
            if let Err(cause) = unmount(&target, UnmountFlags::DETACH) {
                log::warn!("unmount {}: {cause}", target.display());
            }
        }
        if let Some(device) = &mut self.device
            && let Err(cause) = device.forget()
        {
            log::warn!("let go of {device}: {cause}");
        }
    }
}

/// The arguments of one mount.
pub(crate) struct Plan {
    kind: &'static str,
    source: PathBuf,
    read_only: bool,
    data: String,
}

impl Plan {
    /// A tmpfs with its own `options`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is none.
    pub(crate) fn tmpfs(options: &[String]) -> Result<Plan, Error> {
        Ok(Plan { kind: "tmpfs", source: PathBuf::from("tmpfs"), read_only: false, data: join(options)? })
    }

    /// Carries it out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the kernel's word.
    pub(crate) fn mount(self, target: &Path) -> Result<(), Error> {
        let Plan { kind, source, read_only, data } = self;
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        let options = CString::new(data.as_str()).map_err(|_| malformed(&data))?;
        mount(&source, target, kind, flags, Some(options.as_c_str())).map_err(|cause| {
            let options = if data.is_empty() { String::new() } else { format!(" with options {data}") };
            let hint = match cause {
                rustix::io::Errno::NODEV => " (the guest's kernel has no such file system)",
                rustix::io::Errno::INVAL => " (no such file system there, or an option that it does not know)",
                rustix::io::Errno::ROFS => " (it needs repair, and is to be used read-only)",
                _ => "",
            };
            Error::InvalidArgument(format!("mount {kind} from {}{options}: {cause}{hint}", source.display()))
        })
    }
}

fn join(options: &[String]) -> Result<String, Error> {
    match options.iter().find(|option| option.contains([',', '\0']) || option.is_empty()) {
        Some(option) => Err(malformed(option)),
        None => Ok(options.join(",")),
    }
}

fn malformed(option: &str) -> Error {
    Error::InvalidArgument(format!("malformed mount option {option:?}"))
}

fn append(data: &mut String, option: &str) {
    if !data.is_empty() {
        data.push(',');
    }
    data.push_str(option);
}

/// A path as overlayfs reads it among its options.
fn written(path: &Path) -> Result<&str, Error> {
    // Ids and places of the host's choosing, which have none of these; a path that had one would mean another.
    match path.to_str() {
        Some(text) if !text.contains([',', ':', '\\', '\0']) => Ok(text),
        _ => Err(malformed(&path.to_string_lossy())),
    }
}

#[cfg(test)]
mod tests;
