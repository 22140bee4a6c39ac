//! Direct volumes: disks that a CSI driver leaves to the runtime, by the convention that Kata's users have.
//!
//! For the volume that pods know by a path of the host's, the driver leaves a file `mountInfo.json` in a folder that is named after
//! that path, and mounts nothing there (Kata Containers, docs/design/direct-blk-device-assignment.md). The guest then mounts the disk.
//! Knows what the file says; nothing of slots, nor of who mounts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::Deserialize;

use super::error::TaskError;
use crate::sandbox::disk_root::{DiskFormat, ImagePath};
use crate::sandbox::fs_mount::FsMount;
use crate::sandbox::volumes::{Files, Group, GuestVolume};

/// Where drivers leave them.
const FOLDER: &str = "/run/kata-containers/shared/direct-volumes";
const FILE: &str = "mountInfo.json";
/// More than any driver has to say.
const MOST_BYTES: u64 = 64 << 10;
/// Options that are each mount's, not the file system's.
const OF_A_MOUNT: [&str; 8] =
    ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "norelatime", "strictatime"];

/// A volume, and with what options a container sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DirectVolume {
    pub(super) volume: GuestVolume,
    /// Of each mount of it.
    pub(super) options: Vec<String>,
}

/// What the file says.
#[derive(Deserialize)]
struct MountInfo {
    #[serde(rename = "volume-type")]
    kind: String,
    device: PathBuf,
    fstype: String,
    #[serde(default)]
    metadata: HashMap<String, String>,
    #[serde(default)]
    options: Vec<String>,
}

/// The direct volume that the path `source` stands for, if it stands for one.
///
/// # Errors
/// [`TaskError::InvalidArgument`] names the file, and what in it cannot be.
pub(super) fn find(source: &Path) -> Result<Option<DirectVolume>, TaskError> {
    find_in(Path::new(FOLDER), source)
}

fn find_in(folder: &Path, source: &Path) -> Result<Option<DirectVolume>, TaskError> {
    let file = place(folder, source).join(FILE);
    let refused = |why: String| TaskError::InvalidArgument(format!("{}: {why}", file.display()));
    let Some(text) = read(&file).map_err(|error| refused(error.to_string()))? else { return Ok(None) };
    parse(source, &text).map(Some).map_err(refused)
}

/// The folder in which the volume `source` is described.
fn place(folder: &Path, source: &Path) -> PathBuf {
    folder.join(URL_SAFE.encode(source.as_os_str().as_bytes()))
}

/// Has the path `source` stand for what `text` says, or for something else from now on.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn add(source: &Path, text: &[u8]) -> io::Result<()> {
    add_in(Path::new(FOLDER), source, text)
}

fn add_in(folder: &Path, source: &Path, text: &[u8]) -> io::Result<()> {
    let place = place(folder, source);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
    // It may be read at any time.
    let mut file = tempfile::NamedTempFile::new_in(&place)?;
    file.write_all(text)?;
    file.persist(place.join(FILE))?;
    Ok(())
}

/// Has the path `source` stand for itself again. What else lies with its description goes, too.
///
/// # Errors
/// When it stands for itself already, or nothing can be removed.
pub(crate) fn remove(source: &Path) -> io::Result<()> {
    remove_in(Path::new(FOLDER), source)
}

fn remove_in(folder: &Path, source: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(place(folder, source)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => io::Error::other("it is no direct volume"),
        _ => error,
    })
}

/// A file's content, if it is there.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // What it is, is not known yet, and opening a fifo would wait.
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) => {
            return match error.kind() {
                // No file can be named after a path that is too long.
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => Ok(None),
                _ => Err(error),
            };
        }
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("it has more than {MOST_BYTES} bytes")));
    }
    Ok(Some(text))
}

/// What such a file's `text` says of the volume `source`.
///
/// # Errors
/// What in it cannot be.
pub(crate) fn parse(source: &Path, text: &[u8]) -> Result<DirectVolume, String> {
    let info: MountInfo =
        serde_json::from_slice(text).map_err(|error| format!("not what a direct volume is said by: {error}"))?;
    let MountInfo { kind, device, fstype, metadata, options } = info;
    if !["block", "directvol"].contains(&kind.as_str()) {
        return Err(format!("volume-type is {kind:?}: expected \"block\""));
    }
    if !device.is_absolute() {
        return Err(format!("device is {device:?}: expected a path from / on"));
    }
    let format =
        DiskFormat::named(&fstype).ok_or_else(|| format!("fstype is {fstype:?}: expected ext4, xfs or erofs"))?;
    let group = group(&metadata)?;
    // By what it is, two volumes on one device being one.
    let found = device.metadata().map_err(|error| format!("device is {device:?}: {error}"))?;
    let name = format!("disk-{:x}-{:x}", found.dev(), found.ino());
    let (of_a_mount, rest): (Vec<_>, Vec<_>) =
        options.into_iter().partition(|option| OF_A_MOUNT.contains(&option.as_str()));
    let sorted = FsMount { kind: fstype, source: device.clone(), options: rest }.sorted();
    let image = ImagePath { path: device, read_only: sorted.read_only || format == DiskFormat::Erofs };
    let files = Files::OnDisk { image, format, options: sorted.data, group };
    let volume = GuestVolume { name, source: source.to_owned(), files };
    Ok(DirectVolume { volume, options: of_a_mount })
}

