//! Unpacked layers, each of them there once for all images that have it over the same others.
//!
//! `<store>/layers/<name>/fs` is a layer as overlayfs reads it: what it removes from those below is marked so. It is made by writing onto a
//! mount of overlayfs, so links are followed, and files changed, as they will be seen. That mount is in no namespace that lasts, and goes
//! with who has it. As in the store of images, what has the right name is whole, and a lock has those wait for one another that want the
//! same. A layer that is in use is locked as well, shared.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};

use super::budget::Budget;
use super::digest::Digest;
use super::progress::Report;
use super::store::{at, lock, lock_folder, publish, remove};
use super::tree::Tree;
use super::{ImageError, Layer};
use crate::overlay::{Overlay, copy_mode};

/// An image has no more of them, whatever the number of its layers: their names are to fit into what mount(2) takes.
const MOST: usize = 100;
/// The layer's files in its folder.
const FILES: &str = "fs";
/// Overlayfs's own folder while a layer is made, and where it is mounted.
const WORK: &str = "work";
const AT: &str = "at";

/// Layers of an image that are unpacked together.
pub(super) struct Group<'a> {
    /// The same for the same layers over the same others: safe as a file's name.
    pub(super) name: String,
    /// The lowest first.
    pub(super) layers: &'a [Layer],
}

/// How `layers` are unpacked, the lowest first: each by itself, but where there are too many those at the bottom together; or all of
/// them together.
pub(super) fn groups(layers: &[Layer], together: bool) -> Vec<Group<'_>> {
    let first = if together { layers.len() } else { layers.len().saturating_sub(MOST - 1).max(1).min(layers.len()) };
    let mut chain = Digest::of(b"");
    let mut groups = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        // Image specification, config.md, "Layer ChainID".
        chain = match number {
            0 => layer.diff_id.clone(),
            _ => Digest::of(format!("{chain} {}", layer.diff_id).as_bytes()),
        };
        if number + 1 == first {
            groups.push(Group { name: name(&chain, first), layers: &layers[..first] });
        } else if number >= first {
            groups.push(Group { name: name(&chain, 1), layers: &layers[number..=number] });
        }
    }
    if layers.is_empty() {
        groups.push(Group { name: name(&chain, 0), layers });
    }
    groups
}

/// Files of several layers are no layer's.
fn name(chain: &Digest, layers: usize) -> String {
    if layers == 1 { chain.hex().to_owned() } else { format!("{}-{layers}", chain.hex()) }
}

/// Where unpacked layers are.
pub(super) struct Layers(PathBuf);

/// A layer that is there, and that nobody removes as long as this lives.
pub(super) struct Held {
    name: String,
    files: PathBuf,
    /// Holds the lock.
    _folder: File,
}

impl Held {
    fn find(folder: &Path, name: &str) -> Result<Option<Held>, ImageError> {
        let held = lock_folder(folder)?;
        Ok(held.map(|held| Held { name: name.to_owned(), files: folder.join(FILES), _folder: held }))
    }
}

impl Layers {
    /// Those below `store`.
    pub(super) fn of(store: &Path) -> Result<Layers, ImageError> {
        let folder = store.join("layers");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        Ok(Layers(folder))
    }

    /// The name of the layer whose files such a link leads to.
    pub(super) fn named_by(link: &Path) -> Option<&OsStr> {
        link.parent()?.file_name()
    }

    /// What a link in an image's folder of links has to say, to lead to the layer's files.
    pub(super) fn link_to(layer: &Held) -> PathBuf {
        Path::new("../../../layers").join(&layer.name).join(FILES)
    }

