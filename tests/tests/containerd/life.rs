//! A container's life: what it is given, what it answers, which events tell of it.

use std::fs;
use std::time::Duration;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::{Finished, Running, Terminal};

use crate::stage::{Ctr, PATIENCE, error_or_ok, exit_status};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("hello", hello),
    Case::new("exit status", statuses),
    Case::new("stopped by a signal", stopped_by_a_signal).long(),
    Case::new("a life, step by step", step_by_step),
    Case::new("environment, folder, user", environment).differs(&[(
        "host name",
        "ctr asks for none: runc's container has the host's, ours the guest's, for a guest learns no name of the host",
    )]),
    Case::new("a terminal", terminal).long(),
    Case::new("files of the host", mounts).long(),
    Case::new("a root that is read-only", read_only).long(),
    Case::new("two containers, two roots", two_roots).long(),
    Case::new("processes", processes).long(),
    Case::new("what a container uses", metrics),
    Case::new("several at once", |ctr, notes| at_once(ctr, notes, 3)),
    Case::new("twenty at once", |ctr, notes| at_once(ctr, notes, 20)).long(),
];

fn hello(ctr: &mut Ctr, notes: &mut Notes) {
    let finished = ctr.run("a", &["--rm"], &["echo", "hello"]);
    notes.want("status", finished.status, 0);
    notes.want("output", finished.out(), "hello\n");
    notes.want("errors", finished.err(), "");
    notes.want("events", ctr.events("a", "delete"), "create start exit(0) delete");
}

fn statuses(ctr: &mut Ctr, notes: &mut Notes) {
    let finished = ctr.run("a", &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 42"]);
    notes.want("status", finished.status, 42);
    notes.want("output", finished.out(), "out\n");
    notes.want("errors", finished.err(), "err\n");
    notes.want("events", ctr.events("a", "delete"), "create start exit(42) delete");
    let finished = ctr.run("b", &["--rm"], &["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"]);
    notes.want("status after a signal", finished.status, 139);
}

fn stopped_by_a_signal(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]);
    // Until the shell has set its trap, the first process of a container ignores the signal.
    std::thread::sleep(Duration::from_secs(1));
    notes.want("kill", ctr.task("a", &["kill", "-s", "SIGTERM"]).status, 0);
    notes.want("status", ctr.status_soon("a", "STOPPED"), "STOPPED");
    notes.want("rm gives the exit status", exit_status(&ctr.task("a", &["rm"])), 7);
    notes.want("events", ctr.events("a", "delete"), "create start exit(7) delete");
}

fn step_by_step(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    notes.want("status", ctr.status("a"), "RUNNING");
    notes.want("pause", error_or_ok(&ctr.task("a", &["pause"])), "ok");
    notes.want("status when paused", ctr.status("a"), "PAUSED");
    notes.want("resume", error_or_ok(&ctr.task("a", &["resume"])), "ok");
    notes.want("status when resumed", ctr.status("a"), "RUNNING");
    notes.want("exec", ctr.exec("a", "e1", &[], &["sh", "-c", "exit 3"]).status, 3);
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
    let wanted = "create start paused resumed exec-added[e1] exec-started[e1] exit[e1](3) exit(137) delete";
    notes.want("events", ctr.events("a", "delete"), wanted);
}

fn environment(ctr: &mut Ctr, notes: &mut Notes) {
    let script = "id; pwd; env | grep -v -E '^(HOME|SHLVL)='; cat /proc/self/status | grep -E '^(CapEff|NoNewPrivs|Seccomp):'; umask";
    let options = ["--rm", "--env", "COLOUR=red", "--env", "EMPTY=", "--cwd", "/tmp", "--user", "1000:2000"];
    let finished = ctr.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    for line in finished.out().lines() {
        notes.see("line", line);
    }
    let finished =
        ctr.run("b", &["--rm"], &["sh", "-c", "grep CapEff /proc/self/status; hostname; cat /proc/1/comm; ulimit -n"]);
    for (what, line) in ["capabilities", "host name", "first process", "descriptors"].iter().zip(finished.out().lines())
    {
        notes.see(*what, line);
    }
}

