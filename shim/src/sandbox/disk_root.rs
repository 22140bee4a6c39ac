//! A container's root that lies on disk images: which images, and how the guest's kernel makes one file system of them.
//!
//! A description, made before there is anything to describe. The images' bytes are the guest's to read: on the host only a
//! person's `--rootfs` is looked at, to see which file system it has.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tatami_protocol::agent::storage::Kind;
use tatami_protocol::agent::{BlockStorage, OverlayStorage, Place, Storage, TmpfsStorage};

use super::disks::{DiskError, DiskImage};
use super::mounts::{GUEST_SHARED, HostVolume};

/// Where the agent mounts file systems of containers, and volumes, in the guest.
pub(super) const GUEST_STORAGES: &str = "/run/tatami/storages";
/// Below a container's place in the shared folder: what its root needs of the host's folders.
pub(super) const LAYERS: &str = "layers";

/// How many bytes of an image show which file system it has.
pub const HEAD_BYTES: u64 = 2048;

/// File systems that a guest reads from disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// Readable and writable.
    Ext4,
    /// Readable and writable, if the guest's kernel has it.
    Xfs,
    /// Readable.
    Erofs,
}

/// An image to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePath {
    /// A file or block device.
    pub path: PathBuf,
    /// It is not to be written.
    pub read_only: bool,
}

impl ImagePath {
    /// Opens it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(&self) -> Result<DiskImage, DiskError> {
        DiskImage::open(&self.path, self.read_only)
    }
}

/// A root on disk images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskRoot {
    /// The images; storages name them by their number.
    pub images: Vec<ImagePath>,
    /// Folders of the host that take part; storages find them with [`DiskRoot::folder`].
    pub folders: Vec<HostVolume>,
    /// What is mounted in the guest, in this order.
    pub storages: Vec<Storage>,
    /// Where the root is then.
    pub root: Place,
}

impl DiskFormat {
    /// As the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Ext4 => "ext4",
            DiskFormat::Xfs => "xfs",
            DiskFormat::Erofs => "erofs",
        }
    }

    /// The one that the kernel calls so.
    pub fn named(name: &str) -> Option<DiskFormat> {
        [DiskFormat::Ext4, DiskFormat::Xfs, DiskFormat::Erofs].into_iter().find(|format| format.name() == name)
    }

    /// The one that `image` has, by its superblock's magic number.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(image: &Path) -> io::Result<Option<DiskFormat>> {
        let mut head = Vec::new();
        File::open(image)?.take(HEAD_BYTES).read_to_end(&mut head)?;
        Ok(DiskFormat::of_head(&head))
    }

    /// The one that an image has which begins with these bytes; [`HEAD_BYTES`] of them tell.
    pub fn of_head(head: &[u8]) -> Option<DiskFormat> {
        let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        if has(1024, &0xe0f5_e1e2_u32.to_le_bytes()) {
            Some(DiskFormat::Erofs)
        } else if has(1024 + 56, &0xef53_u16.to_le_bytes()) {
            Some(DiskFormat::Ext4)
        } else {
            has(0, b"XFSB").then_some(DiskFormat::Xfs)
        }
    }
}

impl DiskRoot {
    /// The file system of one image as the root. One that is only read gets a layer in the guest's memory on top, which is
    /// gone with the container.
    pub fn of_image(path: &Path, format: DiskFormat, read_only: bool) -> DiskRoot {
        let read_only = read_only || format == DiskFormat::Erofs;
        let mut root = DiskRoot::default();
        let image = root.add_image(path, read_only);
        let base = root.add(Kind::Block(BlockStorage {
            type_: format.name().to_owned(),
            part: image,
            read_only,
            ..BlockStorage::default()
        }));
        root.root = base.clone();
        if read_only {
            let memory = root.add(Kind::Tmpfs(TmpfsStorage::default()));
            root.root = root.add(Kind::Overlay(OverlayStorage {
                lower: vec![base],
                upper: Some(below(&memory, "upper")).into(),
                work: Some(below(&memory, "work")).into(),
                ..OverlayStorage::default()
            }));
        }
        root
    }

