//! Volumes that the guest mounts itself, from a disk of the host's or in its own memory, or that are a disk themselves. All containers of
//! the sandbox that have one see the same files or bytes.
//!
//! A disk is the host's again when the last container that has it is gone; what is in memory stays as long as the sandbox, as its files
//! must. Knows nothing of how a specification asks for a volume.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tatami_protocol::agent::storage::Kind;
use tatami_protocol::agent::{BlockStorage, Group as GroupMessage, Storage, TmpfsStorage, Volume, VolumeFigures};
use tokio::sync::Mutex;

use super::Error;
use super::agent::AgentError;
use super::disk_root::{DiskFormat, GUEST_STORAGES, ImagePath};
use super::disks::{Disk, DiskError, Disks};
use super::guest::Guest;

/// What a volume's only storage is called.
const FILES: &str = "files";
/// How long whoever wants figures waits for others to be mounted.
const BRIEFLY: Duration = Duration::from_millis(300);

/// Why a container does not get a volume.
#[derive(Debug, thiserror::Error)]
#[error("the volume {}: {error}", path.display())]
pub struct VolumeError {
    /// The volume, as the host knows it.
    pub path: PathBuf,
    /// Why not.
    pub error: Error,
}

/// A volume that the guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestVolume {
    /// What it is called in the guest: the same for the same volume, and no number. Letters, digits and `-`.
    pub name: String,
    /// Where the host has it, for messages.
    pub source: PathBuf,
    /// What it is.
    pub files: Files,
}

/// A volume's file system, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// On a disk.
    OnDisk {
        /// The disk.
        image: ImagePath,
        /// What is on it.
        format: DiskFormat,
        /// Of the file system itself.
        options: Vec<String>,
        /// Whose its files are made.
        group: Option<Group>,
    },
    /// In the guest's memory, with these options of tmpfs.
    InMemory(Vec<String>),
    /// None: containers have the disk as a block device.
    Raw(ImagePath),
}

/// A group that may read and write all files of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub gid: u32,
    /// Where the volume's root is so already, nothing is changed.
    pub unless_root_is: bool,
}

/// The volumes that are mounted in a sandbox's guest. Cloning is cheap.
#[derive(Clone)]
pub struct Volumes {
    disks: Disks,
    mounted: Arc<Mutex<Vec<Mounted>>>,
}

struct Mounted {
    volume: GuestVolume,
    disk: Option<Disk>,
    /// The containers that have it.
    users: Vec<String>,
}

impl GuestVolume {
    /// Where its files are in the guest, once it is mounted.
    pub fn guest_path(&self) -> PathBuf {
        Path::new(GUEST_STORAGES).join(&self.name).join(FILES)
    }

    /// What the agent has to know of it, but for its disk.
    fn message(&self) -> Volume {
        let kind = match &self.files {
            Files::Raw(_) => return Volume { folder: self.name.clone(), ..Volume::default() },
            Files::OnDisk { image, format, options, group } => Kind::Block(BlockStorage {
                type_: format.name().to_owned(),
                read_only: image.read_only,
                options: options.clone(),
                group: group.map(Group::message).into(),
                ..BlockStorage::default()
            }),
            Files::InMemory(options) => {
                Kind::Tmpfs(TmpfsStorage { options: options.clone(), ..TmpfsStorage::default() })
            }
        };
        let storage = Storage { name: FILES.to_owned(), kind: Some(kind), ..Storage::default() };
        Volume { folder: self.name.clone(), storages: vec![storage], ..Volume::default() }
    }
}

impl Group {
    fn message(self) -> GroupMessage {
        let Group { gid, unless_root_is } = self;
        GroupMessage { gid, unless_root_is, ..GroupMessage::default() }
    }
}

impl Volumes {
    /// None yet; their disks take these slots.
    pub(super) fn new(disks: Disks) -> Volumes {
        Volumes { disks, mounted: Arc::default() }
    }

    /// Says which volume each of `figures` is about; those about none, as a guest may tell, are dropped.
    pub(super) async fn identify(&self, figures: &mut Vec<VolumeFigures>) {
        match tokio::time::timeout(BRIEFLY, self.mounted.lock()).await {
            Ok(mounted) => identify(&mounted, figures),
            Err(_) => figures.clear(),
        }
    }

    /// Has the guest mount those of `wanted` that it has not mounted yet. `container` has them from now on, until it
    /// [leaves](Volumes::leave), whatever comes out.
    ///
    /// # Errors
    /// [`VolumeError`], for the first that cannot be.
    pub async fn join(&self, guest: &Guest, wanted: &[GuestVolume], container: &str) -> Result<(), VolumeError> {
        let (all, guest, disks) = (self.mounted.clone(), guest.clone(), self.disks.clone());
        let (wanted, container) = (wanted.to_vec(), container.to_owned());
        to_the_end(async move {
            let mut all = all.lock().await;
            for volume in wanted {
                let path = volume.source.clone();
                let joined = join_one(&mut all, &guest, &disks, volume, &container).await;
                joined.map_err(|error| VolumeError { path, error })?;
            }
            Ok(())
        })
        .await
    }

