//! Further processes in a container: their streams, users, folders and terminals, many of them, and those that cannot be.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use tatami_tests::compare::{Case, Notes};
use tatami_tests::{Running, Terminal};

use crate::stage::{Ctr, PATIENCE, SOON, error, error_or_ok};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("an exec", an_exec),
    Case::new("an exec on a terminal", terminal).long(),
    Case::new("an exec of what is not there", missing),
    Case::new("an exec that runs on", runs_on).long(),
    Case::new("execs, one after another", |ctr, notes| one_after_another(ctr, notes, 5)).long(),
    Case::new("200 execs, one after another", |ctr, notes| one_after_another(ctr, notes, 200)).long(),
    Case::new("execs at once", |ctr, notes| at_once(ctr, notes, 5)).long(),
    Case::new("20 execs at once", |ctr, notes| at_once(ctr, notes, 20)).long(),
];

fn an_exec(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &["--env", "COLOUR=red"], &["sleep", "1000"]);
    let finished = ctr.exec("a", "e1", &[], &["sh", "-c", "echo out; echo err >&2; echo $COLOUR; exit 6"]);
    notes.want("status", finished.status, 6);
    notes.want("output", finished.out(), "out\nred\n");
    notes.want("errors", finished.err(), "err\n");
    let finished = ctr.exec("a", "e2", &["--cwd", "/tmp", "--user", "1000:2000"], &["sh", "-c", "pwd; id -u; id -g"]);
    notes.want("user and folder", finished.out(), "/tmp\n1000\n2000\n");
    let finished = ctr.exec("a", "e3", &[], &["sh", "-c", "grep -E '^(CapEff|Seccomp|NoNewPrivs)' /proc/self/status"]);
    notes.see("rights", finished.out());
    let mut command = ctr.exec_command("a", "e4", &[], &["sh", "-c", "echo up; wc -c; echo after"]);
    command.stdin(Stdio::piped());
    let running = Running::start(command);
    running.wait_for("up");
    notes.want("input", running.finish_with_input(vec![b'x'; 70_000]).out(), "up\n70000\nafter\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
    let one = |exec: &str, status| format!("exec-added[{exec}] exec-started[{exec}] exit[{exec}]({status}) ");
    let wanted =
        format!("create start {}{}{}{}exit(137) delete", one("e1", 6), one("e2", 0), one("e3", 0), one("e4", 0));
    notes.want("events", ctr.events("a", "delete"), wanted);
}

fn terminal(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let script = "test -t 1 && echo terminal; until stty size | grep 30; do sleep 0.1; done; read line; echo \"got $line\"; exit 8";
    let mut terminal = Terminal::start(ctr.exec_command("a", "e1", &["--tty"], &["sh", "-c", script]), 30, 90);
    terminal.wait_for("30 90");
    terminal.send("typed\r");
    terminal.wait_for("got typed");
    notes.want("a terminal", terminal.screen().contains("terminal"), true);
    notes.want("status", terminal.finish(), 8);
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn missing(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let start = Instant::now();
    let finished = ctr.exec("a", "e1", &[], &["/no/such/program", "argument"]);
    notes.want("status", finished.status, 1);
    notes.see("kind of error", error(&finished));
    let text = finished.err();
    notes.want("says why", text.contains("/no/such/program") && text.contains("no such file or directory"), true);
    notes.want("at once", start.elapsed() < SOON, true);
    let finished = ctr.exec("a", "e2", &[], &["/etc/passwd"]);
    notes.want(
        "what is no program",
        format!("{} {}", finished.status, finished.err().contains("permission denied")),
        "1 true",
    );
    let finished = ctr.exec("a", "e3", &["--cwd", "/no/such/folder"], &["pwd"]);
    notes.see("a folder that is not there", finished.status);
    notes.want("another one after it", ctr.exec("a", "e4", &[], &["echo", "ok"]).out(), "ok\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn runs_on(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let finished = ctr.exec("a", "e1", &["--detach"], &["sleep", "1000"]);
    notes.want("detached", error_or_ok(&finished), "ok");
    notes.see("the same name again", error(&ctr.exec("a", "e1", &["--detach"], &["true"])));
    let killed = ctr.task("a", &["kill", "-s", "SIGTERM", "--exec-id", "e1"]);
    notes.want("kill", error_or_ok(&killed), "ok");
    let events = ctr.events("a", "exit[e1]");
    notes.want("events", events, "create start exec-added[e1] exec-started[e1] exit[e1](143)");
    notes.want("the container", ctr.status("a"), "RUNNING");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn one_after_another(ctr: &mut Ctr, notes: &mut Notes, count: usize) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let mut right = 0;
    for number in 0..count {
        let finished =
            ctr.exec("a", &format!("e{number}"), &[], &["sh", "-c", &format!("echo {number}; exit {}", number % 100)]);
        let as_wanted =
            finished.out() == format!("{number}\n") && finished.status == i32::try_from(number % 100).unwrap_or(-1);
        right += usize::from(as_wanted);
        if !as_wanted {
            notes.see(format!("exec {number}"), format!("{} {} {}", finished.status, finished.out(), finished.err()));
        }
    }
    notes.want("right ones", right, count);
    let inside =
        ctr.exec("a", "last", &[], &["sh", "-c", "ps | grep -c -v -E 'ps|grep|PID'; ls /proc/self/fd | wc -l"]);
    notes.see("processes and descriptors inside", inside.out());
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
    let events = ctr.events("a", "delete");
    notes.want("events", events.split(' ').count(), 4 + 3 * (count + 1));
}

fn at_once(ctr: &mut Ctr, notes: &mut Notes, count: usize) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let start = |number: usize| {
        let script = format!("echo {number}; sleep 1; head -c 10000 /dev/zero; exit {number}");
        Running::start(ctr.exec_command("a", &format!("e{number}"), &[], &["sh", "-c", &script]))
    };
    let running: Vec<Running> = (0..count).map(start).collect();
    for (number, one) in running.into_iter().enumerate() {
        let finished = one.finish_within(2 * PATIENCE);
        notes.want(
            format!("exec {number}"),
            format!("{} {} {}", finished.status, finished.stdout.len(), finished.err()),
            format!("{number} {} ", 10_001 + number.to_string().len()),
        );
    }
    thread::sleep(Duration::from_millis(200));
    notes.want("the container", ctr.status("a"), "RUNNING");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}
