//! Where configuration files are: the one that is named, or Kata's places, and what is dropped in beside it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Names a file where no client does.
pub const VARIABLE: &str = "KATA_CONF_FILE";
/// Where it is looked for, in this order.
const PLACES: [&str; 2] =
    ["/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml"];
/// The folder beside it whose files go before it, in the order of their names.
const DROP_INS: &str = "config.d";

/// The file to begin with: `named` by a client, by the variable's `value`, or the first that is there; none is as good.
pub(super) fn find(named: Option<&Path>, value: Option<OsString>) -> Option<PathBuf> {
    let value = value.filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = named.map(Path::to_owned).or(value);
    named.or_else(|| PLACES.iter().map(PathBuf::from).find(|place| place.exists()))
}

/// Where the file is looked for, in this order; the first is what the variable names, if it names one.
pub(super) fn places() -> Vec<PathBuf> {
    let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.into_iter().chain(PLACES.map(PathBuf::from)).collect()
}

/// All files, in the order in which they override each other. Beside is what lies beside the file itself, not beside a link to it.
///
/// # Errors
/// When the file is not there, or a folder cannot be read.
pub(super) fn with_drop_ins(file: &Path) -> io::Result<Vec<PathBuf>> {
    let file = file.canonicalize()?;
    let folder = file.parent().unwrap_or(Path::new("/")).join(DROP_INS);
    let mut dropped = match std::fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    dropped.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    dropped.sort_unstable();
    Ok(std::iter::once(file).chain(dropped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_a_file_goes_before_the_variable() {
        let found = |named: Option<&str>, value: &str| find(named.map(Path::new), Some(value.into()));
        assert_eq!(found(Some("/a"), "/b"), Some("/a".into()));
        assert_eq!(found(None, "/b"), Some("/b".into()));
    }

    #[test]
    fn drop_ins_lie_beside_the_file_itself_and_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let dropped = root.join("real/config.d");
        std::fs::create_dir_all(&dropped).unwrap();
        for name in ["20-b.toml", "10-a.toml", "README"] {
            std::fs::write(dropped.join(name), "").unwrap();
        }
        std::fs::write(root.join("real/configuration.toml"), "").unwrap();
        std::os::unix::fs::symlink("real/configuration.toml", root.join("link.toml")).unwrap();
        let files = with_drop_ins(&root.join("link.toml")).unwrap();
        let expected = ["real/configuration.toml", "real/config.d/10-a.toml", "real/config.d/20-b.toml"];
        assert_eq!(files, expected.map(|name| root.join(name)));
        assert!(with_drop_ins(&root.join("none.toml")).is_err());
    }
}
