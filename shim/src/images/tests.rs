//! Whole pulls from a registry in this process, with all that can go wrong on the way, and images in files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::progress::Show;
use super::pull::pull;
use super::{ImagesError, PullPolicy, find, is_file, load, open, remove, save};
use crate::content::{Content, Named};
use crate::image::testing::{LayerBlob, Layout, Tar};
use crate::image::{Digest, host_architecture};
use crate::registry::testing::{End, INDEX, Reply, Request, Server, Shelf};
use crate::registry::{Limits, Options};

/// An installation and a registry.
struct Desk {
    root: tempfile::TempDir,
    server: Server,
}

impl Desk {
    fn new(shelf: Shelf) -> Desk {
        Desk::with(move |request| shelf.answer(request))
    }

    fn with(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Desk {
        Desk { root: tempfile::tempdir().unwrap(), server: Server::start(answer) }
    }

    fn content(&self) -> Content {
        Content::open(self.root.path()).unwrap()
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.server.host())
    }

    fn pull(&self, rest: &str) -> Result<Named, ImagesError> {
        self.pull_within(rest, Duration::from_secs(60))
    }

    fn pull_within(&self, rest: &str, silence: Duration) -> Result<Named, ImagesError> {
        let limits = Limits { silence, connection: Duration::from_secs(60), document: Duration::from_secs(60) };
        pull(&self.content(), &self.name(rest), &Options { limits, ..Options::default() }, &mut Show::quiet())
    }

    /// A pull that must fail: what it says. Nothing may have got a name.
    #[track_caller]
    fn failure(&self, rest: &str) -> String {
        self.judge(rest, self.pull(rest))
    }

    #[track_caller]
    fn judge(&self, rest: &str, pulled: Result<Named, ImagesError>) -> String {
        let error = pulled.expect_err("it was pulled").to_string();
        assert!(error.contains(&self.name(rest)) && !error.contains('\n'), "{error}");
        assert_eq!(self.content().names().unwrap(), []);
        error
    }

    /// Files that are being written.
    fn being_written(&self) -> usize {
        fs::read_dir(self.content().folder().join("ingest")).unwrap().count()
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.content().folder().join("blobs/sha256")).unwrap().count()
    }
}

fn layer(text: &str) -> Vec<u8> {
    Tar::new().file("hello", text.as_bytes()).finish()
}

/// An image of two layers under `latest`, of which the upper is returned.
fn shelf() -> (Shelf, Vec<u8>) {
    let mut shelf = Shelf::default();
    let upper = layer("upper");
    shelf.image("latest", host_architecture(), &[&layer("lower"), &upper]);
    (shelf, upper)
}

#[test]
fn an_image_is_pulled_by_tag_or_digest_and_only_once() {
    let desk = Desk::new(shelf().0);
    let named = desk.pull("app").unwrap();
    assert_eq!((named.name.as_str(), desk.blobs()), (desk.name("app:latest").as_str(), 4));
    let fetched = desk.server.asked("/blobs/").len();
    assert_eq!(fetched, 3);
    let by_digest = desk.pull(&format!("app@{}", named.manifest)).unwrap();
    assert_eq!((&by_digest.id, desk.server.asked("/blobs/").len()), (&named.id, fetched));
    let stored = open(&desk.content(), &named).unwrap();
    assert_eq!((stored.image.digest().to_string(), stored.image.layer_files().count()), (named.id, 2));
}

#[test]
fn a_run_asks_the_registry_as_often_as_it_is_told_to() {
    let desk = Desk::new(shelf().0);
    let (root, name) = (desk.root.path(), desk.name("app"));
    let asked = || desk.server.asked("/manifests/").len();
    let error = find(root, &name, PullPolicy::Never).err().unwrap().to_string();
    assert!(error.contains("no such image") && asked() == 0, "{error}");
    for (policy, times) in
        [(PullPolicy::Missing, 1), (PullPolicy::Missing, 1), (PullPolicy::Always, 2), (PullPolicy::Never, 2)]
    {
        assert!(find(root, &name, policy).is_ok());
        assert_eq!(asked(), times, "{policy:?}");
    }
}

