//! What a client may get wrong, and what it is told: an error of the kind that it expects, soon, and nothing left behind.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use tatami_tests::compare::{Case, Notes, Stage};
use tatami_tests::daemons::{Grpc, IMAGE, field};
use tatami_tests::{Finished, Running};

use crate::stage::{Ctr, FORGOTTEN, PATIENCE, SOON, error, error_or_ok, exit_status};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("a command that is not there", no_command).long(),
    Case::new("a name that is taken", taken),
    Case::new("calls in the wrong state", wrong_state).long(),
    Case::new("a specification that is none", bad_specification).long(),
    Case::new("a bundle without a specification", no_specification).long(),
    Case::new("streams that vanish", vanished).long(),
    Case::new("a start that nobody follows", unwanted).long().without_reference("runc's server waits for ever"),
    Case::new("requests that nobody understands", not_understood).long(),
    Case::new("an exec into streams that have gone", exec_without_streams).long(),
    Case::new("requests after the end", after_the_end).long().differs(&[(
        "ResizePty: answered",
        "runc's shim says yes to a terminal that there is none of; ours says why not",
    )]),
];

fn no_command(ctr: &mut Ctr, notes: &mut Notes) {
    let start = Instant::now();
    let finished = ctr.run("a", &["--rm"], &["/no/such/program"]);
    notes.want("status", finished.status, 1);
    notes.see("kind of error", error(&finished));
    let text = finished.err();
    notes.want("says why", text.contains("/no/such/program") && text.contains("no such file or directory"), true);
    notes.want("soon", start.elapsed() < SOON, true);
    notes.see("task", ctr.status("a"));
    let finished = ctr.run("b", &["--rm", "--cwd", "/etc/passwd"], &["true"]);
    notes.want("a folder that is a file", finished.status, 1);
    let finished = ctr.run("c", &["--rm", "--env", "PATH"], &["sh", "-c", "true"]);
    notes.want("without PATH it is sought in the usual folders", finished.status, 0);
}

