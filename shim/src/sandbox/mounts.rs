//! The sandbox's mounts: the server's own mount namespace, the shared folder, and what containers see in it.
//!
//! The shared folder is what the VMM has for a root. It is bound onto itself, read-only, and shared, so that mounts made in it
//! later arrive in the VMM's namespace, which is its slave. The guest can write only in what is mounted here for it, never
//! in the folder itself, so it cannot put a symbolic link where the server is about to mount (CVE-2020-2026). Every mount
//! made here is nodev, nosuid and noexec on the host: the guest interprets these bits for itself, and a VMM that a guest
//! took over cannot open a device node that it made. Knows nothing of specifications.

#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::changes::Changes;
use super::disk_root::{DiskRoot, LAYERS};
use super::folder::Folder;
use super::fs_mount::FsMount;
use super::guest::Guest;
use super::overlay_marks;
use super::remove::remove_tree;
use super::shown::{self, Shown};
use crate::image;
use crate::overlay::{Overlay, copy_mode};

/// Where the agent mounts the shared folder in the guest.
pub const GUEST_SHARED: &str = "/run/tatami/shared";
/// The folder of a container's place that its volumes are in.
const VOLUMES: &str = "volumes";
/// The place of volumes that several containers may have: no container's, whose places have other names.
const COMMON: &str = "common";
/// The place of what is shown to the guest and to no container of it, called as Kata calls it.
const FOR_GUEST: &str = "sandbox-mounts";

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// This process may not.
    #[error("cannot make a mount namespace: {0} (root privileges are needed)")]
    Namespace(#[source] io::Error),
    /// A host path that a volume or root names is not there.
    #[error("cannot open {}: {source}", path.display())]
    Source {
        /// The path as it was given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a container's root is made of.
#[derive(Clone, Debug)]
pub enum Root {
    /// The folder of an unpacked image, never written to; what the container writes goes into the sandbox's folder on disk.
    Image(PathBuf),
    /// An image, and over it, uppermost first, what a container wrote whose sandbox was saved; none of it is written to.
    Saved {
        /// What it wrote.
        layers: Vec<PathBuf>,
        /// The unpacked image's folder.
        image: PathBuf,
    },
    /// A folder, used as it is: what the container writes stays there.
    Plain(PathBuf),
    /// File systems that somebody else has prepared, mounted one over the other.
    Mounts(Vec<FsMount>),
    /// Disk images, of which the guest itself makes the root; nothing of it is to be seen on the host.
    Disk(DiskRoot),
}

/// A file or folder of the host, opened, that a container will see. It can be mounted in the namespace it was opened in.
#[derive(Debug)]
pub struct HostPath {
    path: PathBuf,
    fd: OwnedFd,
    is_folder: bool,
}

impl HostPath {
    /// Opens `path`, following symbolic links.
    ///
    /// # Errors
    /// [`MountError::Source`] when it is not there.
    pub fn open(path: &Path) -> Result<HostPath, MountError> {
        let failed = |error: rustix::io::Errno| MountError::Source { path: path.to_owned(), source: error.into() };
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let mode = rustix::fs::fstat(&fd).map_err(failed)?.st_mode;
        let is_folder = FileType::from_raw_mode(mode) == FileType::Directory;
        Ok(HostPath { path: path.to_owned(), fd, is_folder })
    }

    /// Whether it is a folder; anything else can be bound onto a file only.
    pub fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// A mount of it that is nowhere yet, and can be moved to any namespace.
    fn tree(&self, depth: Depth) -> Result<OwnedFd, MountError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let below = if depth == Depth::Everything { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        rustix::mount::open_tree(&self.fd, "", flags | below).map_err(refused("bind", &self.path))
    }
}

/// A volume: what of the host, and whether the guest may write to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVolume {
    /// The file or folder that it shows.
    pub source: PathBuf,
    /// Enforced on the host, below it as well.
    pub read_only: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}

/// Where the guest finds what was laid out for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The root file system, as this process sees it; an empty folder for one on disk images.
    pub host_root: PathBuf,
    /// The same, as the guest sees it.
    pub guest_root: PathBuf,
    /// One for each volume, as the guest sees it.
    pub guest_volumes: Vec<PathBuf>,
}

/// Gives this process a mount namespace of its own. What the host mounts still arrives; nothing goes back.
///
/// # Errors
/// [`MountError::Namespace`] without CAP_SYS_ADMIN.
pub fn enter_namespace() -> Result<(), MountError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| MountError::Namespace(error.into()))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|error| MountError::Namespace(error.into()))
}

