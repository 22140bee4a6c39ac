//! Mounting overlayfs: folders one over the other, and over all of them one that is written to.
//!
//! Knows how many folders fit into what mount(2) takes; nothing of what is in them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

/// What is to be mounted.
pub(crate) struct Overlay<'a> {
    /// What is below, the uppermost first.
    pub(crate) lower: &'a [&'a Path],
    /// Where changes go.
    pub(crate) upper: &'a Path,
    /// An empty folder beside that.
    pub(crate) work: &'a Path,
    /// More options, each behind a comma.
    pub(crate) options: &'a str,
}

impl Overlay<'_> {
    /// Mounts it at `target`.
    ///
    /// # Errors
    /// What the operating system said.
    pub(crate) fn mount(&self, target: &Path, flags: MountFlags) -> io::Result<()> {
        // Options are a page at most, and those of a large image would not fit. Open folders have short names.
        let lower: Vec<OwnedFd> = self.lower.iter().map(|path| open(path)).collect::<io::Result<_>>()?;
        let names: Vec<String> = lower.iter().map(|folder| format!("/proc/self/fd/{}", folder.as_raw_fd())).collect();
        let mut data = format!("lowerdir={}", names.join(":")).into_bytes();
        for (key, path) in [(",upperdir=", self.upper), (",workdir=", self.work)] {
            data.extend(key.as_bytes());
            data.extend(escape(path));
        }
        data.extend(self.options.as_bytes());
        let data = CString::new(data)?;
        Ok(rustix::mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str()))?)
    }
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
        .map_err(|error| io::Error::other(format!("{}: {error}", folder.display())))
}

/// Gives the folder `to` owner and mode of `from`: what is uppermost is the root that is seen.
pub(crate) fn copy_mode(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let from = std::fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(from.uid()), Some(from.gid()))?;
    std::fs::set_permissions(to, from.permissions())
}

/// As overlayfs reads paths among its options: a backslash takes the meaning from what follows.
fn escape(path: &Path) -> Vec<u8> {
    path.as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|&byte| match byte {
            b'\\' | b',' | b':' => vec![b'\\', byte],
            _ => vec![byte],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_reach_overlayfs_whole() {
        assert_eq!(escape(Path::new("/a:b,c\\d/e")), br"/a\:b\,c\\d/e");
        assert_eq!(escape(Path::new("/plain/path")), b"/plain/path");
    }
}
