//! What the server may rely on, one case a function.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tatami_protocol::agent::{ResizeRequest, Stdio};
use tatami_protocol::stream::{self, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

use crate::rig::{Ended, Rig, context, output};

pub(crate) type Case = fn(&Rig);

pub(crate) const ALL: &[(&str, Case)] = &[
    ("output_and_status_arrive", output_and_status_arrive),
    ("environment_user_and_host_name_are_the_specification's", environment_user_and_host_name),
    ("input_comes_back_unchanged", input_comes_back_unchanged),
    ("a_missing_command_is_refused_at_once", a_missing_command_is_refused_at_once),
    ("what_is_no_program_is_refused", what_is_no_program_is_refused),
    ("processes_join", processes_join),
    ("a_missing_command_cannot_join", a_missing_command_cannot_join),
    ("a_terminal_has_the_size_asked_for", a_terminal_has_the_size_asked_for),
    ("a_joining_terminal_has_its_size_from_the_start", a_joining_terminal_has_its_size),
    ("signals_arrive_and_stop_at_the_end", signals_arrive_and_stop_at_the_end),
    ("a_child_that_keeps_the_pipe_does_not_hold_up_the_exit", a_child_that_keeps_the_pipe),
    ("a_child_that_writes_for_ever_does_not_hold_up_the_exit", a_child_that_writes_for_ever),
    ("a_closed_stream_ends_its_writer", a_closed_stream_ends_its_writer),
    ("a_process_that_closed_its_input_does_not_hang_it", a_process_that_closed_its_input),
    ("calls_at_the_wrong_moment_are_refused", calls_at_the_wrong_moment_are_refused),
    ("malformed_requests_are_refused", malformed_requests_are_refused),
    ("a_created_container_can_be_deleted", a_created_container_can_be_deleted),
    ("many_short_processes_lose_nothing", many_short_processes_lose_nothing),
    ("many_at_once_lose_nothing", many_at_once_lose_nothing),
    ("the_container_is_confined", the_container_is_confined),
    ("a_seccomp_profile_is_applied", a_seccomp_profile_is_applied),
    ("a_tmpfs_is_like_what_it_covers", a_tmpfs_is_like_what_it_covers),
    ("a_tmpfs_that_is_too_small_for_the_image's_files_is_refused", a_tmpfs_that_is_too_small),
    ("nothing_is_left", nothing_is_left),
];

pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.expect_err("a refusal") {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("no status: {other}"),
    }
}

pub(crate) fn ended(status: u32, stdout: &str, stderr: &str) -> Ended {
    Ended { status, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

fn output_and_status_arrive(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(container.run(), ended(42, "out\n", "err\n"));
    let container = rig.container(&["sh", "-c", "seq 1 200000"]);
    let result = container.run();
    assert_eq!((result.status, result.stdout.lines().count()), (0, 200_000));
    assert!(result.stdout.ends_with("\n200000\n"));
}

fn environment_user_and_host_name(rig: &Rig) {
    let mut container =
        rig.container(&["sh", "-c", "echo $GREETING $(id -u):$(id -g) $$; cat /proc/sys/kernel/hostname"]);
    container.spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1001 });
    assert_eq!(container.run(), ended(0, "hello 1000:1001 1\nbox\n", ""));
    // The user may open its streams anew, as images that log to /dev/stdout do.
    let mut container = rig.container(&["sh", "-c", "echo again > /proc/self/fd/1"]);
    container.spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1001 });
    assert_eq!(container.run(), ended(0, "again\n", ""));
}

