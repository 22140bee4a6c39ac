//! What Docker's user sees when something dies beneath a container, and when dockerd itself goes and comes back.
//!
//! A VMM has no counterpart with runc; a container's first process, killed, is what comes closest, and a user should see the same.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;

use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker: the ground killed", |cli, notes| killed(cli, notes, Cli::ground)).long(),
    Case::new("docker: the runtime's server killed", |cli, notes| killed(cli, notes, Cli::server)).long(),
    Case::new("docker: dockerd stopped and started", |cli, notes| daemon_away(cli, notes, Signal::SIGTERM)).long(),
    Case::new("docker: dockerd killed and started", |cli, notes| daemon_away(cli, notes, Signal::SIGKILL)).long(),
];

fn killed(cli: &mut Cli, notes: &mut Notes, victim: fn(&Cli, &str) -> i32) {
    cli.detached("a", &[], &["sleep", "1000"]);
    kill(Pid::from_raw(victim(cli, "a")), Signal::SIGKILL).expect("the victim is there");
    notes.want("told", cli.inspect_until("a", "{{.State.Status}} {{.State.ExitCode}}", "exited 137"), "exited 137");
    notes.want("wait", cli.call(&["wait", &cli.id("a")]).out(), "137\n");
    notes.want("an exec is refused", cli.exec("a", &[], &["true"]).status, 1);
    notes.want("start again", cli.on("a", &["start"]), "ok");
    notes.want("an exec", cli.exec("a", &[], &["echo", "here"]).out(), "here\n");
    notes.want("rm -f", cli.on("a", &["rm", "--force"]), "ok");
    // With a policy, nobody has to start it.
    cli.detached("b", &["--restart=always"], &["sleep", "1000"]);
    kill(Pid::from_raw(victim(cli, "b")), Signal::SIGKILL).expect("the victim is there");
    notes.want("count", cli.inspect_until("b", "{{.RestartCount}} {{.State.Status}}", "1 running"), "1 running");
    notes.want("an exec after it", cli.exec("b", &[], &["echo", "here"]).out(), "here\n");
    notes.want("rm -f after it", cli.on("b", &["rm", "--force"]), "ok");
}

/// dockerd leaves containers running (its daemon.json says `live-restore`), and finds them as they are when it comes back. What one
/// says that ends meanwhile is lost with every runtime: nobody reads its streams.
fn daemon_away(cli: &mut Cli, notes: &mut Notes, signal: Signal) {
    let folder = cli.scratch();
    let volume = format!("{}:/data", folder.display());
    let count = "i=0; trap 'echo bye; exit 7' TERM; while :; do i=$((i+1)); echo $i; touch /up; sleep 0.2; done";
    cli.detached("runs", &[], &["sh", "-c", count]);
    cli.detached("ends", &["-v", &volume], &["sh", "-c", "until test -e /data/go; do sleep 0.1; done; exit 9"]);
    cli.wait_for_file("runs", "/up");
    let pid = cli.inspect("runs", "{{.State.Pid}}");
    cli.restart(signal, || {
        fs::write(folder.join("go"), "").expect("a file");
        thread::sleep(Duration::from_secs(3));
    });
    notes.want("what ran runs", cli.inspect("runs", "{{.State.Status}} {{.RestartCount}}"), "running 0");
    notes.want("as it was", cli.inspect("runs", "{{.State.Pid}}") == pid, true);
    let ended = cli.inspect_until("ends", "{{.State.Status}} {{.State.ExitCode}}", "exited 9");
    notes.want("what ended has ended", ended, "exited 9");
    notes.want("an exec", cli.exec("runs", &[], &["echo", "here"]).out(), "here\n");
    notes.want("pause", cli.on("runs", &["pause"]), "ok");
    notes.want("unpause", cli.on("runs", &["unpause"]), "ok");
    notes.want("stop", cli.on("runs", &["stop", "--time", "30"]), "ok");
    notes.want("status", cli.inspect("runs", "{{.State.ExitCode}}"), "7");
    let logs = cli.call(&["logs", &cli.id("runs")]).out();
    let numbers: Vec<usize> = logs.lines().filter_map(|line| line.parse().ok()).collect();
    notes.want("no line is missing", numbers.iter().copied().eq(1..=numbers.len()), true);
    notes.want("nor the last", logs.ends_with("\nbye\n"), true);
    notes.want("start again", cli.on("ends", &["start"]), "ok");
    notes.want("its status again", cli.call(&["wait", &cli.id("ends")]).out(), "9\n");
}
