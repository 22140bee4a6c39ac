//! How files of the host reach a container, where it can be chosen: how long the guest believes what it has read, and how many
//! threads serve it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use tatami_tests::{Running, Tatami};

/// What a container reads of a file of its root, a plain folder, before and after the host changes it, with this
/// `--folder-cache`. (In a volume the guest would be told of the change.)
fn before_and_after(cache: &str) -> String {
    let tatami = Tatami::new();
    let root = tatami.scratch().join("tree");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("file"), "old\n").unwrap();
    let shell = ["/bin/busybox", "sh", "-c", "busybox cat /file; read line; busybox cat /file"];
    let options = ["run", "--rm", "-i", "--boot-timeout", "120", "--folder-cache", cache, "--rootfs"];
    let arguments: Vec<&str> = options.into_iter().chain([root.to_str().unwrap()]).chain(shell).collect();
    let mut running = start(tatami.command(&arguments));
    running.wait_for("old");
    fs::write(root.join("file"), "new\n").unwrap();
    running.take_stdin().write_all(b"go on\n").unwrap();
    let read = running.finish().expect_status(0).out();
    tatami.assert_nothing_left();
    read
}

/// A command whose standard input is a pipe.
fn start(mut command: Command) -> Running {
    command.stdin(Stdio::piped());
    Running::start(command)
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_that_believes_nothing_sees_a_change_at_once() {
    assert_eq!(before_and_after("never"), "old\nnew\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_that_believes_everything_goes_on_with_what_it_has_read() {
    assert_eq!(before_and_after("always"), "old\nold\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn several_threads_serve_files_to_several_processors() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("data");
    fs::create_dir_all(&folder).unwrap();
    let content: Vec<u8> = (0..4_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for name in ["a", "b", "c"] {
        fs::write(folder.join(name), &content).unwrap();
    }
    let volume = format!("{}:/data", folder.display());
    let options = ["-i", "-v", volume.as_str(), "--folder-queues", "2", "--cpus", "2"];
    let script = "for f in a b c; do cat /data/$f >/data/$f.copy & done; wait; echo copied; read line";
    let mut running = start(tatami.command(&Tatami::run_arguments(&options, &["sh", "-c", script])));
    running.wait_for("copied");
    let mut threads = BTreeSet::new();
    for process in tatami.processes() {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        threads.extend(names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("virtio-fs")));
    }
    drop(running.take_stdin());
    running.finish();
    assert_eq!(threads, ["virtio-fs", "virtio-fs-2"].map(str::to_owned).into());
    for name in ["a", "b", "c"] {
        assert!(fs::read(folder.join(format!("{name}.copy"))).unwrap() == content, "{name} is not what was copied");
    }
    tatami.assert_nothing_left();
}
