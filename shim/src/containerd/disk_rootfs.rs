//! Roots that lie on disk images, as containerd's snapshotters describe them: which images the guest is to mount, and how.
//!
//! - devmapper: one mount of ext4 or xfs from a block device; blockfile: the same from a file, with the option `loop`.
//! - erofs of containerd 2.1: one overlay, whose lower folders containerd has mounted itself, each from the `layer.erofs` beside
//!   it; or, of a single layer, one mount of erofs with `loop` and perhaps `device=`.
//! - erofs of later versions, to a runtime that asks for it: the mounts of all layers, then one whose type begins with
//!   `format/`, and whose options name them by `{{ mount N }}` and `{{ overlay FROM TO }}`.
//!
//! Pure, but for a look at what lower folders are made of. Knows nothing of slots, nor of who mounts.

use std::path::{Component, Path, PathBuf};

use tatami_protocol::agent::storage::Kind;
use tatami_protocol::agent::{BlockStorage, OverlayStorage, Place};
use tatami_vmm::DISK_PARTS_LIMIT;

use super::error::TaskError;
use crate::sandbox::disk_root::{DiskFormat, DiskRoot, below};
use crate::sandbox::fs_mount::FsMount;

/// What statfs(2) says of an erofs.
const EROFS_MAGIC: u64 = 0xe0f5_e1e2;
/// Where containerd's erofs snapshotter keeps the image of a layer, beside the folder that it mounts it on.
const LAYER_IMAGE: &str = "layer.erofs";
/// Options of transformations that containerd does on the host, of which only the making of folders is done here: the agent
/// makes an overlay's upper and work folder.
const TRANSFORMATION: &str = "X-containerd.";
const MAKE_FOLDER: &str = "X-containerd.mkdir.path=";

/// The root that `mounts` describe, if any of them is of a disk image; `None` means that the host can mount them all.
///
/// # Errors
/// [`TaskError::InvalidArgument`] for what the guest cannot mount.
pub(super) fn disk_root(mounts: &[FsMount]) -> Result<Option<DiskRoot>, TaskError> {
    translate(mounts, &erofs_image)
}

/// The same with another way to find the image of a lower folder.
fn translate(mounts: &[FsMount], image_of: &dyn Fn(&Path) -> Option<PathBuf>) -> Result<Option<DiskRoot>, TaskError> {
    let Some((last, before)) = mounts.split_last() else { return Ok(None) };
    if let ("overlay", []) = (last.kind.as_str(), before) {
        return overlay_of_mounted(last, image_of);
    }
    let formatted = last.kind.strip_prefix("format/");
    if formatted.is_none() && mounts.iter().all(|mount| DiskFormat::named(&mount.kind).is_none()) {
        return Ok(None);
    }
    let mut root = DiskRoot::default();
    let images = if formatted.is_some() { before } else { mounts };
    let places = images.iter().map(|mount| block(&mut root, mount)).collect::<Result<Vec<_>, _>>()?;
    root.root = match formatted.map(|kind| kind.trim_start_matches("mkdir/")) {
        None if places.len() == 1 => places[0].clone(),
        None => return Err(invalid("several file systems and nothing that lays them over each other".to_owned())),
        Some("overlay") => {
            let overlay = overlay(&mut root, last, &places, &|_| None)?;
            root.add(Kind::Overlay(overlay))
        }
        Some("bind") => place(&mut root, &last.source.to_string_lossy(), &places)?,
        Some(_) => return Err(invalid(format!("the root file system type {:?} is not supported", last.kind))),
    };
    Ok(Some(root))
}