fn terminal(ctr: &mut Ctr, notes: &mut Notes) {
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; until stty size | grep 33; do sleep 0.1; done; read line; echo \"got $line\"; exit 5";
    let command = ctr.run_command("a", &["--rm", "--tty"], &["sh", "-c", script]);
    let mut terminal = Terminal::start(command, 33, 101);
    terminal.wait_for("33 101");
    terminal.send("typed\r");
    terminal.wait_for("got typed");
    notes.want("a terminal", terminal.screen().contains("terminal"), true);
    notes.want("status", terminal.finish(), 5);
    let command =
        ctr.run_command("b", &["--rm", "--tty"], &["sh", "-c", "echo up; while :; do stty size; sleep 0.2; done"]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.wait_for("24 80");
    terminal.resize(40, 120);
    terminal.wait_for("40 120");
    terminal.send("\x03");
    notes.want("Ctrl-C", terminal.finish(), 130);
}

fn mounts(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch();
    fs::write(folder.join("file"), "of the host\n").expect("a file");
    let writable = format!("type=bind,src={},dst=/mnt,options=rbind:rw", folder.display());
    let single = format!("type=bind,src={}/file,dst=/etc/single,options=bind:ro", folder.display());
    let script = "cat /mnt/file /etc/single; echo back >/mnt/back; echo no >>/etc/single || echo refused; \
        grep /scratch /proc/mounts | grep -o -E 'tmpfs|size=8192k' | sort -u";
    let tmpfs = "type=tmpfs,dst=/scratch,options=size=8m";
    let options = ["--rm", "--mount", &writable, "--mount", &single, "--mount", tmpfs];
    let finished = ctr.run("a", &options, &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    notes.want("output", finished.out(), "of the host\nof the host\nrefused\nsize=8192k\ntmpfs\n");
    notes.want("written back", fs::read_to_string(folder.join("back")).unwrap_or_default(), "back\n");
    let waiting = "for word in new renamed gone; do until grep -q $word /mnt/file || test ! -e /mnt/file; do sleep 0.1; done; \
        cat /mnt/file 2>&1; done";
    let running = ctr.start("b", &["--rm", "--mount", &writable], &["sh", "-c", &format!("echo up; {waiting}")]);
    running.wait_for("up");
    fs::write(folder.join("file"), "new\n").expect("a file");
    running.wait_for("new");
    fs::write(folder.join("other"), "renamed\n").expect("a file");
    fs::rename(folder.join("other"), folder.join("file")).expect("a file is renamed");
    running.wait_for("renamed");
    fs::remove_file(folder.join("file")).expect("a file is removed");
    let changes = "up\nnew\nrenamed\ncat: can't open '/mnt/file': No such file or directory\n";
    notes.want("changes on the host", running.finish_within(PATIENCE).out(), changes);
}

fn read_only(ctr: &mut Ctr, notes: &mut Notes) {
    let finished =
        ctr.run("a", &["--rm", "--read-only"], &["sh", "-c", "touch /file; touch /dev/shm/file && echo but here"]);
    notes.want("output", finished.out(), "but here\n");
    notes.want("errors", finished.err(), "touch: /file: Read-only file system\n");
    notes.want("status", finished.status, 0);
}

fn two_roots(ctr: &mut Ctr, notes: &mut Notes) {
    for name in ["a", "b"] {
        ctr.detached(name, &[], &["sh", "-c", &format!("echo {name} >/mark; sleep 1000")]);
    }
    for name in ["a", "b"] {
        let read =
            ctr.exec(name, "e", &[], &["sh", "-c", "until test -s /mark; do sleep 0.1; done; cat /mark; ls / | wc -l"]);
        notes.see(format!("mark of {name}"), read.out());
    }
    for name in ["a", "b"] {
        notes.want(format!("end of {name}"), ctr.finish(name), "kill 0, STOPPED, rm 137, ok");
    }
}

fn processes(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let count = || ctr.task("a", &["ps"]).out().lines().count();
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    while count() < 4 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
    }
    // A line of headings.
    notes.want("processes that ctr lists", count(), 4);
    let inside = ctr.exec("a", "e", &[], &["sh", "-c", "ps -o args | grep -v -E 'ps|grep'"]);
    notes.see("processes inside", inside.out());
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn metrics(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sh", "-c", "i=0; while test $i -lt 20000; do i=$((i+1)); done; sleep 1000"]);
    let deadline = std::time::Instant::now() + crate::stage::SOON;
    let mut value = serde_json::Value::Null;
    while std::time::Instant::now() < deadline {
        let text = ctr.task("a", &["metrics", "--format", "json"]).out();
        value = serde_json::from_str(&text).unwrap_or_default();
        if number(&value, "/cpu/usage_usec") > 100_000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    for (path, least) in
        [("/cpu/usage_usec", 100_000), ("/cpu/user_usec", 1), ("/memory/usage", 4096), ("/pids/current", 1)]
    {
        notes.want(format!("{path} is at least {least}"), number(&value, path) >= least, true);
    }
    notes.want("memory is less than 1 GiB", number(&value, "/memory/usage") < 1 << 30, true);
    let table = ctr.task("a", &["metrics"]);
    notes.want(
        "as a table",
        table.out().contains("memory.usage_in_bytes") || table.out().contains("cpu.usage_usec"),
        true,
    );
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn number(value: &serde_json::Value, path: &str) -> u64 {
    let found = value.pointer(path);
    found.and_then(|found| found.as_u64().or_else(|| found.as_str()?.parse().ok())).unwrap_or(0)
}

fn at_once(ctr: &mut Ctr, notes: &mut Notes, count: usize) {
    let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
    let start = |name: &String| ctr.start(name, &["-d", "--null-io"], &["sh", "-c", "sleep 1000"]);
    let running: Vec<Running> = names.iter().map(start).collect();
    let started: Vec<Finished> = running.into_iter().map(|one| one.finish_within(3 * PATIENCE)).collect();
    notes.want("started", started.iter().filter(|one| one.status == 0).count(), count);
    for one in started.iter().filter(|one| one.status != 0) {
        notes.want("error", one.err(), "");
    }
    let listing = ctr.ctr(&["task", "ls"]).out();
    notes.want("running", listing.matches("RUNNING").count(), count);
    let kill = |name: &String| {
        let id = ctr.id(name);
        Running::start(ctr.containerd().command(&["task", "rm", "-f", id.as_str()]))
    };
    let removing: Vec<Running> = names.iter().map(kill).collect();
    let removed: Vec<Finished> = removing.into_iter().map(|one| one.finish_within(3 * PATIENCE)).collect();
    notes.want("removed", removed.iter().filter(|one| exit_status(one) == "137").count(), count);
    let listing = ctr.ctr(&["task", "ls", "-q"]).out();
    notes.want("tasks left", listing, "");
    for name in &names {
        notes.want("events", ctr.events(name, "delete"), "create start exit(137) delete");
    }
}
