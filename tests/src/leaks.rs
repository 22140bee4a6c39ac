//! What a test left behind: processes by cgroup, the rest by the folder that carries the test's name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A process, as found in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in the host's view.
    pub pid: i32,
    /// Its command line, blanks between the words.
    pub command: String,
}

/// The child of a test's cgroup that what the test starts is put into. It is not the test's own, because a cgroup with
/// processes cannot give controllers to others, and VMMs have cgroups beside their server's.
const STARTED: &str = "started";

/// Makes a test's cgroup at `cgroup`; returns the one in it to start processes in.
pub(crate) fn create_cgroup(cgroup: &Path) -> PathBuf {
    let started = cgroup.join(STARTED);
    fs::create_dir(cgroup)
        .and_then(|()| fs::create_dir(&started))
        .unwrap_or_else(|error| panic!("{}: {error}: tests need root and cgroup v2", cgroup.display()));
    started
}

/// The cgroups below a test's that are not the harness's.
pub(crate) fn further_cgroups(cgroup: &Path) -> Vec<PathBuf> {
    cgroups(cgroup).into_iter().filter(|path| path != cgroup && *path != cgroup.join(STARTED)).collect()
}

/// Every process in `cgroup` and below.
pub(crate) fn processes(cgroup: &Path) -> Vec<Process> {
    let mut pids = BTreeSet::new();
    for folder in cgroups(cgroup) {
        let listing = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listing.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let describe = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned();
        Process { pid, command }
    };
    pids.into_iter().map(describe).collect()
}

/// Fails if anything is left, after a moment's grace for what ends by itself.
pub(crate) fn assert_nothing_left(cgroup: &Path, folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = remains(cgroup, folder);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind:\n  {}", left.join("\n  "));
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends every process of `cgroup` and removes it.
pub(crate) fn kill_all(cgroup: &Path) {
    // Best effort: this cleans up after a test that has already been judged.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes(cgroup).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    for folder in cgroups(cgroup).into_iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

fn remains(cgroup: &Path, folder: &Path) -> Vec<String> {
    let mut left: Vec<String> =
        processes(cgroup).iter().map(|process| format!("process {} {}", process.pid, process.command)).collect();
    left.extend(further_cgroups(cgroup).iter().map(|path| format!("cgroup {}", path.display())));
    let name = folder.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    left.extend(mounts.lines().filter(|line| line.contains(&name)).map(|line| format!("mount {line}")));
    let sockets = fs::read_to_string("/proc/net/unix").expect("/proc is mounted");
    left.extend(sockets.lines().filter(|line| line.contains(&name)).map(|line| format!("socket {line}")));
    // Servers' sockets have a folder that stays.
    let sockets = folder.join("run/containerd");
    for sandboxes in ["run", "run/containerd", "lib/sandboxes", "lib/containers"] {
        let entries = fs::read_dir(folder.join(sandboxes)).into_iter().flatten().flatten().map(|entry| entry.path());
        left.extend(entries.filter(|path| *path != sockets).map(|path| format!("file {}", path.display())));
    }
    left
}

/// `cgroup` and every one below it, parents first.
pub(crate) fn cgroups(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        let children = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        found.extend(children.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()));
        next += 1;
    }
    found
}
