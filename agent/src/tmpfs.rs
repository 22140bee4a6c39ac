//! The tmpfs mounts of a container, as other runtimes have them: with the permissions of the folder in whose place they come, and, where
//! an engine asks for `tmpcopyup`, with what is in it.
//!
//! libcontainer knows neither. Permissions become an option of the mount. A tmpfs that is to be filled is mounted and filled here, before
//! the container is made, which then has a bind mount of it; so it begins with what the image has, not with what other mounts put there.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tatami_files::{CopyError, Destination, Form, Options};

use crate::copy;
use crate::error::Error;
use crate::storage::Plan;

const TMPFS: &str = "tmpfs";
/// With what engines ask for what is in the image.
const COPY_UP: &str = "tmpcopyup";

/// What is mounted to be filled. Dropping it unmounts it here; a container that was made meanwhile keeps what it has.
#[derive(Debug, Default)]
pub(crate) struct Tmpfses(Vec<Filled>);

#[derive(Debug)]
struct Filled {
    /// The folder of the image.
    source: OwnedFd,
    /// Where it is mounted.
    target: PathBuf,
}

impl Tmpfses {
    /// Gives `spec` tmpfs mounts that libcontainer can carry out, and mounts in `bundle` those that are to be [filled](Tmpfses::fill).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options that the kernel refuses, [`Error::Internal`] for the rest.
    pub(crate) fn mount(spec: &mut Spec, bundle: &Path) -> Result<Tmpfses, Error> {
        let mut all = Tmpfses::default();
        let Some(root) = spec.root().as_ref().map(|root| root.path().clone()) else { return Ok(all) };
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let has_users = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &root, flags, Mode::empty()).map_err(system("open the container's root"))?;
        for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| mount.typ().as_deref() == Some(TMPFS)) {
            let mut options = mount.options().clone().unwrap_or_default();
            let count = options.len();
            options.retain(|option| option != COPY_UP);
            let is_filled = options.len() < count;
            // As the container sees it. What cannot be opened is not there yet, or is for libcontainer to refuse.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(source) = openat2(&root, mount.destination(), flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                if !options.iter().any(|option| option.starts_with("mode=")) {
                    let mode = fstat(&source).map_err(system("look at a tmpfs's place"))?.st_mode;
                    options.push(format!("mode={:o}", mode & 0o7777));
                }
                if is_filled && has_users {
                    log::warn!("{}: empty, as the container has users of its own", mount.destination().display());
                } else if is_filled {
                    let target = bundle.join(format!("{TMPFS}-{}", all.0.len()));
                    // Of the two kinds of options, only the file system's have values.
                    let (own, of_mount) = options.into_iter().partition::<Vec<_>, _>(|option| option.contains('='));
                    all.mount_one(source, &target, &own)?;
                    mount.set_typ(Some("bind".to_owned())).set_source(Some(target));
                    options = of_mount;
                    options.push("bind".to_owned());
                }
            }
            mount.set_options(Some(options));
        }
        Ok(all)
    }

    /// Copies into each what is in the image in its place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the first file that cannot be copied: where it is too small, for instance.
    pub(crate) async fn fill(self) -> Result<Tmpfses, Error> {
        if self.0.is_empty() {
            return Ok(self);
        }
        let filled = tokio::task::spawn_blocking(move || match self.0.iter().try_for_each(Filled::fill) {
            Ok(()) => Ok(self),
            Err(error) => Err(Error::InvalidArgument(format!("{COPY_UP}: {error}"))),
        });
        filled.await.map_err(io::Error::from).map_err(Error::internal("fill a tmpfs"))?
    }

    fn mount_one(&mut self, source: OwnedFd, target: &Path, options: &[String]) -> Result<(), Error> {
        fs::create_dir_all(target).map_err(Error::internal(format!("create {}", target.display())))?;
        Plan::tmpfs(options)?.mount(target)?;
        self.0.push(Filled { source, target: target.to_owned() });
        Ok(())
    }
}

impl Filled {
    fn fill(&self) -> Result<(), CopyError> {
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.source.as_raw_fd()));
        let destination = Destination { path: self.target.clone(), name: Default::default(), form: Form::Contents };
        copy::within(&source, &destination, Options { owners: true, set_id: true })
    }
}

fn system(doing: &str) -> impl FnOnce(Errno) -> Error {
    move |cause| Error::internal(doing)(cause.into())
}

impl Drop for Tmpfses {
    fn drop(&mut self) {
        for Filled { target, .. } in &self.0 {
            if let Err(cause) = unmount(target, UnmountFlags::DETACH) {
                log::warn!("unmount {}: {cause}", target.display());
            }
        }
    }
}