    /// Has the volume that the host knows as `source` become `length` bytes long, as its disk has; whether there is one.
    ///
    /// # Errors
    /// [`VolumeError`], for one that cannot; it may be asked for again.
    pub async fn grow(&self, guest: &Guest, source: &Path, length: u64) -> Result<bool, VolumeError> {
        let (all, guest, path) = (self.mounted.clone(), guest.clone(), source.to_owned());
        to_the_end(async move {
            let mut all = all.lock().await;
            let Some(mounted) = all.iter_mut().find(|mounted| mounted.volume.source == path) else { return Ok(false) };
            grow_one(&guest, mounted, length).await.map_err(|error| VolumeError { path, error })?;
            Ok(true)
        })
        .await
    }

    /// `container` is gone from the guest: what nobody has any more is unmounted.
    pub async fn leave(&self, guest: &Guest, container: &str) {
        let (all, guest, container) = (self.mounted.clone(), guest.clone(), container.to_owned());
        to_the_end(async move {
            let mut all = all.lock().await;
            let mut kept = Vec::new();
            for mut mounted in all.drain(..) {
                mounted.users.retain(|user| *user != container);
                match mounted.disk.take() {
                    Some(disk) if mounted.users.is_empty() => {
                        if let Err((error, disk)) = unmount(&guest, &mounted.volume, disk).await {
                            // A guest that is gone has none.
                            if !error.is_of_dead_guest() {
                                log::warn!("the volume {}: {error}", mounted.volume.source.display());
                            }
                            kept.extend(disk.map(|disk| Mounted { disk: Some(disk), ..mounted }));
                        }
                    }
                    disk => kept.push(Mounted { disk, ..mounted }),
                }
            }
            *all = kept;
        })
        .await;
    }
}

