//! A sandbox that runs, written to a folder, and what is found in one.
//!
//! | file | holds |
//! |---|---|
//! | `memory`, `state` | the machine, as the VMM writes it ([`tatami_vmm::snapshot`]) |
//! | `layers/<n>` | what the container wrote: the upper folders of its overlay, 0 the uppermost |
//! | `sandbox.json` | everything else ([`Saved`]) |
//!
//! The folder is written under another name and renamed when it is whole, and never changed. Any number of sandboxes may go on
//! from it at once: memory is mapped copy-on-write, and the layers lie below an upper folder of each one's own. The machine
//! stands still while its memory and the upper folder are written, so that both are of one moment. Knows nothing of who asks.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use tatami_vmm::snapshot::Snapshot;
use tatami_vmm::{MemoryKind, VmConfig};

use super::Settings;
use super::copy::{CopyError, copy_tree};
use super::kept::Record;
use super::mounts::{HostVolume, MountError, Root, SharedFolder};
use super::remove::remove_tree;
use super::root_disk::RootDisk;
use super::vm::{VmError, VmOrder, VmWatch};
use crate::guest_files::GuestFile;
use crate::image::{self, ImageError};

/// Raised whenever the meaning of `sandbox.json` changes.
const FORMAT: u32 = 3;
const MEMORY: &str = "memory";
const STATE: &str = "state";
const LAYERS: &str = "layers";
const DESCRIPTION: &str = "sandbox.json";

/// Why a sandbox is not saved. It goes on.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Nothing is overwritten.
    #[error("{} is there already: choose another folder, or remove it", .0.display())]
    Exists(PathBuf),
    /// Somebody is at it, or was killed.
    #[error("{} is there already: another save is under way, or one was broken off; remove it in that case", .0.display())]
    Partial(PathBuf),
    /// The file system would not.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What the container wrote.
    #[error("what the container wrote: {0}")]
    Copy(#[from] CopyFailure),
    /// The machine.
    #[error("cannot write the machine to {}: {source}", path.display())]
    Machine {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: VmError,
    },
}

/// Says which file of the container's could not be copied.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CopyFailure(#[from] CopyError);