fn input_comes_back_unchanged(rig: &Rig) {
    const LENGTH: usize = 20_000_000;
    let sent: Vec<u8> = (0..LENGTH as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let container = rig.container(&["cat"]);
    container.create(Stdio { stdin: true, stdout: true, ..Default::default() }).unwrap();
    let (mut stdin, mut stdout) = (container.attach("", Kind::STDIN), container.attach("", Kind::STDOUT));
    container.start("").unwrap();
    let mut received = Vec::with_capacity(LENGTH);
    rig.wait(async {
        let send = async {
            stdin.write_all(&sent).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        tokio::join!(send, async { stdout.read_to_end(&mut received).await.unwrap() });
    });
    assert!(received == sent, "{} of {} bytes, or changed", received.len(), sent.len());
    assert_eq!(container.wait("").unwrap(), 0);
    container.delete().unwrap();
}

fn a_missing_command_is_refused_at_once(rig: &Rig) {
    let before = rig.left_over();
    let start = Instant::now();
    let (kind, message) = code(rig.container(&["no-such-command"]).create(output()));
    assert_eq!(kind, Code::NOT_FOUND);
    assert_eq!(message, "exec: \"no-such-command\": executable file not found in $PATH");
    let (kind, message) = code(rig.container(&["/no/such"]).create(output()));
    assert_eq!((kind, message.as_str()), (Code::NOT_FOUND, "exec: \"/no/such\": no such file or directory"));
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(rig.left_over(), before);
}

fn what_is_no_program_is_refused(rig: &Rig) {
    for (command, reason) in [("/data", "permission denied"), ("/bin", "is a directory")] {
        let (kind, message) = code(rig.container(&[command]).create(output()));
        assert_eq!((kind, message), (Code::PERMISSION_DENIED, format!("exec: {command:?}: {reason}")));
    }
    // Only the kernel can tell, and only when it tries.
    let container = rig.container(&["/garbage"]);
    container.create(Stdio::default()).unwrap();
    let (kind, message) = code(container.start(""));
    assert_eq!((kind, message.as_str()), (Code::PERMISSION_DENIED, "exec: \"/garbage\": exec format error"));
    container.delete().unwrap();
}

fn processes_join(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    assert_eq!(container.exec(&["sh", "-c", "cat /proc/1/cmdline; exit 7"]), ended(7, "sleep\x001000\0", ""));
    container.delete().unwrap();
}

fn a_missing_command_cannot_join(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    for (command, kind, status) in [
        ("nope", Code::NOT_FOUND, 127),
        ("/data", Code::PERMISSION_DENIED, 126),
        ("/garbage", Code::PERMISSION_DENIED, 126),
    ] {
        container.create_exec(command.trim_start_matches('/'), &[command], Stdio::default()).unwrap();
        assert_eq!(code(container.start(command.trim_start_matches('/'))).0, kind, "{command}");
        assert_eq!(container.wait(command.trim_start_matches('/')).unwrap(), status);
    }
    container.delete().unwrap();
}

fn terminal(rows: u32, columns: u32) -> Stdio {
    Stdio { terminal: true, rows, columns, ..Default::default() }
}

fn a_terminal_has_the_size_asked_for(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "stty size; read word; stty size; echo got $word; exit 3"]);
    container.create(terminal(33, 77)).unwrap();
    let mut stream = container.attach("", Kind::TERMINAL);
    container.start("").unwrap();
    let mut text = String::new();
    rig.wait(async {
        let mut buffer = [0; 7];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"33 77\r\n");
        let request = ResizeRequest { container_id: container.id.clone(), rows: 44, columns: 88, ..Default::default() };
        rig.client.resize_terminal(context(), &request).await.unwrap();
        stream.write_all(b"word\n").await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
    });
    assert_eq!(text, "word\r\n44 88\r\ngot word\r\n");
    assert_eq!(container.wait("").unwrap(), 3);
    container.delete().unwrap();
}

fn a_joining_terminal_has_its_size(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container.create_exec("t", &["stty", "size"], terminal(21, 43)).unwrap();
    let mut stream = container.attach("t", Kind::TERMINAL);
    container.start("t").unwrap();
    let mut text = String::new();
    rig.wait(stream.read_to_string(&mut text)).unwrap();
    assert_eq!((container.wait("t").unwrap(), text.as_str()), (0, "21 43\r\n"));
    container.delete().unwrap();
}

