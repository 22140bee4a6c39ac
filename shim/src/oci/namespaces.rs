//! The namespaces of the process that stands for a container on the host. Engines look into a container by joining them: Podman does to
//! copy files and to list processes. They are to find the container's there, and not the host's.
//!
//! Its mount namespace has the container's root file system as the host shares it with the guest, with what is bind-mounted into it; its
//! process namespace has nobody but itself. Knows nothing of what the process does.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// What a container has of the host's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    root: PathBuf,
    read_only: bool,
    /// In this order.
    bound: Vec<Bound>,
}

/// A file or folder of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
}

/// A mount namespace with the root, in which the rest is still to be bound.
pub(super) struct Entered<'a> {
    trees: Vec<(OwnedFd, &'a Bound)>,
    read_only: bool,
}

impl Files {
    /// As the specification in `bundle` has it.
    pub(super) fn of(spec: &Spec, bundle: &Path) -> Files {
        let root = spec.root().as_ref();
        let path = root.map_or(Path::new("rootfs"), |root| root.path().as_path());
        let bound = spec.mounts().iter().flatten().filter_map(|mount| {
            let options = mount.options().as_deref().unwrap_or_default();
            let has = |word: &str| options.iter().any(|option| option == word);
            let is_bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
            let source = mount.source().clone().filter(|source| is_bind && source.is_absolute())?;
            Some(Bound { source, destination: mount.destination().clone(), read_only: has("ro") })
        });
        let read_only = root.and_then(|root| root.readonly()).unwrap_or(false);
        Files { root: bundle.join(path), read_only, bound: bound.collect() }
    }

    /// The root file system.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Moves this thread, the first of its process, to a mount namespace that has the root and nothing else of the host's. Threads that were
    /// there before stay where they are. What is to be bound in it comes back.
    ///
    /// # Errors
    /// When there is none with the root in it.
    pub(super) fn enter(&self) -> io::Result<Entered<'_>> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        // By the host's paths, as long as there are any.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let open = |bound: &Bound| open_tree(CWD, &bound.source, flags).ok();
        let trees = self.bound.iter().filter_map(|bound| Some((open(bound)?, bound))).collect();
        mount(Some(&self.root), &self.root, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        nix::unistd::chdir(&self.root)?;
        nix::unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")?;
        Ok(Entered { trees, read_only: self.read_only })
    }
}

impl Entered<'_> {
    /// Binds what is to be, in a container that has been made: before that, it has not all the folders that it is bound on. Where one is
    /// missing nevertheless, it is left out. A link in the container leads to something in the container.
    pub(super) fn bind(self) {
        for (tree, bound) in &self.trees {
            let moved = move_mount(tree, "", CWD, &bound.destination, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
            if moved.is_ok() && bound.read_only {
                make_read_only(&bound.destination);
            }
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let _ = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&Path>);
        if self.read_only {
            make_read_only(Path::new("/"));
        }
    }
}

/// As far as it goes: what cannot be made so was never mounted.
fn make_read_only(path: &Path) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    let _ = mount(None::<&Path>, path, None::<&Path>, flags, None::<&Path>);
}

/// Does `work`, the first process that it starts being the first of a process namespace of its own.
///
/// # Errors
/// When there is none to be had, or `work` fails.
pub(super) fn in_new_process_namespace<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let done = work();
    // Threads can be had again from here on.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_its_root_and_what_is_bound() {
        let spec = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true},"mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/a","type":"bind","source":"/h/a","options":["rbind","ro"]},
            {"destination":"/b","source":"/h/b","options":["bind"]},
            {"destination":"/c","type":"bind","source":"relative"}]}"#;
        let files = Files::of(&serde_json::from_str(spec).unwrap(), Path::new("/bundle"));
        assert_eq!((files.root(), files.read_only), (Path::new("/bundle/rootfs"), true));
        let bound: Vec<_> = files.bound.iter().map(|one| (one.source.to_str().unwrap(), one.read_only)).collect();
        assert_eq!(bound, [("/h/a", true), ("/h/b", false)]);
    }
}