/// Why no sandbox can go on from a folder.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file is not there, or cannot be read.
    #[error("{} is no saved sandbox: cannot read {}: {source}", folder.display(), path.display())]
    File {
        /// The folder that was named.
        folder: PathBuf,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Cut short, or somebody else's.
    #[error("{} is damaged ({source}): save the sandbox again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another version's.
    #[error("{} was written by another version of tatami (format {found}, this one has {FORMAT}): restore it with that one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The image is gone.
    #[error("the unpacked image {} is gone: run {image} once, which unpacks it again", path.display())]
    Image {
        /// Where it was.
        path: PathBuf,
        /// As it was named.
        image: String,
    },
    /// It cannot be kept from being removed.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The guest knows what was on it.
    #[error("the guest's root is on {disk}, which has changed since it was saved: bring it back as it was")]
    RootDisk {
        /// Its image.
        disk: GuestFile,
    },
    /// Programs in the guest know what their processor can do.
    #[error("{} was saved on another processor: {reason}", folder.display())]
    Processor {
        /// The folder that was named.
        folder: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The shared folder.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// What is to be known of a saved sandbox beside machine and files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    format: u32,
    /// The container's record when it was saved.
    pub record: Record,
    /// The machine's configuration.
    pub vm: VmConfig,
    /// How long the guest may take to answer.
    pub boot_limit: Duration,
    /// What the container's folders are called in the shared folder.
    pub place: String,
    /// The unpacked image.
    pub image: PathBuf,
    /// How many of `layers` there are.
    layers: usize,
    /// The volumes, in the order of their numbers.
    pub volumes: Vec<HostVolume>,
    /// How many of them are watched for changes.
    pub watched: usize,
    /// The volume that is in the sandbox's own folder, and what it holds.
    own_volume: Option<(PathBuf, String)>,
    /// What its front end says of its network, for itself to read.
    pub network: serde_json::Value,
    /// The disk that the guest's own root is on, if it is on one.
    root_disk: Option<RootDisk>,
    /// Files in the layers that were open, below the root.
    open: Vec<String>,
    processor: Processor,
}

/// What a container's root was made of, for [`Saver::new`].
#[derive(Clone, Debug)]
pub struct Ingredients {
    /// What its folders are called in the shared folder.
    pub place: String,
    /// Its root.
    pub root: Root,
    /// Its volumes.
    pub volumes: Vec<HostVolume>,
    /// How many of them are watched for changes.
    pub watched: usize,
    /// It has block devices of the host.
    pub devices: bool,
    /// What its front end is to know of its network when it goes on.
    pub network: serde_json::Value,
}

/// Saves one sandbox, whenever it is asked to.
pub struct Saver {
    vm: VmWatch,
    /// Uppermost first; the first one is written to as long as the machine runs.
    layers: Vec<PathBuf>,
    description: Saved,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Saver {
    /// For the sandbox with this machine and data folder, whose only container is as `record` and `of` say.
    ///
    /// # Errors
    /// Says what of it cannot be saved, and what to do instead.
    pub fn new(
        (vm, settings): (VmWatch, &Settings),
        data: &Path,
        record: Record,
        of: Ingredients,
    ) -> Result<Saver, String> {
        let config = &settings.vm;
        let refuse = |what: &str, instead: &str| Err(format!("a sandbox with {what} cannot be saved: {instead}"));
        if config.memory_kind == MemoryKind::File {
            return refuse("its memory in a file", "run it without --memory-backing file:…");
        }
        let Ok(root_disk) = RootDisk::of(settings) else {
            return refuse("a guest on a disk that cannot be found again", "name its image with --initrd");
        };
        if of.devices {
            return refuse("a block device", "run it without --device");
        }
        if !config.vhost_user.is_empty() {
            return refuse("files that another process serves", "run it without --vhost-user-fs");
        }
        let upper = data.join(&of.place).join("upper");
        let (layers, image) = match of.root {
            Root::Image(image) => (vec![upper], image),
            Root::Saved { layers, image } => (std::iter::once(upper).chain(layers).collect(), image),
            Root::Disk(_) => return refuse("its root on a disk", "run it from an image"),
            Root::Plain(_) | Root::Mounts(_) => return refuse("a folder for its root", "run it from an image"),
        };
        let description = Saved {
            format: FORMAT,
            record,
            vm: config.clone(),
            boot_limit: settings.boot_limit,
            place: of.place,
            image,
            layers: layers.len(),
            own_volume: own_volume(&of.volumes),
            volumes: of.volumes,
            watched: of.watched,
            network: of.network,
            root_disk,
            open: Vec::new(),
            processor: Processor::of_this_host(),
        };
        Ok(Saver { vm, layers, description, turn: tokio::sync::Mutex::default() })
    }

    /// Writes the sandbox to `folder`, an absolute path, and has it go on. If that fails, nothing is left of it.
    ///
    /// # Errors
    /// [`SaveError`].
    pub async fn save(&self, folder: &Path) -> Result<(), SaveError> {
        let _turn = self.turn.lock().await;
        if fs::symlink_metadata(folder).is_ok() {
            return Err(SaveError::Exists(folder.to_owned()));
        }
        let mut partial = folder.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        match DirBuilder::new().mode(0o700).create(&partial) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(SaveError::Partial(partial)),
            result => result.map_err(file_error(&partial))?,
        }
        let written = self.write(&partial).await.and_then(|()| {
            let renamed =
                rustix::fs::renameat_with(rustix::fs::CWD, &partial, rustix::fs::CWD, folder, RenameFlags::NOREPLACE);
            renamed.map_err(|errno| file_error(folder)(errno.into()))
        });
        if written.is_err()
            && let Err(error) = remove_tree(&partial)
        {
            log::warn!("{} cannot be removed: {error}", partial.display());
        }
        written
    }

    async fn write(&self, folder: &Path) -> Result<(), SaveError> {
        let create = |name: &str| {
            let path = folder.join(name);
            let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            opened.map_err(file_error(&path))
        };
        let files = Snapshot { memory: create(MEMORY)?, state: create(STATE)? };
        let layers = folder.join(LAYERS);
        DirBuilder::new().mode(0o700).create(&layers).map_err(file_error(&layers))?;
        let machine = |source| SaveError::Machine { path: folder.to_owned(), source };
        self.vm.order(VmOrder::Pause).await.map_err(machine)?;
        // Nothing changes now. It goes on whatever comes of this.
        let upper = match self.vm.order(VmOrder::Save(files)).await {
            Ok(()) => self.copy(0, &layers).await,
            Err(error) => Err(machine(error)),
        };
        let open = self.open_files();
        self.vm.order(VmOrder::Resume).await.map_err(machine)?;
        upper?;
        for number in 1..self.layers.len() {
            self.copy(number, &layers).await?;
        }
        let description = Saved { open, ..self.description.clone() };
        let path = folder.join(DESCRIPTION);
        let text = serde_json::to_vec(&description).map_err(|error| file_error(&path)(error.into()))?;
        fs::write(&path, text).map_err(file_error(&path))?;
        let opened = File::open(folder).map_err(file_error(folder))?;
        // What is found later under its name must be there after a crash of the host, too.
        let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(opened)).await.map_err(io::Error::from);
        synced.and_then(|synced| Ok(synced?)).map_err(file_error(folder))
    }

    async fn copy(&self, number: usize, layers: &Path) -> Result<(), SaveError> {
        let (from, to) = (self.layers[number].clone(), layers.join(number.to_string()));
        let copied = tokio::task::spawn_blocking(move || copy_tree(&from, &to)).await;
        let copied = copied.map_err(|error| file_error(layers)(error.into()))?;
        Ok(copied.map_err(CopyFailure::from)?)
    }

    /// What the guest has open of the files in the layers, as far as names say it.
    fn open_files(&self) -> Vec<String> {
        let process = PathBuf::from(format!("/proc/{}", self.vm.pid()));
        let root = Path::new("/").join(&self.description.place).join("rootfs");
        let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let found: BTreeSet<String> = entries
            .filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                let below = target.strip_prefix(&root).ok()?;
                let is_file = |layer: &PathBuf| {
                    fs::symlink_metadata(layer.join(below)).is_ok_and(|metadata| metadata.file_type().is_file())
                };
                let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).ok()?;
                let is_found = !is_path_only(&info) && self.layers.iter().any(is_file);
                is_found.then(|| below.to_str().map(str::to_owned)).flatten()
            })
            .collect();
        found.into_iter().collect()
    }
}

