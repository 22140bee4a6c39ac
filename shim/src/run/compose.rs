//! Makes a container's files and specification from what the command line and the image say.
//!
//! Knows which part is asked for what; the parts know how.

use std::fs::Permissions;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::image::Config;

use super::options::RunOptions;
use crate::image::{Image, ImageError, Progress, Tree, TreeError};
use crate::images::Stored;
use crate::sandbox::disk_root::DiskRoot;
use crate::sandbox::disks::DeviceImage;
use crate::sandbox::mounts::{HostVolume, Layout, MountError, Root, SharedFolder};
use crate::sandbox::saving::OWN_VOLUME;
use crate::spec::{self, Accounts, ContainerOptions, SpecError, Volume};

/// Why a container cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComposeError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("the container's root file system: {0}")]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("a disk image's users are known by their numbers only: give --user as UID or UID:GID, not {0:?}")]
    User(String),
    #[error("cannot write {path}: {1}", path = .0.display())]
    NameServers(PathBuf, #[source] std::io::Error),
    #[error("cannot write the container's specification: {0}")]
    Json(#[from] serde_json::Error),
}

/// Where the container's root comes from.
pub(crate) enum Base {
    /// An image in a file or folder, and the folder where unpacked ones are kept.
    Image(PathBuf, PathBuf),
    /// An image that has a name, and the same.
    Stored(Box<Stored>, PathBuf),
    /// A folder.
    Plain(PathBuf),
    /// A disk image.
    Disk(DiskRoot),
}

/// All that a container is made of.
pub(crate) struct Recipe {
    pub(super) base: Base,
    pub(super) volumes: Vec<HostVolume>,
    pub(super) devices: Vec<DeviceImage>,
    pub(super) options: ContainerOptions,
    /// The resolver's configuration, if it is not the image's.
    pub(super) resolv_conf: String,
}

/// A container that lies ready.
pub(crate) struct LaidOut {
    /// Its specification as the guest reads it, in JSON.
    pub(crate) spec: Vec<u8>,
    pub(crate) root: Root,
    /// Where this process sees its root; None where only the guest does.
    pub(crate) host_root: Option<PathBuf>,
    /// What the image says.
    pub(crate) stop_signal: Option<String>,
    /// What of the host it sees, in the order of the numbers.
    pub(crate) volumes: Vec<HostVolume>,
    /// Its block devices.
    pub(crate) devices: Vec<DeviceImage>,
}

impl Recipe {
    /// Takes from the command line what concerns the container; `resolv_conf` is the resolver's configuration, or empty. What the
    /// guest's paths are is found out by laying it out.
    pub(super) fn new(
        (base, volumes, devices): (Base, Vec<HostVolume>, Vec<(DeviceImage, spec::Device)>),
        files: Vec<spec::Files>,
        options: &RunOptions,
        resolv_conf: String,
    ) -> Recipe {
        let (devices, described) = devices.into_iter().unzip();
        let options = ContainerOptions {
            rootfs: PathBuf::new(),
            args: options.command.clone(),
            entrypoint: options.entrypoint.clone(),
            env: options.env.clone(),
            workdir: options.workdir.clone(),
            user: options.user.clone(),
            tty: options.tty,
            volumes: options
                .volumes
                .iter()
                .map(|volume| Volume {
                    guest_source: PathBuf::new(),
                    destination: volume.destination.clone(),
                    read_only: volume.read_only,
                })
                .collect(),
            files,
            devices: described,
            read_only: options.read_only,
            hostname: options.hostname.clone().unwrap_or_default(),
            isolation: options.isolation.clone(),
        };
        Recipe { base, volumes, devices, options, resolv_conf }
    }

    /// How many files and folders of the host the command line names.
    pub(crate) fn volumes(&self) -> usize {
        self.volumes.len()
    }

    /// With this host name, unless the command line gives one.
    pub(crate) fn named(mut self, hostname: String) -> Recipe {
        if self.options.hostname.is_empty() {
            self.options.hostname = hostname;
        }
        self
    }

    /// Opens, unpacks and mounts. Takes as long as the image is large.
    pub(crate) fn lay_out(mut self, container: &str, shared: &SharedFolder) -> Result<LaidOut, ComposeError> {
        let opened;
        let (root, image) = match &self.base {
            Base::Image(path, store) => {
                opened = Image::open(path)?;
                (unpack(&opened, store)?, Some(&opened))
            }
            Base::Stored(stored, store) => (unpack(&stored.image, store)?, Some(&stored.image)),
            Base::Plain(folder) => (Root::Plain(folder.clone()), None),
            Base::Disk(disk) => (Root::Disk(disk.clone()), None),
        };
        let image = image.map(|image| image.config().clone());
        // What is stored may be removed again, and only what was unpacked has to stay.
        if matches!(self.base, Base::Stored(..)) {
            self.base = Base::Plain(PathBuf::new());
        }
        self.show_name_servers(shared)?;
        let layout = shared.lay_out(container, &root, &self.volumes)?;
        let image = image.as_ref().and_then(|image| image.config().as_ref());
        let stop_signal = image.and_then(|image| image.stop_signal().clone());
        let (spec, host_root) = match root {
            Root::Disk(_) => (specify_unseen(self.options, layout)?, None),
            _ => {
                let host_root = layout.host_root.clone();
                (specify(self.options, layout, image)?, Some(host_root))
            }
        };
        Ok(LaidOut { spec, root, host_root, stop_signal, volumes: self.volumes, devices: self.devices })
    }
}

/// The file that programs look name servers up in.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Recipe {
    /// Binds a file with the resolver's configuration over the container's own, unless there is a volume in its place.
    fn show_name_servers(&mut self, shared: &SharedFolder) -> Result<(), ComposeError> {
        let taken = self.options.volumes.iter().any(|volume| volume.destination == Path::new(RESOLV_CONF));
        if self.resolv_conf.is_empty() || taken {
            return Ok(());
        }
        // Beside the shared folder, in the sandbox's own: it goes with it.
        let source = shared.path().with_file_name(OWN_VOLUME);
        std::fs::write(&source, &self.resolv_conf)
            .and_then(|()| std::fs::set_permissions(&source, Permissions::from_mode(0o644)))
            .map_err(|error| ComposeError::NameServers(source.clone(), error))?;
        // A guest that could write to it could fill this host's memory.
        self.volumes.push(HostVolume { source, read_only: true, recursive: false });
        let (guest_source, destination) = (PathBuf::new(), PathBuf::from(RESOLV_CONF));
        self.options.volumes.push(Volume { guest_source, destination, read_only: true });
        Ok(())
    }
}

