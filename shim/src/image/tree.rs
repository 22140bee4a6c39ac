//! A directory tree that cannot be left: every name is resolved below its root, component by component, by descriptor.
//!
//! No path is ever joined to the root as a string. The usual case, a parent without symbolic links, is one `openat2`
//! with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; otherwise the links are followed here, one single component at a time
//! with O_NOFOLLOW, so that a link which leads out or nowhere can be named. Knows nothing of archives or layers.

use rustix::fs::{self as rfs, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// Nested folders; bounds recursion and descriptors. Real images have a few dozen at most.
const MAX_DEPTH: usize = 255;
/// Symbolic links followed for one name, as in Linux.
const MAX_LINKS: usize = 40;
/// Bytes of a path, as in Linux: what is deeper could never be named.
const MAX_PATH: usize = 4096;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A name that cannot be resolved inside the tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The name has `..` in it.
    #[error("its name climbs with \"..\"")]
    Climbs,
    /// A symbolic link on the way leads above the root.
    #[error("the symbolic link {} above it leads out of the image (to {})", link.display(), target.display())]
    LeadsOut {
        /// The link, from the root.
        link: PathBuf,
        /// Its text.
        target: PathBuf,
    },
    /// A symbolic link on the way points to something that is not in the tree.
    #[error("the symbolic link {} above it points to {}, which is not in the image", link.display(), target.display())]
    Dangling {
        /// The link, from the root.
        link: PathBuf,
        /// Its text.
        target: PathBuf,
    },
    /// A name on the way is no folder.
    #[error("{} above it is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The name passes through symbolic links, where none are allowed.
    #[error("{} goes through a symbolic link", .0.display())]
    ThroughLink(PathBuf),
    /// Too many links, levels or bytes.
    #[error("its path is too deep, too long or a loop of symbolic links")]
    TooDeep,
    /// A parent does not exist, and was not to be made.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Turns a system error into a [`TreeError`] that says what was tried.
pub(super) fn failed(what: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError::Io { what, source: errno.into() }
}

/// The tree, held by a descriptor of its root.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

/// A name in the tree whose parent is open: nothing between the two can be a link.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: Rc<OwnedFd>,
    pub(super) name: OsString,
    /// Its path from the root, free of links.
    pub(super) path: PathBuf,
}

impl Place {
    /// A name in a folder that was found before at `parent_path`.
    pub(super) fn new(parent: Rc<OwnedFd>, parent_path: &Path, name: &OsStr) -> Result<Place, TreeError> {
        let path = parent_path.join(name);
        if path.as_os_str().len() > MAX_PATH || path.components().count() > MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        Ok(Place { parent, name: name.to_os_string(), path })
    }

    /// What is there, not following a link.
    pub(super) fn file_type(&self) -> Result<Option<FileType>, TreeError> {
        file_type(&self.parent, &self.name)
    }
}

/// Splits a name from an archive into components: no `..`; a leading slash, `.` and doubled slashes mean nothing.
pub(crate) fn components(name: &[u8]) -> Result<Vec<OsString>, TreeError> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(TreeError::Climbs),
            part => parts.push(OsStr::from_bytes(part).to_os_string()),
        }
    }
    if parts.len() > MAX_DEPTH || name.len() > MAX_PATH { Err(TreeError::TooDeep) } else { Ok(parts) }
}

