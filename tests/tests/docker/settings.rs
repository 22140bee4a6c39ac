//! What `docker run` can set: folders, users, environment, rights.

use std::fs;

use tatami_tests::LoopDisk;
use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::{self, Engine};

use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker: -v and --tmpfs", volumes).long(),
    Case::new("docker: --user, --env, --workdir, --hostname", identity).long(),
    Case::new("docker: --read-only", engine::read_only).long(),
    Case::new("docker: --init", |cli, notes| engine::init(cli, notes, "docker-init")).long(),
    Case::new("docker: rights", rights).long(),
    Case::new("docker: --device", device).long(),
    Case::new("docker: --privileged", privileged).long(),
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
    // It is empty, with the permissions of what is in its place in the image.
    let finished =
        cli.run("over", &["--rm", "--tmpfs", "/mnt"], &["sh", "-c", "stat -c '%a %u:%g %n' /mnt; ls -A /mnt"]);
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
        "--rm",
        "--user",
        "1000:2000",
        "--group-add",
        "3000",
        "--env",
        "COLOUR=red",
        "--workdir",
        "/tmp",
        "--hostname",
        "named",
        "--add-host",
        "there:10.1.2.3",
        "--dns",
        "10.9.8.7",
    ];
    let script = "id -u; id -g; id -G; pwd; hostname; echo $COLOUR; grep there /etc/hosts; grep nameserver /etc/resolv.conf; cat /etc/hostname";
    let finished = cli.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    for line in finished.out().lines() {
        notes.see("line", line);
    }
}

fn rights(cli: &mut Cli, notes: &mut Notes) {
    let script = "grep -E '^(Cap(Eff|Bnd|Inh)|NoNewPrivs|Seccomp):' /proc/self/status";
    for (what, options) in [
        ("as usual", vec!["--rm"]),
        (
            "with less",
            vec!["--rm", "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges"],
        ),
        ("with more", vec!["--rm", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"]),
    ] {
        let finished = cli.run(what.split(' ').next_back().unwrap_or("x"), &options, &["sh", "-c", script]);
        notes.see(what, finished.out());
    }
    // What a kernel does not have at all is as hidden as what is masked: what can be read counts, not what the reader says.
    let script = "for file in kcore keys latency_stats timer_list sched_debug; do cat /proc/$file 2>/dev/null | head -c 1 | wc -c; done; \
        for folder in /proc/acpi /proc/scsi /sys/firmware; do ls $folder 2>/dev/null | wc -l; done; \
        echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused";
    notes.see("what is hidden", cli.run("hidden", &["--rm"], &["sh", "-c", script]).out());
    let options =
        ["--rm", "--ulimit", "nofile=100:200", "--sysctl", "kernel.msgmax=4096", "--device", "/dev/fuse:/dev/f"];
    let script = "ulimit -n; cat /proc/sys/kernel/msgmax; ls -l /dev/f | cut -c1";
    let finished = cli.run("set", &options, &["sh", "-c", script]);
    notes.see("ulimit, sysctl, device", format!("{}{}", finished.out(), finished.err()));
}

fn device(cli: &mut Cli, notes: &mut Notes) {
    let disk = LoopDisk::new(&cli.scratch(), 1 << 20);
    let script =
        "printf 'of the container' >/dev/xvda; head -c 16 /dev/xvda; wc -c </dev/xvda; ls -l /dev/xvda | cut -c1";
    for access in ["rwm", "r"] {
        let device = format!("{}:/dev/xvda:{access}", disk.path());
        let finished = cli.run(access, &["--rm", "--device", &device], &["sh", "-c", script]);
        notes.see(access, format!("{} {}", finished.status, finished.out()));
        notes.want("on the host", disk.head(16), "of the container");
    }
}

fn privileged(cli: &mut Cli, notes: &mut Notes) {
    let script = "grep -E '^(CapEff|Seccomp):' /proc/self/status; mount -t tmpfs none /mnt && echo mounted; \
        echo 4096 >/proc/sys/kernel/msgmax && cat /proc/sys/kernel/msgmax; test -e /dev/kmsg && echo a device; \
        mkdir /sys/fs/cgroup/sub && echo a group";
    let finished = cli.run("a", &["--rm", "--privileged"], &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    for line in finished.out().lines() {
        notes.see("line", line);
    }
    notes.see("errors", finished.err());
}
