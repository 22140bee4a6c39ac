//! Whole images: every form that is accepted, every fault that is refused.

use super::layers::View;
use super::testing::{LayerBlob, Layout, TAR_LAYER, Tar, gzip, host_architecture, zstd};
use super::{Digest, Image, ImageError, Progress};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Duration;
use tempfile::TempDir;

/// A folder for the image file and one for the store.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk { dir: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("image.tar");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn folder(&self, layout: &Layout) -> PathBuf {
        let path = self.dir.path().join("image");
        let _ = fs::remove_dir_all(&path);
        layout.write_folder(&path);
        path
    }

    fn unpack(&self, image: &Path) -> Result<View, ImageError> {
        Image::open(image)?.unpack_into(&self.store(), &mut |_| {}).map(|unpacked| unpacked.view())
    }

    /// Unpacks an image that must fail; nothing may stay in the store but locks.
    #[track_caller]
    fn failure(&self, image: &Path) -> ImageError {
        let Err(error) = self.unpack(image) else { panic!("the image was accepted") };
        let left: Vec<_> = ["images", "layers"]
            .into_iter()
            .filter_map(|folder| fs::read_dir(self.store().join(folder)).ok())
            .flatten()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_none_or(|extension| extension != "lock"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        error
    }
}

fn hello() -> Tar {
    Tar::new().folder("bin/").file("bin/hello", b"hello")
}

fn hello_layout() -> Layout {
    Layout::with_image(&[LayerBlob::gzip(hello())])
}

#[track_caller]
fn assert_says_hello(rootfs: &Path) {
    assert_eq!(fs::read_to_string(rootfs.join("bin/hello")).unwrap(), "hello");
}

/// What `docker save` of Docker 1.10 to 24 wrote, the repeated second layer as a link.
fn docker_archive(architecture: &str, layer: &[u8], diff_id: &Digest) -> (Tar, Digest) {
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/bin/hello"], "Entrypoint": null },
        "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string(), diff_id.to_string()] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let id = Digest::of(&config);
    let name = format!("{}.json", id.hex());
    let manifest = serde_json::json!([
        { "Config": name, "RepoTags": ["hello:latest"], "Layers": ["aa/layer.tar", "bb/layer.tar"] }
    ]);
    let tar = Tar::new()
        .folder("aa/")
        .file("aa/VERSION", b"1.0")
        .file("aa/layer.tar", layer)
        .symlink("bb/layer.tar", "../aa/layer.tar")
        .file(&name, &config)
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    (tar, id)
}

#[test]
fn folder_archive_and_compressed_archives_are_one_image() {
    let layers =
        || [LayerBlob::gzip(hello()), LayerBlob::zstd(Tar::new().file("z", b"z")), LayerBlob::plain(Tar::new())];
    let layout = Layout::with_image(&layers());
    let archive = layout.to_tar().finish();
    let digests = [archive.clone(), gzip(&archive), zstd(&archive)].map(|bytes| {
        let desk = Desk::new();
        let path = desk.file(&bytes);
        let rootfs = desk.unpack(&path).unwrap();
        assert_says_hello(&rootfs);
        assert_eq!(fs::read_to_string(rootfs.join("z")).unwrap(), "z");
        Image::open(&path).unwrap().digest().clone()
    });
    let desk = Desk::new();
    let folder = desk.folder(&layout);
    assert_says_hello(&desk.unpack(&folder).unwrap());
    let image = Image::open(&folder).unwrap();
    assert!(digests.iter().all(|digest| digest == image.digest()));
    assert_eq!(image.config().config().as_ref().unwrap().cmd().as_deref(), Some(&["/hello".to_owned()][..]));
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    let desk = Desk::new();
    let rootfs = desk.unpack(&desk.folder(&Layout::with_image(&[]))).unwrap();
    assert_eq!(fs::read_dir(&*rootfs).unwrap().count(), 0);
}

