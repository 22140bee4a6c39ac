//! Limits that `docker run` and `docker update` set.

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;

use crate::stage::Cli;

/// Why a share is not a weight everywhere.
const SHARES: &str = "512 shares: runc 1.1 converts on a straight line (20), we as newer runtimes do, where the usual 1024 shares stay the usual weight (59)";

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker: --memory, --cpus, --pids-limit", seen_inside).differs(&[("cpu.weight", SHARES)]),
    Case::new("docker: update", update).long(),
    Case::new("docker: memory that runs out", out_of_memory).long(),
    Case::new("docker: a fork bomb", fork_bomb).long(),
];

const READ: &str = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cpu.weight";

fn seen_inside(cli: &mut Cli, notes: &mut Notes) {
    let options = ["--rm", "--memory", "128m", "--cpus", "0.5", "--pids-limit", "50", "--cpu-shares", "512"];
    let finished = cli.run("a", &options, &["sh", "-c", READ]);
    notes.want("status", finished.status, 0);
    for (what, line) in ["memory.max", "cpu.max", "pids.max", "cpu.weight"].iter().zip(finished.out().lines()) {
        notes.see(*what, line);
    }
}

fn update(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--memory", "128m", "--memory-swap", "128m"], &["sleep", "1000"]);
    let words = ["update", "--memory", "96m", "--memory-swap", "96m", "--cpus", "0.25", "--pids-limit", "60"];
    notes.want("update", cli.on("a", &words), "ok");
    notes.see("seen inside", cli.exec("a", &[], &["sh", "-c", READ]).out());
}

fn out_of_memory(cli: &mut Cli, notes: &mut Notes) {
    let options = ["--memory", "64m", "--memory-swap", "64m"];
    let finished = cli.run("a", &options, &["sh", "-c", "echo up; exec dd if=/dev/zero of=/dev/null bs=200M count=1"]);
    notes.want("status", finished.status, 137);
    notes.want("output", finished.out(), "up\n");
    // runc's shim may tell of it after the end.
    let told = cli.inspect_until("a", "{{.State.OOMKilled}} {{.State.ExitCode}}", "true 137");
    notes.want("told", told, "true 137");
}

fn fork_bomb(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--pids-limit", "40"], &["sh", "-c", "bomb() { bomb | bomb & }; touch /up; bomb; sleep 1000"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let other = cli.run("b", &["--rm"], &["echo", "not held up"]);
    notes.want("another container", other.out(), "not held up\n");
    notes.want("kill", cli.on("a", &["kill"]), "ok");
    notes.want("state", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
    // Forks that fail, up to a limit that is not far from what was asked for.
    let script = "i=0; while test $i -lt 60; do sleep 100 & i=$((i+1)); done; echo never";
    let finished = cli.run("c", &["--rm", "--pids-limit", "40"], &["sh", "-c", script]);
    notes.want("never through", finished.out().contains("never"), false);
    notes.want("the shell says why", finished.err().contains("can't fork"), true);
}
