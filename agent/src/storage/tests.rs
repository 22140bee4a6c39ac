//! What is refused before the kernel is asked. What it mounts is tested in guests.

use tatami_protocol::agent::{Disk, DiskPart};

use super::*;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn storages(mounted: &[&str]) -> Storages {
    let folder = Path::new(STORAGES).join("c");
    let mounted = mounted.iter().map(|name| folder.join(name)).collect();
    Storages { folder, shared: Path::new(SHARED).join("c"), mounted, device: None }
}

/// The same without the unmounting at its end, which is for what was mounted.
fn refusal(mounted: &[&str], plan: impl FnOnce(&Storages) -> Result<Plan, Error>) -> String {
    let mut storages = storages(mounted);
    let message = plan(&storages).err().expect("it is refused").to_string();
    storages.mounted.clear();
    message
}

fn place(storage: &str, path: &str) -> Place {
    Place { storage: storage.to_owned(), path: path.to_owned(), ..Place::default() }
}

#[test]
fn an_overlay_names_every_folder() {
    let mut storages = storages(&["a", "b", "rw"]);
    let overlay = OverlayStorage {
        lower: vec![place("b", ""), place("a", "sub/folder")],
        options: vec!["index=off".to_owned()],
        ..OverlayStorage::default()
    };
    let plan = storages.plan_overlay(&overlay).unwrap();
    let base = "/run/tatami/storages/c";
    assert_eq!(plan.data, format!("index=off,lowerdir={base}/b:{base}/a/sub/folder"));
    assert!(plan.read_only);
    storages.mounted.clear();
}

#[test]
fn places_outside_the_container_are_refused() {
    for path in ["..", "a/../b", "/etc", ".", "./a"] {
        for storage in ["", "a"] {
            let overlay = OverlayStorage { lower: vec![place(storage, path)], ..OverlayStorage::default() };
            let message = refusal(&["a"], |storages| storages.plan_overlay(&overlay));
            assert!(message.contains("not below its storage"), "{storage} {path}: {message}");
        }
    }
    for path in ["a:b", "a,b", "a\\b"] {
        let overlay = OverlayStorage { lower: vec![place("a", path)], ..OverlayStorage::default() };
        let message = refusal(&["a"], |storages| storages.plan_overlay(&overlay));
        assert!(message.contains("malformed"), "{path}: {message}");
    }
    let overlay = OverlayStorage { lower: vec![place("later", "")], ..OverlayStorage::default() };
    assert_eq!(refusal(&["a"], |s| s.plan_overlay(&overlay)), "no storage later before this one");
    let overlay = OverlayStorage::default();
    assert_eq!(refusal(&["a"], |s| s.plan_overlay(&overlay)), "an overlay over nothing");
    let half = OverlayStorage {
        lower: vec![place("a", "")],
        upper: Some(place("a", "u")).into(),
        ..OverlayStorage::default()
    };
    assert!(refusal(&["a"], |s| s.plan_overlay(&half)).contains("one of upper and work"));
}

#[test]
fn only_a_few_file_systems_are_read_from_disks() {
    for kind in ["vfat", "ext3", "tmpfs", "", "ext4,x"] {
        let block = BlockStorage { type_: kind.to_owned(), ..BlockStorage::default() };
        let message = refusal(&[], |storages| storages.plan_block(&block));
        assert!(message.contains("only erofs, ext4, xfs are"), "{message}");
    }
    let block = BlockStorage { type_: "ext4".to_owned(), ..BlockStorage::default() };
    assert_eq!(refusal(&[], |storages| storages.plan_block(&block)), "a part of a disk without a disk");
}

#[test]
fn options_cannot_smuggle_others() {
    for option in ["a,b", "", "a\0"] {
        assert!(join(&[option.to_owned()]).unwrap_err().to_string().contains("malformed"), "{option:?}");
    }
    assert_eq!(join(&["noatime".to_owned(), "data=ordered".to_owned()]).unwrap(), "noatime,data=ordered");
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    let disk = Disk {
        serial: "no such disk".to_owned(),
        parts: vec![DiskPart { length: 512, ..DiskPart::default() }],
        ..Disk::default()
    };
    let error = block_on(Storages::mount("no-such-container", Some(&disk), &[])).unwrap_err();
    assert!(matches!(&error, Error::Internal(message) if message.contains("no such disk")), "{error}");
}
