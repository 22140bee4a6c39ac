//! Layers as builders make them, and as an attacker would: every trick is one handmade archive.
//!
//! The tree under test lies beside a folder `outside` that nothing may touch.

use super::budget::Budget;
use super::layer::{LayerError, apply};
use super::testing::Tar;
use super::tree::Tree;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tar::EntryType;
use tempfile::TempDir;

struct Playground {
    dir: TempDir,
}

impl Playground {
    fn new() -> Playground {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Playground { dir }
    }

    /// A tree with these layers applied.
    fn with(layers: impl IntoIterator<Item = Tar>) -> Playground {
        let playground = Playground::new();
        for layer in layers {
            playground.apply(layer).unwrap();
        }
        playground
    }

    fn apply(&self, layer: Tar) -> Result<(), LayerError> {
        self.apply_within(layer, &Budget::new(u64::MAX, u64::MAX))
    }

    fn apply_within(&self, layer: Tar, budget: &Budget) -> Result<(), LayerError> {
        let tree = Tree::open(&self.path("")).unwrap();
        apply(&tree, &layer.finish()[..], budget)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn link(&self, name: &str) -> PathBuf {
        fs::read_link(self.path(name)).unwrap()
    }

    /// Everything there is, sorted, folders with a slash.
    fn list(&self) -> Vec<String> {
        fn below(root: &Path, folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() && !path.is_symlink() {
                    found.push(name + "/");
                    below(root, &path, found);
                } else {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        below(&self.path(""), &self.path(""), &mut found);
        found.sort();
        found
    }

    /// Applies a layer that must be refused with an error that names `entry` and says `why`, and that must leave what is
    /// outside of the tree alone.
    #[track_caller]
    fn refuses(&self, layer: Tar, entry: &str, why: &str) {
        let text = self.apply(layer).expect_err("the layer was accepted").to_string();
        assert!(text.contains(&format!("{entry:?}")) && text.contains(why), "{text}");
        assert!(!text.contains('\n'), "more than a line: {text}");
        self.assert_outside_untouched();
    }

    #[track_caller]
    fn assert_outside_untouched(&self) {
        let outside = self.dir.path().join("outside");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
        let beside: Vec<_> = fs::read_dir(self.dir.path()).unwrap().collect();
        assert_eq!(beside.len(), 2, "something was made beside the tree");
    }
}

#[test]
fn files_folders_and_links_arrive_as_they_were() {
    let all = Playground::with([Tar::new()
        .folder("etc/")
        .raw("etc/secret", EntryType::Regular, b"content", |header| header.set_mode(0o4640))
        .hard_link("etc/same", "etc/secret")
        .symlink("etc/link", "/proc/mounts")
        .symlink("etc/up", "../../../x")
        .raw("fifo", EntryType::Fifo, b"", |header| header.set_mode(0o622))
        .raw("etc/", EntryType::Directory, b"", |header| header.set_mode(0o1750))]);
    assert_eq!(all.list(), ["etc/", "etc/link", "etc/same", "etc/secret", "etc/up", "fifo"]);
    let secret = fs::metadata(all.path("etc/secret")).unwrap();
    assert_eq!((secret.mode() & 0o7777, secret.nlink(), secret.mtime()), (0o4640, 2, 1_000_000_000));
    assert_eq!(all.text("etc/same"), "content");
    assert_eq!(all.link("etc/link"), Path::new("/proc/mounts"));
    assert_eq!(all.link("etc/up"), Path::new("../../../x"));
    let fifo = fs::symlink_metadata(all.path("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o777 == 0o622);
    let etc = fs::metadata(all.path("etc")).unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.mtime()), (0o1750, 1_000_000_000));
    assert_eq!(fs::symlink_metadata(all.path("etc/link")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn owners_devices_and_capabilities_arrive_for_root() {
    assert!(rustix::process::geteuid().is_root(), "this test must run as root, as unpacking does");
    // A vfs_cap_data of revision 2: effective, CAP_NET_RAW permitted (linux/capability.h).
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let all = Playground::with([Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("uid", b"1234"), ("gid", b"70000")])
        .raw("ping", EntryType::Regular, b"x", |header| header.set_mode(0o4755))
        .raw("owned-link", EntryType::Symlink, b"", |header| {
            header.set_uid(55);
            header.as_old_mut().linkname[..4].copy_from_slice(b"ping");
        })
        .device("null", EntryType::Char, 1, 3)
        .device("disk", EntryType::Block, 259, 70000)]);
    let ping = fs::metadata(all.path("ping")).unwrap();
    assert_eq!((ping.uid(), ping.gid(), ping.mode() & 0o7777), (1234, 70000, 0o4755));
    let mut held = [0; 20];
    assert_eq!(rustix::fs::getxattr(all.path("ping"), "security.capability", &mut held).unwrap(), 20);
    assert_eq!(held, capability);
    assert_eq!(fs::symlink_metadata(all.path("owned-link")).unwrap().uid(), 55);
    let null = fs::symlink_metadata(all.path("null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
    let disk = fs::symlink_metadata(all.path("disk")).unwrap();
    assert!(disk.file_type().is_block_device() && disk.rdev() == rustix::fs::makedev(259, 70000));
}

#[test]
fn overlay_attributes_do_not_pass() {
    let all = Playground::with([Tar::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/"), ("SCHILY.xattr.user.overlay.opaque", b"y")])
        .file("f", b"")]);
    let mut names = Vec::with_capacity(1024);
    rustix::fs::listxattr(all.path("f"), rustix::buffer::spare_capacity(&mut names)).unwrap();
    assert!(!String::from_utf8_lossy(&names).contains("overlay"), "{names:?}");
}

#[test]
fn later_layers_replace_and_change_kinds() {
    let all = Playground::with([
        Tar::new().file("file", b"old").hard_link("twin", "file").folder("folder/").file("folder/x", b"x"),
        Tar::new().file("file", b"new").file("folder", b"now a file"),
    ]);
    assert_eq!((all.text("file"), all.text("twin")), ("new".to_owned(), "old".to_owned()));
    assert_eq!(all.text("folder"), "now a file");
    all.apply(Tar::new().folder("folder/").symlink("file", "twin")).unwrap();
    assert_eq!(all.list(), ["file", "folder/", "twin"]);
}

#[test]
fn a_folder_entry_keeps_what_is_in_the_folder_and_replaces_a_link() {
    let all = Playground::with([
        Tar::new().folder("a/").file("a/x", b"x").symlink("link", "a"),
        Tar::new().raw("a/", EntryType::Directory, b"", |header| header.set_mode(0o700)).folder("link/"),
    ]);
    assert_eq!(all.list(), ["a/", "a/x", "link/"]);
    assert_eq!(fs::metadata(all.path("a")).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = || Tar::new().file("a", b"1").folder("d/").file("d/x", b"1").file("d/y", b"1").file("d/s/z", b"1");
    let all = Playground::with([lower(), Tar::new().file(".wh.a", b"").file("d/.wh.x", b"").file("d/.wh.s", b"")]);
    assert_eq!(all.list(), ["d/", "d/y"]);
    // In whatever order: what the layer itself brings stays.
    let all = Playground::with([lower(), Tar::new().file("d/new", b"2").file(".wh.d", b"").file("a", b"2")]);
    assert_eq!(all.list(), ["a", "d/", "d/new"]);
    // Hiding what is not there is no error.
    all.apply(Tar::new().file(".wh.none", b"").file("none/.wh.x", b"").file("a/.wh.x", b"")).unwrap();
    assert_eq!(all.list(), ["a", "d/", "d/new"]);
}

#[test]
fn opaque_whiteouts_empty_a_folder_of_lower_content() {
    let lower = Tar::new().file("d/x", b"1").file("d/s/y", b"1").file("e", b"1");
    let upper = Tar::new().folder("d/").file("d/s/new", b"2").file("d/.wh..wh..opq", b"").file("d/later", b"2");
    let all = Playground::with([lower, upper]);
    assert_eq!(all.list(), ["d/", "d/later", "d/s/", "d/s/new", "e"]);
    all.apply(Tar::new().file("top", b"3").file(".wh..wh..opq", b"")).unwrap();
    assert_eq!(all.list(), ["top"]);
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        Playground::with([Tar::new().file("d/x", b"")]).refuses(Tar::new().file(name, b""), name, "whiteout");
    }
}

#[test]
fn records_of_aufs_are_passed_over() {
    let all = Playground::with([Tar::new().folder(".wh..wh.plnk/").file(".wh..wh.plnk/12.34", b"").file("f", b"")]);
    assert_eq!(all.list(), ["f"]);
}

#[test]
fn a_whiteout_does_not_reach_through_a_link_to_the_outside() {
    let all = Playground::new();
    symlink(all.dir.path().join("outside"), all.path("out")).unwrap();
    all.apply(Tar::new().file("out/.wh.secret", b"").file("out/.wh..wh..opq", b"")).unwrap();
    all.assert_outside_untouched();
    // The link itself goes, not what it points to.
    all.apply(Tar::new().file(".wh.out", b"")).unwrap();
    assert!(!all.exists("out"));
    all.assert_outside_untouched();
}

#[test]
fn names_that_climb_are_refused() {
    for name in ["../outside/x", "a/../../outside/x", "..", "a/..", "/../x"] {
        Playground::new().refuses(Tar::new().file(name, b""), name, "climbs");
    }
    Playground::new().refuses(Tar::new().file("../outside/.wh.secret", b""), "../outside/.wh.secret", "climbs");
}

#[test]
fn absolute_names_land_inside() {
    let all = Playground::with([Tar::new().folder("/").file("/etc//./passwd", b"inside")]);
    assert_eq!(all.text("etc/passwd"), "inside");
}

#[test]
fn links_of_lower_layers_are_followed_inside() {
    let all = Playground::with([
        Tar::new().folder("usr/").folder("usr/bin/").symlink("bin", "usr/bin").folder("run/").folder("var/"),
        Tar::new().symlink("var/run", "/run").symlink("usr/local", "../usr/bin/./"),
        Tar::new().file("bin/sh", b"sh").file("var/run/pid", b"1").file("usr/local/new/x", b"x"),
    ]);
    assert_eq!(all.text("usr/bin/sh"), "sh");
    assert_eq!(all.text("run/pid"), "1");
    assert_eq!(all.text("usr/bin/new/x"), "x");
    assert_eq!(all.link("bin"), Path::new("usr/bin"));
}

#[test]
fn absolute_links_to_the_outside_are_refused() {
    let all = Playground::new();
    let outside = all.dir.path().join("outside");
    let layer = Tar::new().symlink("out", outside.to_str().unwrap()).file("out/x", b"");
    all.refuses(layer, "out/x", "which is not in the image");
}

#[test]
fn relative_links_to_the_outside_are_refused() {
    let all = Playground::with([Tar::new().folder("d/").symlink("d/up", "../..").symlink("two", "d/up")]);
    all.refuses(Tar::new().file("d/up/outside/x", b""), "d/up/outside/x", "leads out of the image");
    all.refuses(Tar::new().file("two/x", b""), "two/x", "leads out of the image");
    all.refuses(Tar::new().folder("d/up/x/"), "d/up/x/", "leads out of the image");
}

#[test]
fn a_file_over_a_link_replaces_the_link_and_not_its_target() {
    let all = Playground::new();
    symlink(all.dir.path().join("outside/secret"), all.path("link")).unwrap();
    all.apply(Tar::new().file("link", b"mine")).unwrap();
    assert_eq!(all.text("link"), "mine");
    assert!(!all.path("link").is_symlink());
    all.assert_outside_untouched();
}

#[test]
fn loops_of_links_end() {
    let all = Playground::with([Tar::new().symlink("a", "b").symlink("b", "a")]);
    all.refuses(Tar::new().file("a/x", b""), "a/x", "loop");
}

#[test]
fn hard_links_reach_only_plain_files_of_the_image() {
    let base = || Tar::new().folder("d/").file("d/f", b"f").symlink("s", "d").symlink("dangling", "nowhere");
    let cases = [
        ("../outside/secret", "climbs"),
        ("s/f", "symbolic link"),
        ("missing", "not in the image"),
        ("missing/f", "does not exist"),
        ("d/f/x", "does not exist"),
        ("d", "folder"),
        ("", "root"),
        ("/", "root"),
    ];
    for (target, why) in cases {
        Playground::with([base()]).refuses(Tar::new().hard_link("l", target), "l", why);
    }
    let all = Playground::new();
    symlink(all.dir.path().join("outside"), all.path("out")).unwrap();
    all.refuses(Tar::new().hard_link("l", "out/secret"), "l", "symbolic link");
    // A link to a link is the link once more, whatever it points to.
    let all = Playground::with([base().hard_link("again", "dangling").hard_link("abs", "/d/f")]);
    assert_eq!(all.link("again"), Path::new("nowhere"));
    assert_eq!(all.text("abs"), "f");
}

#[test]
fn a_hard_link_to_itself_changes_nothing() {
    let all = Playground::with([Tar::new().file("f", b"f").hard_link("f", "./f")]);
    assert_eq!(all.text("f"), "f");
}

#[test]
fn a_file_is_no_parent() {
    let all = Playground::with([Tar::new().file("f", b"")]);
    all.refuses(Tar::new().file("f/x", b""), "f/x", "not a folder");
}

#[test]
fn the_root_stays_a_folder() {
    for name in ["", "./", "/"] {
        let layer = Tar::new().raw(name, EntryType::Symlink, b"", |header| header.as_old_mut().linkname[0] = b'x');
        Playground::new().refuses(layer, name, "root");
    }
    let all = Playground::with([Tar::new().raw("./", EntryType::Directory, b"", |header| header.set_mode(0o711))]);
    assert_eq!(fs::metadata(all.path("")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn depth_and_length_are_bounded() {
    let deep = "d/".repeat(300) + "f";
    Playground::new().refuses(Tar::new().gnu_long_name(&deep).file("f", b""), &deep, "too deep");
    // Links must not help to get deeper: each layer starts where the last one ended.
    let all = Playground::new();
    let step = "d/".repeat(120);
    all.apply(Tar::new().gnu_long_name(&step).folder("d/").symlink("l1", &step[..99])).unwrap();
    let more = format!("l1/{}", "e/".repeat(230));
    all.refuses(Tar::new().gnu_long_name(&more).folder("e/"), &more, "too deep");
    let long = "n".repeat(300);
    Playground::new().refuses(Tar::new().gnu_long_name(&long).file("f", b""), &long, "too long");
}

#[test]
fn entries_and_truncation_are_noticed() {
    let all = Playground::new();
    let two = Tar::new().file("a", b"").file("b", b"");
    assert!(matches!(all.apply_within(two, &Budget::new(u64::MAX, 1)), Err(LayerError::Budget(_))));
    let tree = Tree::open(&all.path("")).unwrap();
    let bytes = Tar::new().file("f", &[1; 2000]).finish();
    let budget = Budget::new(u64::MAX, u64::MAX);
    assert!(apply(&tree, &bytes[..1500], &budget).is_err(), "cut in a file's content");
    assert!(apply(&tree, &bytes[..300], &budget).is_err(), "cut in a header");
}

#[test]
fn a_parent_that_is_replaced_is_looked_up_again() {
    let all = Playground::with([Tar::new()
        .folder("real/")
        .folder("d/")
        .file("d/x", b"old")
        .symlink("d", "real")
        .file("d/y", b"through the link")]);
    assert_eq!(all.list(), ["d", "real/", "real/y"]);
    let layer = Tar::new().folder("e/").file("e/x", b"").file("e", b"").file("e/y", b"");
    all.refuses(layer, "e/y", "not a folder");
    let again = Tar::new().file("f/x", b"1").file(".wh.real", b"").file("f/y", b"2").file("real/z", b"3");
    all.apply(again).unwrap();
    assert_eq!(all.list(), ["d", "e", "f/", "f/x", "f/y", "real/", "real/z"]);
}
