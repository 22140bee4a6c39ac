//! A container's life as Docker's user sees it.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use tatami_tests::Terminal;
use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;

use crate::stage::Cli;

/// Why top shows less.
const TOP: &str = "Docker runs the host's ps and keeps the lines whose process ids the runtime lists. A guest's processes are not \
    among the host's, where their ids are strangers': listed is the one process that stands for them all";

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker: hello", hello),
    Case::new("docker: a life, step by step", step_by_step).long(),
    Case::new("docker: exec", exec),
    Case::new("docker: a terminal", terminal).long(),
    Case::new("docker: logs", logs),
    Case::new("docker: logs -f", logs_follow).long(),
    Case::new("docker: attach", attach).long(),
    Case::new("docker: rename", rename).long(),
    Case::new("docker: input", input).long(),
    Case::new("docker: a health check", health).long(),
    Case::new("docker: several at once", several).long(),
    Case::new("docker: stop and kill", stop_and_kill),
    Case::new("docker: top, stats", top_and_stats).differs(&[("top's processes", TOP)]).long(),
    Case::new("docker: cp", cp).long(),
    Case::new("docker: restart", restart).long(),
    Case::new("docker: --restart=always", restart_always),
    Case::new("docker: a command that is not there", no_command).long(),
];

fn hello(cli: &mut Cli, notes: &mut Notes) {
    let finished = cli.run("a", &["--rm"], &["sh", "-c", "echo hello; echo err >&2; exit 42"]);
    notes.want("status", finished.status, 42);
    notes.want("output", finished.out(), "hello\n");
    notes.want("errors", finished.err(), "err\n");
}

pub(crate) fn step_by_step(cli: &mut Cli, notes: &mut Notes) {
    let since = seconds();
    cli.detached("a", &[], &["sleep", "1000"]);
    let state = "{{.State.Status}} {{.State.Running}} {{.State.Paused}} {{.State.ExitCode}} {{.State.OOMKilled}}";
    notes.want("state", cli.inspect("a", state), "running true false 0 false");
    notes.want("a process id", cli.inspect("a", "{{gt .State.Pid 0}}"), "true");
    notes.want("pause", cli.on("a", &["pause"]), "ok");
    notes.want("state when paused", cli.inspect("a", state), "paused true true 0 false");
    notes.want("exec when paused", cli.exec("a", &[], &["true"]).status, 1);
    notes.want("unpause", cli.on("a", &["unpause"]), "ok");
    notes.want("exec", cli.exec("a", &[], &["sh", "-c", "exit 3"]).status, 3);
    notes.want("kill", cli.on("a", &["kill"]), "ok");
    notes.want("wait", cli.call(&["wait", &cli.id("a")]).out(), "137\n");
    notes.want("state when stopped", cli.inspect("a", state), "exited false false 137 false");
    let filter = format!("container={}", cli.id("a"));
    let format = ["--format", "{{.Action}}"];
    // Docker counts in whole seconds here: "until now" would leave out what happened in this one.
    let words = ["events", "--since", &since.to_string(), "--until", &(seconds() + 1).to_string(), "--filter", &filter];
    let told = cli.call(&[words.as_slice(), &format].concat()).out();
    // An exec of a paused container may or may not have come as far as its event.
    let told: Vec<&str> = told.lines().filter(|line| !line.starts_with("exec")).collect();
    notes.want("events", told.join(" "), "create start pause unpause kill die");
    notes.want("rm", cli.on("a", &["rm"]), "ok");
}

/// Since 1970.
fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

