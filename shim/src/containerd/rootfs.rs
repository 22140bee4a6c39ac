//! A container's root as containerd describes it, turned into what a sandbox can mount.
//!
//! The one place that decides how a root file system reaches the guest. Knows containerd's descriptions; nothing of how
//! mounts are made.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use oci_spec::runtime::Spec;

use super::disk_rootfs::disk_root;
use super::error::TaskError;
use crate::sandbox::fs_mount::FsMount;
use crate::sandbox::mounts::Root;

/// The root of `spec`'s container: what `mounts` say, or without any what the specification names in `bundle`.
///
/// # Errors
/// [`TaskError::InvalidArgument`] for a root that is not there or of a kind that no sandbox can have.
pub(super) fn root(mounts: &[Mount], spec: &Spec, bundle: &Path) -> Result<Root, TaskError> {
    if mounts.is_empty() {
        let named = spec.root().as_ref().map(|root| root.path().as_path());
        let path: PathBuf = bundle.join(named.unwrap_or(Path::new("rootfs")));
        if !path.is_dir() {
            return Err(TaskError::InvalidArgument(format!("the root {} is not a folder", path.display())));
        }
        return Ok(Root::Plain(path));
    }
    let described = |mount: &Mount| FsMount {
        kind: mount.type_.clone(),
        source: PathBuf::from(&mount.source),
        options: mount.options.clone(),
    };
    let mounts: Vec<FsMount> = mounts.iter().map(described).collect();
    if let Some(disk) = disk_root(&mounts)? {
        return Ok(Root::Disk(disk));
    }
    mounts.into_iter().map(of_the_host).collect::<Result<_, _>>().map(Root::Mounts)
}

fn of_the_host(mount: FsMount) -> Result<FsMount, TaskError> {
    if mount.is_bind() || mount.kind == "overlay" {
        return Ok(mount);
    }
    Err(TaskError::InvalidArgument(format!(
        "the root file system type {:?} (from {}) is not supported: overlay, bind, ext4, xfs and erofs are",
        mount.kind,
        mount.source.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.to_owned(),
            source: "/src".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn spec(root: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"{root}"}}}}"#)).unwrap()
    }

    #[test]
    fn overlays_and_binds_are_taken_as_they_are() {
        let mounts = [mount("overlay", &["lowerdir=/a"]), mount("bind", &["rbind", "rw"])];
        let Ok(Root::Mounts(taken)) = root(&mounts, &spec("rootfs"), Path::new("/b")) else { panic!("mounts") };
        assert_eq!(taken[0].options, ["lowerdir=/a"]);
        assert!(taken[1].is_bind());
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_name() {
        let error = root(&[mount("zfs", &[])], &spec("rootfs"), Path::new("/b")).unwrap_err();
        assert!(matches!(&error, TaskError::InvalidArgument(text) if text.contains("zfs")), "{error}");
    }

    #[test]
    fn without_mounts_the_specification_names_the_root() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("tree")).unwrap();
        let Ok(Root::Plain(path)) = root(&[], &spec("tree"), bundle.path()) else { panic!("a folder") };
        assert_eq!(path, bundle.path().join("tree"));
        let Ok(Root::Plain(path)) = root(&[], &spec("/"), bundle.path()) else { panic!("a folder") };
        assert_eq!(path, Path::new("/"));
        assert!(root(&[], &spec("gone"), bundle.path()).is_err());
    }
}
