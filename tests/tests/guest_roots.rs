//! Guests whose own root is on a disk in place of an initrd: they boot, their containers are as any, and nothing is written to
//! the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tatami_tests::{Finished, Running, Tatami, guest};

/// What `make root-disk` and `make distribution` leave beside the initrd.
fn disk(name: &str) -> PathBuf {
    guest(name, "make root-disk distribution")
}

fn boots_from(name: &str, root: &str) {
    let tatami = Tatami::new();
    let disk = disk(name);
    let before = fs::read(&disk).unwrap();
    fs::write(tatami.scratch().join("file"), "of the host\n").unwrap();
    let volume = format!("{}:/data", tatami.scratch().display());
    let options = ["--initrd", disk.to_str().unwrap(), "-v", volume.as_str()];
    let script = "grep -o 'root=[^ ]*' /proc/cmdline; cat /data/file; echo written >/file && cat /file; exit 7";
    let finished = tatami.run_with(&options, &["sh", "-c", script]).expect_status(7);
    assert_eq!(finished.out(), format!("root={root}\nof the host\nwritten\n"));
    assert!(fs::read(&disk).unwrap() == before, "the disk was written to");
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_erofs_disk_with_the_agent_alone() {
    boots_from("root.erofs", "/dev/vda");
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_ext4_disk_with_the_agent_alone() {
    boots_from("root.ext4", "/dev/vda");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_debian_suite() {
    boots_from("bookworm.erofs", "/dev/vda");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_that_is_checked() {
    boots_from("root.verity.erofs", "/dev/dm-0");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_that_tatami_builds() {
    let tatami = Tatami::new();
    let file = tatami.scratch().join("built.erofs").display().to_string();
    let build = |file: &str| tatami.tatami(&["rootfs", "build", "--distro=busybox", "-o", file]).expect_status(0);
    build(&file);
    let finished = tatami.run_with(&["--initrd", &file], &["grep", "-o", "root=[^ ]*", "/proc/cmdline"]);
    assert_eq!(finished.expect_status(0).out(), "root=/dev/vda\n");
    let again = format!("{file}.again");
    build(&again);
    assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "equal calls give equal bytes");
    // What cannot be is said, and nothing is left of it.
    let bad = tatami.scratch().join("bad").display().to_string();
    let refused = |words: &[&str], why: &[&str]| {
        let words = [&["rootfs", "build", "-o", &bad], words].concat();
        tatami.tatami(&words).expect_error(1, why);
    };
    refused(&["--suite=bookworm"], &["--suite", "--distro debian"]);
    refused(&["--distro=busybox", "--busybox=/bin/true"], &["/bin/true does not say what its applets are"]);
    refused(&["--add=/no/such"], &["--add /no/such: no such folder"]);
    refused(&["--initrd", &file], &["the initrd", &file, "one with the agent as /init"]);
    assert!(!Path::new(&bad).exists());
    tatami.assert_nothing_left();
}

/// A copy of `name` with another byte in the header of the program that every guest starts from: one that nobody looks at.
fn with_another_byte(tatami: &Tatami, name: &str) -> PathBuf {
    let mut image = fs::read(disk(name)).unwrap();
    let program = (0..image.len()).step_by(4096).find(|start| image[*start..].starts_with(b"\x7fELF"));
    // The header's padding (e_ident[EI_NIDENT - 1]).
    image[program.expect("the agent, from a block's beginning on") + 15] ^= 1;
    let file = tatami.scratch().join(name);
    fs::write(&file, image).unwrap();
    file
}

#[test]
#[ignore = "boots a guest: make test"]
fn one_byte_that_is_another_is_noticed_on_a_disk_that_is_checked() {
    let tatami = Tatami::new();
    let run = |file: &Path| tatami.run_with(&["--initrd", file.to_str().unwrap()], &["true"]);
    run(&with_another_byte(&tatami, "root.erofs")).expect_status(0);
    let changed = with_another_byte(&tatami, "root.verity.erofs");
    run(&changed).expect_error(125, &["does not match its root hash", "damaged or changed"]);
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn no_disk_is_started_from_but_the_one_that_is_wanted() {
    let tatami = Tatami::new();
    let right = disk("root.verity.erofs");
    let whole = fs::read(&right).unwrap();
    let last = String::from_utf8_lossy(&whole[whole.len() - 4096..]).into_owned();
    let said = last.lines().nth(1).expect("what it is checked by").to_owned();
    let run = |file: &Path, verity: &str| {
        let options = ["--initrd", file.to_str().unwrap(), "--verity", verity];
        tatami.run_with(&options, &["grep", "-c", &said[10..74], "/proc/cmdline"])
    };
    assert_eq!(run(&right, &said).expect_status(0).out(), "1\n");
    let other = format!("root_hash={}{}", if said[10..].starts_with('0') { '1' } else { '0' }, &said[11..]);
    run(&right, &other).expect_error(125, &["another disk", &said, &other]);
    run(&disk("root.erofs"), &said).expect_error(125, &["root.erofs", "no disk that is checked"]);
    let short = tatami.scratch().join("short.erofs");
    fs::write(&short, &whole[..whole.len() - 4096]).unwrap();
    run(&short, &said).expect_error(125, &["short.erofs", "damaged, or was cut short"]);
    // It is the guest's kernel that checks what the disk says of itself.
    let lying = tatami.scratch().join("lying.erofs");
    fs::write(&lying, [&whole[..whole.len() - 4096], last.replace(&said, &other).as_bytes()].concat()).unwrap();
    run(&lying, &other).expect_error(125, &["does not match its root hash"]);
    tatami.assert_nothing_left();
}

/// Whether the guest booted, as the timings tell.
fn booted(finished: &Finished) -> bool {
    let said = finished.err();
    let line = said.lines().find(|line| line.starts_with("boot ")).unwrap_or_else(|| panic!("no boot phase: {said}"));
    !line.contains(" 0.0 ms")
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_second_guest_on_a_disk_goes_on_from_where_the_first_had_booted() {
    let tatami = Tatami::new();
    for name in ["root.erofs", "root.ext4", "root.verity.erofs"] {
        let disk = disk(name);
        let templates = tatami.scratch().join(format!("templates of {name}"));
        let options = ["--initrd", disk.to_str().unwrap(), "--timings"];
        // A file of the disk that the agent has not read before.
        let command = ["sh", "-c", "grep -c ' / ' /proc/mounts; cat /proc/sys/kernel/random/uuid"];
        let runs = [(); 3].map(|()| {
            let mut command = tatami.command(&Tatami::run_arguments(&options, &command));
            command.env("TATAMI_TEMPLATES", &templates);
            Running::start(command).finish().expect_status(0)
        });
        assert!(booted(&runs[0]) && !booted(&runs[1]) && !booted(&runs[2]), "{name}");
        assert!(runs[1].out() != runs[2].out(), "{name}: {}", runs[1].out());
        assert_eq!(fs::read_dir(&templates).unwrap().count(), 1);
    }
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_on_a_disk_is_saved_and_goes_on_twice_unless_the_disk_has_changed() {
    let tatami = Tatami::new();
    let copy = tatami.scratch().join("root.erofs");
    fs::copy(disk("root.erofs"), &copy).unwrap();
    let script = "n=0; while :; do n=$((n+1)); echo $n >/count; sleep 0.1; done";
    tatami.detach(&["--initrd", copy.to_str().unwrap(), "--name", "first"], &["sh", "-c", script]);
    let count = |name: &str| {
        let out = tatami.tatami(&["exec", name, "cat", "/count"]).expect_status(0).out();
        out.trim().parse::<u32>().unwrap_or(0)
    };
    let folder = tatami.scratch().join("saved").display().to_string();
    tatami.tatami(&["save", "first", &folder]).expect_status(0);
    for name in ["left", "right"] {
        tatami.tatami(&["restore", "--name", name, &folder]).expect_status(0);
    }
    for name in ["first", "left", "right"] {
        let (was, deadline) = (count(name), Instant::now() + Duration::from_secs(60));
        while count(name) <= was {
            assert!(Instant::now() < deadline, "{name} does not count on from {was}");
        }
    }
    // What went on can be saved again.
    let again = tatami.scratch().join("again").display().to_string();
    tatami.tatami(&["save", "left", &again]).expect_status(0);
    tatami.tatami(&["rm", "-f", "first", "left", "right"]).expect_status(0);
    tatami.tatami(&["restore", "--name", "third", &again]).expect_status(0);
    count("third");
    tatami.tatami(&["rm", "-f", "third"]).expect_status(0);

    fs::File::options().append(true).open(&copy).unwrap().set_modified(SystemTime::now()).unwrap();
    tatami.tatami(&["restore", &folder]).expect_error(125, &["root.erofs", "has changed"]);
    fs::remove_file(&copy).unwrap();
    tatami.tatami(&["restore", &folder]).expect_error(125, &["root.erofs", "No such file"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_without_an_agent_is_told() {
    let tatami = Tatami::new();
    let mut bare = fs::read(disk("root.erofs")).unwrap();
    let name = bare.windows(4).position(|bytes| bytes == b"init").expect("the agent's name");
    bare[name..name + 4].copy_from_slice(b"none");
    let file = tatami.scratch().join("bare.erofs");
    fs::write(&file, bare).unwrap();
    let finished = tatami.run_with(&["--initrd", file.to_str().unwrap()], &["true"]);
    finished.expect_error(125, &["the guest"]);
    tatami.assert_nothing_left();
}