fn taken(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    notes.see("the container's", error(&ctr.run("a", &["-d"], &["true"])));
    notes.see("the task's", error(&ctr.task("a", &["start", "-d"])));
    notes.want("the first one", ctr.status("a"), "RUNNING");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn wrong_state(ctr: &mut Ctr, notes: &mut Notes) {
    // runc's shim leaves these to the kind of error that says nothing.
    let ours = ctr.is_ours();
    let refused = |notes: &mut Notes, what: &str, finished: Finished| {
        notes.want(format!("{what}: refused"), finished.status != 0, true);
        if ours {
            assert_eq!(error(&finished), "failed precondition", "{what}: {}", finished.err());
        }
    };
    notes.see("kill of none", error(&ctr.task("a", &["kill", "-s", "SIGKILL"])));
    ctr.detached("a", &[], &["sleep", "1000"]);
    let rm = ctr.task("a", &["rm"]);
    notes.see("rm while it runs", error(&rm));
    refused(notes, "resume while it runs", ctr.task("a", &["resume"]));
    notes.want("pause", error_or_ok(&ctr.task("a", &["pause"])), "ok");
    refused(notes, "pause again", ctr.task("a", &["pause"]));
    refused(notes, "exec while paused", ctr.exec("a", "e0", &[], &["true"]));
    notes.want("resume", error_or_ok(&ctr.task("a", &["resume"])), "ok");
    notes.want("a signal that is none is refused", ctr.task("a", &["kill", "-s", "99"]).status != 0, true);
    notes.want(
        "kill of an exec that is none is refused",
        ctr.task("a", &["kill", "--exec-id", "e9"]).status != 0,
        true,
    );
    notes.see("checkpoint", ctr.task("a", &["checkpoint"]).status != 0);
    notes.want("kill", error_or_ok(&ctr.task("a", &["kill", "-s", "SIGKILL"])), "ok");
    notes.want("status", ctr.status_soon("a", "STOPPED"), "STOPPED");
    notes.see("kill after the end", error_or_ok(&ctr.task("a", &["kill", "-s", "SIGKILL"])));
    refused(notes, "exec after the end", ctr.exec("a", "e1", &[], &["true"]));
    refused(notes, "pause after the end", ctr.task("a", &["pause"]));
    refused(notes, "resume after the end", ctr.task("a", &["resume"]));
    notes.see("start after the end", error_or_ok(&ctr.task("a", &["start", "-d"])));
    notes.want("rm", exit_status(&ctr.task("a", &["rm"])), 137);
    notes.see("rm again", error(&ctr.task("a", &["rm"])));
    // ctr pauses a task for its checkpoint; how far a refused exec comes is the runtime's affair. The end is told once.
    notes.want("told of its end", ctr.events("a", "exit(137)").matches("exit(137)").count(), 1);
}

fn bad_specification(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch();
    let config = folder.join("config.json");
    let id = ctr.id("a");
    let run = |text: &str| {
        fs::write(&config, text).expect("a file");
        let path = config.display().to_string();
        let words = ["run", "--runtime", ctr.runtime(), "--config", &path, &id];
        let start = Instant::now();
        let finished = ctr.ctr(&words);
        ctr.ctr(&["container", "rm", &id]);
        (finished.status != 0, start.elapsed() < SOON)
    };
    let root = folder.join("empty");
    fs::create_dir(&root).expect("a folder");
    let root = root.display();
    let linux = r#""linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}"#;
    let process = r#""process":{"args":["/x"],"cwd":"/","user":{"uid":0,"gid":0}}"#;
    let broken = [
        ("no JSON", "{".to_owned()),
        ("empty", "{}".to_owned()),
        ("no process", format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"{root}"}},{linux}}}"#)),
        ("no root", format!(r#"{{"ociVersion":"1.0.2",{process},{linux}}}"#)),
        (
            "a root that is not there",
            format!(r#"{{"ociVersion":"1.0.2",{process},"root":{{"path":"/no/such"}},{linux}}}"#),
        ),
        ("an empty root", format!(r#"{{"ociVersion":"1.0.2",{process},"root":{{"path":"{root}"}},{linux}}}"#)),
        (
            "a folder that is relative",
            format!(
                r#"{{"ociVersion":"1.0.2","process":{{"args":["/x"],"cwd":"x"}},"root":{{"path":"{root}"}},{linux}}}"#
            ),
        ),
    ];
    for (what, text) in broken {
        let (refused, soon) = run(&text);
        notes.want(format!("{what}: refused"), refused, true);
        notes.want(format!("{what}: soon"), soon, true);
    }
}

fn no_specification(ctr: &mut Ctr, notes: &mut Notes) {
    let bundle = ctr.scratch().join("bundle");
    fs::create_dir(&bundle).expect("a folder");
    let call = |what: &str| call_shim(ctr, &bundle, what);
    let start = Instant::now();
    let finished = call("start");
    notes.see("start is refused", finished.status != 0);
    // runc's shim says less.
    if ctr.is_ours() {
        assert!(finished.err().contains("config.json") || finished.out().contains("config.json"), "{}", finished.err());
    }
    notes.want("soon", start.elapsed() < SOON, true);
    let deleted = call("delete");
    // runc's shim sometimes fails at what is not there.
    if ctr.is_ours() {
        assert_eq!(deleted.status, 0, "{}", deleted.err());
    }
}

/// The runtime's shim as containerd calls it, for this story's container `a`.
fn call_shim(ctr: &Ctr, bundle: &Path, what: &str) -> Finished {
    let command = ctr.containerd().shim(ctr.runtime(), &ctr.id("a"), bundle, what);
    Running::start(command).finish_within(PATIENCE)
}

/// A client that is killed before it knows of the server that it started; what it wrote to `start` may be cut short, or rubbish.
fn unwanted(ctr: &mut Ctr, notes: &mut Notes) {
    let text = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"network"}]}}"#;
    let cut_short = field(1, ctr.id("a").as_bytes());
    let inputs = [
        ("nothing", Vec::new()),
        ("rubbish", vec![0xff; 100]),
        ("a message cut short", cut_short[..cut_short.len() - 1].to_vec()),
        ("more than is read", vec![b'x'; 3 << 20]),
    ];
    for (number, (what, input)) in inputs.into_iter().enumerate() {
        let bundle = ctr.scratch().join(format!("bundle{number}"));
        fs::create_dir(&bundle).expect("a folder");
        fs::write(bundle.join("config.json"), text).expect("a file");
        let mut command = ctr.containerd().shim(ctr.runtime(), &ctr.id(&format!("a{number}")), &bundle, "start");
        command.stdin(Stdio::piped());
        let started = Running::start(command).finish_with_input(input);
        notes.want(format!("start after {what}"), format!("{} {}", started.status, started.err()), "0 ");
        let address = started.out();
        let socket = Path::new(address.trim().trim_start_matches("unix://"));
        notes.want(format!("{what}: somebody listens"), UnixStream::connect(socket).is_ok(), true);
    }
    notes.want("nothing left", ctr.containerd().remains_within(FORGOTTEN).join("\n"), "");
}