pub(crate) fn exec(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--env", "COLOUR=red"], &["sleep", "1000"]);
    let script = "echo out; echo err >&2; echo $COLOUR $SIZE; id -u; id -g; pwd; exit 6";
    let options = ["--env", "SIZE=big", "--user", "1000:2000", "--workdir", "/tmp"];
    let finished = cli.exec("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 6);
    notes.want("output", finished.out(), "out\nred big\n1000\n2000\n/tmp\n");
    notes.want("errors", finished.err(), "err\n");
    let start = Instant::now();
    let finished = cli.exec("a", &[], &["/no/such/program"]);
    // 127 from Docker 27 on, 126 before.
    notes.see("a missing command", finished.status);
    let text = finished.err() + &finished.out();
    notes.want("says why", text.contains("/no/such/program") && text.contains("no such file or directory"), true);
    notes.want("at once", start.elapsed() < Duration::from_secs(40), true);
    let id = cli.id("a");
    let mut command = cli.daemon().command(&["exec", "--interactive", &id, "wc", "-c"]);
    command.stdin(std::process::Stdio::piped());
    let finished = tatami_tests::Running::start(command).finish_with_input(vec![b'x'; 300_000]);
    notes.want("input", finished.out(), "300000\n");
    let finished = cli.exec("a", &["--privileged"], &["grep", "CapEff", "/proc/self/status"]);
    notes.see("privileged", finished.status);
}

pub(crate) fn terminal(cli: &mut Cli, notes: &mut Notes) {
    let script = "until stty size | grep 33; do sleep 0.1; done; until stty size | grep 44; do sleep 0.1; done; read line; echo \"got $line\"; exit 5";
    let command = cli.run_command("a", &["--rm", "--interactive", "--tty"], &["sh", "-c", script]);
    let mut terminal = Terminal::start(command, 33, 101);
    terminal.wait_for("33 101");
    resize(&terminal, 44, 102);
    terminal.wait_for("44 102");
    terminal.send("typed\r");
    terminal.wait_for("got typed");
    notes.want("status", terminal.finish(), 5);
    cli.detached("b", &["--tty"], &["sleep", "1000"]);
    let id = cli.id("b");
    let command = cli.daemon().command(&["exec", "--interactive", "--tty", &id, "sh", "-c", script]);
    let mut terminal = Terminal::start(command, 33, 99);
    terminal.wait_for("33 99");
    resize(&terminal, 44, 98);
    terminal.wait_for("44 98");
    terminal.send("typed\r");
    terminal.wait_for("got typed");
    notes.want("status of an exec", terminal.finish(), 5);
}

/// Resizes the window of a client that has just started: it says the size first, and looks for changes a moment later.
fn resize(terminal: &Terminal, rows: u16, columns: u16) {
    thread::sleep(Duration::from_secs(2));
    terminal.resize(rows, columns);
}

pub(crate) fn logs(cli: &mut Cli, notes: &mut Notes) {
    let script = "echo err >&2; i=0; while test $i -lt 2000; do i=$((i+1)); echo $i; done; printf end";
    cli.detached("a", &[], &["sh", "-c", script]);
    notes.want("state", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
    let finished = cli.call(&["logs", &cli.id("a")]);
    let all: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    notes.want("complete and in order", finished.out() == all + "end", true);
    notes.want("errors", finished.err(), "err\n");
    let tail = cli.call(&["logs", "--tail", "2", &cli.id("a")]);
    notes.see("tail", tail.out());
}

fn logs_follow(cli: &mut Cli, notes: &mut Notes) {
    let script = "echo one; until test -e /go; do sleep 0.1; done; i=0; while test $i -lt 500; do i=$((i+1)); echo $i; done; printf end";
    cli.detached("a", &[], &["sh", "-c", script]);
    let follower = tatami_tests::Running::start(cli.daemon().command(&["logs", "--follow", &cli.id("a")]));
    follower.wait_for("one\n");
    notes.want("go on", cli.exec("a", &[], &["touch", "/go"]).status, 0);
    let finished = follower.finish();
    let all: String = (1..=500).map(|number| format!("{number}\n")).collect();
    notes.want("ends with the container", finished.status, 0);
    notes.want("complete and in order", finished.out() == format!("one\n{all}end"), true);
    notes.want("state", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
}

fn attach(cli: &mut Cli, notes: &mut Notes) {
    // Detached at first, so that the end of a client's input is not its own.
    let script = "while read line && test $line != quit; do echo \"got $line\"; done; exit 4";
    cli.detached("a", &["--interactive"], &["sh", "-c", script]);
    let start = |name: &str| {
        let mut command = cli.daemon().command(&["attach", &cli.id(name)]);
        command.stdin(std::process::Stdio::piped());
        tatami_tests::Running::start(command)
    };
    let mut attached = start("a");
    let mut keyboard = attached.take_stdin();
    for word in ["first", "second"] {
        writeln!(keyboard, "{word}").expect("the client takes input");
        attached.wait_for(&format!("got {word}\n"));
    }
    writeln!(keyboard, "quit").expect("the client takes input");
    let finished = attached.finish();
    notes.want("output", finished.out(), "got first\ngot second\n");
    notes.want("status", finished.status, 4);
    notes.want("refused after the end", cli.on("a", &["attach"]).starts_with("1: "), true);
    // A signal that comes to who is attached is the container's.
    cli.detached("b", &[], &["sh", "-c", "trap 'echo hup; exit 6' HUP; while :; do echo here; sleep 0.1; done"]);
    let attached = start("b");
    // Before it shows anything, the client passes nothing on yet.
    attached.wait_for("here\n");
    attached.signal(nix::sys::signal::Signal::SIGHUP);
    let finished = attached.finish();
    notes.want("output after a signal", finished.out().trim_start_matches("here\n"), "hup\n");
    notes.want("status after a signal", finished.status, 6);
}

fn rename(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &[], &["sleep", "1000"]);
    notes.want("rename", cli.call(&["rename", &cli.id("a"), &cli.id("b")]).status, 0);
    notes.want("the old name", cli.exec("a", &[], &["true"]).status, 1);
    notes.want("the new name", cli.exec("b", &[], &["echo", "here"]).out(), "here\n");
    notes.want("kill", cli.on("b", &["kill", "--signal", "KILL"]), "ok");
    notes.want("start", cli.inspect_until("b", "{{.State.Status}}", "exited") + &cli.on("b", &["start"]), "exitedok");
}

pub(crate) fn input(cli: &mut Cli, notes: &mut Notes) {
    let mut command = cli.run_command("a", &["--rm", "--interactive"], &["sh", "-c", "cat; echo end >&2; exit 8"]);
    command.stdin(std::process::Stdio::piped());
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let finished = tatami_tests::Running::start(command).finish_with_input(bytes.clone());
    notes.want("status", finished.status, 8);
    notes.want("what went in came out", finished.stdout == bytes, true);
    notes.want("errors", finished.err(), "end\n");
}

fn health(cli: &mut Cli, notes: &mut Notes) {
    let check = ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1"];
    cli.detached("a", &check, &["sleep", "1000"]);
    notes.want("ill", cli.inspect_until("a", "{{.State.Health.Status}}", "unhealthy"), "unhealthy");
    notes.want("exec", cli.exec("a", &[], &["touch", "/well"]).status, 0);
    notes.want("well", cli.inspect_until("a", "{{.State.Health.Status}}", "healthy"), "healthy");
    notes.want("rm -f", cli.on("a", &["rm", "--force"]), "ok");
}

fn several(cli: &mut Cli, notes: &mut Notes) {
    let names = ["a", "b", "c", "d", "e"];
    let start = |name: &&str| {
        let script = format!("echo {name}; sleep 1000");
        tatami_tests::Running::start(cli.run_command(name, &["--detach"], &["sh", "-c", &script]))
    };
    let started: Vec<_> = names.iter().map(start).collect();
    for (name, running) in names.iter().zip(started) {
        notes.want(*name, running.finish().status, 0);
    }
    for name in names {
        notes.want(format!("{name} says"), cli.call(&["logs", &cli.id(name)]).out(), format!("{name}\n"));
    }
    let ids = names.map(|name| cli.id(name));
    let words: Vec<&str> = ["rm", "--force"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    notes.want("rm -f", cli.call(&words).status, 0);
}

pub(crate) fn stop_and_kill(cli: &mut Cli, notes: &mut Notes) {
    let script = "trap 'echo bye; exit 7' TERM; trap 'echo hup' HUP; touch /up; while :; do sleep 0.1; done";
    cli.detached("a", &[], &["sh", "-c", script]);
    cli.wait_for_file("a", "/up");
    notes.want("kill -s HUP", cli.on("a", &["kill", "--signal", "HUP"]), "ok");
    thread::sleep(Duration::from_secs(1));
    notes.want("stop", cli.on("a", &["stop", "--time", "30"]), "ok");
    notes.want("status", cli.inspect("a", "{{.State.ExitCode}}"), "7");
    notes.want("output", cli.call(&["logs", &cli.id("a")]).out(), "hup\nbye\n");
    // The first process of a container takes no signal that it did not ask for.
    cli.detached("b", &[], &["sleep", "1000"]);
    notes.want("stop by force", cli.on("b", &["stop", "--time", "1"]), "ok");
    notes.want("status by force", cli.inspect("b", "{{.State.ExitCode}}"), "137");
    notes.want("kill after the end", cli.on("b", &["kill"]).contains("is not running"), true);
    notes.want("stop after the end", cli.on("b", &["stop"]), "ok");
    notes.want("start again", cli.on("b", &["start"]), "ok");
    notes.want("rm -f", cli.on("b", &["rm", "--force"]), "ok");
}

fn top_and_stats(cli: &mut Cli, notes: &mut Notes) {
    cli.detached("a", &["--memory", "256m"], &["sh", "-c", "sleep 1001 & touch /up; wait"]);
    cli.wait_for_file("a", "/up");
    let top = cli.call(&["top", &cli.id("a")]);
    notes.want("top", top.status, 0);
    notes.want("top's processes", top.out().lines().count() - 1, 2);
    let first = cli.first_process("a").to_string();
    notes.want("the first is there", top.out().lines().any(|line| line.split(' ').any(|word| word == first)), true);
    let format = "{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}";
    let stats = cli.call(&["stats", "--no-stream", "--format", format, &cli.id("a")]);
    notes.want("stats", stats.status, 0);
    let text = stats.out();
    let words: Vec<&str> = text.split_whitespace().collect();
    notes.want("words", words.len(), 5);
    notes.want("memory in use", words.get(1).is_some_and(|used| *used != "0B" && !used.starts_with('-')), true);
    notes.want("memory limit", words.get(3).copied().unwrap_or_default(), "256MiB");
    notes.want("processes", words.last().copied().unwrap_or_default(), "2");
}

pub(crate) fn cp(cli: &mut Cli, notes: &mut Notes) {
    let folder = cli.scratch();
    fs::write(folder.join("in"), "in\n".repeat(10_000)).expect("a file");
    cli.detached("a", &[], &["sh", "-c", "echo of the guest >/made; touch /up; sleep 1000"]);
    cli.wait_for_file("a", "/up");
    let inside = |path: &str| format!("{}:{path}", cli.id("a"));
    let outside = |name: &str| folder.join(name).display().to_string();
    notes.want("into", cli.call(&["cp", "--quiet", &outside("in"), &inside("/tmp/in")]).status, 0);
    notes.want("read inside", cli.exec("a", &[], &["wc", "-c", "/tmp/in"]).out(), "30000 /tmp/in\n");
    notes.want("out of", cli.call(&["cp", "--quiet", &inside("/made"), &outside("made")]).status, 0);
    notes.want("read outside", fs::read_to_string(folder.join("made")).unwrap_or_default(), "of the guest\n");
    notes.want("what is not there", cli.call(&["cp", &inside("/no/such"), &outside("x")]).status, 1);
    notes.want("kill", cli.on("a", &["kill"]), "ok");
    notes.want("stopped", cli.inspect_until("a", "{{.State.Status}}", "exited"), "exited");
    notes.want("into what stopped", cli.call(&["cp", "--quiet", &outside("in"), &inside("/tmp/late")]).status, 0);
    notes.want("out of what stopped", cli.call(&["cp", "--quiet", &inside("/tmp/in"), &outside("late")]).status, 0);
    notes.want("read outside, stopped", fs::metadata(folder.join("late")).map_or(0, |file| file.len()), 30_000);
    notes.want("start", cli.on("a", &["start"]), "ok");
    notes.want("read inside, started", cli.exec("a", &[], &["wc", "-c", "/tmp/late"]).out(), "30000 /tmp/late\n");
}

pub(crate) fn restart(cli: &mut Cli, notes: &mut Notes) {
    let script = "echo start; cat /mark 2>/dev/null; echo kept >/mark; trap 'exit 0' TERM; touch /up; while :; do sleep 0.1; done";
    cli.detached("a", &[], &["sh", "-c", script]);
    cli.wait_for_file("a", "/up");
    for _ in 0..2 {
        notes.want("restart", cli.on("a", &["restart", "--time", "20"]), "ok");
    }
    notes.want("state", cli.inspect("a", "{{.State.Status}} {{.RestartCount}}"), "running 0");
    cli.exec("a", &[], &["sleep", "1"]);
    notes.want("output", cli.call(&["logs", &cli.id("a")]).out(), "start\nstart\nkept\nstart\nkept\n");
}

fn restart_always(cli: &mut Cli, notes: &mut Notes) {
    cli.detached(
        "a",
        &["--restart=always"],
        &["sh", "-c", "echo start; test -e /second || { touch /second; exit 3; }; sleep 1000"],
    );
    notes.want("count", cli.inspect_until("a", "{{.RestartCount}} {{.State.Status}}", "1 running"), "1 running");
    thread::sleep(Duration::from_secs(1));
    notes.want("output", cli.call(&["logs", &cli.id("a")]).out(), "start\nstart\n");
    notes.want("stop", cli.on("a", &["stop", "--time", "1"]), "ok");
    notes.want("state", cli.inspect("a", "{{.State.Status}}"), "exited");
}

fn no_command(cli: &mut Cli, notes: &mut Notes) {
    let finished = cli.run("a", &[], &["/no/such/program"]);
    notes.want("status", finished.status, 127);
    notes.want("says why", finished.err().contains("/no/such/program"), true);
    notes.want("state", cli.inspect("a", "{{.State.Status}} {{.State.ExitCode}}"), "created 127");
    let finished = cli.run("b", &[], &["/etc/passwd"]);
    notes.want("what is no program", finished.status, 126);
}
