//! Containers in the background as their user sees them: `run -d`, and the commands about what runs and what has ended.
//! Every [`Tatami`] checks, when it is dropped, that `rm` has left nothing.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::{Running, Tatami, Terminal};

/// A container that says so when it runs, ends on TERM with 3, and says so.
const OBEDIENT: &[&str] =
    &["sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; echo wrong >&2; while :; do sleep 0.1; done"];
/// One that takes no notice of TERM.
const STUBBORN: &[&str] = &["sleep", "1000"];

fn status(tatami: &Tatami, name: &str, key: &str) -> String {
    let text = tatami.tatami(&["inspect", name]).expect_status(0).out();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all[0]["State"][key].to_string()
}

fn logs_follow(tatami: &Tatami, name: &str) -> Running {
    Running::start(tatami.command(&["logs", "-f", name]))
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_detached_container_is_seen_ends_when_asked_and_is_forgotten_when_told() {
    let tatami = Tatami::new();
    let id = tatami.detach(&["--name", "web"], OBEDIENT);
    let log = logs_follow(&tatami, "web");
    log.wait_for("up");
    let row = tatami.tatami(&["ps", "--format", "json"]).expect_status(0).out();
    assert!(row.contains(&id) && row.contains("\"State\":\"running\"") && row.contains("\"web\""), "{row}");
    tatami.tatami(&["rm", "web"]).expect_error(1, &["web", "runs", "stop"]);
    assert_eq!(tatami.tatami(&["stop", "web"]).expect_status(0).out(), "web\n");
    let log = log.finish().expect_status(0);
    assert_eq!((log.out().as_str(), log.err().as_str()), ("up\nbye\n", "wrong\n"));
    assert!(!tatami.tatami(&["ps"]).out().contains(&id));
    assert!(tatami.tatami(&["ps", "-a"]).out().contains("Exited (3)"));
    assert_eq!(tatami.tatami(&["wait", "web"]).expect_status(0).out(), "3\n");
    assert_eq!(tatami.tatami(&["logs", "-n", "1", "web"]).out(), "bye\n");
    tatami.tatami(&["exec", "web", "true"]).expect_error(1, &["web", "does not run"]);
    assert_eq!(tatami.tatami(&["rm", &id[..4]]).expect_status(0).out(), format!("{}\n", &id[..4]));
    tatami.tatami(&["logs", "web"]).expect_error(1, &["no such container", "web"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_cannot_start_says_why_and_is_not_kept() {
    let tatami = Tatami::new();
    let detached = |command: &str| {
        let mut arguments = Tatami::run_arguments(&[], &[command]);
        arguments[1] = "-d".to_owned();
        tatami.tatami(&arguments)
    };
    detached("no-such-command").expect_error(127, &["no-such-command", "not found"]);
    detached("/etc").expect_error(126, &["/etc"]);
    assert_eq!(tatami.tatami(&["ps", "-aq"]).expect_status(0).out(), "");
}

#[test]
#[ignore = "boots a guest: make test"]
fn rm_at_the_start_means_nothing_is_kept_at_the_end() {
    let tatami = Tatami::new();
    tatami.detach(&["--rm", "--name", "job"], &["sh", "-c", "sleep 1; exit 5"]);
    assert_eq!(tatami.tatami(&["wait", "job"]).expect_status(0).out(), "5\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn exec_has_the_streams_statuses_and_surroundings_of_its_own() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web", "-e", "KEPT=1"], STUBBORN);
    let exec = |words: &[&str]| tatami.tatami(&[&["exec"], words].concat());
    exec(&["web", "sh", "-c", "echo a; echo b >&2; exit 42"]).expect_status(42);
    exec(&["web", "no-such"]).expect_error(127, &["no-such", "not found"]);
    exec(&["web", "/etc"]).expect_error(126, &["/etc", "directory"]);
    let options = ["-u", "1000:1000", "-w", "/var", "-e", "COLOUR=green", "web"];
    let out = exec(&[&options[..], &["sh", "-c", "id -u; pwd; echo $KEPT $COLOUR"]].concat()).expect_status(0).out();
    assert_eq!(out, "1000\n/var\n1 green\n");
    let mut command = tatami.command(&["exec", "-i", "web", "wc", "-c"]);
    command.stdin(std::process::Stdio::piped());
    assert_eq!(Running::start(command).finish_with_input(vec![7; 3_000_000]).expect_status(0).out().trim(), "3000000");
    let much = exec(&["web", "sh", "-c", "head -c 3000000 /dev/zero"]).expect_status(0);
    assert_eq!(much.stdout.len(), 3_000_000);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

/// How many threads, and how many open files, these processes have.
fn in_use(processes: &[i32]) -> (usize, usize) {
    let count = |name: &str| -> usize {
        processes.iter().map(|pid| std::fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count()).sum()
    };
    (count("task"), count("fd"))
}

#[test]
#[ignore = "boots a guest: make test"]
fn two_hundred_execs_at_the_same_time_have_streams_of_their_own() {
    const EXECS: usize = 200;
    // An emulated processor takes its time to start as many programs on both sides.
    const LONG: Duration = Duration::from_secs(1200);
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let cats = || {
        let script = "grep -l -x cat /proc/[0-9]*/comm 2>/dev/null | wc -l";
        tatami.tatami(&["exec", "web", "sh", "-c", script]).out().trim().to_owned()
    };
    // What is made once, and for good, is there when these have been.
    let mut command = tatami.command(&["exec", "-i", "web", "cat"]);
    command.stdin(std::process::Stdio::piped());
    assert_eq!(Running::start(command).finish_with_input(b"first".to_vec()).expect_status(0).out(), "first");
    assert_eq!(cats(), "0");
    let processes: Vec<i32> = tatami.processes().iter().map(|process| process.pid).collect();
    let before = in_use(&processes);

    let start = |number: usize| {
        let mut command = tatami.command(&["exec", "-i", "web", "cat"]);
        command.stdin(std::process::Stdio::piped());
        let mut exec = Running::start(command);
        let mut stdin = exec.take_stdin();
        stdin.write_all(format!("this is {number}\n").as_bytes()).unwrap();
        (exec, stdin)
    };
    let execs: Vec<_> = (0..EXECS).map(start).collect();
    for (number, (exec, _)) in execs.iter().enumerate() {
        exec.wait_for(&format!("this is {number}\n"));
    }
    // All of them run, and wait for more.
    assert_eq!(cats(), EXECS.to_string());
    let during = in_use(&processes);
    println!("threads and open files of {} processes: {before:?}, with {EXECS} execs {during:?}", processes.len());
    assert!(during.1 >= before.1 + EXECS, "{before:?}, then {during:?}");
    // One connection and one thread for each would be another design.
    assert!(during.0 < before.0 + EXECS, "{before:?}, then {during:?}");

    let text = |number: usize| format!("{number:07}\n").repeat(512);
    let fed = execs.into_iter().enumerate().map(|(number, (exec, mut stdin))| {
        stdin.write_all(text(number).as_bytes()).unwrap();
        exec
    });
    for (number, exec) in fed.collect::<Vec<_>>().into_iter().enumerate() {
        let finished = exec.finish_within(LONG).expect_status(0);
        assert!(finished.out() == format!("this is {number}\n{}", text(number)), "{number}: {}", finished.out());
        assert_eq!(finished.err(), "");
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let after = in_use(&processes);
        if after.0 <= before.0 && after.1 <= before.1 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{before:?} before, {after:?} long after");
        std::thread::sleep(Duration::from_millis(200));
    }
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn exec_on_a_terminal_is_a_terminal() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let script =
        "stty size; trap 'stty size' WINCH; trap 'echo caught; exit 9' INT; echo waiting; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(tatami.command(&["exec", "-it", "web", "sh", "-c", script]), 30, 91);
    terminal.wait_for("30 91");
    terminal.wait_for("waiting");
    terminal.resize(20, 70);
    terminal.wait_for("20 70");
    terminal.send("\u{3}");
    terminal.wait_for("caught");
    assert_eq!(terminal.finish(), 9);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn signals_reach_the_command_of_exec_and_a_reader_that_leaves_ends_it() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let script = "trap 'exit 6' INT; echo up; while :; do sleep 0.1; done";
    let running = Running::start(tatami.command(&["exec", "web", "sh", "-c", script]));
    running.wait_for("up");
    running.signal(Signal::SIGINT);
    running.finish().expect_status(6);
    let exec = tatami.command(&["exec", "web", "yes"]);
    let words: Vec<_> = exec.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &format!("/bin/sh {} | head -n 2", words.join(" "))]);
    shell.envs(exec.get_envs().map(|(key, value)| (key, value.unwrap())));
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    assert_eq!(Running::start(shell).finish().out(), "y\ny\n");
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_stubborn_container_is_killed_when_its_time_is_over() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let stopped = tatami.tatami(&["stop", "-t", "2", "web"]).expect_status(0);
    assert!(stopped.took > Duration::from_secs(2) && stopped.took < Duration::from_secs(15), "{:?}", stopped.took);
    assert_eq!(status(&tatami, "web", "ExitCode"), "137");
    tatami.tatami(&["stop", "web"]).expect_status(0);
    tatami.tatami(&["kill", "web"]).expect_error(1, &["web", "does not run"]);
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn pause_stands_still_and_resume_goes_on() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], OBEDIENT);
    tatami.tatami(&["pause", "web"]).expect_status(0);
    assert_eq!(status(&tatami, "web", "Status"), "\"paused\"");
    assert!(tatami.tatami(&["ps"]).out().contains("(Paused)"));
    tatami.tatami(&["exec", "web", "true"]).expect_error(1, &["paused", "resume"]);
    tatami.tatami(&["resume", "web"]).expect_status(0);
    tatami.tatami(&["exec", "web", "true"]).expect_status(0);
    tatami.tatami(&["pause", "web"]).expect_status(0);
    tatami.tatami(&["stop", "web"]).expect_status(0);
    assert_eq!(status(&tatami, "web", "ExitCode"), "3");
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn kill_sends_the_signal_that_is_named() {
    let tatami = Tatami::new();
    let script = "trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done";
    tatami.detach(&["--name", "web"], &["sh", "-c", script]);
    let log = logs_follow(&tatami, "web");
    log.wait_for("up");
    tatami.tatami(&["kill", "-s", "HUP", "web"]).expect_status(0);
    log.wait_for("hup");
    tatami.tatami(&["kill", "-s", "NONE", "web"]).expect_error(1, &["NONE"]);
    tatami.tatami(&["kill", "web"]).expect_status(0);
    assert_eq!(tatami.tatami(&["wait", "web"]).out(), "137\n");
    log.finish().expect_status(0);
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_name_has_one_holder_also_after_its_end() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], &["true"]);
    tatami.tatami(&["wait", "web"]).expect_status(0);
    tatami.run_with(&["--name", "web"], &["true"]).expect_error(125, &["web", "in use", "tatami rm"]);
    tatami.tatami(&["rm", "web"]).expect_status(0);
    tatami.run_with(&["--name", "web"], &["true"]).expect_status(0);
    tatami.tatami(&["rm", "web"]).expect_error(1, &["no such container"]);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn keys_reach_a_container_that_somebody_attaches_to() {
    let tatami = Tatami::new();
    tatami.detach(&["-i", "-t", "--name", "box"], &["sh"]);
    let mut terminal = Terminal::start(tatami.command(&["attach", "box"]), 24, 80);
    terminal.send("echo $((6*7))\n");
    terminal.wait_for("42");
    terminal.send("\u{10}\u{11}");
    assert_eq!(terminal.finish(), 0);
    let mut terminal = Terminal::start(tatami.command(&["attach", "box"]), 24, 80);
    terminal.send("echo $((6*7)); exit 4\n");
    terminal.wait_for("42");
    assert_eq!(terminal.finish(), 4);
    tatami.tatami(&["rm", "box"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_killed_server_leaves_a_dead_container_that_can_be_removed() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let server = tatami.processes().into_iter().find(|process| process.command.contains(" run -d")).unwrap();
    kill(Pid::from_raw(server.pid), Signal::SIGKILL).unwrap();
    assert_eq!(tatami.tatami(&["wait", "web"]).expect_status(0).out(), "137\n");
    assert!(tatami.tatami(&["ps", "-a"]).out().contains("Dead (137)"));
    tatami.tatami(&["exec", "web", "true"]).expect_error(1, &["does not run"]);
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_killed_vmm_ends_the_container_with_the_reason() {
    let tatami = Tatami::new();
    tatami.detach(&["--name", "web"], STUBBORN);
    let exec = Running::start(tatami.command(&["exec", "web", "sh", "-c", "echo up; sleep 1000"]));
    exec.wait_for("up");
    let vmm = tatami.processes().into_iter().find(|process| process.command.starts_with("tatami-vmm")).unwrap();
    kill(Pid::from_raw(vmm.pid), Signal::SIGKILL).unwrap();
    assert_eq!(tatami.tatami(&["wait", "web"]).expect_status(0).out(), "137\n");
    exec.finish().expect_status(137);
    assert!(status(&tatami, "web", "Error").contains("SIGKILL"));
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn garbage_on_the_socket_disturbs_nobody() {
    let tatami = Tatami::new();
    let id = tatami.detach(&["--name", "web"], STUBBORN);
    let text = tatami.tatami(&["inspect", "web"]).out();
    let socket = text.split('"').find(|word| word.ends_with("task.sock")).unwrap();
    assert!(socket.contains(&id));
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 10], &[0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 8, 8, 8, 8]]
    {
        UnixStream::connect(socket).unwrap().write_all(garbage).unwrap();
    }
    tatami.tatami(&["exec", "web", "true"]).expect_status(0);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn many_at_once_are_kept_apart() {
    let tatami = Tatami::new();
    let starts: Vec<_> = (0..20)
        .map(|number| {
            let mut words = Tatami::run_arguments(&["-m", "96m"], &["sh", "-c", &format!("echo {number}; sleep 1000")]);
            words[1] = "-d".to_owned();
            Running::start(tatami.command(&words))
        })
        .collect();
    let ids: Vec<_> = starts.into_iter().map(|start| start.finish().expect_status(0).out().trim().to_owned()).collect();
    assert_eq!(tatami.tatami(&["ps", "-q"]).out().lines().count(), 20);
    for (number, id) in ids.iter().enumerate() {
        let log = logs_follow(&tatami, id);
        log.wait_for(&format!("{number}\n"));
        log.signal(Signal::SIGKILL);
    }
    let all: Vec<&str> = ["rm", "-f"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    tatami.tatami(&all).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn one_in_the_foreground_is_among_the_others_as_long_as_it_runs() {
    let tatami = Tatami::new();
    let script = "trap 'echo bye; exit 3' TERM; echo up; n=0; while :; do n=$((n+1)); echo $n >/count; sleep 0.1; done";
    let running = tatami.start(&["--name", "web", "-e", "KEPT=1"], &["sh", "-c", script]);
    running.wait_for("up");
    let listed = |state: &str| {
        // It is written down in the moment after its command's start.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let state = format!("\"State\":\"{state}\"");
        loop {
            let row = tatami.tatami(&["ps", "--format", "json"]).expect_status(0).out();
            if row.contains("\"web\"") && row.contains(&state) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{row}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    listed("running");
    let wait = Running::start(tatami.command(&["wait", "web"]));
    let exec = |words: &[&str]| tatami.tatami(&[&["exec"], words].concat());
    assert_eq!(exec(&["-u", "root", "web", "sh", "-c", "echo $KEPT; exit 4"]).expect_status(4).out(), "1\n");
    tatami.tatami(&["logs", "web"]).expect_error(1, &["web", "foreground", "no log"]);
    tatami.tatami(&["attach", "web"]).expect_error(1, &["web", "foreground"]);
    tatami.tatami(&["rm", "web"]).expect_error(1, &["web", "runs", "stop"]);
    tatami.run_with(&["--name", "web"], &["true"]).expect_error(125, &["web", "in use"]);

    tatami.tatami(&["pause", "web"]).expect_status(0);
    listed("paused");
    assert_eq!(status(&tatami, "web", "Paused"), "true");
    exec(&["web", "true"]).expect_error(1, &["paused", "resume"]);
    tatami.tatami(&["resume", "web"]).expect_status(0);
    listed("running");

    let folder = tatami.scratch().join("saved").display().to_string();
    tatami.tatami(&["save", "web", &folder]).expect_status(0);
    tatami.tatami(&["stop", "web"]).expect_status(0);
    let finished = running.finish().expect_status(3);
    assert_eq!(finished.out(), "up\nbye\n");
    assert_eq!(finished.err(), "");
    assert_eq!(wait.finish().expect_status(0).out(), "3\n");
    assert_eq!(tatami.tatami(&["ps", "-aq"]).expect_status(0).out(), "");

    // What goes on from it does so in the background.
    tatami.tatami(&["restore", "--name", "again", &folder]).expect_status(0);
    counts_on(&tatami, "again");
    tatami.tatami(&["stop", "again"]).expect_status(0);
}

fn counts_on(tatami: &Tatami, name: &str) {
    let count = || {
        let out = tatami.tatami(&["exec", name, "cat", "/count"]).expect_status(0).out();
        out.trim().parse::<u32>().ok()
    };
    let (first, deadline) = (count(), std::time::Instant::now() + Duration::from_secs(60));
    while count() == first {
        assert!(std::time::Instant::now() < deadline, "it does not count on from {first:?}");
    }
    tatami.tatami(&["logs", name]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn one_in_the_foreground_is_killed_by_rm_and_leaves_nothing_when_its_server_is() {
    let tatami = Tatami::new();
    for way in ["kill", "rm", "server"] {
        let running = tatami.start(&["--name", "web"], &["sh", "-c", "echo up; sleep 1000"]);
        running.wait_for("up");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while tatami.tatami(&["ps", "-q"]).expect_status(0).out().is_empty() {
            assert!(std::time::Instant::now() < deadline, "it is not listed");
        }
        let killed = match way {
            "kill" => tatami.tatami(&["kill", "web"]),
            "rm" => tatami.tatami(&["rm", "-f", "web"]),
            _ => {
                running.signal(Signal::SIGKILL);
                tatami.tatami(&["ps"])
            }
        };
        killed.expect_status(0);
        running.finish().expect_status(137);
        tatami.assert_nothing_left();
        assert_eq!(tatami.tatami(&["ps", "-aq"]).expect_status(0).out(), "");
    }
}