impl Mounted {
    /// Whether another container may have it as `wanted` says.
    fn check_shares(&self, wanted: &GuestVolume) -> Result<(), DiskError> {
        match (&wanted.files, &self.volume.files) {
            (Files::OnDisk { image, .. }, mounted) if wanted.files != *mounted => {
                Err(DiskError::InUse(image.path.clone()))
            }
            // Who may only read one that is written is held to it by the rules for its devices.
            (Files::Raw(image), Files::Raw(mounted)) if mounted.read_only && !image.read_only => {
                Err(DiskError::InUse(image.path.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// The guest knows folders, of which each is one volume's; what the host calls that is for nobody else to say.
fn identify(mounted: &[Mounted], figures: &mut Vec<VolumeFigures>) {
    let mut unknown: HashMap<&str, &Path> =
        mounted.iter().map(|mounted| (&*mounted.volume.name, &*mounted.volume.source)).collect();
    figures.retain_mut(|figures| {
        let source = unknown.remove(&*figures.folder);
        figures.source = source.map(|source| source.display().to_string()).unwrap_or_default();
        source.is_some()
    });
}

/// Does `work` even when who waits for it gives up, as a client's deadline makes it: what is half mounted would be nobody's, and in
/// the way of the next that wants it.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn join_one(
    all: &mut Vec<Mounted>,
    guest: &Guest,
    disks: &Disks,
    volume: GuestVolume,
    container: &str,
) -> Result<(), Error> {
    let container = container.to_owned();
    match all.iter_mut().find(|mounted| mounted.volume.name == volume.name) {
        Some(mounted) => {
            mounted.check_shares(&volume)?;
            mounted.users.push(container);
        }
        None => {
            let disk = mount(guest, disks, &volume).await?;
            all.push(Mounted { volume, disk, users: vec![container] });
        }
    }
    Ok(())
}

async fn mount(guest: &Guest, disks: &Disks, volume: &GuestVolume) -> Result<Option<Disk>, Error> {
    let mut message = volume.message();
    let disk = match &volume.files {
        Files::Raw(image) | Files::OnDisk { image, .. } => Some(disks.attach(vec![image.open()?]).await?),
        Files::InMemory(_) => None,
    };
    message.disk = disk.as_ref().map(Disk::message).into();
    match (guest.call(guest.agent().mount_volume(message)).await, disk) {
        (Ok(()), disk) => Ok(disk),
        // Who refuses has let go of the disk.
        (Err(error @ Error::Agent(AgentError::Refused { .. })), Some(disk)) => {
            disk.detach().await?;
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

async fn grow_one(guest: &Guest, mounted: &mut Mounted, length: u64) -> Result<(), Error> {
    match (&mounted.volume.files, &mut mounted.disk) {
        (Files::Raw(_) | Files::OnDisk { format: DiskFormat::Ext4, .. }, Some(disk)) => {
            disk.grow(length).await?;
            guest.call(guest.agent().grow_volume(&mounted.volume.name, length)).await
        }
        _ => Err(DiskError::NotGrown.into()),
    }
}

/// Takes it from the guest; with the disk if the guest still has that.
async fn unmount(guest: &Guest, volume: &GuestVolume, disk: Disk) -> Result<(), (Error, Option<Disk>)> {
    match guest.call(guest.agent().unmount_volume(&volume.name)).await {
        Ok(()) => disk.detach().await.map_err(|error| (error.into(), None)),
        Err(error) => Err((error, Some(disk))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_disk(read_only: bool) -> GuestVolume {
        let image = ImagePath { path: "/dev/sdb".into(), read_only };
        let group = Some(Group { gid: 7, unless_root_is: true });
        let files = Files::OnDisk { image, format: DiskFormat::Ext4, options: vec!["data=ordered".to_owned()], group };
        GuestVolume { name: "disk-8-16".to_owned(), source: "/volume".into(), files }
    }

    #[test]
    fn the_agent_is_told_of_one_storage() {
        let message = on_disk(true).message();
        let Some(Kind::Block(block)) = &message.storages[0].kind else { panic!("a disk's") };
        assert_eq!((block.type_.as_str(), block.part, block.read_only), ("ext4", 0, true));
        assert_eq!((block.group.gid, block.group.unless_root_is), (7, true));
        assert_eq!((message.storages.len(), &block.options[..]), (1, &["data=ordered".to_owned()][..]));
        assert_eq!(on_disk(true).guest_path(), Path::new("/run/tatami/storages/disk-8-16/files"));
        assert_eq!((message.folder.as_str(), message.storages[0].name.as_str()), ("disk-8-16", "files"));
        let files = Files::InMemory(vec!["size=1m".to_owned()]);
        let memory = GuestVolume { files, ..on_disk(true) }.message();
        assert!(matches!(&memory.storages[0].kind, Some(Kind::Tmpfs(tmpfs)) if tmpfs.options == ["size=1m"]));
    }

    #[test]
    fn the_host_says_which_volume_it_is() {
        let mounted = [Mounted { volume: on_disk(false), disk: None, users: Vec::new() }];
        let of = |folder: &str, used_bytes| VolumeFigures {
            folder: folder.to_owned(),
            source: "/another's".to_owned(),
            used_bytes,
            ..Default::default()
        };
        let mut figures = vec![of("nobody's", 1), of("disk-8-16", 2), of("disk-8-16", 3)];
        identify(&mounted, &mut figures);
        assert_eq!(figures, [VolumeFigures { source: "/volume".to_owned(), ..of("disk-8-16", 2) }]);
    }

    #[test]
    fn work_is_done_for_who_gave_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (go, going) = tokio::sync::oneshot::channel::<()>();
            let (done, doing) = tokio::sync::oneshot::channel();
            let work = to_the_end(async {
                going.await.unwrap();
                done.send(7).unwrap();
            });
            tokio::time::timeout(std::time::Duration::from_millis(1), work).await.unwrap_err();
            go.send(()).unwrap();
            assert_eq!(doing.await.unwrap(), 7);
        });
    }

    #[test]
    fn a_raw_disk_is_written_by_all_or_by_none() {
        let raw = |read_only| {
            let image = ImagePath { path: "/dev/sdb".into(), read_only };
            GuestVolume { files: Files::Raw(image), ..on_disk(read_only) }
        };
        assert!(raw(false).message().storages.is_empty());
        let shares = |mounted, wanted| {
            let mounted = Mounted { volume: raw(mounted), disk: None, users: Vec::new() };
            mounted.check_shares(&raw(wanted)).map_err(|error| error.to_string())
        };
        for (mounted, wanted) in [(false, false), (false, true), (true, true)] {
            shares(mounted, wanted).unwrap();
        }
        assert!(shares(true, false).unwrap_err().starts_with("the disk image /dev/sdb is in use"));
    }

    #[test]
    fn a_disk_is_mounted_in_one_way() {
        let mounted = Mounted { volume: on_disk(false), disk: None, users: Vec::new() };
        mounted.check_shares(&on_disk(false)).unwrap();
        let error = mounted.check_shares(&on_disk(true)).unwrap_err().to_string();
        assert!(error.starts_with("the disk image /dev/sdb is in use"), "{error}");
        // The size of one in memory is the first one's: that of another can only be the same, or have been changed since.
        let memory =
            |size: &str| GuestVolume { files: Files::InMemory(vec![format!("size={size}")]), ..on_disk(false) };
        let mounted = Mounted { volume: memory("1"), ..mounted };
        mounted.check_shares(&memory("2")).unwrap();
    }
}
