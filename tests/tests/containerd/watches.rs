//! Watchers in a container of files that lie on the host: they hear of every change that is made there.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tatami_tests::compare::{Case, Notes};
use tatami_tests::{Running, pack};

use crate::stage::{Ctr, PATIENCE};

pub(crate) const CASES: &[Case<Ctr>] = &[Case::new("watchers of the host's files", watchers).long()];

/// After what was expected, for what was not.
const QUIET: Duration = Duration::from_millis(700);

/// What is called so, is done to the folder, and is heard of as `watcher.rs` says it: c for written to, w closed after writing, e
/// attributes, n new, d deleted, m moved out, y moved in; D and x for the watched file itself, which is gone.
type Step = (&'static str, fn(&Path), &'static str);

const STEPS: &[Step] = &[
    ("a new file", |folder| write(&folder.join("new")), "n/watched new, c/watched new, w/watched new"),
    (
        "a file written to",
        |folder| write(&folder.join("old")),
        "c/watched old, c/watched/old, w/watched old, w/watched/old",
    ),
    ("attributes", |folder| restrict(&folder.join("old")), "e/watched old, e/watched/old"),
    ("a file moved", |folder| rename(folder, "new", "sub/new"), "m/watched new, y/watched/sub new"),
    ("a file moved over another", |folder| rename(folder, "sub/new", "other"), "m/watched/sub new, y/watched other"),
    ("a folder", |folder| fs::create_dir(folder.join("dir")).expect("a folder"), "n/watched dir"),
    ("a folder moved", |folder| rename(folder, "dir", "sub/dir"), "m/watched dir, y/watched/sub dir"),
    ("a folder removed", |folder| fs::remove_dir(folder.join("sub/dir")).expect("is there"), "d/watched/sub dir"),
    (
        "a file deleted",
        |folder| remove(&folder.join("old")),
        "e/watched/old, D/watched/old, x/watched/old, d/watched old",
    ),
    ("a single file written to", |folder| write(&folder.with_file_name("single")), "c/single, w/single"),
    ("a single file replaced", |folder| rename(folder, "other", "../single"), "e/single, m/watched other"),
];

fn watchers(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch().join("watched");
    fs::create_dir_all(folder.join("sub")).expect("folders");
    [folder.join("old"), folder.join("other"), folder.with_file_name("single")].iter().for_each(|path| write(path));
    let volume = format!("type=bind,src={},dst=/watched,options=rbind:rw", folder.display());
    let single = format!("type=bind,src={},dst=/single,options=bind:ro", folder.with_file_name("single").display());
    let tools = ctr.scratch().join("tools");
    let watch = pack(Path::new(env!("CARGO_BIN_EXE_watcher")), &tools);
    let tools = format!("type=bind,src={},dst=/tools,options=rbind:ro", tools.display());
    let options = ["--rm", "--mount", &volume, "--mount", &single, "--mount", &tools];
    let script = format!("exec {watch} /watched /watched/sub /watched/old /single");
    let running = ctr.start("a", &options, &["sh", "-c", &script]);
    let deadline = Instant::now() + PATIENCE;
    while !heard(&running).iter().any(|line| line == "d/watched probe") {
        assert!(Instant::now() < deadline, "nothing is heard: {:?}", heard(&running));
        write(&folder.join("probe"));
        remove(&folder.join("probe"));
        sleep(Duration::from_millis(200));
    }
    sleep(QUIET);
    for (what, change, wanted) in STEPS {
        let before = heard(&running).len();
        change(&folder);
        let deadline = Instant::now() + Duration::from_secs(10);
        while heard(&running).len() < before + wanted.split(", ").count() && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        sleep(QUIET);
        let mut lines = heard(&running).split_off(before);
        if what.ends_with("replaced") {
            // Two different files' events, which come as they come.
            lines.sort();
        }
        notes.want(*what, lines.join(", "), *wanted);
    }
    ctr.task("a", &["kill", "-s", "SIGKILL"]);
    running.finish_within(PATIENCE);
}

/// The lines so far.
fn heard(running: &Running) -> Vec<String> {
    running.out_so_far().lines().map(|line| line.replacen(' ', "", 1)).collect()
}

fn write(path: &Path) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(b"x")).expect("a file is written to");
}

fn restrict(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("a file's mode is set");
}

fn rename(folder: &Path, from: &str, to: &str) {
    fs::rename(folder.join(from), folder.join(to)).expect("a file is renamed");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("a file is removed");
}