/// Whether a descriptor was opened to name a file only, as `/proc/<pid>/fdinfo/<n>` says it.
fn is_path_only(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u64::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH as u64 != 0)
}

/// The volume that lies beside the shared folder, which goes with the sandbox.
fn own_volume(volumes: &[HostVolume]) -> Option<(PathBuf, String)> {
    let is_own = |volume: &&HostVolume| volume.source.ends_with(OWN_VOLUME) && volume.read_only && !volume.recursive;
    let source = &volumes.iter().find(is_own)?.source;
    Some((source.clone(), fs::read_to_string(source).ok()?))
}

/// What such a volume is called.
pub const OWN_VOLUME: &str = "resolv.conf";

impl Saved {
    /// Reads what `folder` says, and looks whether this host has what it takes.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn read(folder: &Path) -> Result<Saved, RestoreError> {
        let path = folder.join(DESCRIPTION);
        let text = fs::read(&path).map_err(unreadable(folder, &path))?;
        let damaged = |source| RestoreError::Damaged { path: path.clone(), source };
        let any: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        let found = any["format"].as_u64().and_then(|found| u32::try_from(found).ok()).unwrap_or(0);
        if found != FORMAT {
            return Err(RestoreError::Version { path, found });
        }
        let saved: Saved = serde_json::from_value(any).map_err(damaged)?;
        if !is_plain(&saved.place) {
            let source = serde::de::Error::custom(format!("{:?} is no folder of a container's", saved.place));
            return Err(RestoreError::Damaged { path, source });
        }
        // One after the other: there may not be as many as it says.
        let layers = (0..saved.layers).map(|number| layer(folder, number));
        for path in [folder.join(MEMORY), folder.join(STATE)].into_iter().chain(layers) {
            File::open(&path).map_err(unreadable(folder, &path))?;
        }
        if !saved.image.is_dir() {
            return Err(RestoreError::Image { path: saved.image, image: saved.record.image });
        }
        if let Some(disk) = &saved.root_disk {
            let file = disk.file();
            let path = PathBuf::from(file.to_string());
            if !disk.is_the_same().map_err(unreadable(folder, &path))? {
                return Err(RestoreError::RootDisk { disk: file });
            }
        }
        let missing = saved.processor.missing_in(&Processor::of_this_host());
        match missing {
            Some(reason) => Err(RestoreError::Processor { folder: folder.to_owned(), reason }),
            None => Ok(saved),
        }
    }

    /// The image of the disk that the guest's own root is on, if it is on one.
    pub fn root_disk(&self) -> Option<GuestFile> {
        self.root_disk.as_ref().map(RootDisk::file)
    }

    fn layers(&self, folder: &Path) -> Vec<PathBuf> {
        (0..self.layers).map(|number| layer(folder, number)).collect()
    }

    /// Lays the container out in `shared` as it was, with a fresh upper folder; `state` is the new sandbox's folder in memory. To be
    /// done before the machine goes on, which has the files open.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub(super) fn lay_out(
        &self,
        folder: &Path,
        shared: &SharedFolder,
        state: &Path,
    ) -> Result<Ingredients, RestoreError> {
        let mut volumes = self.volumes.clone();
        if let Some((old, text)) = &self.own_volume {
            let path = state.join(OWN_VOLUME);
            fs::write(&path, text).map_err(unreadable(folder, &path))?;
            volumes
                .iter_mut()
                .filter(|volume| volume.source == *old)
                .for_each(|volume| volume.source.clone_from(&path));
        }
        // Where it is no image that was unpacked here, nobody removes it either.
        image::hold(&self.image)?;
        let root = Root::Saved { layers: self.layers(folder), image: self.image.clone() };
        let layout = shared.lay_out(&self.place, &root, &volumes)?;
        // A file of a lower layer that is open for reading when it is opened for writing would be two files from then on.
        for name in &self.open {
            let path = layout.host_root.join(name);
            copy_up(&layout.host_root, name).map_err(|errno| unreadable(folder, &path)(errno.into()))?;
        }
        let (place, watched, network) = (self.place.clone(), self.watched, self.network.clone());
        Ok(Ingredients { place, root, volumes, watched, devices: false, network })
    }
}