fn signals_arrive_and_stop_at_the_end(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container.create_exec("e", &["sleep", "1000"], Stdio::default()).unwrap();
    container.start("e").unwrap();
    container.signal("e", libc::SIGTERM, false).unwrap();
    assert_eq!(container.wait("e").unwrap(), 128 + 15);
    assert_eq!(code(container.signal("e", libc::SIGTERM, false)).0, Code::NOT_FOUND);
    assert_eq!(code(container.signal("", 99, false)).0, Code::INVALID_ARGUMENT);
    // The shell needs a moment to set its trap; until then it ignores the signal, as PID 1 does.
    while rig.wait(async { rig.client.signal_process(context(), &signal(&container.id, libc::SIGTERM)).await.is_ok() })
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(container.wait("").unwrap(), 5);
    container.delete().unwrap();
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container.signal("", libc::SIGKILL, true).unwrap();
    assert_eq!(container.wait("").unwrap(), 128 + 9);
    container.delete().unwrap();
}

fn signal(container_id: &str, number: i32) -> tatami_protocol::agent::SignalRequest {
    let (container_id, signal) = (container_id.to_owned(), number as u32);
    tatami_protocol::agent::SignalRequest { container_id, signal, ..Default::default() }
}

fn a_child_that_keeps_the_pipe(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    assert_eq!(container.exec(&["sh", "-c", "sleep 1000 & echo done"]), ended(0, "done\n", ""));
    container.delete().unwrap();
}

fn a_child_that_writes_for_ever(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    for (id, stdio, kind) in [
        ("pipe", Stdio { stdout: true, ..Default::default() }, Kind::STDOUT),
        ("terminal", terminal(24, 80), Kind::TERMINAL),
    ] {
        let script = "trap '' HUP; yes & sleep 0.1; echo last";
        container.create_exec(id, &["sh", "-c", script], stdio).unwrap();
        let mut stream = container.attach(id, kind);
        container.start(id).unwrap();
        let mut output = Vec::new();
        rig.wait(stream.read_to_end(&mut output)).unwrap();
        assert!(String::from_utf8_lossy(&output).contains("last"), "{id}");
        assert_eq!(container.wait(id).unwrap(), 0, "{id}");
        // Then its child has no reader left.
        container.delete_exec(id).unwrap();
    }
    container.delete().unwrap();
}

fn a_closed_stream_ends_its_writer(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container.create_exec("y", &["yes"], Stdio { stdout: true, ..Default::default() }).unwrap();
    let mut stdout = container.attach("y", Kind::STDOUT);
    container.start("y").unwrap();
    rig.wait(async { stdout.read_exact(&mut [0; 100_000]).await }).unwrap();
    drop(stdout);
    assert_eq!(container.wait("y").unwrap(), 128 + 13);
    container.delete().unwrap();
}

fn a_process_that_closed_its_input(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "exec <&-; sleep 0.2; echo done"]);
    container.create(Stdio { stdin: true, ..output() }).unwrap();
    let mut stdin = container.attach("", Kind::STDIN);
    let send = rig.runtime.spawn(async move { while stdin.write_all(&[0; 65536]).await.is_ok() {} });
    assert_eq!(container.finish(""), ended(0, "done\n", ""));
    rig.wait(send).unwrap();
    container.delete().unwrap();
}

