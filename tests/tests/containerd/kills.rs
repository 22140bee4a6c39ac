//! What happens to a container when something dies under it, at five moments of its life: its user is told, its name can be used
//! again, and the host is clean.
//!
//! A VMM has no counterpart with runc; a container's first process, killed, is what comes closest, and a user should see the same.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{Case, Notes, Stage};

use crate::stage::{Ctr, FORGOTTEN, PATIENCE, SOON, error_or_ok, exit_status};

/// Killed in between, it leaves control groups, bundles and itself behind.
const LEAKS: &str = "runc's shim leaks";

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("a restart of containerd", |ctr, notes| restart(ctr, notes, Signal::SIGTERM)),
    Case::new("containerd killed", |ctr, notes| restart(ctr, notes, Signal::SIGKILL)).long(),
    Case::new("the ground killed", |ctr, notes| at(ctr, notes, ground, Moment::Running)),
    Case::new("the runtime's server killed", |ctr, notes| at(ctr, notes, server, Moment::Running)),
    Case::new("the guest's kernel dies", guest_dies).long(),
    Case::new("the workload killed, at every moment", |ctr, notes| at_every(ctr, notes, workload, &ALIVE)).long(),
    Case::new("the ground killed, at every moment", |ctr, notes| at_every(ctr, notes, ground, &ALIVE)).long(),
    Case::new("the server killed, at every moment", |ctr, notes| at_every(ctr, notes, server, &ALL)).long(),
    Case::new("containerd killed, at every moment", daemon_at_every).long(),
    Case::new("the workload killed while it starts", |ctr, notes| at_start(ctr, notes, workload))
        .long()
        .without_reference(LEAKS),
    Case::new("the ground killed while it starts", |ctr, notes| at_start(ctr, notes, ground))
        .long()
        .without_reference(LEAKS),
    Case::new("the server killed while it starts", |ctr, notes| at_start(ctr, notes, server))
        .long()
        .without_reference(LEAKS),
    Case::new("containerd killed while it starts", daemon_at_start).long().without_reference(LEAKS),
    Case::new("a client killed while it starts", |ctr, notes| while_starting(ctr, notes, false))
        .long()
        .without_reference(LEAKS),
    Case::new("everything killed while it starts", |ctr, notes| while_starting(ctr, notes, true))
        .long()
        .without_reference(LEAKS),
];

#[derive(Clone, Copy, Debug)]
enum Moment {
    Running,
    Paused,
    Executing,
    Stopped,
}

/// While there is something to kill.
const ALIVE: [Moment; 3] = [Moment::Running, Moment::Paused, Moment::Executing];
const ALL: [Moment; 4] = [Moment::Running, Moment::Paused, Moment::Executing, Moment::Stopped];

type Victim = fn(&Ctr, &str);

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the victim is there");
}

fn workload(ctr: &Ctr, name: &str) {
    ctr.task(name, &["kill", "-s", "SIGKILL"]);
}

fn ground(ctr: &Ctr, name: &str) {
    kill_9(ctr.ground(name));
}

fn server(ctr: &Ctr, name: &str) {
    kill_9(ctr.server(name));
}

/// The agent is the guest's first process, which nothing in the guest can kill: the whole kernel goes instead, when its memory
/// runs out and it was told to panic then.
fn guest(ctr: &Ctr, name: &str) {
    if ctr.is_ours() {
        let script = "echo 1 >/proc/sys/vm/panic_on_oom && \
            for i in 1 2 3 4; do dd if=/dev/zero of=/dev/null bs=100M & done; wait";
        let command = ctr.exec_command(name, "crash", &["--detach"], &["sh", "-c", script]);
        tatami_tests::Running::start(command).finish_within(PATIENCE);
    } else {
        kill_9(ctr.ground(name));
    }
}

fn guest_dies(ctr: &mut Ctr, notes: &mut Notes) {
    at(ctr, notes, guest, Moment::Running);
    at(ctr, notes, guest, Moment::Executing);
}

fn at(ctr: &mut Ctr, notes: &mut Notes, victim: Victim, moment: Moment) {
    let name = &format!("{moment:?}").to_lowercase();
    let what = |line: &str| format!("{name}: {line}");
    bring_to(ctr, notes, name, moment);
    victim(ctr, name);
    let events = ctr.events(name, "exit(");
    notes.want(what("told of its end"), events.contains("exit(137)"), true);
    let times = events.matches("exit(").count();
    match moment {
        // containerd tells it again of a task whose server it loses, ended or not.
        Moment::Stopped => notes.see(what("told so often"), times),
        _ => notes.want(what("told once"), times, 1),
    }
    let deadline = std::time::Instant::now() + SOON;
    while ctr.status(name) == "RUNNING" && std::time::Instant::now() < deadline {
        thread::sleep(Duration::from_millis(200));
    }
    // containerd forgets a task whose server is gone; both are an end.
    let gone = ["STOPPED", "none", "UNKNOWN"].contains(&ctr.status(name).as_str());
    notes.see(what("ended"), gone);
    notes.want(what("an exec is refused"), ctr.exec(name, "late", &[], &["true"]).status != 0, true);
    ctr.task(name, &["rm", "-f"]);
    notes.want(what("no task left"), ctr.status(name), "none");
    notes.want(what("container removed"), error_or_ok(&ctr.ctr(&["container", "rm", &ctr.id(name)])), "ok");
    let again = ctr.run(name, &["--rm"], &["echo", "again"]);
    notes.want(what("the name again"), format!("{} {}", again.status, again.out()), "0 again\n");
}