/// An overlay whose lower folders are mounted on the host: those that are of erofs are given to the guest as disks.
fn overlay_of_mounted(
    mount: &FsMount,
    image_of: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<Option<DiskRoot>, TaskError> {
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap_or_default();
    let images = lower.split(':').filter(|folder| image_of(Path::new(folder)).is_some()).count();
    // Where there is no disk for so many layers, or the upper layer is in several places, the host's mount does.
    if images == 0 || images > DISK_PARTS_LIMIT || upper_folder(mount).is_none() && writable(mount) {
        return Ok(None);
    }
    let mut root = DiskRoot::default();
    let overlay = overlay(&mut root, mount, &[], image_of)?;
    root.root = root.add(Kind::Overlay(overlay));
    Ok(Some(root))
}

/// A file system on an image of its own, or on several.
fn block(root: &mut DiskRoot, mount: &FsMount) -> Result<Place, TaskError> {
    let format = DiskFormat::named(&mount.kind).ok_or_else(|| {
        invalid(format!(
            "the root file system type {:?} (from {}) is not supported",
            mount.kind,
            mount.source.display()
        ))
    })?;
    let sorted = mount.sorted();
    let read_only = sorted.read_only || format == DiskFormat::Erofs;
    let mut storage = BlockStorage { type_: format.name().to_owned(), read_only, ..BlockStorage::default() };
    storage.part = root.add_image(&mount.source, read_only);
    for option in sorted.data {
        match option.strip_prefix("device=") {
            // The guest has the image as a disk: no loop device is needed.
            None if option == "loop" => {}
            None if option.starts_with(TRANSFORMATION) => return Err(unknown(&option)),
            None => storage.options.push(option),
            Some(device) => storage.devices.push(root.add_image(Path::new(device), read_only)),
        }
    }
    Ok(root.add(Kind::Block(storage)))
}

/// An overlay of `places` and of folders of the host; of the latter, those of which `image_of` knows one as disks.
fn overlay(
    root: &mut DiskRoot,
    mount: &FsMount,
    places: &[Place],
    image_of: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<OverlayStorage, TaskError> {
    let mut overlay = OverlayStorage::default();
    // Upper and work folder must lie in one mount, so what is shown to the guest is the folder that holds both.
    let shown = upper_folder(mount).map(|folder| (root.folder(&folder, false), folder));
    for option in mount.sorted().data {
        let (key, value) = option.split_once('=').unwrap_or((&option, ""));
        match key {
            "lowerdir" => {
                for folder in split(value) {
                    if let Some((from, to)) = range(folder) {
                        overlay.lower.extend(in_order(places, from, to)?);
                    } else if let Some(image) = image_of(Path::new(folder)) {
                        let mount = FsMount { kind: "erofs".to_owned(), source: image, options: Vec::new() };
                        overlay.lower.push(block(root, &mount)?);
                    } else {
                        overlay.lower.push(place(root, folder, places)?);
                    }
                }
            }
            "upperdir" | "workdir" => {
                let place = match &shown {
                    Some((shown, folder)) => {
                        let name = Path::new(value).strip_prefix(folder).unwrap_or(Path::new(value));
                        below(shown, &name.to_string_lossy())
                    }
                    None => place(root, value, places)?,
                };
                let side = if key == "upperdir" { &mut overlay.upper } else { &mut overlay.work };
                *side = Some(place).into();
            }
            _ if option.starts_with(MAKE_FOLDER) || option == "userxattr" => {}
            _ if option.starts_with(TRANSFORMATION) => return Err(unknown(&option)),
            _ => overlay.options.push(option),
        }
    }
    Ok(overlay)
}

/// What a word of a mount names: an earlier mount, or a folder of the host, which the guest may not write to.
fn place(root: &mut DiskRoot, word: &str, places: &[Place]) -> Result<Place, TaskError> {
    if let Some((inside, rest)) = word.strip_prefix("{{").and_then(|word| word.split_once("}}")) {
        let number = inside.trim().strip_prefix("mount ").and_then(|number| number.trim().parse::<usize>().ok());
        let place = number.and_then(|number| places.get(number)).ok_or_else(|| unknown(word))?;
        let rest = Path::new(rest.trim_start_matches('/'));
        if !rest.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(unknown(word));
        }
        return Ok(if rest.as_os_str().is_empty() { place.clone() } else { below(place, &rest.to_string_lossy()) });
    }
    if word.contains("{{") || !Path::new(word).is_absolute() {
        return Err(unknown(word));
    }
    Ok(root.folder(Path::new(word), true))
}

/// A list of folders; colons inside braces are none of its borders.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    list.split(move |character| {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ':' && depth == 0
    })
}

/// The numbers of `{{ overlay FROM TO }}`.
fn range(word: &str) -> Option<(usize, usize)> {
    let inside = word.strip_prefix("{{")?.strip_suffix("}}")?.trim().strip_prefix("overlay ")?;
    let (from, to) = inside.trim().split_once(' ')?;
    Some((from.parse().ok()?, to.trim().parse().ok()?))
}