fn calls_at_the_wrong_moment_are_refused(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    for result in [container.start("").map(drop), container.wait("").map(drop), container.delete()] {
        assert_eq!(code(result).0, Code::NOT_FOUND);
    }
    container.create(output()).unwrap();
    assert_eq!(code(container.create(output())).0, Code::ALREADY_EXISTS);
    let (kind, message) = code(container.start(""));
    assert_eq!(kind, Code::FAILED_PRECONDITION);
    assert!(message.contains("stream before starting"), "{message}");
    let streams = (container.attach("", Kind::STDOUT), container.attach("", Kind::STDERR));
    for (exec, kind) in [("", Kind::STDOUT), ("", Kind::STDIN), ("", Kind::TERMINAL), ("x", Kind::STDOUT)] {
        assert_eq!(rig.wait(rig.stream(&container.id, exec, kind)).1, stream::REFUSED, "{exec} {kind:?}");
    }
    container.start("").unwrap();
    assert_eq!(code(container.start("")).0, Code::FAILED_PRECONDITION);
    container.create_exec("e", &["sleep", "1000"], Stdio::default()).unwrap();
    assert_eq!(code(container.create_exec("e", &["true"], Stdio::default())).0, Code::ALREADY_EXISTS);
    assert_eq!(code(container.signal("e", 9, false)).0, Code::FAILED_PRECONDITION);
    container.start("e").unwrap();
    assert_eq!(code(container.delete_exec("e")).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(container.delete_exec("f")).0, Code::NOT_FOUND);
    container.delete().unwrap();
    drop(streams);
    assert_eq!(code(container.delete()).0, Code::NOT_FOUND);
}

fn malformed_requests_are_refused(rig: &Rig) {
    let mut container = rig.container(&["true"]);
    container.id = "../escape".to_owned();
    assert_eq!(code(container.create(Stdio::default())).0, Code::INVALID_ARGUMENT);
    let mut container = rig.container(&["true"]);
    container.spec["root"]["path"] = "relative".into();
    assert_eq!(code(container.create(Stdio::default())).0, Code::INVALID_ARGUMENT);
    container.spec["root"]["path"] = "/nonexistent/root".into();
    let (kind, message) = code(container.create(Stdio::default()));
    assert_eq!(kind, Code::INVALID_ARGUMENT);
    assert!(message.contains("/nonexistent/root"), "{message}");
    container.spec = "not an object".into();
    assert_eq!(code(container.create(Stdio::default())).0, Code::INVALID_ARGUMENT);
}

fn a_created_container_can_be_deleted(rig: &Rig) {
    let container = rig.container(&["true"]);
    container.create(Stdio::default()).unwrap();
    container.delete().unwrap();
    let container = rig.container(&["true"]);
    container.create(Stdio::default()).unwrap();
    container.signal("", libc::SIGKILL, false).unwrap();
    assert_eq!(container.wait("").unwrap(), 128 + 9);
    assert_eq!(code(container.start("")).0, Code::FAILED_PRECONDITION);
    container.delete().unwrap();
}

fn many_short_processes_lose_nothing(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    for number in 0..50 {
        let text = number.to_string();
        assert_eq!(container.exec(&["echo", &text]), ended(0, &format!("{number}\n"), ""));
    }
    container.delete().unwrap();
}

fn many_at_once_lose_nothing(rig: &Rig) {
    const COUNT: usize = 20;
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    let mut streams = Vec::new();
    for number in 0..COUNT {
        let id = number.to_string();
        let command = format!("echo {number}; exit {number}");
        container.create_exec(&id, &["sh", "-c", &command], Stdio { stdout: true, ..Default::default() }).unwrap();
        streams.push(container.attach(&id, Kind::STDOUT));
    }
    let results: Vec<_> = rig.wait(async {
        let mut tasks = Vec::new();
        for (number, mut stream) in streams.into_iter().enumerate() {
            let (client, request) = (rig.client.clone(), container.process(&number.to_string()));
            tasks.push(tokio::spawn(async move {
                client.start_process(context(), &request).await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                (client.wait_process(context(), &request).await.unwrap().exit_status, text)
            }));
        }
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap());
        }
        results
    });
    let expected: Vec<_> = (0..COUNT).map(|number| (number as u32, format!("{number}\n"))).collect();
    assert_eq!(results, expected);
    container.delete().unwrap();
}

