//! A container's life as Podman's user sees it.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;
use tatami_tests::{Running, Terminal};

use crate::stage::Cli;

/// Why top shows less.
const TOP: &str = "Podman joins the process namespace of a container's first process: here of the process that stands for the \
    container on the host, and that is alone there";
/// Why the limit is another.
const LIMIT: &str = "Podman reads the limit of the container's cgroup on the host: there the machine is in it, which may have more than \
    the container, whose limit the guest's kernel keeps";
/// Why the kernel is another.
const KERNEL: &str = "a guest has a kernel of its own";

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("podman: hello, and the kernel", hello).differs(&[("the host's kernel", KERNEL)]),
    Case::new("podman: a life, step by step", step_by_step).long(),
    Case::new("podman: exec", exec).long(),
    Case::new("podman: stop and kill", stop_and_kill).long(),
    Case::new("podman: logs", logs).long(),
    Case::new("podman: input", input).long(),
    Case::new("podman: a terminal", terminal).long(),
    Case::new("podman: cp", cp).long(),
    Case::new("podman: top, stats", top_and_stats)
        .differs(&[("processes of top", TOP), ("memory limit", LIMIT)])
        .long(),
    Case::new("podman: restart", restart).long(),
    Case::new("podman: a command that is not there", no_command).long(),
    Case::new("podman: several at once", several).long(),
];

fn hello(cli: &mut Cli, notes: &mut Notes) {
    let finished = cli.run("a", &["--rm"], &["sh", "-c", "echo hello; echo err >&2; uname -r >&2; exit 42"]);
    notes.want("status", finished.status, 42);
    notes.want("output", finished.out(), "hello\n");
    let errors = finished.err();
    let (first, kernel) = errors.split_once('\n').unwrap_or_default();
    notes.want("errors", first, "err");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    notes.want("the host's kernel", kernel == host, true);
}

fn step_by_step(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &[], &["sleep", "1000"]);
    let state = "{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.ExitCode}}";
    notes.want("state", cli.inspect("a", state), "running true false 0");
    notes.want("a process id", cli.inspect("a", "{{gt .State.Pid 0}}"), "true");
    notes.want("exec", cli.exec("a", &[], &["sh", "-c", "echo out; echo err >&2; exit 3"]).status, 3);
    notes.want("pause", cli.on("a", &["pause"]), "ok");
    notes.want("state when paused", cli.inspect("a", state), "paused false true 0");
    notes.want("exec when paused", cli.exec("a", &[], &["true"]).status, 255);
    notes.want("unpause", cli.on("a", &["unpause"]), "ok");
    notes.want("listed", cli.call(&["ps", "--noheading", "--format", "{{.State}}"]).out(), "running\n");
    notes.want("kill", cli.on("a", &["kill"]), "ok");
    notes.want("wait", cli.call(&["wait", &cli.id("a")]).out(), "137\n");
    notes.want("state when stopped", cli.inspect_until("a", state, "exited false false 137"), "exited false false 137");
    notes.want("start again", cli.on("a", &["start"]), "ok");
    notes.want("state then", cli.inspect("a", state), "running true false 0");
    notes.want("rm -f", cli.on("a", &["rm", "--force", "--time", "0"]), "ok");
}