/// Mounts `from` to `to`, in either direction.
fn in_order(places: &[Place], from: usize, to: usize) -> Result<Vec<Place>, TaskError> {
    let (least, most) = (from.min(to), from.max(to));
    let mut chosen = places.get(least..=most).map(<[Place]>::to_vec).ok_or_else(|| unknown(&format!("{from} {to}")))?;
    if from > to {
        chosen.reverse();
    }
    Ok(chosen)
}

fn writable(mount: &FsMount) -> bool {
    mount.options.iter().any(|option| option.starts_with("upperdir="))
}

/// The folder of the host that upper and work folder lie in, side by side; `None` where they do not, or are not the host's.
fn upper_folder(mount: &FsMount) -> Option<PathBuf> {
    let named = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)).map(Path::new);
    let (upper, work) = (named("upperdir=")?, named("workdir=")?);
    let plain = upper.is_absolute() && work.is_absolute();
    upper.parent().filter(|parent| plain && work.parent() == Some(parent)).map(Path::to_owned)
}

/// The image that a folder is mounted from, by containerd's erofs snapshotter.
fn erofs_image(folder: &Path) -> Option<PathBuf> {
    let image = folder.parent()?.join(LAYER_IMAGE);
    let mounted = rustix::fs::statfs(folder).ok()?.f_type as u64 == EROFS_MAGIC;
    (mounted && image.is_file()).then_some(image)
}

fn unknown(what: &str) -> TaskError {
    invalid(format!("the root's mounts have {what:?}, which is not understood here"))
}

