//! A tree made of a stream that somebody else wrote.
//!
//! Whatever is made is made in a folder that is open, and that was made or found by this copy, component by component, never through
//! a symbolic link: the stream can name nothing outside of the copy's own root. What is there already is never written to: a file takes
//! the place of what had its name, and a folder that is there stays as it is, with what is copied into it. Devices are never made.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown, futimens,
    linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::pack::Notes;
use crate::stream::{Entry, Kind, MAX_DEPTH, parts};
use crate::target::{Destination, Form, Place};
use crate::{CopyError, failed};

/// How much is moved at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// A folder's permissions while it is being filled.
const PRIVATE: u32 = 0o700;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What of the stream counts.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose files are is as the stream says; otherwise they are this process's user's.
    pub owners: bool,
    /// A file that runs as its owner or group does so as well where it is copied to.
    pub set_id: bool,
}

/// Reads `stream` to its last word and makes of it what is to be at `destination`.
///
/// # Errors
/// [`CopyError`], for the first that cannot be made, or a stream that is none or ends early; what was made before stays.
pub fn unpack(
    stream: &mut impl Read,
    destination: &Destination,
    options: Options,
    notes: Notes<'_>,
) -> Result<(), CopyError> {
    let Some(root) = Entry::read(stream)? else { return Err(CopyError::Malformed("nothing")) };
    if !root.name.is_empty() || root.kind == Kind::HardLink {
        return Err(CopyError::Malformed("no root"));
    }
    let place = destination.place(root.kind)?;
    let mut unpacker = Unpacker { stream, options, notes, open: Vec::new(), shown: place.shown.clone() };
    let Place { folder, name, shown } = place;
    if root.kind != Kind::Folder {
        unpacker.make(folder.as_fd(), &name, &shown, &root)?;
    } else {
        // What the root of an archive is like, nobody has said.
        let known = destination.form != Form::Archive;
        let level = unpacker.folder(folder.as_fd(), &name, &shown, known.then_some(&root))?;
        unpacker.open.push(level);
    }
    while let Some(entry) = Entry::read(unpacker.stream)? {
        if unpacker.open.is_empty() {
            return Err(CopyError::Malformed("something in a file"));
        }
        unpacker.entry(&entry)?;
    }
    unpacker.close_to(0)
}

struct Unpacker<'a, R> {
    stream: &'a mut R,
    options: Options,
    notes: Notes<'a>,
    /// The root, if that is a folder, and the folders below it on the way to the last entry.
    open: Vec<Level>,
    /// The root, as messages call it.
    shown: PathBuf,
}

/// A folder that is being filled.
struct Level {
    name: OsString,
    folder: OwnedFd,
    /// Mode and time of one that was made here, for when it is full.
    last: Option<(Mode, Timestamps)>,
}

