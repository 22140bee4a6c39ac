//! What goes into a container and what comes out: all of it, in order, and nobody waits for a reader who has gone.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tatami_tests::compare::{Case, Notes, Stage};

use crate::stage::{Ctr, PATIENCE, SOON, error_or_ok, exit_status};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("4 MB through a container", |ctr, notes| through(ctr, notes, 4)).long(),
    Case::new("100 MB through a container", |ctr, notes| through(ctr, notes, 100)).long(),
    Case::new("the last bytes before the end", last_bytes),
    Case::new("the end of the input", end_of_input).long(),
    Case::new("a pause in the middle of output", pause).long(),
    Case::new("a reader that goes away", reader_goes).long(),
    Case::new("output into a file", into_a_file).long(),
    Case::new("output into a program", into_a_program).long(),
];

fn through(ctr: &mut Ctr, notes: &mut Notes, megabytes: u64) {
    let mut bytes = Vec::new();
    for number in 0..megabytes << 6 {
        // Pieces that are told apart: none may be lost, doubled or out of order.
        bytes.extend_from_slice(&[b'.'; (16 << 10) - 8]);
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let finished = ctr.start_with_input("a", &["--rm"], &["cat"]).finish_with_input(bytes.clone());
    notes.want("status", finished.status, 0);
    notes.want("bytes", finished.stdout.len(), megabytes << 20);
    notes.want("unchanged", finished.stdout == bytes, true);
    notes.want("errors", finished.err(), "");
}

fn last_bytes(ctr: &mut Ctr, notes: &mut Notes) {
    let script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; printf end; printf end >&2; exit 9";
    for round in 0..2 {
        let finished = ctr.run(&format!("n{round}"), &["--rm"], &["sh", "-c", script]);
        notes.want("status", finished.status, 9);
        notes.want("output", format!("{} {}", finished.stdout.len(), finished.out().ends_with("end")), "300003 true");
        notes.want("errors", format!("{} {}", finished.stderr.len(), finished.err().ends_with("end")), "200003 true");
    }
}

/// ctr forgets the end of an input that comes before the process has started, whatever the runtime: each says when it has.
fn end_of_input(ctr: &mut Ctr, notes: &mut Notes) {
    let told = |name: &str, script: &str, input: Vec<u8>| {
        let running = ctr.start_with_input(name, &["--rm"], &["sh", "-c", &format!("echo up; {script}")]);
        running.wait_for("up");
        running.finish_with_input(input)
    };
    notes.want("five bytes", told("a", "wc -c", b"12345".to_vec()).out(), "up\n5\n");
    notes.want("none", told("b", "wc -c", vec![]).out(), "up\n0\n");
    notes.want("a process that does not read", told("c", "exec <&-; exit 4", vec![b'x'; 1 << 20]).status, 4);
}

fn pause(ctr: &mut Ctr, notes: &mut Notes) {
    let script = "i=0; while test $i -lt 60; do i=$((i+1)); echo $i; sleep 0.1; done";
    let running = ctr.start("a", &[], &["sh", "-c", script]);
    running.wait_for("\n8\n");
    notes.want("pause", error_or_ok(&ctr.task("a", &["pause"])), "ok");
    thread::sleep(Duration::from_millis(500));
    let before = running.out_so_far();
    thread::sleep(Duration::from_secs(1));
    notes.want("silent while paused", running.out_so_far() == before, true);
    notes.want("resume", error_or_ok(&ctr.task("a", &["resume"])), "ok");
    let finished = running.finish_within(PATIENCE);
    let all: String = (1..=60).map(|number| format!("{number}\n")).collect();
    notes.want("complete and in order", finished.out() == all, true);
    notes.want("status", finished.status, 0);
}

fn reader_goes(ctr: &mut Ctr, notes: &mut Notes) {
    let running = ctr.start("a", &[], &["sh", "-c", "while echo line; do sleep 0.01; done; sleep 1000"]);
    running.wait_for("line\nline");
    running.signal(Signal::SIGKILL);
    running.finish_within(PATIENCE);
    thread::sleep(Duration::from_secs(1));
    notes.want("status", ctr.status("a"), "RUNNING");
    let finished = ctr.exec("a", "e", &[], &["echo", "still here"]);
    notes.want("an exec", format!("{} {}", finished.status, finished.out()), "0 still here\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");

    // One that is there and does not read: the writer waits, and nobody else.
    let mut command = ctr.run_command("b", &[], &["sh", "-c", "yes"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stdout(writer).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("ctr starts");
    drop(command);
    notes.want("status of the second", ctr.status_soon("b", "RUNNING"), "RUNNING");
    thread::sleep(Duration::from_secs(2));
    let finished = ctr.exec("b", "e", &[], &["echo", "not held up"]);
    notes.want("an exec beside it", format!("{} {}", finished.status, finished.out()), "0 not held up\n");
    notes.want("kill", error_or_ok(&ctr.task("b", &["kill", "-s", "SIGKILL"])), "ok");
    notes.want("stopped", ctr.status_soon("b", "STOPPED"), "STOPPED");
    drop(reader);
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
}

fn into_a_file(ctr: &mut Ctr, notes: &mut Notes) {
    let file = ctr.scratch().join("log");
    let uri = format!("file://{}", file.display());
    let finished =
        ctr.run("a", &["-d", "--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2; head -c 100000 /dev/zero"]);
    notes.want("status", finished.status, 0);
    notes.want("stopped", ctr.status_soon("a", "STOPPED"), "STOPPED");
    let text = fs::read(&file).unwrap_or_default();
    notes.want("bytes", text.len(), 100_008);
    let text = String::from_utf8_lossy(&text).into_owned();
    notes.want("both streams", text.contains("out\n") && text.contains("err\n"), true);
    notes.want("rm", exit_status(&ctr.task("a", &["rm"])), 0);
}

fn into_a_program(ctr: &mut Ctr, notes: &mut Notes) {
    use std::os::unix::fs::PermissionsExt;
    let folder = ctr.scratch();
    let program = folder.join("logger");
    // containerd's contract: descriptors 3 and 4 are the streams, 5 says "ready" when it is closed.
    let script = "#!/bin/sh\nexec >\"$2\" 2>&1\nexec 5>&-\necho \"$CONTAINER_NAMESPACE\" | wc -l\ncat <&3 & cat <&4; wait\necho ended\n";
    let mut file = fs::File::create(&program).expect("a file");
    file.write_all(script.as_bytes()).expect("a script");
    file.set_permissions(fs::Permissions::from_mode(0o755)).expect("permissions");
    drop(file);
    let log = folder.join("log");
    let uri = format!("binary://{}?log={}", program.display(), log.display());
    let finished = ctr.run("a", &["-d", "--log-uri", &uri], &["sh", "-c", "echo out; sleep 0.2; echo err >&2"]);
    notes.want("status", finished.status, 0);
    notes.want("stopped", ctr.status_soon("a", "STOPPED"), "STOPPED");
    notes.want("rm", exit_status(&ctr.task("a", &["rm"])), 0);
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let deadline = Instant::now() + SOON;
    // runc's shim sometimes ends the program before it has come to its end; ours waits for it.
    let last = if ctr.is_ours() { "ended\n" } else { "err\n" };
    while !read().contains(last) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    assert!(read().contains(last), "no {last:?} in {:?}", read());
    notes.want("what it wrote", read().replace("ended\n", ""), "1\nout\nerr\n");
}
