//! Guests whose own root is on a disk in place of an initrd: they boot, their containers are as any, and nothing is written to
//! the disk.

use std::fs;
use std::path::PathBuf;

use tatami_tests::{Tatami, checkout, on_own_disk};

/// What `make root-disk` and `make distribution` leave beside the initrd.
fn disk(name: &str) -> PathBuf {
    let disk = checkout().join("target/guest").join(std::env::consts::ARCH).join(name);
    on_own_disk(&disk).unwrap_or_else(|error| panic!("{}: {error}: run `make root-disk distribution`", disk.display()))
}

fn boots_from(name: &str) {
    let tatami = Tatami::new();
    let disk = disk(name);
    let before = fs::read(&disk).unwrap();
    fs::write(tatami.scratch().join("file"), "of the host\n").unwrap();
    let volume = format!("{}:/data", tatami.scratch().display());
    let options = ["--initrd", disk.to_str().unwrap(), "-v", volume.as_str()];
    let script = "grep -o 'root=[^ ]*' /proc/cmdline; cat /data/file; echo written >/file && cat /file; exit 7";
    let finished = tatami.run_with(&options, &["sh", "-c", script]).expect_status(7);
    assert_eq!(finished.out(), "root=/dev/vda\nof the host\nwritten\n");
    assert!(fs::read(&disk).unwrap() == before, "the disk was written to");
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_erofs_disk_with_the_agent_alone() {
    boots_from("root.erofs");
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_ext4_disk_with_the_agent_alone() {
    boots_from("root.ext4");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_debian_suite() {
    boots_from("bookworm.erofs");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_on_a_disk_is_not_saved_and_a_disk_without_an_agent_is_told() {
    let tatami = Tatami::new();
    let root = disk("root.erofs");
    let id = tatami.detach(&["--initrd", root.to_str().unwrap()], &["sleep", "1000"]);
    let folder = tatami.scratch().join("saved");
    let saved = tatami.tatami(&["save", &id, folder.to_str().unwrap()]);
    saved.expect_error(1, &["guest on a disk", "initrd"]);
    tatami.tatami(&["rm", "-f", &id]).expect_status(0);

    let mut bare = fs::read(&root).unwrap();
    let name = bare.windows(4).position(|bytes| bytes == b"init").expect("the agent's name");
    bare[name..name + 4].copy_from_slice(b"none");
    let file = tatami.scratch().join("bare.erofs");
    fs::write(&file, bare).unwrap();
    let finished = tatami.run_with(&["--initrd", file.to_str().unwrap()], &["true"]);
    finished.expect_error(125, &["the guest"]);
    tatami.assert_nothing_left();
}