fn layer(folder: &Path, number: usize) -> PathBuf {
    folder.join(LAYERS).join(number.to_string())
}

/// Whether it names something in a folder, and nothing beyond.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Has overlayfs bring a file to the upper folder.
fn copy_up(root: &Path, name: &str) -> rustix::io::Result<()> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == FileType::RegularFile { Ok(()) } else { Err(rustix::io::Errno::INVAL) }
}

/// The machine in `folder`.
///
/// # Errors
/// [`RestoreError::File`].
pub(super) fn open(folder: &Path) -> Result<Snapshot, RestoreError> {
    let open = |name| {
        let path = folder.join(name);
        File::open(&path).map_err(unreadable(folder, &path))
    };
    Ok(Snapshot { memory: open(MEMORY)?, state: open(STATE)? })
}

/// What of the host's processor the guest's programs have found out about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Processor {
    vendor: String,
    model: String,
    features: BTreeSet<String>,
}

impl Processor {
    fn of_this_host() -> Processor {
        Processor::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// Of the first of the processors, which are alike.
    fn parse(text: &str) -> Processor {
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key));
            found.map_or("", |(_, value)| value.trim())
        };
        let features = value("flags").split_whitespace().map(str::to_owned).collect();
        // POWER's are told by one line, and what its revisions are by another.
        let either = |first, second| match value(first) {
            "" => value(second).to_owned(),
            found => found.to_owned(),
        };
        Processor { vendor: either("vendor_id", "cpu"), model: either("model name", "revision"), features }
    }

    /// Why what ran here cannot go on there.
    fn missing_in(&self, there: &Processor) -> Option<String> {
        let missing: Vec<&str> = self.features.difference(&there.features).map(String::as_str).collect();
        if self.vendor == there.vendor && missing.is_empty() {
            return None;
        }
        let lacks = if missing.is_empty() { String::new() } else { format!(", which lacks {}", missing.join(" ")) };
        Some(format!("{} {}, and this is {} {}{lacks}", self.vendor, self.model, there.vendor, there.model))
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> SaveError + '_ {
    move |source| SaveError::File { path: path.to_owned(), source }
}

