//! A file system to be mounted on the host, as a caller describes it: type, source, fstab-like options.
//!
//! Knows what the options mean to mount(2), and how to hand over more of them than fit into a page; nothing of containers.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

/// What mount(2) takes as data: a page, with the zero at its end.
const MAX_DATA: usize = 4095;

/// A file system that the host's kernel is to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsMount {
    /// Its type; `bind` shows a folder that is there already.
    pub kind: String,
    /// The folder or device.
    pub source: PathBuf,
    /// As in fstab: words with a meaning to mount(2), others for the file system.
    pub options: Vec<String>,
}

/// Options, sorted by who understands them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// It shows a folder.
    pub bind: bool,
    /// With what is mounted below it.
    pub recursive: bool,
    /// It is not to be written.
    pub read_only: bool,
    /// For the file system.
    pub data: Vec<String>,
}

impl FsMount {
    /// Whether it shows a folder instead of mounting a file system.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.sorted().bind
    }

    /// The options, sorted. What a guest interprets for itself, and propagation, which a sandbox's mounts do not have, is
    /// left out.
    pub fn sorted(&self) -> Sorted {
        let mut sorted = Sorted::default();
        for option in &self.options {
            match option.as_str() {
                "ro" => sorted.read_only = true,
                "rw" => sorted.read_only = false,
                "bind" => sorted.bind = true,
                "rbind" => (sorted.bind, sorted.recursive) = (true, true),
                "" | "defaults" | "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" | "atime" | "noatime"
                | "diratime" | "nodiratime" | "relatime" | "norelatime" | "strictatime" | "nostrictatime" | "async"
                | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                }
                _ => sorted.data.push(option.clone()),
            }
        }
        sorted
    }

    /// Mounts it, unless it is a bind.
    pub(super) fn mount(&self, target: &Path) -> io::Result<()> {
        let sorted = self.sorted();
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        if sorted.read_only {
            flags |= MountFlags::RDONLY;
        }
        let data = sorted.data.join(",");
        if data.len() <= MAX_DATA {
            return self.mount_with(target, flags, data);
        }
        let (folder, data) = shortened(&sorted.data)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more mount options than the kernel takes"))?;
        // The process's working folder is otherwise `/`, and nothing else of it depends on that while this runs.
        let before = std::env::current_dir()?;
        std::env::set_current_dir(folder)?;
        let mounted = self.mount_with(target, flags, data);
        std::env::set_current_dir(before)?;
        mounted
    }

    fn mount_with(&self, target: &Path, flags: MountFlags, data: String) -> io::Result<()> {
        let data = CString::new(data)?;
        Ok(rustix::mount::mount(&self.source, target, self.kind.as_str(), flags, Some(data.as_c_str()))?)
    }
}

/// The folder that all lower layers of an overlay have in common, and the options with layers relative to it, if they are
/// short enough then.
fn shortened(options: &[String]) -> Option<(PathBuf, String)> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut folder = layers.first()?.parent()?.to_owned();
    while !layers.iter().all(|layer| layer.starts_with(&folder)) {
        folder.pop();
    }
    let relative: Option<Vec<&str>> =
        layers.iter().map(|layer| layer.strip_prefix(&folder).ok().and_then(Path::to_str)).collect();
    let relative = format!("lowerdir={}", relative?.join(":"));
    let data: Vec<&str> = options
        .iter()
        .map(|option| if option.starts_with("lowerdir=") { relative.as_str() } else { option.as_str() })
        .collect();
    let data = data.join(",");
    (data.len() <= MAX_DATA).then_some((folder, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> FsMount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        FsMount { kind: "overlay".into(), source: "overlay".into(), options }
    }

    #[test]
    fn options_go_to_who_understands_them() {
        let sorted = overlay(&["ro", "nosuid", "index=off", "lowerdir=/a:/b"]).sorted();
        assert!(sorted.read_only && !sorted.bind);
        assert_eq!(sorted.data, ["index=off", "lowerdir=/a:/b"]);
        let bind = FsMount { kind: "bind".into(), source: "/a".into(), options: vec!["rbind".into(), "rw".into()] };
        assert!(bind.is_bind() && bind.sorted().recursive && bind.sorted().data.is_empty());
    }

    #[test]
    fn many_layers_are_named_from_where_they_lie() {
        let layers: Vec<String> = (0..120)
            .map(|n| format!("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs"))
            .collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        assert!(lower.len() > MAX_DATA);
        let (folder, data) = shortened(&["upperdir=/u".to_owned(), lower]).unwrap();
        assert!(folder.ends_with("snapshots"));
        assert!(data.starts_with("upperdir=/u,lowerdir=0/fs:1/fs:"), "{data}");
        assert_eq!(shortened(&["x".repeat(5000)]), None);
    }
}