/// Starts a container and brings it to a moment of its life.
fn bring_to(ctr: &Ctr, notes: &mut Notes, name: &str, moment: Moment) {
    let crash_allowed: &[&str] = if ctr.is_ours() { &["--privileged"] } else { &[] };
    ctr.detached(name, crash_allowed, &["sleep", "1000"]);
    let what = |line: &str| format!("{name}: {line}");
    match moment {
        Moment::Running => {}
        Moment::Paused => notes.want(what("pause"), error_or_ok(&ctr.task(name, &["pause"])), "ok"),
        Moment::Executing => {
            let exec = ctr.exec(name, "e", &["--detach"], &["sleep", "1000"]);
            notes.want(what("exec"), error_or_ok(&exec), "ok");
        }
        Moment::Stopped => {
            workload(ctr, name);
            notes.want(what("stopped"), ctr.status_soon(name, "STOPPED"), "STOPPED");
        }
    }
}

fn at_every(ctr: &mut Ctr, notes: &mut Notes, victim: Victim, moments: &[Moment]) {
    for moment in moments {
        at(ctr, notes, victim, *moment);
    }
}

/// While it is created and started: nobody can say what the client is told, but it is told, and nothing stays.
fn at_start(ctr: &mut Ctr, notes: &mut Notes, victim: Victim) {
    for milliseconds in [600, 1200, 2000] {
        let name = &format!("start{milliseconds}");
        let running = ctr.start(name, &["-d", "--null-io"], &["sleep", "1000"]);
        thread::sleep(Duration::from_millis(milliseconds));
        // The victim may not be there yet, or no longer.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| victim(ctr, name)));
        running.finish_within(PATIENCE);
        ctr.task(name, &["kill", "-s", "SIGKILL"]);
        ctr.task(name, &["rm", "-f"]);
        ctr.ctr(&["container", "rm", &ctr.id(name)]);
        notes.want(format!("{name}: no task left"), ctr.status(name), "none");
        notes.want(format!("{name}: nothing left"), ctr.containerd().remains().join("\n"), "");
    }
}

fn daemon_at_every(ctr: &mut Ctr, notes: &mut Notes) {
    for moment in ALL {
        let name = &format!("{moment:?}").to_lowercase();
        bring_to(ctr, notes, name, moment);
        let before = ctr.status(name);
        ctr.restart(Signal::SIGKILL);
        let after = ctr.status(name);
        match moment {
            // What has ended, containerd 2 deletes when it comes back.
            Moment::Stopped => notes.see(format!("{name}: after it"), after),
            _ => notes.want(format!("{name}: as before"), after, before),
        }
        if let Moment::Paused = moment {
            notes.want(format!("{name}: resume"), error_or_ok(&ctr.task(name, &["resume"])), "ok");
        }
        notes.see(format!("{name}: rm"), exit_status(&ctr.task(name, &["rm", "-f"])));
        notes.want(format!("{name}: no task left"), ctr.status(name), "none");
        ctr.ctr(&["container", "rm", &ctr.id(name)]);
        notes.want(format!("{name}: nothing left"), ctr.containerd().remains().join("\n"), "");
    }
}

fn daemon_at_start(ctr: &mut Ctr, notes: &mut Notes) {
    for milliseconds in [300, 900, 1500] {
        let name = &format!("n{milliseconds}");
        let running = ctr.start(name, &["-d", "--null-io"], &["sleep", "1000"]);
        thread::sleep(Duration::from_millis(milliseconds));
        ctr.restart(Signal::SIGKILL);
        running.finish_within(PATIENCE);
        ctr.task(name, &["rm", "-f"]);
        ctr.ctr(&["container", "rm", &ctr.id(name)]);
        notes.want(format!("{name}: no task left"), ctr.status(name), "none");
        notes.want(format!("{name}: nothing left"), ctr.containerd().remains_within(FORGOTTEN).join("\n"), "");
    }
}

fn while_starting(ctr: &mut Ctr, notes: &mut Notes, everything: bool) {
    for milliseconds in [300, 700, 1200, 1800, 2500] {
        let name = &format!("n{milliseconds}");
        let running = ctr.start(name, &["-d", "--null-io"], &["sleep", "1000"]);
        thread::sleep(Duration::from_millis(milliseconds));
        running.signal(Signal::SIGKILL);
        if everything {
            for process in ctr.containerd().home().processes() {
                if process.pid != ctr.containerd().pid() {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
            }
        }
        running.finish_within(PATIENCE);
        // containerd goes on with what the client asked for.
        thread::sleep(Duration::from_secs(3));
        ctr.task(name, &["kill", "-s", "SIGKILL"]);
        ctr.task(name, &["rm", "-f"]);
        ctr.ctr(&["container", "rm", &ctr.id(name)]);
        notes.want(format!("{name}: no task left"), ctr.status(name), "none");
        notes.want(format!("{name}: nothing left"), ctr.containerd().remains_within(FORGOTTEN).join("\n"), "");
    }
}

fn restart(ctr: &mut Ctr, notes: &mut Notes, signal: Signal) {
    ctr.detached("a", &[], &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]);
    ctr.restart(signal);
    notes.want("status", ctr.status("a"), "RUNNING");
    notes.want("an exec", ctr.exec("a", "e", &[], &["echo", "here"]).out(), "here\n");
    notes.want("pause", error_or_ok(&ctr.task("a", &["pause"])), "ok");
    notes.want("resume", error_or_ok(&ctr.task("a", &["resume"])), "ok");
    notes.want("kill", error_or_ok(&ctr.task("a", &["kill", "-s", "SIGTERM"])), "ok");
    notes.want("stopped", ctr.status_soon("a", "STOPPED"), "STOPPED");
    notes.want("told", ctr.events("a", "exit(").ends_with("exit(5)"), true);
    notes.want("rm", exit_status(&ctr.task("a", &["rm"])), 5);
}