#[test]
fn of_several_kinds_of_machines_this_one_is_chosen() {
    let mut shelf = Shelf::default();
    let own = shelf.image("own", host_architecture(), &[&layer("own")]);
    let other = shelf.image("other", "mips", &[&layer("other")]);
    let index = |manifests: &[&serde_json::Value]| {
        serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string()
    };
    shelf.manifest("both", INDEX, index(&[&other, &own]).as_bytes());
    shelf.manifest("mips", INDEX, index(&[&other]).as_bytes());
    let mut odd = own.clone();
    odd["digest"] = format!("sha384:{}", "a".repeat(96)).into();
    shelf.manifest("odd", INDEX, index(&[&odd]).as_bytes());
    let desk = Desk::new(shelf);
    let error = desk.failure("app:mips");
    assert!(error.contains("it holds nothing for linux/") && error.contains("linux/mips"), "{error}");
    assert!(desk.failure("app:other").contains("linux/mips"));
    let error = desk.failure("app:odd");
    assert!(error.contains("in its index is not a sha256 or sha512 digest"), "{error}");
    let named = desk.pull("app:both").unwrap();
    assert_eq!(named.manifest, own["digest"].as_str().unwrap());
    assert_ne!(named.digest(), named.manifest);
    // By the index's digest it is there already.
    assert_eq!(desk.content().find(&desk.name(&format!("app@{}", named.digest()))).unwrap(), named);
}

#[test]
fn nothing_has_a_name_that_is_not_as_it_was_announced() {
    let (shelf, upper) = shelf();
    let bad = |make: fn(&[u8]) -> Vec<u8>| {
        let (shelf, digest) = (shelf.clone(), Digest::of(&upper).to_string());
        Desk::with(move |request| match request.path.ends_with(&digest) {
            true => Reply::new(200, "application/octet-stream", &make(&shelf.answer(request).body)),
            false => shelf.answer(request),
        })
    };
    let other = bad(|bytes| vec![b'x'; bytes.len()]);
    let error = other.failure("app:latest");
    assert!(error.contains("is corrupt: its content has the digest"), "{error}");
    let longer = bad(|bytes| [bytes, b"more"].concat());
    assert!(longer.failure("app:latest").contains("were announced"));
    let shorter = bad(|bytes| bytes[1..].to_vec());
    assert!(shorter.failure("app:latest").contains("were announced"));
    let page = bad(|_| b"<html>".to_vec());
    assert!(page.failure("app:latest").contains("were announced"));
    for desk in [other, longer, shorter, page] {
        desk.content().sweep().unwrap();
        assert_eq!((desk.blobs(), desk.being_written()), (0, 0));
    }
}

#[test]
fn what_is_no_image_is_named() {
    let mut shelf = Shelf::default();
    shelf.manifest("old", "application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}");
    let config = shelf.blob("application/vnd.cncf.helm.config.v1+json", b"{}");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let chart = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] });
    shelf.manifest("chart", media_type, chart.to_string().as_bytes());
    shelf.manifest("page", media_type, b"[]");
    let desk = Desk::new(shelf);
    assert!(desk.failure("app:old").contains("v1+prettyjws"));
    assert!(desk.failure("app:chart").contains("helm"));
    assert!(desk.failure("app:page").contains("manifest"));
    assert!(desk.failure("app:none").contains("check name and tag"));
    assert_eq!(desk.being_written(), 0);
}

#[test]
fn nothing_stays_of_a_blob_that_is_not_there() {
    let (shelf, upper) = shelf();
    let missing = Digest::of(&upper);
    let digest = missing.to_string();
    let desk = Desk::with(move |request| match request.path.ends_with(&digest) {
        true => Reply::new(404, "application/json", b"{}"),
        false => shelf.answer(request),
    });
    assert!(desk.failure("app:latest").contains("has no blob"));
    // Of another, which was on its way, there may be a part for the next time.
    let partial = format!("ingest/{}.partial", missing.hex());
    assert!(!desk.content().folder().join(partial).exists());
}