fn vanished(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch().join("fifos");
    fs::create_dir(&folder).expect("a folder");
    // A client that stays away: the fifos go from under the container, and then it writes.
    let script = "trap 'echo words; exit 3' TERM; while :; do echo line; sleep 0.2; done";
    let running = ctr.start("a", &["--fifo-dir", &folder.display().to_string()], &["sh", "-c", script]);
    running.wait_for("line\nline");
    fs::remove_dir_all(&folder).expect("the folder goes");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.finish_within(PATIENCE);
    notes.want("status", ctr.status("a"), "RUNNING");
    notes.want("an exec", ctr.exec("a", "e", &[], &["echo", "here"]).out(), "here\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn not_understood(ctr: &mut Ctr, notes: &mut Notes) {
    let id = ctr.id("a");
    let made = ctr.ctr(&["container", "create", "--runtime", ctr.runtime(), IMAGE, &id, "sleep", "1000"]);
    notes.want("container", error_or_ok(&made), "ok");
    let call = tasks(ctr);
    // containerd itself refuses options that it cannot read, containerd 2 also those that it does not expect; 1.7 drops them, and
    // what comes with them must not run.
    let options = field(9, &field(1, b"containerd.runc.v1.CheckpointOptions"));
    let root = field(3, &[field(1, b"nosuchfs"), field(2, b"none")].concat());
    let (invalid, not_found) = ("3: ", "5: ");
    let requests = [
        ("options for something else", [options, root.clone()].concat(), invalid),
        ("a root of a kind that is none", root, invalid),
        ("output into a fifo that has gone", field(5, b"/no/such/fifo"), not_found),
    ];
    for (what, rest, code) in requests {
        let start = Instant::now();
        let answer = call("Create", &[field(1, id.as_bytes()), rest]);
        notes.want(format!("{what}: refused"), answer.is_err(), true);
        notes.want(format!("{what}: soon"), start.elapsed() < SOON, true);
        // runc's shim leaves most to the kind of error that says nothing.
        if ctr.is_ours() {
            let error = answer.expect_err("a refusal");
            let itself = error.contains("invalid task create option");
            assert!(itself || error.starts_with(code), "{what}: not of the kind {code}{error}");
        }
        notes.want(format!("{what}: no task"), ctr.status("a"), "none");
    }
    notes.want("container removed", error_or_ok(&ctr.ctr(&["container", "rm", &id])), "ok");
    if !ctr.is_ours() {
        // Where runc came as far as filling the empty root, its shim leaves it, and containerd the bundle.
        let _ = fs::remove_dir_all(ctr.containerd().bundle(&id));
    }
    notes.want("nothing left", ctr.containerd().remains().join("\n"), "");
}

/// containerd's own service for tasks, for what `ctr` never sends.
fn tasks(ctr: &Ctr) -> impl Fn(&str, &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let service = Grpc::new(&ctr.containerd().socket(), &ctr.containerd().home().containers_cgroup());
    move |method, fields| service.call(&format!("/containerd.services.tasks.v1.Tasks/{method}"), &fields.concat())
}

fn exec_without_streams(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["sleep", "1000"]);
    let id = field(1, ctr.id("a").as_bytes());
    let call = tasks(ctr);
    let process = br#"{"args":["echo","words"],"cwd":"/","user":{"uid":0,"gid":0}}"#;
    let kind = field(1, b"types.containerd.io/opencontainers/runtime-spec/1/Process");
    let process = field(6, &[kind, field(2, process)].concat());
    for (exec, stream) in [("e1", 2), ("e2", 3), ("e3", 4)] {
        let start = Instant::now();
        let named = field(7, exec.as_bytes());
        let added = call("Exec", &[id.clone(), field(stream, b"/no/such/fifo"), process.clone(), named]);
        notes.want(format!("{exec}: added"), added.is_ok(), true);
        let started = call("Start", &[id.clone(), field(2, exec.as_bytes())]);
        notes.want(format!("{exec}: start is refused"), started.is_err(), true);
        notes.want(format!("{exec}: soon"), start.elapsed() < SOON, true);
        if ctr.is_ours() {
            let error = started.expect_err("a refusal");
            assert!(error.starts_with("5: ") && error.contains("/no/such/fifo"), "{exec}: {error}");
        }
        notes.see(format!("{exec}: delete"), call("DeleteProcess", &[id.clone(), field(2, exec.as_bytes())]).is_ok());
    }
    notes.want("another one after it", ctr.exec("a", "e4", &[], &["echo", "ok"]).out(), "ok\n");
    notes.want("end", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
}

fn after_the_end(ctr: &mut Ctr, notes: &mut Notes) {
    ctr.detached("a", &[], &["true"]);
    notes.want("status", ctr.status_soon("a", "STOPPED"), "STOPPED");
    let id = field(1, ctr.id("a").as_bytes());
    let call = tasks(ctr);
    let resources = [
        field(1, b"types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"),
        field(2, br#"{"pids":{"limit":100}}"#),
    ];
    let size = vec![3 << 3, 80, 4 << 3, 24];
    let requests = [
        ("Update", vec![id.clone(), field(2, &resources.concat())]),
        ("ResizePty", vec![id.clone(), size]),
        ("ListPids", vec![id.clone()]),
        ("CloseIO", vec![id.clone(), vec![3 << 3, 1]]),
        ("Metrics", vec![field(1, format!("id=={}", ctr.id("a")).as_bytes())]),
    ];
    for (method, fields) in requests {
        let start = Instant::now();
        let answer = call(method, &fields);
        // runc's shim leaves most refusals to the kind of error that says nothing, so the kind is looked at with ours alone.
        notes.see(format!("{method}: answered"), answer.is_ok());
        notes.want(format!("{method}: soon"), start.elapsed() < SOON, true);
        if let (true, Err(error)) = (ctr.is_ours(), &answer) {
            assert!(error.starts_with("9: "), "{method}: not a failed precondition: {error}");
        }
    }
    notes.want("rm", exit_status(&ctr.task("a", &["rm"])), 0);
    notes.want("told of its end", ctr.events("a", "delete"), "create start exit(0) delete");
}