impl Tree {
    /// Opens the tree below `root`, a folder of the caller's choice.
    pub fn open(root: &Path) -> Result<Tree, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rfs::openat(CWD, root, flags, Mode::empty()).map_err(failed("cannot open the root"))?;
        Ok(Tree { root })
    }

    /// The root itself.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Finds the place of a name, following symbolic links of its parents inside the tree. Makes missing parents (mode
    /// 755) if told to. `None` for the root itself.
    pub(super) fn locate(&self, parts: &[OsString], make_parents: bool) -> Result<Option<Place>, TreeError> {
        let Some((name, above)) = parts.split_last() else { return Ok(None) };
        let plain: PathBuf = above.iter().collect();
        let (parent, parent_path) = match self.open_plain(&plain) {
            Ok(parent) => (parent, plain),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(above, make_parents)?,
            Err(errno) => return Err(failed("cannot open its parent folder")(errno)),
        };
        Place::new(Rc::new(parent), &parent_path, name).map(Some)
    }

    /// Finds the place of a name that must not pass through any symbolic link.
    pub(super) fn locate_strictly(&self, parts: &[OsString]) -> Result<Option<Place>, TreeError> {
        let Some((name, above)) = parts.split_last() else { return Ok(None) };
        let plain: PathBuf = above.iter().collect();
        let parent = self.open_plain(&plain).map_err(|errno| match errno {
            Errno::LOOP => TreeError::ThroughLink(plain.join(name)),
            Errno::NOENT | Errno::NOTDIR => TreeError::Missing(plain.join(name)),
            errno => failed("cannot open its parent folder")(errno),
        })?;
        Place::new(Rc::new(parent), &plain, name).map(Some)
    }

    /// Opens a regular file for reading, following links inside the tree as a process with this root would.
    /// `None` if there is none, or it is no regular file.
    pub fn read_file(&self, name: &Path, limit: u64) -> Result<Option<Vec<u8>>, TreeError> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match rfs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(failed("cannot open the file")(errno)),
        };
        let read_failed = |source| TreeError::Io { what: "cannot read the file", source };
        if !file.metadata().map_err(read_failed)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(read_failed)?;
        Ok(Some(bytes))
    }

    /// Makes a folder and its parents (mode 755), following links inside the tree; fine if it exists.
    pub fn make_folder(&self, name: &Path) -> Result<(), TreeError> {
        let mut parts = Vec::new();
        for component in name.components() {
            match component {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir => return Err(TreeError::Climbs),
                Component::Normal(part) => parts.push(part.to_os_string()),
            }
        }
        self.walk(&parts, true).map(drop)
    }

    /// Opens a folder by a path that must hold no symbolic link.
    pub(super) fn open_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rfs::openat2(&self.root, path, FOLDER, Mode::empty(), resolve)
    }

    /// Opens a folder one component at a time, following symbolic links inside the tree.
    fn walk(&self, parts: &[OsString], make: bool) -> Result<(OwnedFd, PathBuf), TreeError> {
        let mut walk = Walk {
            tree: self,
            at: self.open_plain(Path::new("")).map_err(failed("cannot open the root"))?,
            path: PathBuf::new(),
            ahead: parts.iter().cloned().collect(),
            link: None,
            own: parts.len(),
            links: 0,
        };
        while let Some(part) = walk.ahead.pop_front() {
            walk.step(part, make)?;
        }
        Ok((walk.at, walk.path))
    }
}

/// A walk from the root along components, where links put more components ahead.
struct Walk<'a> {
    tree: &'a Tree,
    at: OwnedFd,
    path: PathBuf,
    ahead: VecDeque<OsString>,
    /// The last link followed: where it is, its text.
    link: Option<(PathBuf, PathBuf)>,
    /// How many of the components ahead are the name's own; those before them come from a link.
    own: usize,
    links: usize,
}