    /// Takes an image in; its number.
    pub fn add_image(&mut self, path: &Path, read_only: bool) -> u32 {
        self.images.push(ImagePath { path: path.to_owned(), read_only });
        self.images.len() as u32 - 1
    }

    /// Has another file system mounted; where it is.
    pub fn add(&mut self, kind: Kind) -> Place {
        let name = self.storages.len().to_string();
        self.storages.push(Storage { name: name.clone(), kind: Some(kind), ..Storage::default() });
        Place { storage: name, ..Place::default() }
    }

    /// Takes a folder of the host in; where it is in the guest.
    pub fn folder(&mut self, source: &Path, read_only: bool) -> Place {
        self.folders.push(HostVolume { source: source.to_owned(), read_only, recursive: false });
        Place { path: format!("{LAYERS}/{}", self.folders.len() - 1), ..Place::default() }
    }

    /// Opens its images.
    ///
    /// # Errors
    /// [`DiskError`], for the first that cannot be.
    pub fn open(&self) -> Result<Vec<DiskImage>, DiskError> {
        self.images.iter().map(ImagePath::open).collect()
    }

    /// The root of `container`, as the guest sees it.
    pub fn guest_path(&self, container: &str) -> PathBuf {
        let Place { storage, path, .. } = &self.root;
        let base = match storage.as_str() {
            "" => Path::new(GUEST_SHARED).join(container),
            name => Path::new(GUEST_STORAGES).join(container).join(name),
        };
        if path.is_empty() { base } else { base.join(path) }
    }
}

/// The folder `path` of a place.
pub fn below(place: &Place, path: &str) -> Place {
    let path = if place.path.is_empty() { path.to_owned() } else { format!("{}/{path}", place.path) };
    Place { storage: place.storage.clone(), path, ..Place::default() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn image(offset: u64, magic: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        file.as_file().write_all_at(magic, offset).unwrap();
        file
    }

    #[test]
    fn formats_are_told_by_their_superblocks() {
        let format = |file: tempfile::NamedTempFile| DiskFormat::of(file.path()).unwrap();
        assert_eq!(format(image(1080, &[0x53, 0xef])), Some(DiskFormat::Ext4));
        assert_eq!(format(image(1024, &[0xe2, 0xe1, 0xf5, 0xe0])), Some(DiskFormat::Erofs));
        assert_eq!(format(image(0, b"XFSB")), Some(DiskFormat::Xfs));
        assert_eq!(format(image(0, b"QFI\xfb")), None);
        assert_eq!(format(tempfile::NamedTempFile::new().unwrap()), None);
        for name in ["ext4", "xfs", "erofs"] {
            assert_eq!(DiskFormat::named(name).unwrap().name(), name);
        }
        assert_eq!(DiskFormat::named("vfat"), None);
    }

    #[test]
    fn what_is_only_read_gets_a_layer_in_memory() {
        let root = DiskRoot::of_image(Path::new("/i"), DiskFormat::Ext4, false);
        assert_eq!(root.guest_path("c"), Path::new("/run/tatami/storages/c/0"));
        assert_eq!((root.images[0].read_only, root.storages.len()), (false, 1));
        for (format, read_only) in [(DiskFormat::Ext4, true), (DiskFormat::Erofs, false)] {
            let root = DiskRoot::of_image(Path::new("/i"), format, read_only);
            assert_eq!(root.guest_path("c"), Path::new("/run/tatami/storages/c/2"));
            assert!(root.images[0].read_only);
            let Some(Kind::Overlay(overlay)) = &root.storages[2].kind else { panic!("an overlay") };
            assert_eq!(overlay.lower[0].storage, "0");
            assert_eq!((overlay.upper.storage.as_str(), overlay.upper.path.as_str()), ("1", "upper"));
        }
    }

    #[test]
    fn folders_of_the_host_are_found_below_the_containers_place() {
        let mut root = DiskRoot::default();
        root.folder(Path::new("/a"), true);
        let place = root.folder(Path::new("/b"), false);
        root.root = below(&place, "fs");
        assert_eq!(root.guest_path("c"), Path::new("/run/tatami/shared/c/layers/1/fs"));
    }
}
