//! What is to be changed on a host, one step each: it can be told before it is done, and told after.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// All of it, in order, and what should be known besides.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    pub(super) notes: Vec<String>,
}

/// One step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A file has this text, and had another or was not there.
    Write { path: PathBuf, old: String, text: String },
    /// A file or link is no more.
    Remove { path: PathBuf },
    /// `path` is a link to `target`, whatever link it was.
    Link { path: PathBuf, target: PathBuf },
    /// `path` is a program with the content of `source`.
    Copy { path: PathBuf, source: PathBuf },
}

impl Change {
    /// What makes the `new` text of the `old` in the file at `path`, if that is anything. None: there is no file.
    pub(super) fn of_file(path: &Path, old: Option<&String>, new: Option<&String>) -> Option<Change> {
        let path = path.to_owned();
        match (old, new) {
            _ if old == new => None,
            (_, Some(text)) => Some(Change::Write { path, old: old.cloned().unwrap_or_default(), text: text.clone() }),
            (_, None) => Some(Change::Remove { path }),
        }
    }

    /// What is to be done, or was `done`.
    pub(super) fn told(&self, done: bool) -> String {
        let verb = |to_do: &'static str, did: &'static str| if done { did } else { to_do };
        match self {
            Change::Write { path, .. } => format!("{} {}", verb("write", "wrote"), path.display()),
            Change::Remove { path } => format!("{} {}", verb("remove", "removed"), path.display()),
            Change::Link { path, target } => {
                format!("{} {} to {}", verb("link", "linked"), path.display(), target.display())
            }
            Change::Copy { path, source } => {
                format!("{} {} to {}", verb("copy", "copied"), source.display(), path.display())
            }
        }
    }

    /// The lines that go, each behind a minus, and those that come, each behind a plus.
    pub(super) fn lines(&self) -> String {
        let Change::Write { old, text, .. } = self else { return String::new() };
        let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), text.lines().collect());
        let ahead = old.iter().zip(&new).take_while(|(one, other)| one == other).count();
        let (old, new) = (&old[ahead..], &new[ahead..]);
        let behind = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        let gone = old[..old.len() - behind].iter().map(|line| format!("  - {line}\n"));
        let come = new[..new.len() - behind].iter().map(|line| format!("  + {line}\n"));
        gone.chain(come).collect()
    }

    /// Makes it. A reader sees the old file or the new one, and never a part.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn make(&self) -> io::Result<()> {
        match self {
            Change::Write { path, text, .. } => write(path, text),
            Change::Remove { path } => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Change::Link { path, target } => {
                let folder = tempfile::tempdir_in(existing_parent(path)?)?;
                let link = folder.path().join("link");
                symlink(target, &link)?;
                fs::rename(&link, path)
            }
            Change::Copy { path, source } => {
                let mut file = NamedTempFile::new_in(existing_parent(path)?)?;
                io::copy(&mut fs::File::open(source)?, &mut file)?;
                place(file, path, Permissions::from_mode(0o755))
            }
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Through a link: it is the operator's, and so is where the file lies.
    let (path, found) = match path.canonicalize() {
        Ok(path) => (path.clone(), Some(fs::metadata(path)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let mut file = NamedTempFile::new_in(existing_parent(&path)?)?;
    file.write_all(text.as_bytes())?;
    let mode = match found {
        Some(found) => {
            fchown(file.as_file(), Some(found.uid()), Some(found.gid()))?;
            found.permissions()
        }
        None => Permissions::from_mode(0o644),
    };
    place(file, &path, mode)
}

fn place(file: NamedTempFile, path: &Path, mode: Permissions) -> io::Result<()> {
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(path).map(|_| ()).map_err(io::Error::from)
}

/// The folder of `path`, made if it is not there.
fn existing_parent(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_file_shows_its_lines_alone() {
        let (old, new) = ("a\nb\nc\n".to_owned(), "a\nB\nnew\nc\n".to_owned());
        let change = Change::of_file(Path::new("/f"), Some(&old), Some(&new)).unwrap();
        assert_eq!(change.lines(), "  - b\n  + B\n  + new\n");
        let more = Change::of_file(Path::new("/f"), Some(&"a\na\n".to_owned()), Some(&"a\na\na\n".to_owned())).unwrap();
        assert_eq!(more.lines(), "  + a\n");
        assert_eq!(Change::of_file(Path::new("/f"), Some(&old), Some(&old)), None);
        assert_eq!(Change::of_file(Path::new("/f"), None, None), None);
        assert_eq!(Change::of_file(Path::new("/f"), Some(&old), None), Some(Change::Remove { path: "/f".into() }));
    }

    #[test]
    fn a_file_is_changed_behind_its_link_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        symlink("file", &link).unwrap();
        let change = Change::of_file(&link, Some(&"old".to_owned()), Some(&"new".to_owned())).unwrap();
        change.make().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(link.is_symlink());
    }

    #[test]
    fn folders_are_made_and_what_is_gone_may_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/conf.d/file");
        let write = Change::of_file(&path, None, Some(&"x".to_owned())).unwrap();
        write.make().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let link = Change::Link { path: folder.path().join("bin/link"), target: path.clone() };
        link.make().unwrap();
        link.make().unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("bin/link")).unwrap(), "x");
        assert_eq!(fs::read_dir(folder.path().join("bin")).unwrap().count(), 1);
        for _ in 0..2 {
            Change::Remove { path: path.clone() }.make().unwrap();
        }
        assert!(!path.exists());
    }
}
