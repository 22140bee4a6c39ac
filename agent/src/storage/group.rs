//! The group of a volume's files, as the kubelet sets it on volumes that it mounts itself (a pod's `fsGroup`).
//!
//! Nobody else has the file system yet: no path leads elsewhere meanwhile.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use tatami_protocol::agent::Group;

/// The group reads and writes.
const OF_ALL: u32 = 0o660;
/// It enters folders, and what comes into them is its, too.
const OF_FOLDERS: u32 = 0o2110;

/// Gives all that is below `root` to `group`, and `root` itself last: what is interrupted is done again another time.
///
/// # Errors
/// The kernel's, for the first file that it refuses.
pub(super) fn give(root: &Path, group: &Group) -> io::Result<()> {
    let found = root.symlink_metadata()?;
    if group.unless_root_is && found.gid() == group.gid && found.mode() & mask(&found) == mask(&found) {
        return Ok(());
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let found = path.symlink_metadata()?;
            give_one(&path, &found, group.gid)?;
            if found.is_dir() {
                folders.push(path);
            }
        }
    }
    give_one(root, &found, group.gid)
}

fn give_one(path: &Path, found: &Metadata, gid: u32) -> io::Result<()> {
    lchown(path, None, Some(gid))?;
    if found.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7777 | mask(found)))
}

fn mask(found: &Metadata) -> u32 {
    if found.is_dir() { OF_ALL | OF_FOLDERS } else { OF_ALL }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn all_files_may_be_written_by_the_group_and_no_link_is_followed() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (folder, file) = (inside.path().join("folder"), inside.path().join("folder/file"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o4501)).unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        let before = mode(outside.path());
        // One that whoever runs this may give.
        let gid = inside.path().metadata().unwrap().gid();
        let group = Group { gid, ..Group::default() };
        give(inside.path(), &group).unwrap();
        assert_eq!((mode(&file), mode(&folder) & 0o2770), (0o4761, 0o2770));
        assert_eq!((mode(inside.path()) & 0o2770, mode(outside.path())), (0o2770, before));

        fs::set_permissions(&file, Permissions::from_mode(0o500)).unwrap();
        give(inside.path(), &Group { unless_root_is: true, ..group.clone() }).unwrap();
        assert_eq!(mode(&file), 0o500);
        fs::set_permissions(inside.path(), Permissions::from_mode(0o700)).unwrap();
        give(inside.path(), &Group { unless_root_is: true, ..group }).unwrap();
        assert_eq!((mode(&file), mode(inside.path())), (0o760, 0o2770));
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(give(Path::new("/no/such/volume"), &Group::default()).is_err());
    }
}