/// The folder that the VMM has for a root.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    /// The same folder below the mount: writable.
    below: OwnedFd,
    data: PathBuf,
    detached: AtomicBool,
    changes: Changes,
    /// What several containers may have.
    shown: Mutex<Shown>,
    /// The mount namespace in which what is laid out is looked for, if not the server's own.
    host: OnceLock<OwnedFd>,
}

impl SharedFolder {
    /// Makes it in `folder`. Call it in the server's own namespace.
    ///
    /// # Errors
    /// [`MountError::Refused`].
    pub fn create(folder: &Folder) -> Result<SharedFolder, MountError> {
        let path = folder.state().join("shared");
        DirBuilder::new().mode(0o755).create(&path).map_err(refused("create", &path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let below = rustix::fs::open(&path, flags, Mode::empty()).map_err(refused("open", &path))?;
        rustix::mount::mount_bind(&path, &path).map_err(refused("bind", &path))?;
        let shared = SharedFolder {
            path,
            below,
            data: folder.data().to_owned(),
            detached: AtomicBool::new(false),
            changes: Changes::default(),
            shown: Mutex::default(),
            host: OnceLock::new(),
        };
        // Private first: it must not go on receiving what is mounted on the host at that place.
        for flag in [MountPropagationFlags::PRIVATE, MountPropagationFlags::SHARED] {
            rustix::mount::mount_change(&shared.path, flag).map_err(refused("share", &shared.path))?;
        }
        let mount = rustix::fs::open(&shared.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(refused("open", &shared.path))?;
        let attributes = HARMLESS | libc::MOUNT_ATTR_RDONLY;
        set_attributes(&mount, attributes, 0, false).map_err(refused("make read-only", &shared.path))?;
        shared.folder(COMMON)?;
        Ok(shared)
    }

    /// The mount that the VMM gets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts a container's root and volumes. `container` has passed the check for container ids.
    ///
    /// # Errors
    /// [`MountError`]; what was mounted until then stays until the sandbox ends.
    pub fn lay_out(&self, container: &str, root: &Root, volumes: &[HostVolume]) -> Result<Layout, MountError> {
        self.folder(container)?;
        let root_name = format!("{container}/rootfs");
        self.folder(&root_name)?;
        let host_root = self.path.join(&root_name);
        match root {
            Root::Image(image) => self.overlay_image(container, &[], image, &host_root)?,
            Root::Saved { layers, image } => self.overlay_image(container, layers, image, &host_root)?,
            Root::Plain(path) => {
                let (_, tree) = self.look(path, Depth::ThisMount)?;
                attach(&tree, path, &host_root, false)?;
            }
            Root::Disk(disk) => {
                self.show(container, LAYERS, &disk.folders)?;
            }
            Root::Mounts(mounts) => mounts.iter().try_for_each(|mount| stack(mount, &host_root))?,
        }
        let guest_root = match root {
            Root::Disk(disk) => disk.guest_path(container),
            _ => Path::new(GUEST_SHARED).join(&root_name),
        };
        let guest_volumes = self.show(container, VOLUMES, volumes)?;
        Ok(Layout { host_root, guest_root, guest_volumes })
    }

    /// Shows the guest itself `volumes`, each by the last part of its path, which no two have in common. Call it once, before there are
    /// containers.
    ///
    /// # Errors
    /// [`MountError`], as [`SharedFolder::lay_out`] has it.
    pub fn show_to_guest(&self, volumes: &[HostVolume]) -> Result<(), MountError> {
        self.folder(FOR_GUEST)?;
        for volume in volumes {
            let source = self.look(&volume.source, depth(volume))?;
            let last = volume.source.file_name().unwrap_or_default();
            self.bind_at(&Path::new(FOR_GUEST).join(last), &source, volume)?;
        }
        Ok(())
    }

    /// From now on what is laid out is looked for in the mount namespace `host`: not all that is mounted there later arrives here. What
    /// Podman and CRI-O mount for a container does not.
    pub fn look_in(&self, host: OwnedFd) {
        // One is as good as another.
        let _ = self.host.set(host);
    }

    /// The file or folder at `path`, and a mount of it.
    fn look(&self, path: &Path, depth: Depth) -> Result<(HostPath, OwnedFd), MountError> {
        let look = || {
            let source = HostPath::open(path)?;
            let tree = source.tree(depth)?;
            Ok((source, tree))
        };
        let Some(host) = self.host.get() else { return look() };
        // Only a thread with nobody beside it may be elsewhere.
        let elsewhere = || {
            unshare(CloneFlags::CLONE_FS).map_err(refused("look for", path))?;
            setns(host, CloneFlags::CLONE_NEWNS).map_err(refused("look for", path))?;
            look()
        };
        let found = std::thread::scope(|scope| scope.spawn(elsewhere).join());
        found.unwrap_or_else(|_| Err(refused("look for", path)(io::Error::other("the thread has panicked"))))
    }

    /// Shows `source` at `name`, which it makes.
    fn bind_at(&self, name: &Path, source: &(HostPath, OwnedFd), volume: &HostVolume) -> Result<(), MountError> {
        let (source, tree) = source;
        if source.is_folder {
            self.folder(name)?
        } else {
            self.file(name)?
        }
        attach(tree, &source.path, &self.path.join(name), volume.read_only)
    }

    /// Shows `volumes` in the folder `name` of a container's place, or where another container has the same; where they are in the guest.
    fn show(&self, container: &str, name: &str, volumes: &[HostVolume]) -> Result<Vec<PathBuf>, MountError> {
        let folder = format!("{container}/{name}");
        if !volumes.is_empty() {
            self.folder(&folder)?;
        }
        let mut names = Vec::new();
        for (number, volume) in volumes.iter().enumerate() {
            let source = self.look(&volume.source, depth(volume))?;
            let is_common = name == VOLUMES && source.0.is_folder && !volume.read_only;
            // On a kernel that does not tell mounts apart each has its own.
            let common = is_common.then(|| shown::Folder::of(&source.0.fd, volume.recursive).ok()).flatten();
            names.push(match common {
                Some(common) => self.show_common(container, common, &source, volume)?,
                None => {
                    let name = Path::new(&folder).join(number.to_string());
                    self.bind_at(&name, &source, volume)?;
                    name
                }
            });
        }
        let shown = names.iter().map(|name| Path::new(GUEST_SHARED).join(name)).collect();
        if name == VOLUMES {
            self.shown().note(container, names);
        }
        Ok(shown)
    }

    /// Shows a folder where another container has it, or where others may have it as well.
    fn show_common(
        &self,
        container: &str,
        folder: shown::Folder,
        source: &(HostPath, OwnedFd),
        volume: &HostVolume,
    ) -> Result<PathBuf, MountError> {
        // Nobody else may have it before it is mounted.
        let mut shown = self.shown();
        if let Some(name) = shown.join(&folder, container) {
            return Ok(name);
        }
        let name = Path::new(COMMON).join(shown.number().to_string());
        let bound = self.bind_at(&name, source, volume);
        if bound.is_err() {
            let _ = rustix::fs::unlinkat(&self.below, &name, AtFlags::REMOVEDIR);
        }
        bound?;
        shown.add(folder, container, name.clone());
        Ok(name)
    }

    /// Where the first `count` volumes of what is laid out as `place` are, below the shared folder.
    pub fn volumes(&self, place: &str, count: usize) -> Vec<String> {
        let shown = self.shown();
        let first = shown.volumes(place).iter().take(count);
        first.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// From now on, who watches files of the first `count` volumes in the guest is told when somebody on the host changes them: those
    /// laid out as `place` for the container that the agent knows as `container`. Call it inside a runtime; it does not wait.
    pub fn tell_changes(&self, place: &str, container: &str, count: usize, guest: &Guest) {
        if count > 0 {
            self.changes.watch(&self.path, container, place, self.volumes(place, count), guest);
        }
    }

    /// Unmounts what was laid out for `container`, as far as it was, and removes what was made for it. The container must
    /// be gone from the guest.
    ///
    /// # Errors
    /// [`MountError::Refused`] with the first thing that could not be taken away.
    pub fn clear(&self, container: &str) -> Result<(), MountError> {
        self.changes.forget(container);
        let place = self.path.join(container);
        let mut targets = vec![place.join("rootfs")];
        targets.extend(self.shown().leave(container).iter().map(|name| self.path.join(name)));
        for folder in [VOLUMES, LAYERS] {
            if let Ok(shown) = std::fs::read_dir(place.join(folder)) {
                targets.extend(shown.filter_map(|entry| Some(entry.ok()?.path())));
            }
        }
        if let Ok(shown) = std::fs::read_dir(place.join(LAYERS)) {
            for entry in shown.filter_map(Result::ok) {
                // What remains of them concerns who looks at the folder later; the container must go nevertheless.
                if let Err(error) = overlay_marks::rewrite(&entry.path()) {
                    log::warn!("overlayfs's marks in {} are left as the guest's: {error}", entry.path().display());
                }
            }
        }
        for target in &targets {
            // More than one may lie over the other; EINVAL says that none is left.
            while rustix::mount::unmount(target, UnmountFlags::DETACH).is_ok() {}
        }
        let remove = |name: &Path, flags: AtFlags| match rustix::fs::unlinkat(&self.below, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        };
        for target in &targets {
            let name = target.strip_prefix(&self.path).unwrap_or(target);
            match remove(name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTDIR) => remove(name, AtFlags::empty()),
                result => result,
            }
            .map_err(refused("remove", target))?;
        }
        let own = Path::new(container);
        for name in [own.join(VOLUMES), own.join(LAYERS), own.to_owned()] {
            remove(&name, AtFlags::REMOVEDIR).map_err(refused("remove", &name))?;
        }
        let own = self.data.join(container);
        remove_tree(&own).map_err(refused("remove", &own))
    }

    /// Takes it away with everything in it, here and in the VMM's namespace. A thread that is still laying out a container
    /// finds its place gone.
    pub fn detach(&self) {
        self.changes.stop();
        if !self.detached.swap(true, Ordering::AcqRel)
            && let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
        {
            log::warn!("cannot unmount {}: {error}", self.path.display());
        }
    }

    /// Mounts the layers of an unpacked image, over them the folders `above`, the uppermost first, and over all of them one that is written to.
    fn overlay_image(&self, container: &str, above: &[PathBuf], image: &Path, target: &Path) -> Result<(), MountError> {
        let layers = image::layers_of(image).map_err(refused("find the layers of", image))?;
        let lower: Vec<&Path> = above.iter().chain(&layers).map(PathBuf::as_path).collect();
        self.overlay(container, &lower, target)
    }

    /// Mounts folders one over the other, the first of `lower` uppermost, and over all of them one that is written to.
    fn overlay(&self, container: &str, lower: &[&Path], target: &Path) -> Result<(), MountError> {
        let own = self.data.join(container);
        let (upper, work) = (own.join("upper"), own.join("work"));
        for folder in [&own, &upper, &work] {
            DirBuilder::new().mode(0o755).create(folder).map_err(refused("create", folder))?;
        }
        // The upper folder becomes the container's `/`, and must look as the image's does.
        copy_mode(lower[0], &upper).map_err(refused("set the mode of", &upper))?;
        // The folders may lie on different file systems: a file's number must nevertheless be the same after its first change.
        let options = if lower.len() > 1 { ",xino=auto" } else { "" };
        let overlay = Overlay { lower, upper: &upper, work: &work, options };
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        overlay.mount(target, flags).map_err(refused("mount an overlay of", lower[0]))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, name: impl AsRef<Path>) -> Result<(), MountError> {
        let name = name.as_ref();
        rustix::fs::mkdirat(&self.below, name, Mode::from_raw_mode(0o755)).map_err(refused("create", name))
    }

    fn file(&self, name: &Path) -> Result<(), MountError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.below, name, flags, Mode::from_raw_mode(0o644))
            .map(drop)
            .map_err(refused("create", name))
    }
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What every mount for a guest is on the host.
const HARMLESS: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// How much of a tree is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Not what is mounted below it.
    ThisMount,
    /// What is mounted below it, too.
    Everything,
}

fn depth(volume: &HostVolume) -> Depth {
    if volume.recursive { Depth::Everything } else { Depth::ThisMount }
}

/// Shows at `target` a mount of `source`. Later mounts below `source` on the host do not show.
fn attach(tree: &OwnedFd, source: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
    let attributes = if read_only { HARMLESS | libc::MOUNT_ATTR_RDONLY } else { HARMLESS };
    set_attributes(tree, attributes, libc::MS_PRIVATE, true).map_err(refused("bind", source))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", rustix::fs::CWD, target, flags).map_err(refused("bind", source))
}

/// Mounts `mount` on `target`, over what is there.
fn stack(mount: &FsMount, target: &Path) -> Result<(), MountError> {
    if !mount.is_bind() {
        return mount.mount(target).map_err(refused("mount the container's root from", &mount.source));
    }
    let sorted = mount.sorted();
    let depth = if sorted.recursive { Depth::Everything } else { Depth::ThisMount };
    attach(&HostPath::open(&mount.source)?.tree(depth)?, &mount.source, target, sorted.read_only)
}

/// mount_setattr(2) on the mount that `mount` is the root of, and with `recursive` on those below it.
fn set_attributes(mount: &OwnedFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, and the structure is valid and as large as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn refused<'p, E: Into<io::Error>>(action: &'static str, path: &'p Path) -> impl FnOnce(E) -> MountError + 'p {
    move |source| MountError::Refused { action, path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_host_path_is_named() {
        let error = HostPath::open(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn files_and_folders_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(HostPath::open(dir.path()).unwrap().is_folder());
        assert!(!HostPath::open(&file).unwrap().is_folder());
    }
}
