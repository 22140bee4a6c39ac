//! The guest's file systems, from the bare initramfs to what libcontainer and the shared folder need.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::mount::{MountFlags, mount, mount_move};

use crate::cgroup;

/// Where the host's shared folder appears; a container's root is `<id>/rootfs` in it.
pub(crate) const SHARED: &str = "/run/tatami/shared";
/// Where services of a guest that was made for Kata look for it, or for the folder `sandbox-mounts` in it.
const KATAS: [&str; 2] = ["/run/kata-containers/shared", "/run/kata-containers/shared/containers"];
/// linux/magic.h: what an initramfs is unpacked into.
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Where the new root is assembled before it takes the initramfs's place.
const NEW_ROOT: &str = "/mnt";

/// Why the guest could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// A file system did not mount.
    #[error("mount {kind} on {target} (is it in the guest kernel, and its device in the VMM?)")]
    Mount {
        /// File system type.
        kind: &'static str,
        /// Mount point.
        target: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step between the mounts failed.
    #[error("{step} {path}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Mounts all but the shared folder. Whatever the guest began with, its root is one that can be written, in memory.
///
/// # Errors
/// [`MountError`], naming file system and mount point.
pub(crate) fn set_up() -> Result<(), MountError> {
    take_root()?;
    let (nosuid, noexec, nodev) = (MountFlags::NOSUID, MountFlags::NOEXEC, MountFlags::NODEV);
    add("devtmpfs", "devtmpfs", "/dev", nosuid, c"mode=0755")?;
    add("proc", "proc", "/proc", nosuid | noexec | nodev, c"")?;
    add("sysfs", "sysfs", "/sys", nosuid | noexec | nodev, c"")?;
    add("devpts", "devpts", "/dev/pts", nosuid | noexec, c"mode=0620,ptmxmode=0666,gid=5")?;
    add("tmpfs", "shm", "/dev/shm", nosuid | nodev, c"mode=1777")?;
    add("cgroup2", "cgroup", cgroup::ROOT, nosuid | noexec | nodev, c"nsdelegate")?;
    cgroup::enable_controllers().map_err(step("delegate controllers in", cgroup::ROOT))
}

/// Mounts the host's shared folder, the virtio-fs device with this `tag`, unless it is there.
///
/// Not when the guest starts: a machine that is kept to go on from later must not have agreed with a host about files.
///
/// # Errors
/// [`MountError`], when the VMM has no such device.
pub(crate) fn share(tag: &str) -> Result<(), MountError> {
    static MOUNTED: Mutex<bool> = Mutex::new(false);
    let mut mounted = MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*mounted {
        add("virtiofs", tag, SHARED, MountFlags::NODEV, c"")?;
        let [folder, link] = KATAS;
        fs::create_dir_all(folder).map_err(step("create", folder))?;
        std::os::unix::fs::symlink(SHARED, link).map_err(step("create", link))?;
        *mounted = true;
    }
    Ok(())
}

/// Puts another root over the one that the kernel began with.
///
/// An initramfs cannot be the old root of pivot_root(2), which every container needs: a tmpfs takes its place. A disk is only to
/// be read: what is written lies over it, in a tmpfs.
fn take_root() -> Result<(), MountError> {
    add("tmpfs", "root", NEW_ROOT, MountFlags::empty(), c"mode=0755")?;
    std::env::set_current_dir(NEW_ROOT).map_err(step("enter", NEW_ROOT))?;
    if is_on_disk()? {
        let parts = ["upper", "work", "root"];
        parts.iter().try_for_each(|part| fs::create_dir(part).map_err(step("create", part)))?;
        let layers = c"lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work";
        let target = "/mnt/root";
        add("overlay", "root", target, MountFlags::empty(), layers)?;
        std::env::set_current_dir(target).map_err(step("enter", target))?;
    }
    for folder in ["dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir_all(folder).map_err(step("create", folder))?;
    }
    mount_move(".", "/").map_err(|cause| step("move the root to", NEW_ROOT)(cause.into()))?;
    rustix::process::chroot(".").map_err(|cause| step("change root to", NEW_ROOT)(cause.into()))?;
    std::env::set_current_dir("/").map_err(step("enter", "/"))?;
    fs::set_permissions("/tmp", std::os::unix::fs::PermissionsExt::from_mode(0o1777)).map_err(step("open", "/tmp"))
}

/// Whether the kernel has found its root on a disk, and not unpacked it into memory.
fn is_on_disk() -> Result<bool, MountError> {
    let status = rustix::fs::statfs("/").map_err(|cause| step("look at", "/")(cause.into()))?;
    Ok(![RAMFS_MAGIC, TMPFS_MAGIC].contains(&(status.f_type as u64)))
}

fn add(
    kind: &'static str,
    source: &str,
    target: &'static str,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), MountError> {
    fs::create_dir_all(target).map_err(step("create", target))?;
    mount(source, target, kind, flags, options).map_err(|cause| MountError::Mount {
        kind,
        target,
        source: cause.into(),
    })
}

fn step(step: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> MountError {
    move |source| MountError::Step { step, path: path.as_ref().to_path_buf(), source }
}