/// A root that nobody removes while this process lives, whose only sandbox it is for.
fn unpack(image: &Image, store: &Path) -> Result<Root, ImageError> {
    Ok(Root::Image(image.unpack_into(store, &mut show)?.keep()))
}

/// Tells a person who waits, and nobody else.
fn show(progress: Progress) {
    if std::io::stderr().is_terminal() {
        eprintln!("tatami: {progress}");
    }
}

/// The specification of a container whose files lie there.
fn specify(mut options: ContainerOptions, layout: Layout, image: Option<&Config>) -> Result<Vec<u8>, ComposeError> {
    place(&mut options, &layout);
    let accounts = Accounts::read(&layout.host_root)?;
    let spec = spec::container(image, &accounts, &options)?;
    if let Some(process) = spec.process() {
        // As docker does: a working folder that is missing is made.
        Tree::open(&layout.host_root)?.make_folder(process.cwd())?;
    }
    Ok(serde_json::to_vec(&spec)?)
}

/// The same where the root's files are the guest's to see only: no names of users, no working folder made.
fn specify_unseen(mut options: ContainerOptions, layout: Layout) -> Result<Vec<u8>, ComposeError> {
    place(&mut options, &layout);
    if let Some(user) = &options.user
        && !user.split(':').all(|id| id.parse::<u32>().is_ok())
    {
        return Err(ComposeError::User(user.clone()));
    }
    Ok(serde_json::to_vec(&spec::container(None, &Accounts::default(), &options)?)?)
}

fn place(options: &mut ContainerOptions, layout: &Layout) {
    options.rootfs.clone_from(&layout.guest_root);
    for (volume, guest_source) in options.volumes.iter_mut().zip(&layout.guest_volumes) {
        volume.guest_source.clone_from(guest_source);
    }
}
