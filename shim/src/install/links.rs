//! The names under which containerd finds a shim, as links to this binary; and a copy of it, for a host that has none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::change::{Change, Plan};
use super::error::InstallError;

/// What containerd makes of the runtime types `io.containerd.kata.v2` and `io.containerd.tatami.v2`.
const NAMES: [&str; 2] = ["containerd-shim-kata-v2", "containerd-shim-tatami-v2"];
/// What a copy is called.
const PROGRAM: &str = "tatami";
const REMEDY: &str = "remove it, or choose another folder with --bin-dir";

/// What is to be changed so that `folder` has the links to `binary`, or to a copy of it there with `copy`.
///
/// # Errors
/// [`InstallError`]; nothing has been changed.
pub(super) fn plan(folder: &Path, binary: &Path, copy: bool) -> Result<Plan, InstallError> {
    let mut plan = Plan::default();
    let folder = std::path::absolute(folder).map_err(unreadable(folder))?;
    let program = folder.join(PROGRAM);
    let target = if copy { program.as_path() } else { binary };
    if copy && !is_same(&program, binary) {
        match Found::at(&program)? {
            Found::Program if same_content(&program, binary)? => {}
            Found::Nothing | Found::Program => {
                plan.changes.push(Change::Copy { path: program.clone(), source: binary.to_owned() });
            }
            other => return Err(other.foreign(&program)),
        }
    }
    for path in NAMES.map(|name| folder.join(name)) {
        match Found::at(&path)? {
            // As `make install` has it: by another path, or by none.
            Found::Link(_) if is_same(&path, target) => {}
            Found::Link(to) if is_ours(&to, binary) => {
                plan.changes.push(Change::Link { path, target: target.to_owned() })
            }
            Found::Nothing => plan.changes.push(Change::Link { path, target: target.to_owned() }),
            other => return Err(other.foreign(&path)),
        }
    }
    Ok(plan)
}

/// What is to be changed so that `folder` has no links to `binary`, or to what is called as it is, and with `copy` no copy either.
///
/// # Errors
/// [`InstallError`]; nothing has been changed.
pub(super) fn plan_removal(folder: &Path, binary: &Path, copy: bool) -> Result<Plan, InstallError> {
    let mut plan = Plan::default();
    let folder = std::path::absolute(folder).map_err(unreadable(folder))?;
    for path in NAMES.map(|name| folder.join(name)) {
        match Found::at(&path)? {
            Found::Nothing => {}
            Found::Link(to) if is_ours(&to, binary) || is_same(&path, binary) => {
                plan.changes.push(Change::Remove { path })
            }
            other => plan.notes.push(format!("{} stays: it is {}", path.display(), other.what())),
        }
    }
    if copy {
        let path = folder.join(PROGRAM);
        match Found::at(&path)? {
            Found::Nothing => {}
            Found::Program => plan.changes.push(Change::Remove { path }),
            other => plan.notes.push(format!("{} stays: it is {}", path.display(), other.what())),
        }
    }
    Ok(plan)
}

/// What is at a path.
enum Found {
    Nothing,
    Link(PathBuf),
    /// A file that is this program, of whatever version.
    Program,
    Other,
}

impl Found {
    fn at(path: &Path) -> Result<Found, InstallError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(unreadable(path)(error)),
        };
        if metadata.is_symlink() {
            return fs::read_link(path).map(Found::Link).map_err(unreadable(path));
        }
        if metadata.is_file() && is_program(&fs::read(path).map_err(unreadable(path))?) {
            return Ok(Found::Program);
        }
        Ok(Found::Other)
    }

    fn what(&self) -> String {
        match self {
            Found::Nothing => "nothing".to_owned(),
            Found::Link(to) => format!("a link to {}", to.display()),
            Found::Program => "a Tatami".to_owned(),
            Found::Other => "a file or folder of another kind".to_owned(),
        }
    }

    fn foreign(&self, path: &Path) -> InstallError {
        InstallError::Foreign { path: path.to_owned(), what: self.what(), remedy: REMEDY }
    }
}

/// Whether a link to `target` is one that we have made: also when the binary was moved, or is no more.
fn is_ours(target: &Path, binary: &Path) -> bool {
    target.file_name().is_some_and(|name| name == PROGRAM || Some(name) == binary.file_name())
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn same_content(one: &Path, other: &Path) -> Result<bool, InstallError> {
    Ok(fs::read(one).map_err(unreadable(one))? == fs::read(other).map_err(unreadable(other))?)
}

/// Whether these are the bytes of an executable that answers to our own name.
fn is_program(bytes: &[u8]) -> bool {
    let name = NAMES[1].as_bytes();
    bytes.starts_with(b"\x7fELF") && bytes.windows(name.len()).any(|window| window == name)
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |source| InstallError::Read { path: path.to_owned(), source }
}