impl<R: Read> Unpacker<'_, R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), CopyError> {
        // Judged when it was read.
        let parts = parts(&entry.name).unwrap_or_default();
        let Some((name, above)) = parts.split_last() else { return Err(CopyError::Malformed("a second root")) };
        self.enter(above)?;
        let shown = parts.iter().fold(self.shown.clone(), |path, part| path.join(part));
        // There is the root, at least.
        let Some(level) = self.open.last() else { return Ok(()) };
        let folder = level.folder.try_clone().map_err(failed("open", &shown))?;
        match entry.kind {
            Kind::Folder => {
                let level = self.folder(folder.as_fd(), name, &shown, Some(entry))?;
                self.open.push(level);
                Ok(())
            }
            _ => self.make(folder.as_fd(), name, &shown, entry),
        }
    }

    /// Has the folder `above`, seen from the root, be the last that is open. Those that nobody has spoken of are made.
    fn enter(&mut self, above: &[&OsStr]) -> Result<(), CopyError> {
        let same = self.open.iter().skip(1).zip(above).take_while(|(level, part)| level.name == **part).count();
        self.close_to(1 + same)?;
        for (number, part) in above.iter().enumerate().skip(same) {
            if self.open.len() > MAX_DEPTH {
                return Err(CopyError::Malformed("too many folders within folders"));
            }
            let shown = above[..=number].iter().fold(self.shown.clone(), |path, part| path.join(part));
            let Some(level) = self.open.last() else { return Ok(()) };
            let folder = level.folder.try_clone().map_err(failed("open", &shown))?;
            let level = self.folder(folder.as_fd(), part, &shown, None)?;
            self.open.push(level);
        }
        Ok(())
    }

    /// Is done with the folders beyond the first `count`.
    fn close_to(&mut self, count: usize) -> Result<(), CopyError> {
        while self.open.len() > count {
            let Some(Level { folder, last, name }) = self.open.pop() else { return Ok(()) };
            if let Some((mode, times)) = last {
                let finished = fchmod(&folder, mode).and_then(|()| futimens(&folder, &times));
                finished.map_err(failed("set permissions and time of", Path::new(&name)))?;
            }
        }
        Ok(())
    }

    /// Makes a folder, unless it is there, and opens it. `entry` says what it is to be like; otherwise it is like any.
    fn folder(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
        entry: Option<&Entry>,
    ) -> Result<Level, CopyError> {
        let mode = if entry.is_some() { PRIVATE } else { 0o755 };
        let made = match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(failed("make the folder", shown)(error)),
        };
        let folder = openat(parent, name, FOLDER, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                CopyError::Refused { path: shown.to_owned(), why: "is there and no folder: remove it first" }
            }
            error => failed("open", shown)(error),
        })?;
        let mut last = None;
        if let (true, Some(entry)) = (made, entry) {
            self.own(&folder, entry, shown)?;
            last = Some((self.mode(entry), times(entry)));
        }
        Ok(Level { name: name.to_owned(), folder, last })
    }

    /// Makes what is no folder, in place of what has its name.
    fn make(&mut self, parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, entry: &Entry) -> Result<(), CopyError> {
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            (self.notes)(format!("{} is a device: left out", shown.display()));
            return Ok(());
        }
        clear(parent, name, shown)?;
        let result = match entry.kind {
            Kind::File => return self.file(parent, name, shown, entry),
            Kind::HardLink => return self.hard_link(parent, name, shown, entry),
            Kind::Link => symlinkat(OsStr::from_bytes(&entry.link), parent, name),
            _ => mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(entry.mode & 0o777), 0),
        };
        result.map_err(failed("make", shown))?;
        if self.options.owners {
            let (uid, gid) = owner(entry);
            let done = chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
            done.map_err(failed("set the owner of", shown))?;
        }
        utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the time of", shown))
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, entry: &Entry) -> Result<(), CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("make", shown))?;
        let mut file = File::from(file);
        let result = self.fill(&mut file, shown, entry);
        if result.is_err() {
            // Half a file is worse than none; if it cannot be removed, the first error says more.
            let _ = unlinkat(parent, name, AtFlags::empty());
        }
        result
    }

    fn fill(&mut self, file: &mut File, shown: &Path, entry: &Entry) -> Result<(), CopyError> {
        let mut chunk = vec![0; CHUNK.min(entry.size as usize)];
        let mut left = entry.size;
        while left > 0 {
            let want = left.min(CHUNK as u64) as usize;
            self.stream.read_exact(&mut chunk[..want]).map_err(CopyError::of_stream)?;
            file.write_all(&chunk[..want]).map_err(failed("write", shown))?;
            left -= want as u64;
        }
        self.own(&*file, entry, shown)?;
        let done = fchmod(&*file, self.mode(entry)).and_then(|()| futimens(&*file, &times(entry)));
        done.map_err(failed("set permissions and time of", shown))
    }

    /// Another name of what this copy has made.
    fn hard_link(&self, parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, entry: &Entry) -> Result<(), CopyError> {
        let parts = parts(&entry.link).unwrap_or_default();
        let (Some((first, above)), Some(root)) = (parts.split_last(), self.open.first()) else {
            return Err(CopyError::Malformed("a link that cannot be"));
        };
        let open = |folder: BorrowedFd<'_>, part: &OsStr| openat(folder, part, FOLDER, Mode::empty());
        let mut folder = open(root.folder.as_fd(), OsStr::new(".")).map_err(failed("open", shown))?;
        for part in above {
            folder = open(folder.as_fd(), part).map_err(failed("find what is to be linked as", shown))?;
        }
        // Not what a link leads to: a link to a link is a link.
        linkat(&folder, *first, parent, name, AtFlags::empty()).map_err(failed("link", shown))
    }

    fn own(&self, file: impl AsFd, entry: &Entry, shown: &Path) -> Result<(), CopyError> {
        if !self.options.owners {
            return Ok(());
        }
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).map_err(failed("set the owner of", shown))
    }

    fn mode(&self, entry: &Entry) -> Mode {
        Mode::from_raw_mode(entry.mode & if self.options.set_id { 0o7777 } else { 0o1777 })
    }
}