fn the_container_is_confined(rig: &Rig) {
    let script = "grep ^0: /proc/self/cgroup; grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status; ulimit -n; ls /proc/1/fd; \
        cat /proc/kcore; echo x > /proc/sys/kernel/hostname; echo 1 > /sys/fs/cgroup/cgroup.procs";
    let result = rig.container(&["sh", "-c", script]).run();
    let lines: Vec<&str> = result.stdout.lines().collect();
    let (capabilities, rest) = (&lines[1..3], &lines[3..]);
    assert_eq!(lines[0], "0::/");
    assert!(
        capabilities.contains(&"CapEff:\t00000000000000e3") && capabilities.contains(&"CapBnd:\t00000000000000e3"),
        "{lines:?}"
    );
    assert_eq!(rest, ["NoNewPrivs:\t0", "1024", "0", "1", "2"]);
    assert_eq!(result.stderr.matches("Read-only file system").count(), 2, "{}", result.stderr);
}

fn a_seccomp_profile_is_applied(rig: &Rig) {
    let container_with_profile = |action: &str| {
        let mut container = rig.container(&["sh", "-c", "mkdir /tmp/$0 2>/dev/null; cd /tmp/$0 2>/dev/null", action]);
        container.spec["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": action }],
        });
        container.run().status
    };
    assert_eq!(container_with_profile("SCMP_ACT_ALLOW"), 0);
    assert_ne!(container_with_profile("SCMP_ACT_ERRNO"), 0);
}

/// A folder of the image that is not like others: with a group, permissions, a file in a folder, and a link to it.
fn skeleton(rig: &Rig) -> PathBuf {
    let folder = rig.root.join("skeleton");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("deep/note"), "from the image\n").unwrap();
    let _ = symlink("deep/note", folder.join("link"));
    chown(folder.join("deep/note"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o751)).unwrap();
    // As /var/run is one in many images; seen from the host, it leads elsewhere.
    let _ = symlink("/skeleton", rig.root.join("way"));
    folder
}

fn a_tmpfs_is_like_what_it_covers(rig: &Rig) {
    let folder = skeleton(rig);
    let show = "stat -c '%a %u:%g %n' /skeleton /skeleton/deep/note; cat /skeleton/link; echo mine > /skeleton/link; \
                ls -a /skeleton; grep -c ' /skeleton tmpfs .*nosuid.*,size=512k' /proc/mounts";
    for destination in ["/skeleton", "/way"] {
        let mut container = rig.container(&["sh", "-c", show]);
        let options = ["tmpcopyup", "nosuid", "rprivate", "size=512k"];
        let mount = json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options });
        container.spec["mounts"].as_array_mut().unwrap().push(mount);
        let shown = "751 0:0 /skeleton\n644 1000:1001 /skeleton/deep/note\nfrom the image\n.\n..\ndeep\nlink\n1\n";
        assert_eq!(container.run(), ended(0, shown, ""), "{destination}");
    }
    assert_eq!(fs::read_to_string(folder.join("link")).unwrap(), "from the image\n");
    let mut container = rig.container(&["sh", "-c", "stat -c '%a %n' /skeleton /new; ls -A /skeleton"]);
    for destination in ["/skeleton", "/new"] {
        let mount = json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": [] });
        container.spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    assert_eq!(container.run(), ended(0, "751 /skeleton\n1777 /new\n", ""));
    assert!(rig.left_over().is_empty(), "{:?}", rig.left_over());
}

fn a_tmpfs_that_is_too_small(rig: &Rig) {
    let folder = skeleton(rig);
    fs::write(folder.join("large"), vec![b'x'; 100_000]).unwrap();
    let mut container = rig.container(&["true"]);
    let options = ["size=64k", "tmpcopyup"];
    let mount = json!({ "destination": "/skeleton", "type": "tmpfs", "source": "tmpfs", "options": options });
    container.spec["mounts"].as_array_mut().unwrap().push(mount);
    let (kind, message) = code(container.create(Stdio::default()));
    fs::remove_file(folder.join("large")).unwrap();
    assert_eq!(kind, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("tmpcopyup: cannot write ") && message.contains("No space left"), "{message}");
    assert!(rig.left_over().is_empty(), "{:?}", rig.left_over());
}

fn nothing_is_left(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "sleep 1000 & exec true"]);
    assert_eq!(container.run().status, 0);
    assert!(rig.left_over().is_empty(), "{:?}", rig.left_over());
}
