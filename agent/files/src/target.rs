//! Where a copy goes: the rules of `docker cp`, as a table, and the folder that they lead to, opened.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::stream::{Kind, parts};
use crate::{CopyError, failed};

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A file or folder, under its name.
    Whole,
    /// What is in a folder.
    Contents,
    /// What an archive holds, into a folder that is there.
    Archive,
}

const WORDS: [(Form, &str); 3] = [(Form::Whole, "whole"), (Form::Contents, "contents"), (Form::Archive, "archive")];

impl Form {
    pub(crate) fn word(self) -> &'static str {
        WORDS.iter().find(|(form, _)| *form == self).map_or("", |(_, word)| word)
    }

    pub(crate) fn of(word: &str) -> Option<Form> {
        WORDS.iter().find(|(_, known)| *known == word).map(|(form, _)| *form)
    }
}

/// What a person says of where it goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// A place that may or may not be there.
    pub path: PathBuf,
    /// What the copy is called where that is a folder; empty: it is laid over that folder.
    pub name: OsString,
    /// What is copied.
    pub form: Form,
}

/// What there is at the destination, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Folder,
    Other,
}

/// Where the root of the copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// It is the destination.
    Itself,
    /// It is in the destination, under its name.
    Inside,
    /// What is in it goes into the destination.
    Over,
}

const NO_FOLDER: &str = "there is no such folder: make it first";
const NOT_A_FOLDER: &str = "is no folder: name one, or a file to be replaced by a file";

/// The name of the root of a copy, in an open folder.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: OwnedFd,
    /// `.` for the folder itself.
    pub(crate) name: OsString,
    /// As messages call it.
    pub(crate) shown: PathBuf,
}

impl Destination {
    /// The place of a root of `kind`.
    ///
    /// # Errors
    /// [`CopyError::Refused`] by the rules, [`CopyError::File`] by the file system.
    pub(crate) fn place(&self, kind: Kind) -> Result<Place, CopyError> {
        let path = if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path };
        let found = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Found::Folder,
            Ok(_) => Found::Other,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
            // A file, and a slash behind it.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Found::Other,
            Err(error) => return Err(failed("look at", path)(error)),
        };
        let bytes = path.as_os_str().as_bytes();
        let means_folder = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let refused = |why| CopyError::Refused { path: path.to_owned(), why };
        let (folder, name) = match target(self.form, kind, found, means_folder).map_err(refused)? {
            Target::Inside if !self.name.is_empty() => {
                let single = parts(self.name.as_bytes()).is_some_and(|parts| parts.len() == 1);
                (path, if single { self.name.as_os_str() } else { return Err(CopyError::Malformed("no name")) })
            }
            Target::Inside | Target::Over => (path, OsStr::new(".")),
            Target::Itself => {
                let name = path.file_name().ok_or_else(|| refused(NO_FOLDER))?;
                let above = path.parent().filter(|above| !above.as_os_str().is_empty());
                (above.unwrap_or(Path::new(".")), name)
            }
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(CWD, folder, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::NOENT => CopyError::Refused { path: folder.to_owned(), why: NO_FOLDER },
            error => failed("open", folder)(error),
        })?;
        let shown = if name == "." { folder.to_owned() } else { folder.join(name) };
        Ok(Place { folder: open, name: name.to_owned(), shown })
    }
}

fn target(form: Form, kind: Kind, found: Found, means_folder: bool) -> Result<Target, &'static str> {
    match (form, kind == Kind::Folder, found) {
        (Form::Archive | Form::Contents, true, Found::Folder) => Ok(Target::Over),
        (Form::Archive, _, Found::Nothing) => Err(NO_FOLDER),
        (Form::Archive | Form::Contents, false, _) => Err("this is to be a folder's contents, and is no folder"),
        (Form::Whole, _, Found::Folder) => Ok(Target::Inside),
        (_, true, Found::Nothing) => Ok(Target::Itself),
        (_, true, Found::Other) => Err(NOT_A_FOLDER),
        (Form::Whole, false, Found::Nothing) if means_folder => Err(NO_FOLDER),
        (Form::Whole, false, Found::Other) if means_folder => Err(NOT_A_FOLDER),
        (Form::Whole, false, Found::Nothing | Found::Other) => Ok(Target::Itself),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_where_docker_has_it_go() {
        let of = |form, kind, found, slash| target(form, kind, found, slash).ok();
        let file = |found, slash| of(Form::Whole, Kind::File, found, slash);
        assert_eq!(file(Found::Nothing, false), Some(Target::Itself));
        assert_eq!(file(Found::Nothing, true), None);
        assert_eq!(file(Found::Other, false), Some(Target::Itself));
        assert_eq!(file(Found::Other, true), None);
        assert_eq!(file(Found::Folder, false), Some(Target::Inside));
        let folder = |form, found| of(form, Kind::Folder, found, true);
        assert_eq!(folder(Form::Whole, Found::Nothing), Some(Target::Itself));
        assert_eq!(folder(Form::Whole, Found::Folder), Some(Target::Inside));
        assert_eq!(folder(Form::Whole, Found::Other), None);
        assert_eq!(folder(Form::Contents, Found::Nothing), Some(Target::Itself));
        assert_eq!(folder(Form::Contents, Found::Folder), Some(Target::Over));
        assert_eq!(folder(Form::Archive, Found::Folder), Some(Target::Over));
        assert_eq!(folder(Form::Archive, Found::Nothing), None);
        assert_eq!(folder(Form::Archive, Found::Other), None);
        assert_eq!(of(Form::Contents, Kind::Link, Found::Folder, false), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: &str, name: &str| {
            Destination { path: dir.path().join(path), name: name.into(), form: Form::Whole }.place(Kind::File)
        };
        assert_eq!(place("a", "x").unwrap().shown, dir.path().join("a"));
        assert_eq!(place("", "x").unwrap().name, "x");
        assert_eq!(place("", "").unwrap().name, ".");
        let error = place("no/a", "x").unwrap_err().to_string();
        assert!(error.contains("no: there is no such folder"), "{error}");
        assert!(matches!(place("", "../x"), Err(CopyError::Malformed(_))));
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(place("link", "x").unwrap().name, "link");
    }
}
