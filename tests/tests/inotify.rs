//! Who watches files of the host in a guest hears when somebody on the host changes them, as in a container that shares the
//! host's kernel; and of its own changes once.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tatami_tests::{PATIENCE, Running, Tatami, pack};

/// How long nothing comes after what was expected.
const QUIET: Duration = Duration::from_secs(2);
/// A watcher in a guest, and the folder of the host it sees.
struct Watched {
    running: Running,
    folder: PathBuf,
    /// How many of its lines have been looked at.
    seen: usize,
}

impl Watched {
    /// Runs `script`, in which `$watch` prints what happens to files below `/watched` (see `watcher.rs`), and waits until it hears.
    fn start(tatami: &Tatami, folder: &Path, script: &str) -> Watched {
        let volume = format!("{}:/watched", folder.display());
        let mut watched = Watched { running: run(tatami, &volume, script), folder: folder.to_owned(), seen: 0 };
        watched.until_heard(&folder.join("probe"), "probe");
        watched
    }

    /// Changes `probe` until that is heard as `word`, and then until no more is.
    fn until_heard(&mut self, probe: &Path, word: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.running.out_so_far().contains(word) {
            assert!(Instant::now() < deadline, "{word} was not heard: {:?}", self.running.out_so_far());
            fs::write(probe, "x").unwrap();
            fs::remove_file(probe).unwrap();
            thread::sleep(Duration::from_millis(200));
        }
        let mut length = 0;
        while self.running.out_so_far().len() != length {
            length = self.running.out_so_far().len();
            thread::sleep(QUIET);
        }
        self.seen = self.running.out_so_far().lines().count();
    }

    /// What is heard of `change`: as many lines as are wanted, and those that come too soon after them.
    fn hears(&mut self, what: &str, change: impl FnOnce(&Path), wanted: &[&str]) {
        change(&self.folder);
        let deadline = Instant::now() + PATIENCE;
        let lines = |running: &Running| -> Vec<String> { running.out_so_far().lines().map(str::to_owned).collect() };
        while lines(&self.running).len() < self.seen + wanted.len() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(500));
        let all = lines(&self.running);
        assert_eq!(all[self.seen..], *wanted, "{what}");
        self.seen = all.len();
    }

    fn end(self) {
        self.running.signal(Signal::SIGKILL);
        self.running.finish();
    }
}

fn run(tatami: &Tatami, volume: &str, script: &str) -> Running {
    let tools = tatami.scratch().join("tools");
    let watch = pack(Path::new(env!("CARGO_BIN_EXE_watcher")), &tools);
    let tools = format!("{}:/tools:ro", tools.display());
    tatami.start(&["-v", &tools, "-v", volume, "-e", &format!("watch={watch}")], &["sh", "-c", script])
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
}