impl Walk<'_> {
    fn step(&mut self, part: OsString, make: bool) -> Result<(), TreeError> {
        let from_link = self.ahead.len() >= self.own;
        self.own = self.own.min(self.ahead.len());
        if part == ".." {
            return self.up();
        }
        let here = self.path.join(&part);
        if here.as_os_str().len() > MAX_PATH || here.components().count() > MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        match (file_type(&self.at, &part)?, self.link.clone()) {
            (Some(FileType::Symlink), _) => self.follow(&part, here),
            (Some(FileType::Directory), _) => self.enter(&part, here),
            (None, Some((link, target))) if from_link => Err(TreeError::Dangling { link, target }),
            (None, _) if make => {
                let mode = Mode::from_raw_mode(0o755);
                rfs::mkdirat(&self.at, &part, mode).map_err(failed("cannot make its parent folder"))?;
                self.enter(&part, here)
            }
            (None, _) => Err(TreeError::Missing(here)),
            (Some(_), _) => Err(TreeError::NotAFolder(here)),
        }
    }

    /// Up one level: only a link can ask for it, since names with `..` are refused.
    fn up(&mut self) -> Result<(), TreeError> {
        if !self.path.pop() {
            let (link, target) = self.link.clone().unwrap_or_default();
            return Err(TreeError::LeadsOut { link, target });
        }
        self.at = self.tree.open_plain(&self.path).map_err(failed("cannot open its parent folder"))?;
        Ok(())
    }

    fn enter(&mut self, part: &OsStr, here: PathBuf) -> Result<(), TreeError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        self.at = rfs::openat2(&self.at, part, FOLDER | OFlags::NOFOLLOW, Mode::empty(), resolve)
            .map_err(failed("cannot open its parent folder"))?;
        self.path = here;
        Ok(())
    }

    fn follow(&mut self, part: &OsStr, here: PathBuf) -> Result<(), TreeError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(TreeError::TooDeep);
        }
        let text = rfs::readlinkat(&self.at, part, Vec::new()).map_err(failed("cannot read a symbolic link"))?;
        let bytes = text.as_bytes();
        if bytes.starts_with(b"/") {
            self.path = PathBuf::new();
            self.at = self.tree.open_plain(&self.path).map_err(failed("cannot open the root"))?;
        }
        for step in bytes.rsplit(|byte| *byte == b'/').filter(|step| !step.is_empty() && *step != b".") {
            self.ahead.push_front(OsStr::from_bytes(step).to_os_string());
        }
        self.link = Some((here, PathBuf::from(OsStr::from_bytes(bytes))));
        Ok(())
    }
}

/// What a folder has under this name, not following a link.
pub(super) fn file_type(parent: impl AsFd, name: &OsStr) -> Result<Option<FileType>, TreeError> {
    match rfs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("cannot look at it")(errno)),
    }
}

/// Removes what is under a name, with everything below it, except what `keep` says (given paths from the root). A
/// folder in which something is kept stays.
pub(super) fn remove(place: &Place, keep: &dyn Fn(&Path) -> bool) -> Result<(), TreeError> {
    remove_below(place.parent.as_fd(), &place.name, &place.path, keep)
}

/// Empties a folder in the same way.
pub(super) fn empty(folder: impl AsFd, path: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<(), TreeError> {
    let names: Vec<OsString> = {
        let folder = rfs::openat(&folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("cannot open a folder to empty it"))?;
        rfs::Dir::read_from(&folder)
            .map_err(failed("cannot list a folder"))?
            .map(|entry| entry.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string()))
            .filter(|name| !matches!(name, Ok(name) if name == "." || name == ".."))
            .collect::<Result<_, Errno>>()
            .map_err(failed("cannot list a folder"))?
    };
    names.iter().try_for_each(|name| remove_below(folder.as_fd(), name, &path.join(name), keep))
}

fn remove_below(
    parent: std::os::fd::BorrowedFd<'_>,
    name: &OsStr,
    path: &Path,
    keep: &dyn Fn(&Path) -> bool,
) -> Result<(), TreeError> {
    let kept = keep(path);
    match file_type(parent, name)? {
        None => Ok(()),
        Some(FileType::Directory) => {
            let folder = rfs::openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
                .map_err(failed("cannot open a folder to remove it"))?;
            empty(&folder, path, keep)?;
            if kept {
                return Ok(());
            }
            match rfs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                Err(errno) => Err(failed("cannot remove a folder")(errno)),
            }
        }
        Some(_) if kept => Ok(()),
        Some(_) => rfs::unlinkat(parent, name, AtFlags::empty()).map_err(failed("cannot remove a file")),
    }
}
