//! The file that a guest's memory lies in, where its user says in which folder that is to be: on a disk, on a file system in memory
//! that is limited, on persistent memory.
//!
//! It has no name, so nothing is left of it whatever dies.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Error;

/// Makes it in `folder`, empty. The host gives its file system's blocks as the guest touches memory, `bytes` in all; a guest that is
/// given none is killed, so they must be there now.
///
/// # Errors
/// [`Error::Memory`].
pub(super) fn create(folder: &Path, bytes: u64) -> Result<File, Error> {
    let created = || {
        let options = &mut OpenOptions::new();
        let file = options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder)?;
        let space = rustix::fs::fstatvfs(&file)?;
        // File systems without a limit say that they have nothing of anything.
        let free = if space.f_blocks == 0 { u64::MAX } else { space.f_bavail.saturating_mul(space.f_frsize) };
        match free < bytes {
            true => Err(io::Error::other(format!("{} MiB are free there, it takes {}", free >> 20, bytes >> 20))),
            false => Ok(file),
        }
    };
    created().map_err(|source| Error::Memory { folder: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_nowhere_to_be_seen_and_what_cannot_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = create(folder.path(), 1 << 20).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let refused = |path: &Path, bytes| create(path, bytes).unwrap_err().to_string();
        let (missing, large) = (refused(Path::new("/no/such"), 1), refused(folder.path(), 1 << 60));
        assert!(missing.contains("/no/such") && missing.contains("No such file"), "{missing}");
        assert!(large.contains("MiB are free there, it takes 1099511627776"), "{large}");
        assert!(refused(Path::new("/etc/hostname"), 1).contains("Not a directory"));
    }
}
