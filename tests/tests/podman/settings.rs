//! What `podman run` can set: folders, users, environment, rights, limits.

use std::fs;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::{self, Engine};

use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("podman: -v and --tmpfs", volumes).long(),
    Case::new("podman: --user, --env, --workdir, --hostname", identity).long(),
    Case::new("podman: --read-only", engine::read_only).long(),
    Case::new("podman: --init", |cli, notes| engine::init(cli, notes, "podman-init")).long(),
    Case::new("podman: rights", rights).long(),
    Case::new("podman: --memory, --cpus, --pids-limit", limits).long(),
];

fn volumes(cli: &mut Cli, notes: &mut Notes) {
    let folder = cli.scratch();
    fs::write(folder.join("file"), "of the host\n").expect("a file");
    let writable = format!("{}:/data", folder.display());
    let single = format!("{}/file:/etc/single:ro", folder.display());
    let script = "cat /data/file /etc/single; echo back >/data/back; echo no 2>/dev/null >>/etc/single || echo refused; \
        df -k /scratch | tail -1 | awk '{print $2}'; df -k /dev/shm | tail -1 | awk '{print $2}'";
    let options = ["--rm", "-v", &writable, "-v", &single, "--tmpfs", "/scratch:size=8m", "--shm-size", "16m"];
    let finished = cli.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    notes.want("output", finished.out(), "of the host\nof the host\nrefused\n8192\n16384\n");
    // It begins with what the image has in its place.
    let covered = ["--rm", "--tmpfs", "/bin:exec", "--tmpfs", "/etc:notmpcopyup"];
    let script = "stat -c '%a %u:%g %n' /bin /bin/busybox /etc; readlink /bin/sh; touch /bin/new && echo writable; \
        grep -cE ' /(bin|etc) tmpfs ' /proc/mounts";
    let finished = cli.run("over", &covered, &["sh", "-c", script]);
    notes.want("over the image's files", finished.status, 0);
    notes.see("over the image's files", finished.out());
    notes.want("written back", fs::read_to_string(folder.join("back")).unwrap_or_default(), "back\n");
    let finished = cli.run("b", &["--rm", "-v", "named:/data"], &["sh", "-c", "echo kept >/data/file"]);
    notes.want("a named volume", finished.status, 0);
    let finished = cli.run("c", &["--rm", "-v", "named:/data"], &["cat", "/data/file"]);
    notes.want("it is kept", finished.out(), "kept\n");
    notes.want("and removed", cli.call(&["volume", "rm", "named"]).status, 0);
}

fn identity(cli: &mut Cli, notes: &mut Notes) {
    let options = [
        ["--user", "1000:2000"],
        ["--group-add", "3000"],
        ["--env", "COLOUR=red"],
        ["--workdir", "/tmp"],
        ["--hostname", "named"],
    ];
    let options = [&["--rm"], options.as_flattened()].concat();
    let script = "id -u; id -g; id -G; pwd; hostname; echo $COLOUR; cat /etc/hostname";
    let finished = cli.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    for line in finished.out().lines() {
        notes.see("line", line);
    }
}

fn rights(cli: &mut Cli, notes: &mut Notes) {
    let script = "grep -E '^(Cap(Eff|Bnd|Inh)|NoNewPrivs|Seccomp):' /proc/self/status";
    for (name, options) in [
        ("usual", vec!["--rm"]),
        (
            "less",
            vec!["--rm", "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges"],
        ),
        ("more", vec!["--rm", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"]),
    ] {
        let finished = cli.run(name, &options, &["sh", "-c", script]);
        notes.see(name, finished.out());
    }
    let options = ["--rm", "--ulimit", "nofile=100:200", "--sysctl", "kernel.msgmax=4096"];
    let finished = cli.run("set", &options, &["sh", "-c", "ulimit -n; cat /proc/sys/kernel/msgmax"]);
    notes.want("ulimit, sysctl", finished.out(), "100\n4096\n");
}

fn limits(cli: &mut Cli, notes: &mut Notes) {
    let options = ["--rm", "--memory", "128m", "--cpus", "0.5", "--pids-limit", "50"];
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max";
    let finished = cli.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    notes.want("seen inside", finished.out(), "134217728\n50000 100000\n50\n");
    cli.detached("b", &["--memory", "128m"], &["sleep", "1000"]);
    notes.want("update", cli.on("b", &["update", "--memory", "96m", "--pids-limit", "60"]), "ok");
    let inside = cli.exec("b", &[], &["sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max"]);
    notes.want("seen inside then", inside.out(), "100663296\n60\n");
}