    /// The layer `name` over those `below`, the lowest first, which `fill` unpacks unless that was done before.
    ///
    /// # Errors
    /// [`ImageError::NoOverlay`] where layers cannot be unpacked over others; those of `fill`.
    pub(super) fn obtain(
        &self,
        name: &str,
        below: &[Held],
        report: &mut Report<'_>,
        mut fill: impl FnMut(&Tree, &Budget, &mut Report<'_>) -> Result<(), ImageError>,
    ) -> Result<Held, ImageError> {
        let finished = self.0.join(name);
        loop {
            if let Some(held) = Held::find(&finished, name)? {
                return Ok(held);
            }
            let _lock = lock(&self.lock_path(name), &mut || report.waiting())?;
            if finished.exists() {
                continue;
            }
            let partial = self.partial_path(name);
            remove(&partial)?;
            let made = make(&partial, below, |tree, budget| fill(tree, budget, report));
            if let Err(error) = made.and_then(|()| publish(&partial, &finished)) {
                // The first error is the one to tell; the next caller removes what stays now.
                let _ = remove(&partial);
                return Err(error);
            }
        }
    }

    /// Removes the layers that nobody holds and that `used` does not name.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub(super) fn sweep(&self, used: &dyn Fn() -> Result<HashSet<String>, ImageError>) -> Result<(), ImageError> {
        for entry in fs::read_dir(&self.0).map_err(at(&self.0))?.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            let (name, suffix) = file.split_once('.').unwrap_or((&file, ""));
            if suffix == "lock" {
                continue;
            }
            // Whoever unpacks it has its lock.
            let Some(_lock) = try_lock(&self.lock_path(name)) else { continue };
            let (folder, partial) = (self.0.join(name), self.partial_path(name));
            // What a killed one has left.
            remove(&partial)?;
            let Ok(open) = File::open(&folder) else { continue };
            // In this order: who takes it into an image holds it until the image names it.
            if open.try_lock().is_err() || used()?.contains(name) {
                continue;
            }
            // Without the right name at once: half of it must not be taken for the whole.
            fs::rename(&folder, &partial).map_err(at(&folder))?;
            remove(&partial)?;
        }
        Ok(())
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.lock"))
    }

    fn partial_path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.partial"))
    }
}

/// The lock, if nobody has it.
fn try_lock(path: &Path) -> Option<File> {
    let file = File::options().write(true).open(path).ok()?;
    file.try_lock().is_ok().then_some(file)
}

/// Makes the folder `partial` of a layer.
fn make(
    partial: &Path,
    below: &[Held],
    fill: impl FnOnce(&Tree, &Budget) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let files = partial.join(FILES);
    DirBuilder::new().mode(0o700).create(partial).map_err(at(partial))?;
    DirBuilder::new().mode(0o755).create(&files).map_err(at(&files))?;
    let opened = |root: &Path| {
        let tree = Tree::open(root).map_err(|error| at(root)(io::Error::other(error)))?;
        let budget = Budget::of(tree.root()).map_err(at(root))?;
        Ok((tree, budget))
    };
    let Some(uppermost) = below.last() else {
        let (tree, budget) = opened(&files)?;
        return fill(&tree, &budget);
    };
    copy_mode(&uppermost.files, &files).map_err(at(&files))?;
    let lower: Vec<&Path> = below.iter().rev().map(|layer| layer.files.as_path()).collect();
    let mount = mount(&lower, partial).map_err(ImageError::NoOverlay)?;
    let (tree, budget) = opened(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))?;
    fill(&tree, &budget)?;
    // The mount goes first.
    drop((tree, mount));
    for name in [WORK, AT] {
        remove(&partial.join(name))?;
    }
    Ok(())
}

/// A mount of the folders `lower`, the uppermost first, with the layer in `partial` over them, to write to; it is in no namespace.
fn mount(lower: &[&Path], partial: &Path) -> io::Result<OwnedFd> {
    let (upper, work, target) = (partial.join(FILES), partial.join(WORK), partial.join(AT));
    for folder in [&work, &target] {
        DirBuilder::new().mode(0o700).create(folder)?;
    }
    // Whatever this host's defaults are, a layer is to be whole without what only its upper folder's mount would understand.
    let options = ",index=off,metacopy=off,redirect_dir=off";
    let overlay = Overlay { lower, upper: &upper, work: &work, options };
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    apart(|| {
        overlay.mount(&target, flags)?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(rustix::mount::open_tree(CWD, &target, clone)?)
    })
}