#[test]
#[ignore = "boots a guest: make test"]
fn changes_on_the_host_are_told_to_watchers_in_the_guest() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("watched");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("old"), "old").unwrap();
    let script = "$watch /watched /watched/sub /watched/old & \
        until [ -d /watched/fresh ]; do sleep 0.3; done; $watch /watched/fresh & wait";
    let mut watched = Watched::start(&tatami, &folder, script);
    let both = ["c /watched old", "c /watched/old", "w /watched old", "w /watched/old"];
    watched.hears("a file written to", |folder| append(&folder.join("old")), &both);
    let attributes = |folder: &Path| fs::set_permissions(folder.join("old"), Permissions::from_mode(0o600)).unwrap();
    watched.hears("a file's mode", attributes, &["e /watched old", "e /watched/old"]);
    let new = ["n /watched new", "c /watched new", "w /watched new"];
    watched.hears("a new file", |folder| fs::write(folder.join("new"), "new").unwrap(), &new);
    let rename = |folder: &Path| fs::rename(folder.join("new"), folder.join("sub/moved")).unwrap();
    watched.hears("a file moved between folders", rename, &["m /watched new", "y /watched/sub moved"]);
    let out = |folder: &Path| fs::rename(folder.join("sub/moved"), folder.with_file_name("outside")).unwrap();
    watched.hears("a file moved out of sight", out, &["m /watched/sub moved"]);
    let back = |folder: &Path| fs::rename(folder.with_file_name("outside"), folder.join("back")).unwrap();
    watched.hears("a file moved in", back, &["y /watched back"]);
    watched.hears(
        "a link",
        |folder| std::os::unix::fs::symlink("/", folder.join("link")).unwrap(),
        &["n /watched link"],
    );
    let deleted = ["e /watched/old", "D /watched/old", "x /watched/old", "d /watched old"];
    watched.hears("a file deleted", |folder| fs::remove_file(folder.join("old")).unwrap(), &deleted);
    // A folder that was not there when the container started, and a file in it.
    fs::create_dir(folder.join("fresh")).unwrap();
    watched.until_heard(&folder.join("fresh/probe"), "/watched/fresh");
    let inner = ["n /watched/fresh inner", "c /watched/fresh inner", "w /watched/fresh inner"];
    watched.hears("a file in a new folder", |folder| fs::write(folder.join("fresh/inner"), "x").unwrap(), &inner);
    watched.end();
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_the_guest_does_itself_is_told_once() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("watched");
    fs::create_dir_all(&folder).unwrap();
    let script = "$watch /watched & until [ -e /watched/go ]; do sleep 0.3; done; sleep 2; \
        echo x > /watched/own; mkdir /watched/own-folder; mv /watched/own /watched/own-folder/x; wait";
    let mut watched = Watched::start(&tatami, &folder, script);
    let own = [
        "n /watched go",
        "c /watched go",
        "w /watched go",
        "n /watched own",
        "c /watched own",
        "w /watched own",
        "n /watched own-folder",
        "m /watched own",
    ];
    watched.hears("its own", |folder| fs::write(folder.join("go"), "go").unwrap(), &own);
    thread::sleep(QUIET);
    watched.hears("its own, later", |_| {}, &[]);
    // What the guest has made, the host may change.
    let outwards = |folder: &Path| fs::rename(folder.join("own-folder/x"), folder.join("x")).unwrap();
    watched.hears("out of the guest's folder", outwards, &["y /watched x"]);
    watched.end();
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_file_is_watched_for_as_long_as_it_is_the_same_file() {
    let tatami = Tatami::new();
    let folder = tatami.scratch();
    let file = folder.join("file");
    fs::write(&file, "x").unwrap();
    let volume = format!("{}:/file", file.display());
    let mut watched = Watched { running: run(&tatami, &volume, "$watch /file"), folder, seen: 0 };
    let deadline = Instant::now() + PATIENCE;
    while watched.running.out_so_far().is_empty() {
        assert!(Instant::now() < deadline, "nothing was heard");
        append(&file);
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(QUIET);
    watched.seen = watched.running.out_so_far().lines().count();
    watched.hears("written to", |folder| append(&folder.join("file")), &["c /file", "w /file"]);
    // As editors save: another file takes the name. The container goes on to see the old one, which has no name any more.
    let replace = |folder: &Path| {
        fs::write(folder.join("next"), "next").unwrap();
        fs::rename(folder.join("next"), folder.join("file")).unwrap();
    };
    watched.hears("replaced", replace, &["e /file"]);
    watched.hears("the other file", |folder| append(&folder.join("file")), &[]);
    watched.end();
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_flood_of_changes_takes_no_memory() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("watched");
    fs::create_dir_all(&folder).unwrap();
    let watched = Watched::start(&tatami, &folder, "$watch /watched");
    let status = format!("/proc/{}/status", watched.running.pid());
    let resident = || -> u64 {
        let text = fs::read_to_string(&status).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // Each is made, written to and closed.
    let flood = || (0..3_400).for_each(|number| fs::write(folder.join(number.to_string()), "x").unwrap());
    let before = resident();
    flood();
    thread::sleep(QUIET);
    let after = resident();
    println!("the server's memory: {before} KiB before 10,000 changes, {after} KiB after them");
    assert!(after < before + 4096, "the server grew from {before} to {after} KiB");
    // And it still hears.
    fs::write(folder.with_file_name("last"), "x").unwrap();
    fs::rename(folder.with_file_name("last"), folder.join("last")).unwrap();
    watched.running.wait_for("last");
    watched.end();
}
