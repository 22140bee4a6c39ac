//! emptyDir volumes of the medium Memory: where the kubelet has mounted a tmpfs for one, the guest mounts one of its own.
//!
//! Its files are then the guest's memory, counted to the containers that write them, and may be mapped by several. They are never on
//! the host, where the kubelet puts nothing into such a volume. Knows where the kubelet has its volumes; nothing of who mounts.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::translate::tmpfs_size;
use crate::sandbox::volumes::{Files, GuestVolume};

/// The kubelet's folder for a pod's emptyDir volumes: `pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`.
const FOLDER: &str = "kubernetes.io~empty-dir";

/// The volume that `source` is, if it is one in memory. A folder in one, which a subPath makes the source, is the host's.
pub(super) fn in_memory(source: &Path) -> Option<GuestVolume> {
    let parent = source.parent().filter(|parent| parent.ends_with(FOLDER))?;
    let size = tmpfs_size(source)?;
    let root = source.metadata().ok()?;
    // A volume on disk is a folder in whatever file system that lies in, which may be a tmpfs too.
    if parent.metadata().ok()?.dev() == root.dev() {
        return None;
    }
    let options = [
        format!("size={size}"),
        format!("mode={:o}", root.mode() & 0o7777),
        format!("uid={}", root.uid()),
        format!("gid={}", root.gid()),
    ];
    let name = format!("memory-{:x}", root.dev());
    Some(GuestVolume { name, source: source.to_owned(), files: Files::InMemory(options.to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_a_disk_or_elsewhere_stays_the_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join(FOLDER).join("v");
        std::fs::create_dir_all(&volume).unwrap();
        assert_eq!(in_memory(&volume), None);
        // A mount of its own, but no tmpfs in the kubelet's folder.
        for path in ["/", "/proc", "/dev/shm", "/no/such/kubernetes.io~empty-dir/v"] {
            assert_eq!(in_memory(Path::new(path)), None, "{path}");
        }
    }
}