/// Does `work` in a mount namespace of its own, which ends with it.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let elsewhere = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(elsewhere).join());
    done.unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
}

/// The files of several layers as they are seen.
#[cfg(test)]
pub(crate) struct View {
    path: PathBuf,
    _mount: Option<OwnedFd>,
    _upper: tempfile::TempDir,
}

#[cfg(test)]
impl View {
    pub(super) fn of(layers: &[PathBuf]) -> View {
        let upper = tempfile::tempdir().unwrap();
        let lower: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        // Where no overlay can be mounted, all layers are in one.
        let mount = (lower.len() > 1).then(|| {
            fs::create_dir(upper.path().join(FILES)).unwrap();
            copy_mode(lower[0], &upper.path().join(FILES)).unwrap();
            mount(&lower, upper.path()).unwrap()
        });
        let shown = mount.as_ref().map(|mount| PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())));
        View { path: shown.unwrap_or_else(|| lower[0].to_owned()), _mount: mount, _upper: upper }
    }
}

#[cfg(test)]
impl std::ops::Deref for View {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(count: usize) -> Vec<Layer> {
        let layer = |number: usize| Layer {
            file: String::new(),
            blob: None,
            diff_id: Digest::of(number.to_string().as_bytes()),
        };
        (0..count).map(layer).collect()
    }

    #[test]
    fn layers_have_the_names_that_the_specification_gives_them() {
        let layers = layers(3);
        let names: Vec<String> = groups(&layers, false).into_iter().map(|group| group.name).collect();
        let second = Digest::of(format!("{} {}", layers[0].diff_id, layers[1].diff_id).as_bytes());
        let third = Digest::of(format!("{second} {}", layers[2].diff_id).as_bytes());
        assert_eq!(names, [layers[0].diff_id.hex(), second.hex(), third.hex()]);
        let together = groups(&layers, true);
        assert_eq!((together.len(), together[0].layers.len()), (1, 3));
        assert_eq!(together[0].name, format!("{}-3", third.hex()));
    }

    #[test]
    fn too_many_and_none_are_groups_too() {
        for (count, expected, first) in [(0, 1, 0), (1, 1, 1), (MOST, MOST, 1), (MOST + 5, MOST, 6)] {
            for (together, expected, first) in [(false, expected, first), (true, 1, count)] {
                let layers = layers(count);
                let groups = groups(&layers, together);
                let all: usize = groups.iter().map(|group| group.layers.len()).sum();
                assert_eq!((groups.len(), groups[0].layers.len(), all), (expected, first, count), "{count}");
            }
        }
    }

    #[test]
    fn what_nobody_holds_or_names_is_swept() {
        let store = tempfile::tempdir().unwrap();
        let layers = Layers::of(store.path()).unwrap();
        let mut report_nothing = |_| {};
        let mut report = Report::new(&mut report_nothing, 0, 0);
        let mut obtain = |name: &str| layers.obtain(name, &[], &mut report, |_, _, _| Ok(())).unwrap();
        let held = obtain("held");
        drop((obtain("named"), obtain("neither"), obtain("killed")));
        fs::rename(layers.0.join("killed"), layers.0.join("killed.partial")).unwrap();
        let left = || {
            let mut names: Vec<_> = fs::read_dir(&layers.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.retain(|name| !name.to_str().unwrap().ends_with(".lock"));
            names.sort();
            names
        };
        layers.sweep(&|| Ok(HashSet::from(["named".to_owned()]))).unwrap();
        assert_eq!(left(), ["held", "named"]);
        drop(held);
        layers.sweep(&|| Ok(HashSet::new())).unwrap();
        assert!(left().is_empty());
    }
}