fn exec(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--env", "COLOUR=red"], &["sleep", "1000"]);
    let script = "echo out; echo err >&2; echo $COLOUR $SIZE; id -u; id -g; pwd; exit 6";
    let options = ["--env", "SIZE=big", "--user", "1000:2000", "--workdir", "/tmp"];
    let finished = cli.exec("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 6);
    notes.want("output", finished.out(), "out\nred big\n1000\n2000\n/tmp\n");
    notes.want("errors", finished.err(), "err\n");
    let finished = cli.exec("a", &[], &["/no/such/program"]);
    notes.want("a missing command", finished.status, 127);
    notes.want("says why", finished.err().contains("/no/such/program"), true);
    let id = cli.id("a");
    let mut command = cli.command(&["exec", "--interactive", &id, "wc", "-c"]);
    command.stdin(Stdio::piped());
    let finished = Running::start(command).finish_with_input(vec![b'x'; 300_000]);
    notes.want("input", finished.out(), "300000\n");
    notes.want("detached", cli.exec("a", &["--detach"], &["sh", "-c", "touch /made; sleep 1000"]).status, 0);
    cli.wait_for_file("a", "/made");
    notes.want("it did", cli.exec("a", &[], &["ls", "/made"]).out(), "/made\n");
}

fn stop_and_kill(cli: &mut Cli, notes: &mut Notes) {
    let script = "trap 'echo bye; exit 7' TERM; trap 'echo hup' HUP; touch /up; while :; do sleep 0.1; done";
    cli.detached("a", &[], &["sh", "-c", script]);
    cli.wait_for_file("a", "/up");
    notes.want("kill -s HUP", cli.on("a", &["kill", "--signal", "HUP"]), "ok");
    thread::sleep(Duration::from_secs(1));
    notes.want("stop", cli.on("a", &["stop", "--time", "30"]), "ok");
    notes.want("status", cli.inspect_until("a", "{{.State.ExitCode}}", "7"), "7");
    notes.want("output", cli.call(&["logs", &cli.id("a")]).out(), "hup\nbye\n");
    // The first process of a container takes no signal that it did not ask for.
    cli.detached("b", &[], &["sleep", "1000"]);
    notes.want("stop by force", cli.on("b", &["stop", "--time", "1"]), "ok");
    notes.want("status by force", cli.inspect_until("b", "{{.State.ExitCode}}", "137"), "137");
    notes.want("kill after the end", cli.on("b", &["kill"]).starts_with("125: "), true);
    notes.want("stop after the end", cli.on("b", &["stop"]), "ok");
    notes.want("rm", cli.on("b", &["rm"]), "ok");
}

fn logs(cli: &mut Cli, notes: &mut Notes) {
    let script = "echo err >&2; i=0; while test $i -lt 2000; do i=$((i+1)); echo $i; done; printf end";
    cli.detached("a", &[], &["sh", "-c", script]);
    notes.want("state", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
    let finished = cli.call(&["logs", &cli.id("a")]);
    let all: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    notes.want("complete and in order", finished.out().trim_end() == all + "end", true);
    notes.want("errors", finished.err(), "err\n");
    notes.see("tail", cli.call(&["logs", "--tail", "2", &cli.id("a")]).out());
}

fn input(cli: &mut Cli, notes: &mut Notes) {
    let mut command = cli.run_command("a", &["--rm", "--interactive"], &["sh", "-c", "cat; echo end >&2; exit 8"]);
    command.stdin(Stdio::piped());
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let finished = Running::start(command).finish_with_input(bytes.clone());
    notes.want("status", finished.status, 8);
    notes.want("what went in came out", finished.stdout == bytes, true);
    notes.want("errors", finished.err(), "end\n");
}

fn terminal(cli: &mut Cli, notes: &mut Notes) {
    let script =
        "stty size; until stty size | grep -q '^44'; do sleep 0.1; done; stty size; read line; echo got $line; exit 5";
    let command = cli.run_command("a", &["--rm", "--interactive", "--tty"], &["sh", "-c", script]);
    type_on(Terminal::start(command, 33, 101), notes);
    cli.detached("b", &["--tty"], &["sleep", "1000"]);
    let id = cli.id("b");
    let command = cli.command(&["exec", "--interactive", "--tty", &id, "sh", "-c", script]);
    type_on(Terminal::start(command, 33, 101), notes);
}

/// Resizes the window and types a line.
fn type_on(mut terminal: Terminal, notes: &mut Notes) {
    terminal.wait_for("33 101");
    // The client has just started: it says the size first, and looks for changes a moment later.
    thread::sleep(Duration::from_secs(2));
    terminal.resize(44, 102);
    terminal.wait_for("44 102");
    terminal.send("typed\r");
    terminal.wait_for("got typed");
    notes.want("status", terminal.finish(), 5);
}

fn cp(cli: &mut Cli, notes: &mut Notes) {
    let folder = cli.scratch();
    fs::write(folder.join("in"), "in\n".repeat(10_000)).expect("a file");
    fs::create_dir_all(folder.join("volume")).expect("a folder");
    let volume = format!("{}/volume:/volume", folder.display());
    let script = "echo of the guest >/made; touch /up; sleep 1000";
    cli.detached("a", &["--volume", &volume], &["sh", "-c", script]);
    cli.wait_for_file("a", "/up");
    let inside = |path: &str| format!("{}:{path}", cli.id("a"));
    let outside = |name: &str| folder.join(name).display().to_string();
    // Podman looks for it where the container's first process is, which must not be the host.
    notes.want("into", cli.call(&["cp", &outside("in"), &inside("/tatami-copied")]).status, 0);
    notes.want("read inside", cli.exec("a", &[], &["wc", "-c", "/tatami-copied"]).out(), "30000 /tatami-copied\n");
    notes.want("not the host's", fs::exists("/tatami-copied").unwrap_or(true), false);
    notes.want("into a volume", cli.call(&["cp", &outside("in"), &inside("/volume/copied")]).status, 0);
    notes.want("it is there", fs::exists(folder.join("volume/copied")).unwrap_or(false), true);
    notes.want("out of", cli.call(&["cp", &inside("/made"), &outside("made")]).status, 0);
    notes.want("read outside", fs::read_to_string(folder.join("made")).unwrap_or_default(), "of the guest\n");
    notes.want("what is not there", cli.call(&["cp", &inside("/no/such"), &outside("x")]).status, 125);
    notes.want("kill", cli.on("a", &["kill"]), "ok");
    notes.want("stopped", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
    notes.want("out of what stopped", cli.call(&["cp", &inside("/tatami-copied"), &outside("late")]).status, 0);
    notes.want("read outside, stopped", fs::metadata(folder.join("late")).map_or(0, |file| file.len()), 30_000);
}

fn top_and_stats(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--memory", "256m"], &["sh", "-c", "sleep 1001 & touch /up; wait"]);
    cli.wait_for_file("a", "/up");
    let top = cli.call(&["top", &cli.id("a"), "pid", "comm"]);
    notes.want("top", top.status, 0);
    notes.want("processes of top", top.out().lines().count() - 1, 2);
    let format = "{{.MemUsage}} {{.PIDs}}";
    let stats = cli.call(&["stats", "--no-stream", "--format", format, &cli.id("a")]);
    notes.want("stats", stats.status, 0);
    let text = stats.out();
    let words: Vec<&str> = text.split_whitespace().collect();
    notes.want("memory in use", words.first().is_some_and(|used| !used.starts_with("0B")), true);
    notes.see("memory limit", words.get(2).copied().unwrap_or_default());
}

fn restart(cli: &mut Cli, notes: &mut Notes) {
    let script = "echo start; cat /mark 2>/dev/null; echo kept >/mark; trap 'exit 0' TERM; touch /up; while :; do sleep 0.1; done";
    cli.detached("a", &[], &["sh", "-c", script]);
    cli.wait_for_file("a", "/up");
    for _ in 0..2 {
        notes.want("restart", cli.on("a", &["restart", "--time", "20"]), "ok");
    }
    notes.want("state", cli.inspect("a", "{{.State.Status}}"), "running");
    cli.exec("a", &[], &["sleep", "1"]);
    notes.want("output", cli.call(&["logs", &cli.id("a")]).out(), "start\nstart\nkept\nstart\nkept\n");
}

fn no_command(cli: &mut Cli, notes: &mut Notes) {
    let finished = cli.run("a", &[], &["/no/such/program"]);
    notes.want("status", finished.status, 127);
    notes.want("says why", finished.err().contains("/no/such/program"), true);
    let finished = cli.run("b", &[], &["/etc/passwd"]);
    notes.want("what is no program", finished.status, 126);
}

fn several(cli: &mut Cli, notes: &mut Notes) {
    let names = ["a", "b", "c"];
    let start = |name: &&str| {
        let script = format!("echo {name}; sleep 1000");
        Running::start(cli.run_command(name, &["--detach"], &["sh", "-c", &script]))
    };
    let started: Vec<_> = names.iter().map(start).collect();
    for (name, running) in names.iter().zip(started) {
        notes.want(*name, running.finish().status, 0);
    }
    for name in names {
        notes.want(format!("{name} runs"), cli.inspect(name, "{{.State.Running}}"), "true");
    }
}