#[test]
fn docker_archives_of_the_old_form() {
    for layer in [hello().finish(), gzip(&hello().finish())] {
        let (tar, id) = docker_archive(host_architecture(), &layer, &Digest::of(&hello().finish()));
        let desk = Desk::new();
        let path = desk.file(&tar.finish());
        assert_says_hello(&desk.unpack(&path).unwrap());
        assert_eq!(Image::open(&path).unwrap().digest(), &id);
    }
}

#[test]
fn an_archive_that_is_both_is_read_as_oci() {
    let layout = hello_layout();
    let tar = layout.to_tar().file("manifest.json", b"[]");
    let desk = Desk::new();
    assert_says_hello(&desk.unpack(&desk.file(&tar.finish())).unwrap());
}

#[test]
fn what_is_no_image_says_so() {
    let desk = Desk::new();
    let text = |bytes: &[u8]| desk.failure(&desk.file(bytes)).to_string();
    assert!(text(b"hello").contains("neither a folder nor a tar archive"));
    assert!(text(&[]).contains("neither a folder nor a tar archive"));
    assert!(text(&Tar::new().file("x", b"").finish()).contains("manifest.json"));
    assert!(text(&Tar::new().file("repositories", b"{}").finish()).contains("1.10"));
    let missing = desk.failure(&desk.dir.path().join("missing"));
    assert!(matches!(missing, ImageError::Read { .. }));
    assert!(matches!(desk.failure(Path::new("/dev/null")), ImageError::NotAnImage { .. }));
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let mut layout = Layout::new();
    layout.add_image("s390x", &[LayerBlob::plain(Tar::new().file("wrong", b""))], true);
    layout.add_image("sparc64", &[], false);
    layout.add_image(host_architecture(), &[LayerBlob::gzip(hello())], false);
    let mut attestation = layout.image("unknown", &[]);
    attestation["platform"] = serde_json::json!({ "architecture": "unknown", "os": "unknown" });
    layout.list(attestation);
    let desk = Desk::new();
    assert_says_hello(&desk.unpack(&desk.folder(&layout)).unwrap());
}

#[test]
fn no_image_for_this_machine_names_what_there_is() {
    let mut layout = Layout::new();
    layout.add_image("s390x", &[], true);
    layout.add_image("sparc64", &[], false);
    let desk = Desk::new();
    let text = desk.failure(&desk.folder(&layout)).to_string();
    assert!(text.contains("linux/s390x, linux/sparc64") && text.contains(host_architecture()), "{text}");
    let text = desk.failure(&desk.folder(&Layout::new())).to_string();
    assert!(text.contains("no image at all"), "{text}");
    let (tar, _) = docker_archive("s390x", b"", &Digest::of(b""));
    assert!(matches!(desk.failure(&desk.file(&tar.finish())), ImageError::NoPlatform { .. }));
}

