//! What was built, where a host reads it at the speed of its own disk.
//!
//! The emulated test host sees the checkout through a network file system, at some 30 MB/s and with nothing kept between two
//! readers. A guest's kernel read from there takes longer than booting it, and no user has such an installation. So
//! each built file is copied once. Knows nothing of what the files are.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Where copies lie; in the emulated host it goes with the host.
const COPIES: &str = "/var/tmp/tatami-built";

/// The file, or where it lies on a 9p file system, an equal one on the host's own disk.
///
/// # Errors
/// When it cannot be read or copied.
pub fn on_own_disk(path: &Path) -> io::Result<PathBuf> {
    let metadata = fs::metadata(path)?;
    if file_system(&metadata)? != "9p" {
        return Ok(path.to_owned());
    }
    let folder = Path::new(COPIES).join(version(&metadata));
    let copy = folder.join(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    if !copy.exists() {
        fs::create_dir_all(&folder)?;
        // Several tests may be at it at once: each makes its own, and the last one named stays.
        let partial = tempfile::NamedTempFile::new_in(&folder)?;
        fs::copy(path, partial.path())?;
        partial.persist(&copy)?;
    }
    Ok(copy)
}

/// The kind of file system that a file is on, as proc(5) has it under mountinfo. `statfs` would not tell: for a file of a 9p
/// mount it answers with the kind of file system on the other side.
fn file_system(metadata: &Metadata) -> io::Result<String> {
    let device = format!("{}:{}", major(metadata.dev()), minor(metadata.dev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let kind = mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == device).then(|| rest.split(' ').next().unwrap_or_default().to_owned())
    });
    Ok(kind.unwrap_or_default())
}

/// Another name for every version of a file.
fn version(metadata: &Metadata) -> String {
    format!("{:x}-{:x}-{:x}.{:x}", metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}