/// Removes what has the name, unless it is a folder.
fn clear(parent: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<(), CopyError> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            Err(CopyError::Refused { path: shown.to_owned(), why: "is there and a folder: remove it first" })
        }
        Ok(_) => unlinkat(parent, name, AtFlags::empty()).map_err(failed("replace", shown)),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("look at", shown)(error)),
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::pack;
    use crate::stream::end;

    const PLAIN: Options = Options { owners: false, set_id: true };

    fn packed(path: &Path) -> Vec<u8> {
        let mut stream = Vec::new();
        pack(path, false, &mut stream, &mut |note| panic!("{note}")).unwrap();
        stream
    }

    /// A stream of these entries below a folder, files with as many bytes of content as they say.
    fn stream(entries: &[Entry]) -> Vec<u8> {
        let mut stream = Vec::new();
        Entry { mode: 0o755, ..Entry::new(Kind::Folder, Vec::new()) }.write(&mut stream).unwrap();
        for entry in entries {
            entry.write(&mut stream).unwrap();
            stream.extend(vec![b'x'; entry.size as usize]);
        }
        end(&mut stream).unwrap();
        stream
    }

    fn entry(kind: Kind, name: &str, link: &str) -> Entry {
        let size = if kind == Kind::File { 3 } else { 0 };
        Entry { mode: 0o644, size, link: link.into(), ..Entry::new(kind, name.into()) }
    }

    fn into(stream: &[u8], path: &Path, form: Form, options: Options) -> (Result<(), CopyError>, Vec<String>) {
        let mut notes = Vec::new();
        let destination = Destination { path: path.to_owned(), name: "copy".into(), form };
        let result = unpack(&mut &stream[..], &destination, options, &mut |note| notes.push(note));
        (result, notes)
    }

    fn contents(entries: &[Entry], path: &Path) -> Result<(), CopyError> {
        into(&stream(entries), path, Form::Contents, PLAIN).0
    }

    #[test]
    fn a_tree_arrives_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("tree");
        fs::create_dir_all(source.join("sub/empty")).unwrap();
        fs::write(source.join("sub/large"), vec![7; 200_000]).unwrap();
        fs::write(source.join("tool"), "#!").unwrap();
        fs::hard_link(source.join("tool"), source.join("zool")).unwrap();
        fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("../outside", source.join("sub/link")).unwrap();
        mknodat(rustix::fs::CWD, source.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
        for name in ["tool", "sub"] {
            File::open(source.join(name)).unwrap().set_modified(then).unwrap();
        }
        fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o550)).unwrap();
        let (result, _) = into(&packed(&source), dir.path(), Form::Whole, PLAIN);
        result.unwrap();
        let copy = dir.path().join("copy");
        assert_eq!(fs::read(copy.join("sub/large")).unwrap(), vec![7; 200_000]);
        let tool = fs::metadata(copy.join("tool")).unwrap();
        assert_eq!((tool.mode() & 0o7777, tool.modified().unwrap(), tool.nlink()), (0o4751, then, 2));
        let sub = fs::metadata(copy.join("sub")).unwrap();
        assert_eq!((sub.mode() & 0o777, sub.modified().unwrap()), (0o550, then));
        assert_eq!(fs::read_link(copy.join("sub/link")).unwrap(), Path::new("../outside"));
        assert!(copy.join("sub/empty").is_dir());
        let plain = Options { set_id: false, ..PLAIN };
        into(&packed(&source.join("tool")), &dir.path().join("t"), Form::Whole, plain).0.unwrap();
        assert_eq!(fs::metadata(dir.path().join("t")).unwrap().mode() & 0o7777, 0o751);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&inside).unwrap();
        fs::write(outside.join("file"), "old").unwrap();
        symlink(&outside, inside.join("there")).unwrap();
        symlink(outside.join("file"), inside.join("file")).unwrap();
        // One that was there, and one that the stream brings along.
        let up = entry(Kind::Link, "up", outside.to_str().unwrap());
        for name in ["there/file", "up/file"] {
            let refused = contents(&[up.clone(), entry(Kind::File, name, "")], &inside);
            assert!(matches!(refused, Err(CopyError::Refused { .. })), "{name}: {refused:?}");
        }
        let refused = contents(&[entry(Kind::HardLink, "stolen", "there/file")], &inside);
        assert!(matches!(refused, Err(CopyError::File { .. })), "{refused:?}");
        contents(&[entry(Kind::File, "file", "")], &inside).unwrap();
        assert_eq!(fs::read_to_string(inside.join("file")).unwrap(), "xxx");
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "old");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn what_a_stream_may_not_do_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        let refused = contents(&[entry(Kind::File, "folder", "")], dir.path());
        assert!(matches!(refused, Err(CopyError::Refused { .. })), "{refused:?}");
        assert!(matches!(contents(&[entry(Kind::File, "", "")], dir.path()), Err(CopyError::Malformed(_))));
        let mut short = stream(&[entry(Kind::File, "half", "")]);
        short.truncate(short.len() - 2);
        assert!(matches!(into(&short, dir.path(), Form::Contents, PLAIN).0, Err(CopyError::Early)));
        assert!(!dir.path().join("half").exists());
        let (result, notes) = into(&stream(&[entry(Kind::BlockDevice, "sda", "")]), dir.path(), Form::Contents, PLAIN);
        result.unwrap();
        assert!(notes[0].contains("sda is a device") && !dir.path().join("sda").exists());
        let mut in_file = Vec::new();
        Entry::new(Kind::File, Vec::new()).write(&mut in_file).unwrap();
        Entry::new(Kind::File, b"a".to_vec()).write(&mut in_file).unwrap();
        assert!(matches!(into(&in_file, dir.path(), Form::Whole, PLAIN).0, Err(CopyError::Malformed(_))));
    }

    #[test]
    fn folders_that_are_there_stay_and_missing_ones_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("a");
        fs::create_dir(&there).unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o711)).unwrap();
        fs::write(there.join("kept"), "").unwrap();
        let root = fs::metadata(dir.path()).unwrap().mode();
        let entries = [entry(Kind::Folder, "a", ""), entry(Kind::File, "a/b/c", ""), entry(Kind::File, "z", "")];
        into(&stream(&entries), dir.path(), Form::Archive, PLAIN).0.unwrap();
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o777, 0o711);
        assert!(there.join("kept").exists() && there.join("b/c").exists() && dir.path().join("z").exists());
        assert_eq!(fs::metadata(dir.path()).unwrap().mode(), root);
        assert!(into(&stream(&[]), &dir.path().join("none"), Form::Archive, PLAIN).0.is_err());
    }

    #[test]
    fn the_kernels_own_files_have_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("version");
        into(&packed(Path::new("/proc/version")), &copy, Form::Whole, PLAIN).0.unwrap();
        assert_eq!(fs::read(copy).unwrap(), fs::read("/proc/version").unwrap());
    }
}