#[test]
fn a_blob_that_breaks_off_is_gone_on_with() {
    let (shelf, upper) = shelf();
    let digest = Digest::of(&upper).to_string();
    let desk = Desk::with(move |request| {
        let mut reply = shelf.answer(request);
        if request.path.ends_with(&digest) && request.header("range").is_empty() {
            reply.end = End::Cut(700);
        }
        reply
    });
    desk.pull("app").unwrap();
    let asked = desk.server.asked(&Digest::of(&upper).to_string());
    let ranges: Vec<&str> = asked.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, ["", "bytes=700-"]);
}

#[test]
fn one_pull_goes_on_where_another_was_killed_or_begins_anew() {
    let (shelf, upper) = shelf();
    for (left, ranges) in [(upper[..900].to_vec(), vec!["bytes=900-"]), (vec![1; 900], vec!["bytes=900-", ""])] {
        let desk = Desk::new(shelf.clone());
        let digest = Digest::of(&upper);
        let partial = desk.content().folder().join(format!("ingest/{}.partial", digest.hex()));
        fs::write(partial, left).unwrap();
        desk.pull("app").unwrap();
        let asked = desk.server.asked(&digest.to_string());
        assert_eq!(asked.iter().map(|request| request.header("range")).collect::<Vec<_>>(), ranges);
        assert_eq!(desk.being_written(), 0);
    }
}

#[test]
fn a_registry_that_stalls_keeps_what_has_come() {
    let (shelf, upper) = shelf();
    let digest = Digest::of(&upper).to_string();
    let stalls = Arc::new(AtomicUsize::new(1));
    let left = Arc::clone(&stalls);
    let desk = Desk::with(move |request| {
        let mut reply = shelf.answer(request);
        let stall = |left: usize| left.checked_sub(1);
        if request.path.ends_with(&digest) && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, stall).is_ok() {
            reply.end = End::Stall(600);
        }
        reply
    });
    let error = desk.judge("app:latest", desk.pull_within("app", Duration::from_secs(3)));
    assert!(error.contains("has sent nothing for 3 s") && error.contains("goes on"), "{error}");
    assert_eq!(desk.being_written(), 1);
    desk.pull("app").unwrap();
    assert_eq!(desk.server.asked(&Digest::of(&upper).to_string())[1].header("range"), "bytes=600-");
}

#[test]
fn two_pulls_at_once_fetch_each_blob_once() {
    let (shelf, _) = shelf();
    let desk = Desk::with(move |request| {
        if request.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_millis(100));
        }
        shelf.answer(request)
    });
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| desk.pull("app").unwrap())).collect();
        pulls.into_iter().for_each(|pull| assert!(pull.join().unwrap().name.ends_with("app:latest")));
    });
    assert_eq!(desk.server.asked("/blobs/").len(), 3);
}

#[test]
fn an_image_goes_with_its_last_name_and_leaves_what_others_have() {
    let mut shelf = shelf().0;
    shelf.image("other", host_architecture(), &[&layer("lower")]);
    let desk = Desk::new(shelf);
    let (content, root) = (desk.content(), desk.root.path());
    desk.pull("app").unwrap();
    desk.pull("app:other").unwrap();
    assert_eq!(desk.blobs(), 7 - 1);
    let removed = remove::remove_one(&content, root, &desk.name("app"), false).unwrap();
    assert_eq!(removed.len(), 1);
    content.sweep().unwrap();
    assert_eq!((desk.blobs(), content.names().unwrap().len()), (3, 1));
    assert!(open(&content, &content.names().unwrap()[0]).unwrap().image.layer_files().all(|layer| layer.is_ok()));
}

