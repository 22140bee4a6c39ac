//! Applying one layer's tar stream to a tree (OCI image specification, layer.md).
//!
//! Adds, replaces and removes as the entries say, in order; a whiteout hides what lower layers left and never what its
//! own layer brings. Where an entry may land is `tree`'s concern, what an archive may say `tar_stream`'s.

use super::budget::{Budget, BudgetError};
use super::tar_stream::{Entry, Kind, TarError, TarStream};
use super::tree::{self, Place, Tree, TreeError, failed};
use rustix::fs::{self as rfs, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in the folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS' own records, which some old layers still carry; `OPAQUE` is the one that means something.
const AUFS: &[u8] = b".wh..wh.";
/// Bytes of folder names remembered until their times are set.
const MAX_REMEMBERED: usize = 64 << 20;

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no readable archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// It is too large.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// One of its entries cannot be applied.
    #[error("entry {path:?}: {source}")]
    Entry {
        /// The entry's name as the archive has it.
        path: String,
        /// Why.
        source: TreeError,
    },
    /// One of its entries makes no sense.
    #[error("entry {path:?}: {why}")]
    Refused {
        /// The entry's name as the archive has it.
        path: String,
        /// Why.
        why: String,
    },
    /// Its compression is broken, or the image file ends early.
    #[error("cannot decompress it: {0}")]
    Compression(#[source] std::io::Error),
}

/// Applies the tar stream `reader` on top of what `tree` holds. Does not read behind the archive's end.
pub(super) fn apply(tree: &Tree, reader: impl Read, budget: &Budget) -> Result<(), LayerError> {
    let mut stream = TarStream::new(reader);
    let mut layer = Layer {
        tree,
        brought: HashSet::new(),
        hasher: RandomState::new(),
        folder_times: Vec::new(),
        remembered: 0,
        last_parent: None,
        buffer: vec![0; 256 * 1024],
    };
    while let Some(entry) = stream.next_entry()? {
        budget.take_entry()?;
        layer.entry(&entry, &mut stream)?;
    }
    layer.set_folder_times();
    Ok(())
}

struct Layer<'a> {
    tree: &'a Tree,
    /// Hashes of the paths that this layer brought: whiteouts spare them. Hashes, because names of millions of entries
    /// would take gigabytes.
    brought: HashSet<u64>,
    hasher: RandomState,
    /// Folders whose times are set last, since every file put into one changes them.
    folder_times: Vec<(PathBuf, Timestamps)>,
    remembered: usize,
    /// The parent of the last entry: most entries have the same one as the entry before them.
    last_parent: Option<Parent>,
    buffer: Vec<u8>,
}

/// A folder that entries are put into: its name in the archive, and where it was found. Adding to the tree does not
/// change that, removing from it may.
struct Parent {
    name: Vec<OsString>,
    folder: Rc<OwnedFd>,
    path: PathBuf,
}