/// The group that `metadata` asks for, which has no other meaning here.
fn group(metadata: &HashMap<String, String>) -> Result<Option<Group>, String> {
    const GROUP: &str = "fsGroup";
    const POLICY: &str = "fsGroupChangePolicy";
    if let Some(key) = metadata.keys().filter(|key| ![GROUP, POLICY].contains(&key.as_str())).min() {
        return Err(format!("metadata has {key:?}, which is not carried out: only {GROUP} and {POLICY} are"));
    }
    let unless_root_is = match metadata.get(POLICY).map(String::as_str) {
        None | Some("Always") => false,
        Some("OnRootMismatch") => true,
        Some(other) => return Err(format!("{POLICY} is {other:?}: expected Always or OnRootMismatch")),
    };
    let number = |text: &String| text.parse().map_err(|_| format!("{GROUP} is {text:?}: expected a group's number"));
    let gid = metadata.get(GROUP).map(number).transpose()?;
    Ok(gid.map(|gid| Group { gid, unless_root_is }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is found for `/volume` when the file says `text`.
    fn found(text: &[u8]) -> Result<Option<DirectVolume>, String> {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("L3ZvbHVtZQ==");
        fs::create_dir(&place).unwrap();
        fs::write(place.join(FILE), text).unwrap();
        find_in(folder.path(), Path::new("/volume")).map_err(|error| {
            let text = error.to_string();
            text.strip_prefix(&format!("{}: ", place.join(FILE).display())).expect("the file is named").to_owned()
        })
    }

    #[test]
    fn a_disk_is_for_the_guest_to_mount() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let text = serde_json::json!({
            "volume-type": "block",
            "device": device.path(),
            "fstype": "ext4",
            "metadata": { "fsGroup": "3000", "fsGroupChangePolicy": "OnRootMismatch" },
            "options": ["ro", "noatime", "data=ordered"],
        });
        let direct = found(text.to_string().as_bytes()).unwrap().unwrap();
        assert_eq!(direct.options, ["noatime"]);
        assert_eq!(direct.volume.source, Path::new("/volume"));
        let image = ImagePath { path: device.path().to_owned(), read_only: true };
        let group = Some(Group { gid: 3000, unless_root_is: true });
        let files = Files::OnDisk { image, format: DiskFormat::Ext4, options: vec!["data=ordered".to_owned()], group };
        assert_eq!(direct.volume.files, files);
    }

    #[test]
    fn other_paths_stand_for_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("/{}", "x".repeat(4000));
        for path in ["/volume", "/", long.as_str()] {
            assert_eq!(find_in(folder.path(), Path::new(path)).unwrap(), None);
        }
        assert_eq!(find_in(Path::new("/no/such/folder"), Path::new("/volume")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_named_with_its_file() {
        let info = |kind: &str, device: &str, fstype: &str, metadata: &str| {
            format!(r#"{{"volume-type":"{kind}","device":"{device}","fstype":"{fstype}","metadata":{{{metadata}}}}}"#)
        };
        for (text, words) in [
            (info("spdkvol", "/dev/null", "ext4", ""), r#"volume-type is "spdkvol": expected "block""#),
            (info("block", "sda", "ext4", ""), r#"device is "sda": expected a path from / on"#),
            (info("block", "", "ext4", ""), r#"device is "": expected a path from / on"#),
            (info("block", "/dev/no-such", "ext4", ""), r#"device is "/dev/no-such": No such file"#),
            (info("block", "/dev/null", "ntfs", ""), r#"fstype is "ntfs": expected ext4, xfs or erofs"#),
            (info("block", "/dev/null", "", ""), r#"fstype is "": expected"#),
            (info("block", "/dev/null", "ext4", r#""encryptionKey":"k""#), r#"metadata has "encryptionKey""#),
            (info("block", "/dev/null", "ext4", r#""fsGroup":"-1""#), r#"fsGroup is "-1": expected a group's number"#),
            (
                info("block", "/dev/null", "ext4", r#""fsGroupChangePolicy":"x""#),
                r#"expected Always or OnRootMismatch"#,
            ),
            ("not JSON".to_owned(), "not what a direct volume is said by: expected"),
            (String::new(), "not what a direct volume is said by: EOF"),
            ("{}".to_owned(), "missing field `volume-type`"),
            (r#"{"volume-type":"block","device":7,"fstype":"ext4"}"#.to_owned(), "invalid type: integer `7`"),
            (format!(r#"{{"x":{}"#, "[".repeat(60_000)), "EOF while parsing"),
            ("[".repeat(70_000), "it has more than 65536 bytes"),
        ] {
            let error = found(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn what_is_added_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (place, volume) = (folder.path().join("volumes"), Path::new("/volume"));
        let info = |fstype: &str| format!(r#"{{"volume-type":"block","device":"/dev/null","fstype":"{fstype}"}}"#);
        let format = || match find_in(&place, volume).unwrap().unwrap().volume.files {
            Files::OnDisk { format, .. } => format,
            other => panic!("{other:?}"),
        };
        add_in(&place, volume, info("ext4").as_bytes()).unwrap();
        assert_eq!(format(), DiskFormat::Ext4);
        add_in(&place, volume, info("erofs").as_bytes()).unwrap();
        assert_eq!(format(), DiskFormat::Erofs);
        remove_in(&place, volume).unwrap();
        assert_eq!(find_in(&place, volume).unwrap(), None);
        assert_eq!(remove_in(&place, volume).unwrap_err().to_string(), "it is no direct volume");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("L3ZvbHVtZQ==");
        fs::create_dir(&place).unwrap();
        nix::unistd::mkfifo(&place.join(FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = find_in(folder.path(), Path::new("/volume")).unwrap_err().to_string();
        assert!(error.ends_with("mountInfo.json: it is no file"), "{error}");
    }
}