#[test]
fn several_images_for_this_machine_are_ambiguous() {
    let mut layout = hello_layout();
    let mut second = layout.image(host_architecture(), &[]);
    second["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "second" });
    // Two names for one image are no ambiguity.
    layout.list(second.clone());
    layout.list(second);
    let desk = Desk::new();
    let error = desk.failure(&desk.folder(&layout));
    assert!(matches!(&error, ImageError::Ambiguous { names, .. } if names.len() == 2), "{error}");
    assert!(error.to_string().contains("second"), "{error}");
}

#[test]
fn nested_indexes_are_followed_but_not_forever() {
    for (levels, accepted) in [(1, true), (4, true), (5, false)] {
        let mut layout = Layout::new();
        let mut descriptor = layout.image(host_architecture(), &[LayerBlob::gzip(hello())]);
        for _ in 0..levels {
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
            let index = serde_json::to_vec(&index).unwrap();
            descriptor = layout.add_blob("application/vnd.oci.image.index.v1+json", &index);
        }
        layout.list(descriptor);
        let desk = Desk::new();
        assert_eq!(desk.unpack(&desk.folder(&layout)).is_ok(), accepted, "{levels} levels");
    }
}

#[test]
fn every_wrong_digest_names_blob_wanted_and_got() {
    let blobs: Vec<(String, Vec<u8>)> = hello_layout().files.into_iter().skip(1).collect();
    assert_eq!(blobs.len(), 3, "config, layer, manifest");
    for (name, mut bytes) in blobs {
        // In the middle: whether it breaks the JSON or the compression, the digest is what is told.
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        let mut layout = hello_layout();
        layout.overwrite(&name, &bytes);
        let desk = Desk::new();
        let error = desk.failure(&desk.folder(&layout));
        let ImageError::WrongDigest { wanted, got, .. } = &error else { panic!("{name}: {error}") };
        assert_eq!((wanted.blob_path(), got), (name, &Digest::of(&bytes)));
        let text = error.to_string();
        assert!(text.contains(&wanted.to_string()) && text.contains(&got.to_string()), "{text}");
    }
}

#[test]
fn every_wrong_size_and_missing_blob_is_named() {
    for (name, bytes) in hello_layout().files.into_iter().skip(1) {
        let mut layout = hello_layout();
        layout.overwrite(&name, &bytes[..bytes.len() - 1]);
        let desk = Desk::new();
        let error = desk.failure(&desk.folder(&layout));
        assert!(matches!(&error, ImageError::WrongSize { wanted, .. } if *wanted == bytes.len() as u64), "{error}");
        layout.files.retain(|(existing, _)| *existing != name);
        let error = desk.failure(&desk.folder(&layout));
        let hex = name.rsplit('/').next().unwrap();
        assert!(matches!(&error, ImageError::MissingBlob { name } if name.contains(hex)), "{error}");
    }
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let mut layer = LayerBlob::gzip(hello());
    layer.tar = Tar::new().finish();
    let desk = Desk::new();
    let error = desk.failure(&desk.folder(&Layout::with_image(&[layer])));
    assert!(matches!(&error, ImageError::WrongDigest { name, .. } if name.contains("unpacked")), "{error}");
    for layer in [Tar::new().finish(), b"garbage".to_vec()] {
        let (tar, _) = docker_archive(host_architecture(), &layer, &Digest::of(&hello().finish()));
        let error = desk.failure(&desk.file(&tar.finish()));
        assert!(matches!(&error, ImageError::WrongDigest { name, .. } if name.contains("aa/layer.tar")), "{error}");
    }
}

#[test]
fn bytes_behind_the_archive_count_for_the_digest() {
    let mut layer = LayerBlob::gzip(hello());
    layer.tar.extend([0; 4096]);
    layer.blob = gzip(&layer.tar);
    let desk = Desk::new();
    assert_says_hello(&desk.unpack(&desk.folder(&Layout::with_image(&[layer]))).unwrap());
}

#[test]
fn a_docker_archive_with_a_forged_config_is_refused() {
    let (tar, id) = docker_archive(host_architecture(), &hello().finish(), &Digest::of(&hello().finish()));
    let tar = tar.file(&format!("{}.json", id.hex()), br#"{"architecture":"amd64","os":"linux","rootfs":{}}"#);
    let desk = Desk::new();
    assert!(matches!(desk.failure(&desk.file(&tar.finish())), ImageError::WrongDigest { wanted, .. } if wanted == id));
}

#[test]
fn truncated_archives_are_refused() {
    let archive = hello_layout().to_tar().finish();
    for bytes in [archive[..archive.len() / 2].to_vec(), gzip(&archive)[..900].to_vec(), zstd(&archive)[..500].to_vec()]
    {
        let desk = Desk::new();
        desk.failure(&desk.file(&bytes));
    }
}

#[test]
fn an_unknown_layer_type_is_named() {
    let mut layer = LayerBlob::plain(hello());
    layer.media_type = format!("{TAR_LAYER}+xz");
    let desk = Desk::new();
    let error = desk.failure(&desk.folder(&Layout::with_image(&[layer])));
    assert!(matches!(&error, ImageError::UnknownMediaType { media_type, .. } if media_type.ends_with("+xz")));
}

#[test]
fn a_hostile_layer_is_named_and_nothing_of_it_stays() {
    let desk = Desk::new();
    let layer = LayerBlob::gzip(hello().file("../../../../escaped", b""));
    let digest = Digest::of(&layer.blob).to_string();
    let error = desk.failure(&desk.folder(&Layout::with_image(&[layer])));
    let text = error.to_string();
    assert!(text.contains(&digest) && text.contains("\"../../../../escaped\"") && text.contains("climbs"), "{text}");
    assert!(!desk.dir.path().join("escaped").exists());
}

#[test]
fn file_names_in_manifest_json_stay_inside() {
    let desk = Desk::new();
    let folder = desk.dir.path().join("image");
    fs::create_dir(&folder).unwrap();
    for name in ["../secret.json", "/etc/passwd"] {
        let manifest = serde_json::json!([{ "Config": name, "Layers": [] }]);
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        assert!(desk.failure(&folder).to_string().contains("leads out"), "{name}");
    }
}

#[test]
fn oversized_documents_are_not_read() {
    let desk = Desk::new();
    let mut layout = hello_layout();
    layout.files.push(("padding".to_owned(), Vec::new()));
    let folder = desk.folder(&layout);
    fs::File::options().write(true).open(folder.join("index.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(desk.failure(&folder), ImageError::Document { .. }));
}

#[test]
fn an_image_is_unpacked_once() {
    let desk = Desk::new();
    let folder = desk.folder(&hello_layout());
    let first = desk.unpack(&folder).unwrap();
    fs::write(first.join("mark"), "").unwrap();
    // Even where its layers have gone meanwhile.
    for (name, _) in hello_layout().files.iter().skip(1).filter(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b])) {
        fs::remove_file(folder.join(name)).unwrap();
    }
    assert_eq!(*desk.unpack(&folder).unwrap(), *first);
    assert!(first.join("mark").exists());
}

#[test]
fn what_a_killed_unpacker_left_is_replaced() {
    let desk = Desk::new();
    let folder = desk.folder(&hello_layout());
    let hex = Image::open(&folder).unwrap().digest().hex().to_owned();
    let layer = Digest::of(&hello().finish());
    let partials = [format!("images/{hex}.partial"), format!("layers/{}.partial", layer.hex())];
    let partials = partials.map(|name| desk.store().join(name));
    fs::create_dir_all(partials[0].join("layers/7")).unwrap();
    fs::create_dir_all(partials[1].join("fs/junk")).unwrap();
    let rootfs = desk.unpack(&folder).unwrap();
    assert!(partials.iter().all(|partial| !partial.exists()) && !rootfs.join("junk").exists());
    assert_says_hello(&rootfs);
}

#[test]
fn what_another_version_has_unpacked_is_replaced_unless_it_is_in_use() {
    let desk = Desk::new();
    let folder = desk.folder(&hello_layout());
    let there = desk.store().join("images").join(Image::open(&folder).unwrap().digest().hex());
    fs::create_dir_all(there.join("rootfs/junk")).unwrap();
    let used = fs::File::open(&there).unwrap();
    used.lock_shared().unwrap();
    let Err(error) = desk.unpack(&folder) else { panic!("it was taken from who uses it") };
    assert!(error.to_string().contains("another version") && there.join("rootfs/junk").exists(), "{error}");
    drop(used);
    assert_says_hello(&desk.unpack(&folder).unwrap());
    assert!(!there.join("rootfs").exists());
}

#[test]
fn concurrent_callers_wait_for_the_one_that_unpacks() {
    let desk = Desk::new();
    let folder = desk.folder(&hello_layout());
    let image = Image::open(&folder).unwrap();
    let images = desk.store().join("images");
    fs::create_dir_all(&images).unwrap();
    let lock = fs::File::create(images.join(format!("{}.lock", image.digest().hex()))).unwrap();
    lock.lock().unwrap();
    let callers = 4;
    let waiting = Barrier::new(callers + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|_| {
                scope.spawn(|| {
                    let mut report = |progress| {
                        assert_eq!(progress, Progress::Waiting);
                        waiting.wait();
                    };
                    Image::open(&folder).unwrap().unpack_into(&desk.store(), &mut report).unwrap()
                })
            })
            .collect();
        waiting.wait();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!images.join(image.digest().hex()).exists(), "a caller did not wait");
        drop(lock);
        for thread in threads {
            assert_says_hello(&thread.join().unwrap().view());
        }
    });
}