/// What can go wrong with an entry before its name is attached.
enum Fault {
    Tree(TreeError),
    Why(&'static str),
}

impl From<TreeError> for Fault {
    fn from(error: TreeError) -> Fault {
        Fault::Tree(error)
    }
}

impl Layer<'_> {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), LayerError> {
        let path = || String::from_utf8_lossy(&entry.path).into_owned();
        self.try_entry(entry, content).map_err(|fault| match fault {
            Fault::Tree(source) => LayerError::Entry { path: path(), source },
            Fault::Why(why) => LayerError::Refused { path: path(), why: why.to_owned() },
        })
    }

    fn try_entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), Fault> {
        let parts = tree::components(&entry.path)?;
        let name = parts.last().map_or(&b""[..], |name| name.as_bytes());
        if name == OPAQUE {
            return self.hide_all_below(&parts[..parts.len() - 1]);
        }
        if parts.iter().any(|part| part.as_bytes().starts_with(AUFS)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let mut hidden_parts = parts.clone();
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Fault::Why("a whiteout of no file"));
            }
            hidden_parts.pop();
            hidden_parts.push(OsStr::from_bytes(hidden).to_os_string());
            return self.hide(&hidden_parts);
        }
        match self.locate(&parts)? {
            Some(place) => self.put(entry, &place, content),
            None if entry.kind == Kind::Directory => self.set_folder(self.tree.root(), Path::new(""), entry),
            None => Err(Fault::Why("the root of an image must be a folder")),
        }
    }

    /// Finds the place of an entry, making its parents where they are missing.
    fn locate(&mut self, parts: &[OsString]) -> Result<Option<Place>, TreeError> {
        let Some((name, above)) = parts.split_last() else { return Ok(None) };
        if let Some(last) = self.last_parent.as_ref().filter(|last| last.name == above) {
            return Place::new(Rc::clone(&last.folder), &last.path, name).map(Some);
        }
        let place = self.tree.locate(parts, true)?;
        self.last_parent = place.as_ref().map(|place| Parent {
            name: above.to_vec(),
            folder: Rc::clone(&place.parent),
            path: place.path.parent().unwrap_or(Path::new("")).to_path_buf(),
        });
        Ok(place)
    }

    /// Applies a whiteout: removes what lower layers have under this name.
    fn hide(&mut self, parts: &[OsString]) -> Result<(), Fault> {
        self.last_parent = None;
        match self.tree.locate(parts, false) {
            Ok(Some(place)) => Ok(tree::remove(&place, &|path| self.has_brought(path))?),
            // What is not there need not be hidden.
            Ok(None) | Err(TreeError::Missing(_) | TreeError::Dangling { .. } | TreeError::NotAFolder(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Applies an opaque whiteout: empties the folder of what lower layers have in it.
    fn hide_all_below(&mut self, folder: &[OsString]) -> Result<(), Fault> {
        self.last_parent = None;
        let keep = |path: &Path| self.has_brought(path);
        let place = match self.tree.locate(folder, false) {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(tree::empty(self.tree.root(), Path::new(""), &keep)?),
            Err(TreeError::Missing(_) | TreeError::Dangling { .. } | TreeError::NotAFolder(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if place.file_type()? == Some(FileType::Directory) {
            tree::empty(&open_folder(&place)?, &place.path, &keep)?;
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry, place: &Place, content: &mut impl Read) -> Result<(), Fault> {
        let target = match entry.kind {
            Kind::HardLink => match self.link_target(entry)? {
                target if target.path == place.path => return Ok(()),
                target => Some(target),
            },
            Kind::Symlink if entry.link.is_empty() => return Err(Fault::Why("a symbolic link to nothing")),
            _ => None,
        };
        match (entry.kind, &target) {
            (Kind::File, _) => self.put_file(entry, place, content)?,
            (Kind::Directory, _) => {
                if place.file_type()? != Some(FileType::Directory) {
                    let make = || rfs::mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o700));
                    self.make(place, "cannot make the folder", make)?;
                }
                self.set_folder(&open_folder(place)?, &place.path, entry)?;
            }
            (Kind::HardLink, Some(target)) => {
                let make = || rfs::linkat(&target.parent, &target.name, &place.parent, &place.name, AtFlags::empty());
                self.make(place, "cannot make the hard link", make)?;
            }
            (Kind::Symlink, _) => {
                let make = || rfs::symlinkat(OsStr::from_bytes(&entry.link), &place.parent, &place.name);
                self.make(place, "cannot make the symbolic link", make)?;
                set_by_name(entry, place)?;
            }
            _ => self.put_node(entry, place)?,
        }
        let hash = self.hasher.hash_one(place.path.as_path());
        self.brought.insert(hash);
        Ok(())
    }

    /// Makes what an entry says by a call that fails where something has the name already; that is then removed.
    fn make<T>(
        &mut self,
        place: &Place,
        what: &'static str,
        call: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, TreeError> {
        match call() {
            Err(Errno::EXIST) => {
                self.last_parent = None;
                tree::remove(place, &|_| false)?;
                call().map_err(failed(what))
            }
            result => result.map_err(failed(what)),
        }
    }

    fn put_node(&mut self, entry: &Entry, place: &Place) -> Result<(), TreeError> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rfs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(entry.mode);
        let make = || rfs::mknodat(&place.parent, &place.name, kind, mode, device);
        self.make(place, "cannot make the device or fifo", make)?;
        set_by_name(entry, place)?;
        // Behind the umask and chown. There is no link to follow: it was made a moment ago in a tree that nobody else has.
        rfs::chmodat(&place.parent, &place.name, mode, AtFlags::empty()).map_err(failed("cannot set its mode"))
    }

    /// The file that a hard link names: it must be in the image already, and be reached without symbolic links.
    fn link_target(&self, entry: &Entry) -> Result<Place, Fault> {
        let parts = tree::components(&entry.link).map_err(|error| match error {
            TreeError::Climbs => Fault::Why("its hard link target climbs with \"..\""),
            error => Fault::Tree(error),
        })?;
        let target = match self.tree.locate_strictly(&parts) {
            Ok(Some(target)) => target,
            Ok(None) => return Err(Fault::Why("a hard link to the root")),
            Err(TreeError::ThroughLink(_)) => {
                return Err(Fault::Why("its hard link target goes through a symbolic link"));
            }
            Err(error) => return Err(error.into()),
        };
        match target.file_type()? {
            None => Err(Fault::Why("its hard link target is not in the image")),
            Some(FileType::Directory) => Err(Fault::Why("a hard link to a folder")),
            Some(_) => Ok(target),
        }
    }

    fn put_file(&mut self, entry: &Entry, place: &Place, content: &mut impl Read) -> Result<(), TreeError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rfs::openat(&place.parent, &place.name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(self.make(place, "cannot make the file", make)?);
        loop {
            let read = content.read(&mut self.buffer);
            let count = match read {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(TreeError::Io { what: "cannot read its content", source }),
            };
            file.write_all(&self.buffer[..count])
                .map_err(|source| TreeError::Io { what: "cannot write its content", source })?;
        }
        set_by_descriptor(entry, &file)?;
        rfs::futimens(&file, &times(entry)).map_err(failed("cannot set its times"))
    }

    fn set_folder(&mut self, folder: &OwnedFd, path: &Path, entry: &Entry) -> Result<(), Fault> {
        set_by_descriptor(entry, folder)?;
        self.remembered += path.as_os_str().len() + size_of::<(PathBuf, Timestamps)>();
        self.folder_times.push((path.to_path_buf(), times(entry)));
        if self.remembered > MAX_REMEMBERED {
            self.set_folder_times();
        }
        Ok(())
    }

    /// Sets the times of the folders so far; one that has gone or become a link meanwhile does not matter.
    fn set_folder_times(&mut self) {
        self.remembered = 0;
        for (path, times) in self.folder_times.drain(..) {
            if let Ok(folder) = self.tree.open_plain(&path) {
                // A wrong time is no reason to refuse an image.
                let _ = rfs::utimensat(&folder, ".", &times, AtFlags::empty());
            }
        }
    }

    fn has_brought(&self, path: &Path) -> bool {
        self.brought.contains(&self.hasher.hash_one(path))
    }
}

fn open_folder(place: &Place) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rfs::openat(&place.parent, &place.name, flags, Mode::empty()).map_err(failed("cannot open the folder"))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner, then mode (chown clears set-id bits), then attributes (chown clears capabilities).
fn set_by_descriptor(entry: &Entry, file: impl AsFd) -> Result<(), TreeError> {
    rfs::fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(failed("cannot set its owner"))?;
    rfs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed("cannot set its mode"))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_portable(name)) {
        match rfs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => log::warn!("the image store's file system cannot hold the attribute {name}"),
            Err(errno) => return Err(failed("cannot set an extended attribute")(errno)),
        }
    }
    Ok(())
}

fn set_by_name(entry: &Entry, place: &Place) -> Result<(), TreeError> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rfs::chownat(&place.parent, &place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("cannot set its owner"))?;
    rfs::utimensat(&place.parent, &place.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("cannot set its times"))
}

/// Attributes that mean the same on every machine. Labels and signatures of the machine that built the image do not,
/// and overlayfs' own would let an image redirect lookups once it is a layer of an overlay mount.
fn is_portable(name: &str) -> bool {
    let overlay = name.starts_with("user.overlay.");
    name == "security.capability"
        || (name.starts_with("user.") && !overlay)
        || matches!(name, "system.posix_acl_access" | "system.posix_acl_default")
}
