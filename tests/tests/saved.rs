//! `save` and `restore` as their user sees them: a container that counts, and others that count on from where it was.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tatami_tests::{Running, Tatami};

/// Counts aloud, on a terminal of its own making: a line of a number each time, one also into a file that stays open, while
/// another process follows it.
const COUNTER: &str = "mkdir /data; echo before >/data/note; rm -f /etc/hosts; rm -r /var; mkdir /var; exec 7>/data/count; \
    tail -f /data/count >/data/followed & \
    n=0; while :; do n=$((n+1)); echo count $n; echo $n >&7; sleep 0.2; done";

fn saved(tatami: &Tatami, name: &str) -> String {
    tatami.scratch().join(name).display().to_string()
}

fn exec(tatami: &Tatami, name: &str, script: &str) -> String {
    tatami.tatami(&["exec", name, "sh", "-c", &format!("{script}; true")]).expect_status(0).out().trim().to_owned()
}

fn logs_follow(tatami: &Tatami, name: &str) -> Running {
    Running::start(tatami.command(&["logs", "-f", name]))
}

/// The first number in a log.
fn first_count(tatami: &Tatami, name: &str) -> u32 {
    let text = tatami.tatami(&["logs", name]).expect_status(0).out();
    let number = text.lines().find_map(|line| line.strip_prefix("count ")?.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {text:?}"))
}

fn wait_for_count(tatami: &Tatami, name: &str) {
    let log = logs_follow(tatami, name);
    log.wait_for("count");
    log.signal(nix::sys::signal::Signal::SIGKILL);
}

/// Every file in a folder with its size and time of change.
fn listing(folder: &Path) -> String {
    let output = std::process::Command::new("find").arg(folder).args(["-printf", "%P %s %T@\\n"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_goes_on_twice_at_once_from_one_folder_and_both_answer() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "first"], &["sh", "-c", COUNTER]);
    logs_follow(&tatami, "first").wait_for("count 5\n");
    let folder = saved(&tatami, "one");
    let save = tatami.tatami(&["save", "first", &folder]).expect_status(0);
    let at = exec(&tatami, "first", "cat /data/count | tail -n 1").parse::<u32>().unwrap();
    let before = listing(Path::new(&folder));

    let starts: Vec<_> = ["left", "right"]
        .into_iter()
        .map(|name| Running::start(tatami.command(&["restore", "--name", name, &folder])))
        .collect();
    let restores: Vec<_> = starts.into_iter().map(|start| start.finish().expect_status(0)).collect();
    println!("saved in {:?}, restored in {:?}", save.took, restores.iter().map(|each| each.took).collect::<Vec<_>>());
    for name in ["left", "right"] {
        wait_for_count(&tatami, name);
        let first = first_count(&tatami, name);
        assert!(first > 5 && first <= at + 1, "{name} counts from {first}, the first one was at {at} after the save");
        assert_eq!(exec(&tatami, name, "cat /data/note; ls /var; ls /etc/hosts 2>/dev/null"), "before");
        exec(&tatami, name, &format!("echo {name} >/data/note; echo {name} >/new; rm -r /home"));
        let now = exec(&tatami, name, "date +%s").parse::<i64>().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((host - now).abs() < 10, "{name}: {now} instead of {host}");
    }
    let random = |name: &str| exec(&tatami, name, "head -c 16 /dev/urandom | od -An -tx1");
    let all = ["first", "left", "right"].map(random);
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
    for name in ["left", "right"] {
        assert_eq!(exec(&tatami, name, "cat /data/note /new; ls -d /home 2>/dev/null"), format!("{name}\n{name}"));
        // Who wrote to the open file goes on, and who follows it sees that.
        let count = |what: &str| exec(&tatami, name, &format!("tail -n 1 /data/{what}")).parse::<u32>().unwrap();
        let (was, deadline) = (count("count"), std::time::Instant::now() + Duration::from_secs(60));
        while count("followed") <= was {
            assert!(std::time::Instant::now() < deadline, "{name}: {} of {was} is seen", count("followed"));
        }
    }
    // The one that was saved goes on, and knows nothing of the others.
    assert_eq!(exec(&tatami, "first", "cat /data/note; ls /new 2>/dev/null; ls -d /home"), "before\n/home");
    let was = exec(&tatami, "first", "tail -n 1 /data/count").parse::<u32>().unwrap();
    assert!(was >= at);
    assert_eq!(listing(Path::new(&folder)), before, "the folder stays as it is");
    for name in ["first", "left", "right"] {
        tatami.tatami(&["rm", "-f", name]).expect_status(0);
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_went_on_can_be_saved_and_ends_as_any_container() {
    let tatami = Tatami::new();
    let script = "trap 'echo bye; exit 3' TERM; while read line; do echo got $line; done; while :; do sleep 0.1; done";
    tatami.detach(&["--name", "first", "-i"], &["sh", "-c", script]);
    let (one, two) = (saved(&tatami, "one"), saved(&tatami, "two"));
    exec(&tatami, "first", "echo 1 >/one");
    tatami.tatami(&["save", "first", &one]).expect_status(0);
    tatami.tatami(&["rm", "-f", "first"]).expect_status(0);
    tatami.tatami(&["restore", "--name", "second", &one]).expect_status(0);
    exec(&tatami, "second", "echo 2 >/two; rm /bin/ls");
    tatami.tatami(&["save", "second", &two]).expect_status(0);
    tatami.tatami(&["rm", "-f", "second"]).expect_status(0);
    fs::remove_dir_all(&one).unwrap();
    tatami.tatami(&["restore", "--name", "third", &two]).expect_status(0);
    assert_eq!(exec(&tatami, "third", "cat /one /two; test -e /bin/ls || echo gone"), "1\n2\ngone");
    let mut attach = tatami.command(&["attach", "third"]);
    attach.stdin(std::process::Stdio::piped());
    let mut attached = Running::start(attach);
    attached.take_stdin().write_all(b"hello\n").unwrap();
    attached.wait_for("got hello");
    attached.signal(nix::sys::signal::Signal::SIGKILL);
    tatami.tatami(&["stop", "third"]).expect_status(0);
    assert_eq!(tatami.tatami(&["wait", "third"]).out(), "3\n");
    assert!(tatami.tatami(&["logs", "third"]).out().ends_with("bye\n"));
    tatami.tatami(&["rm", "third"]).expect_status(0);
}

/// A file system that is soon full.
struct Small(PathBuf);

impl Small {
    fn mount(tatami: &Tatami) -> Small {
        let folder = tatami.scratch().join("small");
        fs::create_dir(&folder).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&folder);
        assert!(mount.status().unwrap().success());
        Small(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_is_damaged_or_of_another_version_is_refused_and_leaves_nothing() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "first"], &["sleep", "1000"]);
    let folder = saved(&tatami, "one");
    tatami.tatami(&["save", "nobody", &folder]).expect_error(1, &["no such container"]);
    tatami.tatami(&["save", "first", "/no/such/folder"]).expect_error(1, &["/no/such/folder.partial"]);
    let small = Small::mount(&tatami);
    tatami.tatami(&["save", "first", &small.0.join("one").display().to_string()]).expect_error(1, &["No space left"]);
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0, "nothing half done is left");
    drop(small);
    tatami.tatami(&["save", "first", &folder]).expect_status(0);
    tatami.tatami(&["save", "first", &folder]).expect_error(1, &["one", "is there already"]);
    tatami.tatami(&["pause", "first"]).expect_status(0);
    tatami.tatami(&["save", "first", &saved(&tatami, "two")]).expect_error(1, &["tatami resume"]);
    tatami.tatami(&["rm", "-f", "first"]).expect_status(0);
    tatami.tatami(&["restore", &saved(&tatami, "none")]).expect_error(125, &["none", "no saved sandbox"]);

    let path = |name: &str| Path::new(&folder).join(name);
    let state = fs::read(path("state")).unwrap();
    let refused = |words: &[&str]| {
        let words = [&["one"], words].concat();
        tatami.tatami(&["restore", &folder]).expect_error(125, &words);
        assert_eq!(tatami.tatami(&["ps", "-aq"]).expect_status(0).out(), "");
    };
    fs::write(path("state"), &state[..state.len() / 2]).unwrap();
    refused(&["state", "cannot be understood"]);
    let text = String::from_utf8(state.clone()).unwrap();
    let (version, rest) = text.split_once(',').unwrap();
    assert!(version.starts_with("{\"version\":"), "{version}");
    fs::write(path("state"), format!("{{\"version\":99,{rest}")).unwrap();
    refused(&["another version", "99"]);
    fs::write(path("state"), &state).unwrap();
    let memory = fs::OpenOptions::new().write(true).open(path("memory")).unwrap();
    let length = memory.metadata().unwrap().len();
    memory.set_len(length - 4096).unwrap();
    refused(&["memory", "damaged"]);
    memory.set_len(length).unwrap();
    let description = fs::read(path("sandbox.json")).unwrap();
    fs::write(path("sandbox.json"), &description[..200]).unwrap();
    refused(&["sandbox.json", "damaged", "save the sandbox again"]);
    let image = fs::read_dir(tatami.scratch().with_file_name("lib").join("images")).unwrap().next();
    assert!(image.is_some());
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_terminal_goes_on_and_its_keys_arrive() {
    let tatami = Tatami::new();
    tatami.detach(&["-i", "-t", "--name", "box"], &["sh"]);
    exec(&tatami, "box", "true");
    let folder = saved(&tatami, "one");
    tatami.tatami(&["save", "box", &folder]).expect_status(0);
    tatami.tatami(&["rm", "-f", "box"]).expect_status(0);
    tatami.tatami(&["restore", "--name", "again", &folder]).expect_status(0);
    let mut terminal = tatami_tests::Terminal::start(tatami.command(&["attach", "again"]), 24, 80);
    terminal.send("echo $((6*7)); exit 4\n");
    terminal.wait_for("42");
    assert_eq!(terminal.finish(), 4);
    tatami.tatami(&["rm", "again"]).expect_status(0);
}