fn invalid(message: String) -> TaskError {
    TaskError::InvalidArgument(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> FsMount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        FsMount { kind: kind.to_owned(), source: source.into(), options }
    }

    fn on_disks(mounts: &[FsMount]) -> DiskRoot {
        disk_root(mounts).unwrap().expect("a root on disks")
    }

    fn paths(root: &DiskRoot) -> Vec<(&str, bool)> {
        root.images.iter().map(|image| (image.path.to_str().unwrap(), image.read_only)).collect()
    }

    fn words(places: &[Place]) -> Vec<String> {
        places.iter().map(|place| format!("{}/{}", place.storage, place.path)).collect()
    }

    fn overlay_in(root: &DiskRoot, number: usize) -> &OverlayStorage {
        match &root.storages[number].kind {
            Some(Kind::Overlay(overlay)) => overlay,
            other => panic!("no overlay: {other:?}"),
        }
    }

    fn block_in(root: &DiskRoot, number: usize) -> &BlockStorage {
        match &root.storages[number].kind {
            Some(Kind::Block(block)) => block,
            other => panic!("no block storage: {other:?}"),
        }
    }

    #[test]
    fn what_the_host_mounts_is_none_of_this() {
        assert_eq!(disk_root(&[]).unwrap(), None);
        for mounts in [
            vec![mount("overlay", "overlay", &["lowerdir=/a:/b", "upperdir=/c/fs", "workdir=/c/work"])],
            vec![mount("bind", "/a", &["rbind", "rw"])],
            vec![mount("zfs", "pool", &[])],
        ] {
            assert_eq!(disk_root(&mounts).unwrap(), None, "{mounts:?}");
        }
    }

    #[test]
    fn devmapper_and_blockfile_are_one_image() {
        let root = on_disks(&[mount("xfs", "/dev/mapper/pool-snap-1", &["nouuid"])]);
        assert_eq!(paths(&root), [("/dev/mapper/pool-snap-1", false)]);
        assert_eq!(
            (block_in(&root, 0).type_.as_str(), &block_in(&root, 0).options[..]),
            ("xfs", &["nouuid".to_owned()][..])
        );

        let root = on_disks(&[mount("ext4", "/s/1", &["loop", "ro"])]);
        assert_eq!(paths(&root), [("/s/1", true)]);
        assert!(block_in(&root, 0).read_only && block_in(&root, 0).options.is_empty());
        assert_eq!(root.root.storage, "0");
    }

    #[test]
    fn an_erofs_may_have_further_devices() {
        let root = on_disks(&[mount("erofs", "/s/meta", &["ro", "loop", "device=/s/1", "device=/s/2"])]);
        assert_eq!(paths(&root), [("/s/meta", true), ("/s/1", true), ("/s/2", true)]);
        assert_eq!(block_in(&root, 0).devices, [1, 2]);
    }

    #[test]
    fn layers_that_containerd_has_mounted_go_to_the_guest_as_disks() {
        let image_of =
            |folder: &Path| (folder != Path::new("/s/2/fs")).then(|| folder.parent().unwrap().join("layer.erofs"));
        let options = ["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/3/fs:/s/2/fs:/s/1/fs"];
        let root = translate(&[mount("overlay", "overlay", &options)], &image_of).unwrap().unwrap();
        assert_eq!(paths(&root), [("/s/3/layer.erofs", true), ("/s/1/layer.erofs", true)]);
        let shown: Vec<_> =
            root.folders.iter().map(|folder| (folder.source.to_str().unwrap(), folder.read_only)).collect();
        assert_eq!(shown, [("/s/9", false), ("/s/2/fs", true)]);
        let overlay = overlay_in(&root, 2);
        assert_eq!(words(&overlay.lower), ["0/", "/layers/1", "1/"]);
        assert_eq!((overlay.upper.path.as_str(), overlay.work.path.as_str()), ("layers/0/fs", "layers/0/work"));
        assert_eq!(overlay.options, ["index=off"]);
        assert_eq!(root.root.storage, "2");
    }

    #[test]
    fn where_no_disk_will_do_the_host_mounts() {
        let image_of = |folder: &Path| Some(folder.join("layer.erofs"));
        let apart = mount("overlay", "overlay", &["lowerdir=/s/1/fs", "upperdir=/a/fs", "workdir=/b/work"]);
        assert_eq!(translate(&[apart], &image_of).unwrap(), None);
        let many: Vec<_> = (0..DISK_PARTS_LIMIT + 1).map(|n| format!("/s/{n}/fs")).collect();
        let many = mount("overlay", "overlay", &[&format!("lowerdir={}", many.join(":"))]);
        assert_eq!(translate(&[many], &image_of).unwrap(), None);
    }

    #[test]
    fn mounts_name_earlier_ones() {
        let layers = [
            mount("ext4", "/s/9/rw.img", &["rw", "loop"]),
            mount("erofs", "/s/3", &["ro", "loop"]),
            mount("erofs", "/s/2", &["ro", "loop"]),
        ];
        let with = |last: FsMount| on_disks(&[&layers[..], &[last]].concat());
        let options = [
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
            "lowerdir={{ overlay 1 2 }}",
        ];
        let root = with(mount("format/mkdir/overlay", "overlay", &options));
        assert_eq!(paths(&root), [("/s/9/rw.img", false), ("/s/3", true), ("/s/2", true)]);
        let overlay = overlay_in(&root, 3);
        assert_eq!(words(&overlay.lower), ["1/", "2/"]);
        assert_eq!((overlay.upper.storage.as_str(), overlay.upper.path.as_str()), ("0", "upper"));
        assert_eq!((overlay.work.storage.as_str(), overlay.work.path.as_str()), ("0", "work"));

        let root = with(mount("format/overlay", "overlay", &["lowerdir={{ overlay 2 1 }}:{{ mount 0 }}/a:/host"]));
        assert_eq!(words(&overlay_in(&root, 3).lower), ["2/", "1/", "0/a", "/layers/0"]);

        let root = with(mount("format/mkdir/bind", "{{ mount 0 }}/upper", &["rw", "rbind"]));
        assert_eq!((root.root.storage.as_str(), root.root.path.as_str()), ("0", "upper"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let layer = || mount("erofs", "/s/1", &["loop"]);
        for (mounts, word) in [
            (vec![layer(), layer()], "nothing that lays them"),
            (vec![mount("mkfs/ext4", "/s/1", &[]), mount("format/bind", "{{ mount 0 }}", &[])], "mkfs/ext4"),
            (vec![layer(), mount("format/zfs", "x", &[])], "format/zfs"),
            (vec![layer(), mount("format/bind", "{{ mount 1 }}", &[])], "{{ mount 1 }}"),
            (vec![layer(), mount("format/bind", "{{ mount 0 }}/../x", &[])], "{{ mount 0 }}/../x"),
            (vec![layer(), mount("format/bind", "{{ source 0 }}", &[])], "{{ source 0 }}"),
            (vec![layer(), mount("format/overlay", "x", &["lowerdir={{ overlay 0 1 }}"])], "0 1"),
            (vec![layer(), mount("format/overlay", "x", &["lowerdir=relative"])], "relative"),
            (vec![mount("erofs", "/s/1", &["X-containerd.dmverity=/m"])], "X-containerd.dmverity=/m"),
        ] {
            let error = disk_root(&mounts).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