/// What the layers' folders of a store are called.
fn layers_in(store: &Path) -> Vec<String> {
    let entries = fs::read_dir(store.join("layers")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| !name.contains('.')).collect()
}

#[test]
fn what_images_have_in_common_is_there_once() {
    let desk = Desk::new();
    let base = || LayerBlob::gzip(hello().folder("etc/").file("etc/old", b"old").file("etc/kept", b"kept"));
    let change = |name: &str| {
        // All that one layer can do to another: a file goes, a folder is emptied, one is changed, one gets another name as well.
        let tar = Tar::new().file(&format!("etc/{name}"), name.as_bytes()).file("etc/.wh.old", b"");
        LayerBlob::gzip(tar.hard_link("bin/again", "bin/hello").symlink("lib", "bin").file("lib/through", b"t"))
    };
    let emptied = LayerBlob::gzip(Tar::new().file("bin/.wh..wh..opq", b"").file("bin/only", b"only"));
    let image = |layers: &[LayerBlob]| Image::open(&desk.folder(&Layout::with_image(layers))).unwrap();
    let unpack = |image: &Image| image.unpack_into(&desk.store(), &mut |_| {}).unwrap();

    let first = image(&[base(), change("one")]);
    let view = unpack(&first).view();
    assert_says_hello(&view);
    let read = |view: &Path, name: &str| fs::read_to_string(view.join(name)).ok();
    let told = ["etc/one", "etc/kept", "etc/old", "bin/again", "bin/through"].map(|name| read(&view, name));
    let expected = [Some("one"), Some("kept"), None, Some("hello"), Some("t")];
    assert_eq!(told, expected.map(|text| text.map(str::to_owned)));
    drop(view);
    if layers_in(&desk.store()).iter().any(|name| name.ends_with("-2")) {
        // No overlay can be mounted here: what follows is for those who can.
        eprintln!("this machine mounts no overlays: layers were unpacked together");
        return;
    }
    assert_eq!(layers_in(&desk.store()).len(), 2);
    let second = image(&[base(), change("two"), emptied]);
    let view = unpack(&second).view();
    assert_eq!(layers_in(&desk.store()).len(), 4);
    let mut names: Vec<_> = fs::read_dir(view.join("bin")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["only"]);
    assert_eq!([read(&view, "etc/one"), read(&view, "etc/two")], [None, Some("two".to_owned())]);

    // What only the second is made of goes with it, and not while it is in use.
    let in_use = unpack(&second);
    assert!(!super::forget(&desk.store(), second.digest()).unwrap());
    drop((in_use, view));
    assert!(super::forget(&desk.store(), second.digest()).unwrap());
    assert_eq!(layers_in(&desk.store()).len(), 2);
    assert_says_hello(&unpack(&first).view());
    assert!(super::forget(&desk.store(), first.digest()).unwrap());
    assert!(layers_in(&desk.store()).is_empty());
}

#[test]
fn a_layer_that_fails_takes_those_below_it_with_it_unless_others_have_them() {
    let desk = Desk::new();
    let base = || LayerBlob::gzip(hello());
    let bad = LayerBlob::gzip(Tar::new().file("../out", b""));
    desk.failure(&desk.folder(&Layout::with_image(&[base(), bad])));
    desk.unpack(&desk.folder(&Layout::with_image(&[base()]))).unwrap();
    let bad = LayerBlob::gzip(Tar::new().file("../out", b""));
    assert!(desk.unpack(&desk.folder(&Layout::with_image(&[base(), bad]))).is_err());
    assert_eq!(layers_in(&desk.store()).len(), 1);
}