#[test]
fn what_is_in_use_is_not_removed() {
    let desk = Desk::new(shelf().0);
    let (content, root) = (desk.content(), desk.root.path());
    let named = desk.pull("app").unwrap();
    let stored = open(&content, &named).unwrap();
    let unpacked = stored.image.unpack_into(root, &mut |_| {}).unwrap();
    let folder = root.join("images").join(stored.image.digest().hex());
    assert_eq!(fs::read_to_string(unpacked.view().join("hello")).unwrap(), "upper");
    let error = remove::remove_one(&content, root, &named.name, false).unwrap_err();
    assert!(matches!(error, ImagesError::InUse(_)) && folder.is_dir(), "{error}");
    drop(unpacked);
    remove::remove_one(&content, root, &named.id, false).unwrap();
    assert!(!folder.exists() && content.names().unwrap().is_empty());
}

fn archive(content: &Content, images: &[Named], path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    save::write(content, images, &mut file, path).unwrap();
}

#[test]
fn what_is_saved_can_be_loaded_as_the_same() {
    let desk = Desk::new(shelf().0);
    let named = desk.pull("app").unwrap();
    let path = desk.root.path().join("saved.tar");
    archive(&desk.content(), std::slice::from_ref(&named), &path);
    let other = Content::open(&desk.root.path().join("other")).unwrap();
    let loaded = load::load_file(&other, &path, None, &mut Show::quiet()).unwrap();
    assert_eq!((loaded[0].name.as_str(), &loaded[0].manifest), (named.name.as_str(), &named.manifest));
    assert_eq!((&loaded[0].id, loaded[0].size), (&named.id, named.size));
    assert!(open(&other, &loaded[0]).unwrap().image.layer_files().all(|layer| layer.is_ok()));
}

#[test]
fn what_docker_saved_is_loaded_with_a_manifest_of_our_own() {
    let desk = Desk::new(Shelf::default());
    let layer = layer("docker's");
    let config = serde_json::json!({
        "architecture": host_architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    });
    let config = config.to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let saved = serde_json::json!([{ "Config": name, "RepoTags": ["mine:1", "mine:2"], "Layers": ["a/layer.tar"] }]);
    let tar = Tar::new()
        .file("a/layer.tar", &layer)
        .file(&name, config.as_bytes())
        .file("manifest.json", saved.to_string().as_bytes());
    let path = desk.root.path().join("docker.tar");
    fs::write(&path, tar.finish()).unwrap();
    let content = desk.content();
    let loaded = load::load_file(&content, &path, None, &mut Show::quiet()).unwrap();
    assert_eq!(loaded.iter().map(Named::familiar).collect::<Vec<_>>(), ["mine:1", "mine:2"]);
    let stored = open(&content, &content.find("mine:2").unwrap()).unwrap();
    let unpacked = stored.image.unpack_into(desk.root.path(), &mut |_| {}).unwrap();
    assert_eq!(fs::read_to_string(unpacked.view().join("hello")).unwrap(), "docker's");
}

#[test]
fn a_layout_without_a_name_is_given_one() {
    let desk = Desk::new(Shelf::default());
    let path = desk.root.path().join("layout");
    Layout::with_image(&[LayerBlob::gzip(Tar::new().file("hello", b"hello"))]).write_folder(&path);
    let error = load::load_file(&desk.content(), &path, None, &mut Show::quiet()).unwrap_err().to_string();
    assert!(error.contains("--name"), "{error}");
    let loaded = load::load_file(&desk.content(), &path, Some("mine"), &mut Show::quiet()).unwrap();
    assert_eq!(loaded[0].name, "docker.io/library/mine:latest");
    let error = load::load_file(&desk.content(), &path, Some("MINE"), &mut Show::quiet()).unwrap_err().to_string();
    assert!(error.contains("\"MINE\""), "{error}");
}

#[test]
fn files_are_told_from_names() {
    for word in ["/images/a", "./a", "../a", ".", "a.tar", "a.tar.zst", "/"] {
        assert!(is_file(word), "{word}");
    }
    for word in ["a", "debian:trixie-slim", "localhost:5000/a/b", "a@sha256:0"] {
        assert!(!is_file(word), "{word}");
    }
}
