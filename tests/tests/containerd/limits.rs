//! Limits, and what is told when one is met.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::IMAGE;

use crate::stage::{Ctr, SOON, error_or_ok};

/// Why a share is not a weight everywhere.
const SHARES: &str = "512 shares: runc 1.1 converts on a straight line (20), we as newer runtimes do, where the usual 1024 shares stay the usual weight (59)";

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("memory that runs out", out_of_memory),
    Case::new("limits that the container sees", seen_inside).differs(&[("cpu.weight", SHARES)]).long(),
    Case::new("limits changed while it runs", update).long(),
    Case::new("a fork bomb", fork_bomb).long(),
];

/// ctr gives a container neither a mount of control groups nor a namespace of its own for them.
const CGROUPS: &str = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro";
const OWN_CGROUP: &str = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)";
/// 64 MiB.
const MEMORY: &str = "67108864";
/// `dd` holds what it reads, all at once.
const EATER: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null";

fn out_of_memory(ctr: &mut Ctr, notes: &mut Notes) {
    let finished = ctr.run("a", &["--rm", "--memory-limit", MEMORY], &["sh", "-c", &format!("echo up; exec {EATER}")]);
    notes.want("status", finished.status, 137);
    notes.want("output", finished.out(), "up\n");
    let events = ctr.events("a", "delete");
    notes.want("told", events.contains("oom"), true);
    notes.want("events", events.replace(" oom", ""), "create start exit(137) delete");
    // A child dies, the container lives on.
    ctr.detached("b", &["--memory-limit", MEMORY], &["sh", "-c", &format!("{EATER}; echo $? >/status; sleep 1000")]);
    let read = "i=0; until test -s /status || test $i -gt 300; do i=$((i+1)); sleep 0.1; done; cat /status";
    notes.want("the child's status", ctr.exec("b", "e", &[], &["sh", "-c", read]).out(), "137\n");
    notes.want("told of the child", ctr.events("b", "oom").contains("oom"), true);
    notes.want("status", ctr.status("b"), "RUNNING");
    notes.want("end", ctr.finish("b"), "kill 0, STOPPED, rm 137, ok");
}

fn seen_inside(ctr: &mut Ctr, notes: &mut Notes) {
    let options = [
        "--rm",
        "--mount",
        CGROUPS,
        "--memory-limit",
        MEMORY,
        "--cpu-quota",
        "50000",
        "--cpu-period",
        "100000",
        "--cpu-shares",
        "512",
    ];
    let script = format!("{OWN_CGROUP}; for file in memory.max cpu.max cpu.weight pids.max; do cat $file; done");
    let finished = ctr.run("a", &options, &["sh", "-c", &script]);
    notes.want("status", finished.status, 0);
    for (what, line) in ["memory.max", "cpu.max", "cpu.weight", "pids.max"].iter().zip(finished.out().lines()) {
        notes.see(*what, line);
    }
}

fn update(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &["--mount", CGROUPS, "--memory-limit", "134217728"], &["sleep", "1000"]);
    // ctr has no update; what containerd's clients call is exercised through Docker. Here: paused, it stays limited.
    notes.want("pause", error_or_ok(&ctr.task("a", &["pause"])), "ok");
    thread::sleep(Duration::from_millis(300));
    notes.want("resume", error_or_ok(&ctr.task("a", &["resume"])), "ok");
    let seen = ctr.exec("a", "e", &[], &["sh", "-c", &format!("{OWN_CGROUP}; cat memory.max")]);
    notes.want("memory.max", seen.out(), "134217728\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

/// ctr has no limit of processes: the specification is written here, as its `oci spec` begins it.
fn fork_bomb(ctr: &mut Ctr, notes: &mut Notes) {
    const LIMIT: usize = 20;
    let root = ctr.scratch().join("root");
    fs::create_dir(&root).expect("a folder");
    let root = root.display().to_string();
    notes.want("a root", error_or_ok(&ctr.ctr(&["image", "mount", "--rw", IMAGE, &root])), "ok");

    let id = ctr.id("a");
    let mut spec: serde_json::Value = serde_json::from_str(&ctr.ctr(&["oci", "spec"]).out()).expect("a specification");
    let bomb = "sh -c 'while :; do sleep 1000 & done'; exec sleep 1000";
    spec["process"]["args"] = json!(["/bin/sh", "-c", bomb]);
    spec["process"]["env"] = json!(["PATH=/bin:/usr/bin"]);
    spec["root"] = json!({ "path": root });
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", ctr.containerd().home().containers_cgroup()));
    spec["linux"]["resources"]["pids"] = json!({ "limit": LIMIT });
    let config = ctr.scratch().join("config.json");
    fs::write(&config, spec.to_string()).expect("a file");
    let config = config.display().to_string();
    let words = ["run", "--runtime", ctr.runtime(), "-d", "--null-io", "--config", &config, &id];
    notes.want("run", error_or_ok(&ctr.ctr(&words)), "ok");

    // A line of headings.
    let count = || ctr.task("a", &["ps"]).out().lines().count().saturating_sub(1);
    let deadline = Instant::now() + SOON;
    while count() < LIMIT - 1 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(300));
    }
    thread::sleep(Duration::from_secs(1));
    // The shell that could fork no more is gone.
    notes.want("processes", count(), LIMIT - 1);
    notes.want("status", ctr.status("a"), "RUNNING");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
    notes.want("the root's removal", error_or_ok(&ctr.ctr(&["image", "unmount", "--rm", &root])), "ok");
}
