//! `-v HOST:CONTAINER[:OPTIONS]`, as text and as a promise that the host side is there.
//!
//! Knows the text and the host's file system; nothing of how a volume reaches the guest.

use std::path::{Component, Path, PathBuf};

/// One `-v`: what of the host the container sees, where, and whether it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The host's file or folder; relative paths are the caller's.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// The container may not write to it.
    pub read_only: bool,
}

/// Why a `-v` is not understood or cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VolumeError {
    /// Not of the form that is expected.
    #[error("invalid volume {0:?}: expected HOST:CONTAINER or HOST:CONTAINER:ro")]
    Form(String),
    /// A name instead of a path.
    #[error("invalid volume {0:?}: named volumes are not supported, give a path (./{1} for one below this folder)")]
    Named(String, String),
    /// A container path that is relative or climbs.
    #[error("invalid volume {0:?}: the path in the container must be absolute and without `..`")]
    Destination(String),
    /// The root itself.
    #[error("invalid volume {0:?}: the path in the container must not be `/`")]
    Root(String),
    /// An option that is not ro or rw.
    #[error("invalid volume {0:?}: unknown option {1:?}, only ro and rw are known")]
    Option(String, String),
}

impl Volume {
    /// Reads the text of one `-v`.
    ///
    /// # Errors
    /// [`VolumeError`] names the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Volume, VolumeError> {
        let whole = || text.to_owned();
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, options) = match parts[..] {
            [source, destination] => (source, destination, ""),
            [source, destination, options] if !options.is_empty() => (source, destination, options),
            _ => return Err(VolumeError::Form(whole())),
        };
        if source.is_empty() || destination.is_empty() {
            return Err(VolumeError::Form(whole()));
        }
        if !source.starts_with(['/', '.']) {
            return Err(VolumeError::Named(whole(), source.to_owned()));
        }
        let destination = in_container(destination).ok_or_else(|| VolumeError::Destination(whole()))?;
        if destination == Path::new("/") {
            return Err(VolumeError::Root(whole()));
        }
        let mut read_only = false;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                _ => return Err(VolumeError::Option(whole(), option.to_owned())),
            }
        }
        Ok(Volume { source: PathBuf::from(source), destination, read_only })
    }
}

/// A path in the container without `.` and doubled slashes; none if it is relative or climbs.
pub(super) fn in_container(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let climbs = path.components().any(|part| part == Component::ParentDir);
    (path.is_absolute() && !climbs).then(|| path.components().collect())
}

impl std::str::FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Volume, VolumeError> {
        Volume::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_two_paths_and_may_be_read_only() {
        let volume = Volume::parse("/srv/data:/data").unwrap();
        assert_eq!(volume, Volume { source: "/srv/data".into(), destination: "/data".into(), read_only: false });
        assert!(Volume::parse("/srv:/x:ro").unwrap().read_only);
        assert!(!Volume::parse("/srv:/x:ro,rw").unwrap().read_only);
        assert_eq!(Volume::parse("./a:/x/./y//z/").unwrap().destination, Path::new("/x/y/z"));
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        let error = |text: &str| Volume::parse(text).unwrap_err();
        for text in ["", "/a", "/a:", ":/a", "/a:/b:", "/a:/b:ro:rw"] {
            assert!(matches!(error(text), VolumeError::Form(_)), "{text}");
        }
        assert!(matches!(error("data:/data"), VolumeError::Named(..)));
        assert!(matches!(error("/a:b"), VolumeError::Destination(_)));
        assert!(matches!(error("/a:/b/../c"), VolumeError::Destination(_)));
        assert!(matches!(error("/a:/"), VolumeError::Root(_)));
        assert!(matches!(error("/a:/./"), VolumeError::Root(_)));
        assert!(matches!(error("/a:/b:z"), VolumeError::Option(..)));
    }
}