fn unreadable<'p>(folder: &'p Path, path: &'p Path) -> impl FnOnce(io::Error) -> RestoreError + 'p {
    move |source| RestoreError::File { folder: folder.to_owned(), path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use tatami_vmm::RootDisk;

    use super::*;
    use crate::sandbox::Beginning;
    use crate::sandbox::kept::tests::record;

    const INFO: &str = "processor\t: 0\nvendor_id\t: A\nmodel name\t: One\nflags\t\t: fpu sse\n\nprocessor\t: 1\n";

    #[test]
    fn a_processor_that_can_do_more_will_do() {
        let one = Processor::parse(INFO);
        assert_eq!((one.vendor.as_str(), one.model.as_str(), one.features.len()), ("A", "One", 2));
        let better = Processor::parse(&INFO.replace("sse", "sse avx"));
        assert_eq!(one.missing_in(&better), None);
        assert!(better.missing_in(&one).unwrap().ends_with("which lacks avx"));
        assert!(
            one.missing_in(&Processor::parse(&INFO.replace(": A", ": B"))).unwrap().contains("A One, and this is B")
        );
    }

    #[test]
    fn a_processor_of_another_generation_will_not_do() {
        let power9 =
            "processor\t: 0\ncpu\t\t: POWER9 (architected), altivec supported\nrevision\t: 2.0 (pvr 004e 1200)\n";
        let power9 = Processor::parse(power9);
        let power10 = "processor\t: 0\ncpu\t\t: POWER10 (architected)\nrevision\t: 2.0 (pvr 0080 0200)\n";
        let told = power9.missing_in(&Processor::parse(power10)).unwrap();
        assert!(
            told.starts_with("POWER9 ") && told.ends_with("this is POWER10 (architected) 2.0 (pvr 0080 0200)"),
            "{told}"
        );
        assert_eq!(power9.missing_in(&power9), None);
    }

    #[test]
    fn descriptors_that_only_name_a_file_are_told_apart() {
        assert!(is_path_only("pos:\t0\nflags:\t012100000\nmnt_id:\t29\n"));
        assert!(!is_path_only("pos:\t0\nflags:\t0100002\nmnt_id:\t29\n"));
    }

    fn ingredients(root: Root) -> Ingredients {
        let network = serde_json::Value::Null;
        Ingredients { place: "1".to_owned(), root, volumes: Vec::new(), watched: 0, devices: false, network }
    }

    fn saver(vm: &VmConfig, root: Root) -> Result<Saver, String> {
        let watch = crate::sandbox::vm::tests::watch();
        let initrd = GuestFile::Embedded(b"");
        let settings = Settings {
            vm: vm.clone(),
            beginning: Beginning::Boot { kernel: initrd.clone(), initrd, templates: None },
            memory_folder: None,
            served: Vec::new(),
            live_console: false,
            debug_console: false,
            boot_limit: Duration::from_secs(1),
        };
        Saver::new((watch, &settings), Path::new("/data"), record("0123456789ab", None), ingredients(root))
    }

    #[test]
    fn what_cannot_be_saved_is_said_with_what_to_do() {
        let plain = saver(&VmConfig::default(), Root::Plain("/x".into())).err().unwrap();
        assert!(plain.contains("folder") && plain.contains("image"), "{plain}");
        let on_disk = VmConfig { root_disk: Some(RootDisk::Plain), ..VmConfig::default() };
        let disk = saver(&on_disk, Root::Image("/x".into())).err().unwrap();
        assert!(disk.contains("--initrd"), "{disk}");
        let in_file = VmConfig { memory_kind: MemoryKind::File, ..VmConfig::default() };
        let file = saver(&in_file, Root::Image("/x".into())).err().unwrap();
        assert!(file.contains("--memory-backing"), "{file}");
        let vhost_user = vec![tatami_vmm::VhostUserKind::Files];
        let files = saver(&VmConfig { vhost_user, ..VmConfig::default() }, Root::Image("/x".into())).err().unwrap();
        assert!(files.contains("--vhost-user-fs"), "{files}");
    }

    #[test]
    fn a_folder_is_read_only_if_it_is_whole_and_of_this_version() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let told = || Saved::read(folder).unwrap_err().to_string();
        assert!(told().contains("no saved sandbox") && told().contains(DESCRIPTION), "{}", told());
        let saver = saver(&VmConfig::default(), Root::Image(folder.join("image"))).unwrap();
        let text = serde_json::to_vec(&saver.description).unwrap();
        fs::write(folder.join(DESCRIPTION), &text[..text.len() / 2]).unwrap();
        assert!(told().contains("damaged") && told().contains("again"), "{}", told());
        let other = String::from_utf8(text.clone()).unwrap().replace("\"format\":3", "\"format\":7");
        fs::write(folder.join(DESCRIPTION), other).unwrap();
        assert!(told().contains("another version") && told().contains("format 7"), "{}", told());
        fs::write(folder.join(DESCRIPTION), &text).unwrap();
        assert!(told().contains("memory"), "{}", told());
        fs::write(folder.join(MEMORY), "").unwrap();
        fs::write(folder.join(STATE), "").unwrap();
        fs::create_dir_all(folder.join("layers/0")).unwrap();
        assert!(told().contains("image.tar") && told().contains("is gone"), "{}", told());
        fs::create_dir(folder.join("image")).unwrap();
        assert_eq!(Saved::read(folder).unwrap().place, "1");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_done_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let saver = saver(&VmConfig::default(), Root::Image("/x".into())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = |folder: &Path| runtime.block_on(saver.save(folder)).unwrap_err().to_string();
        assert!(told(dir.path()).contains("is there already"));
        let folder = dir.path().join("saved");
        fs::create_dir(dir.path().join("saved.partial")).unwrap();
        assert!(told(&folder).contains("broken off"));
        fs::remove_dir(dir.path().join("saved.partial")).unwrap();
        // There is no machine.
        told(&folder);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(told(Path::new("/no/such/folder")).contains("/no/such/folder.partial"));
    }
}
