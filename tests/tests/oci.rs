//! The OCI runtime's command line, as Podman and Docker call it: the life cycle, its errors, and that nothing is left of either.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tatami_tests::{Finished, PATIENCE, Running, Tatami};

/// A runtime with a root of its own, and a bundle.
struct Runtime {
    tatami: Tatami,
    folder: PathBuf,
}

/// Says `up`, and ends with 7 at TERM.
const PATIENT: &str = "trap 'echo term; exit 7' TERM; echo up; while :; do sleep 0.1; done";

impl Runtime {
    fn new() -> Self {
        let tatami = Tatami::new();
        let folder = tatami.scratch();
        let rootfs = folder.join("bundle/rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
        for name in ["sh", "sleep", "stty", "cat", "true", "uname"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
        }
        let runtime = Self { tatami, folder };
        runtime.call(&["spec", "--bundle", &runtime.bundle()]).expect_status(0);
        runtime.change(|config| {
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
        });
        runtime.command(PATIENT);
        runtime
    }

    fn bundle(&self) -> String {
        self.folder.join("bundle").display().to_string()
    }

    /// Changes the bundle's config.json.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.folder.join("bundle/config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn command(&self, script: &str) {
        self.change(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    }

    fn words(&self, words: &[&str]) -> Command {
        let root = self.folder.join("root").display().to_string();
        self.tatami.command(&[&["oci", "--root", &root], words].concat())
    }

    fn call(&self, words: &[&str]) -> Finished {
        Running::start(self.words(words)).finish()
    }

    /// `create`, with the container's output in a file, as an engine's monitor has it in a pipe.
    fn create(&self, id: &str, options: &[&str]) -> i32 {
        self.create_into(id, options, &self.folder.join("out"))
    }

    fn create_into(&self, id: &str, options: &[&str], path: &Path) -> i32 {
        let out = File::create(path).unwrap();
        let bundle = self.bundle();
        let mut command = self.words(&[&["create", "--bundle", bundle.as_str()], options, &[id]].concat());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        command.status().unwrap().code().unwrap_or(-1)
    }

    fn out(&self) -> String {
        fs::read_to_string(self.folder.join("out")).unwrap_or_default()
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.call(&["state", id]).expect_status(0).out()).unwrap()
    }

    /// The process that stands for a container on the host.
    fn keeper(&self, id: &str) -> Pid {
        Pid::from_raw(self.state(id)["pid"].as_i64().unwrap() as i32)
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "{what} does not come; output: {}", self.out());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_status(&self, id: &str, status: &str) {
        self.wait_until(status, || self.state(id)["status"] == status);
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_life_from_create_to_delete() {
    let runtime = Runtime::new();
    let pid_file = runtime.folder.join("pid");
    assert_eq!(runtime.create("c1", &["--pid-file", pid_file.to_str().unwrap()]), 0, "{}", runtime.out());
    let state = runtime.state("c1");
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("c1")));
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    runtime.call(&["pause", "c1"]).expect_error(1, &["container not running"]);
    runtime.call(&["create", "--bundle", &runtime.bundle(), "c1"]).expect_error(1, &["already exists"]);
    runtime.call(&["start", "c1"]).expect_status(0);
    runtime.wait_until("up", || runtime.out().contains("up"));
    runtime.call(&["start", "c1"]).expect_error(1, &["already running"]);
    runtime.call(&["delete", "c1"]).expect_error(1, &["not stopped", "running"]);
    assert_eq!(runtime.call(&["list", "-q"]).expect_status(0).out(), "c1\n");
    runtime.call(&["exec", "c1", "sh", "-c", "exit 5"]).expect_status(5);
    runtime.call(&["exec", "c1", "no-such"]).expect_error(255, &["no-such", "not found in $PATH"]);
    runtime.call(&["pause", "c1"]).expect_status(0);
    assert_eq!(runtime.state("c1")["status"], "paused");
    runtime.call(&["exec", "c1", "true"]).expect_error(255, &["paused"]);
    runtime.call(&["resume", "c1"]).expect_status(0);
    runtime.call(&["resume", "c1"]).expect_error(1, &["container not paused"]);
    runtime.call(&["update", "--pids-limit", "50", "c1"]).expect_status(0);
    let stats: Value =
        serde_json::from_str(&runtime.call(&["events", "--stats", "c1"]).expect_status(0).out()).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 50);
    let pids = runtime.call(&["ps", "--format", "json", "c1"]).expect_status(0).out();
    assert_eq!(pids.trim(), format!("[{}]", state["pid"]));
    runtime.call(&["checkpoint", "c1"]).expect_error(1, &["checkpoints are not supported"]);
    runtime.call(&["kill", "c1", "TERM"]).expect_status(0);
    runtime.wait_for_status("c1", "stopped");
    assert!(runtime.out().contains("term"), "{}", runtime.out());
    runtime.call(&["kill", "c1"]).expect_error(1, &["container not running"]);
    runtime.call(&["start", "c1"]).expect_error(1, &["has stopped"]);
    runtime.call(&["delete", "c1"]).expect_status(0);
    runtime.call(&["state", "c1"]).expect_error(1, &["container does not exist"]);
    runtime.call(&["delete", "--force", "c1"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn run_has_the_commands_streams_and_status() {
    let runtime = Runtime::new();
    runtime.command("echo out; echo err >&2; exit 42");
    let ran = runtime.call(&["run", "--bundle", &runtime.bundle(), "c1"]).expect_status(42);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("out\n", "err\n"));
    runtime.command("kill -9 $$");
    runtime.call(&["run", "--bundle", &runtime.bundle(), "c1"]);
    runtime.change(|config| config["process"]["args"] = json!(["no-such"]));
    runtime.call(&["run", "--bundle", &runtime.bundle(), "c1"]).expect_error(1, &["no-such", "not found in $PATH"]);
    assert_eq!(runtime.call(&["list", "-q"]).out(), "");
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_keepers_signals_and_its_end_are_the_containers() {
    let runtime = Runtime::new();
    assert_eq!(runtime.create("c1", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c1"]).expect_status(0);
    runtime.wait_until("up", || runtime.out().contains("up"));
    kill(runtime.keeper("c1"), Signal::SIGTERM).unwrap();
    runtime.wait_for_status("c1", "stopped");
    assert!(runtime.out().contains("term"), "{}", runtime.out());
    runtime.call(&["delete", "c1"]).expect_status(0);
    assert_eq!(runtime.create("c2", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c2"]).expect_status(0);
    kill(runtime.keeper("c2"), Signal::SIGKILL).unwrap();
    runtime.wait_for_status("c2", "stopped");
    runtime.call(&["delete", "c2"]).expect_status(0);
}

/// Does something with each at the same time.
fn together(ids: &[String], work: impl Fn(&str) + Sync) {
    thread::scope(|scope| ids.iter().for_each(|id| drop(scope.spawn(|| work(id)))));
}

#[test]
#[ignore = "boots a guest: make test"]
fn many_at_once_end_each_in_its_own_way() {
    const OF_EACH_KIND: usize = 4;
    let runtime = Runtime::new();
    let [told, kept, lost] =
        ["told", "kept", "lost"].map(|kind| (0..OF_EACH_KIND).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>());
    let all = [told.clone(), kept.clone(), lost.clone()].concat();
    let said = |id: &str| fs::read_to_string(runtime.folder.join(id)).unwrap();
    together(&all, |id| {
        assert_eq!(runtime.create_into(id, &[], &runtime.folder.join(id)), 0, "{id}: {}", said(id));
        runtime.call(&["start", id]).expect_status(0);
        runtime.wait_until(id, || said(id) == "up\n");
    });
    together(&[told.clone(), kept.clone()].concat(), |id| {
        if id.starts_with("told") {
            runtime.call(&["kill", id]).expect_status(0);
        } else {
            kill(runtime.keeper(id), Signal::SIGKILL).unwrap();
        }
        runtime.wait_for_status(id, "stopped");
        runtime.call(&["delete", id]).expect_status(0);
    });
    told.iter().for_each(|id| assert_eq!(said(id), "up\nterm\n", "{id}"));
    lost.iter().for_each(|id| assert_eq!(runtime.state(id)["status"], "running", "{id}"));
    let processes = runtime.tatami.processes();
    let machines: Vec<_> = processes.iter().filter(|process| process.command.starts_with("tatami-vmm")).collect();
    assert_eq!(machines.len(), OF_EACH_KIND, "{processes:?}");
    machines.iter().for_each(|machine| kill(Pid::from_raw(machine.pid), Signal::SIGKILL).unwrap());
    together(&lost, |id| {
        runtime.wait_for_status(id, "stopped");
        runtime.call(&["delete", id]).expect_status(0);
    });
    assert_eq!(runtime.call(&["list", "-q"]).out(), "");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_console_socket_gets_the_terminal() {
    let runtime = Runtime::new();
    runtime.change(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 33, "width": 101 });
    });
    runtime.command(
        "stty size; read line; echo got $line; until test \"$(stty size)\" = '44 102'; do sleep 0.1; done; exit 5",
    );
    let path = runtime.folder.join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let taken = thread::spawn(move || take_terminal(&listener));
    assert_eq!(runtime.create("c1", &["--console-socket", path.to_str().unwrap()]), 0, "{}", runtime.out());
    let mut keyboard = taken.join().unwrap();
    let (screen, mut shown) = (watch(keyboard.try_clone().unwrap()), String::new());
    runtime.call(&["start", "c1"]).expect_status(0);
    wait_for(&screen, &mut shown, "33 101");
    keyboard.write_all(b"typed\r").unwrap();
    wait_for(&screen, &mut shown, "got typed");
    tcsetwinsize(&keyboard, Winsize { ws_row: 44, ws_col: 102, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    runtime.wait_for_status("c1", "stopped");
    runtime.call(&["delete", "c1"]).expect_status(0);
}

/// The terminal that somebody hands over to `listener`.
fn take_terminal(listener: &UnixListener) -> File {
    let (connection, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut taken = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut taken, RecvFlags::empty()).unwrap();
    let files = taken.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    File::from(files.expect("a terminal is handed over"))
}

/// What is shown on a terminal, piece by piece.
fn watch(mut terminal: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // A terminal whose last user went away reads as an error.
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn wait_for(screen: &Receiver<Vec<u8>>, shown: &mut String, text: &str) {
    while !shown.contains(text) {
        let piece = screen.recv_timeout(PATIENCE);
        let piece = piece.unwrap_or_else(|error| panic!("{text:?} does not come ({error}), but {shown:?}"));
        shown.push_str(&String::from_utf8_lossy(&piece));
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_keeper_shows_the_containers_files_and_not_the_hosts() {
    let runtime = Runtime::new();
    let shared = runtime.folder.join("shared");
    fs::create_dir(&shared).unwrap();
    let mount =
        |to: &str, how: &str| json!({ "destination": to, "type": "bind", "source": shared, "options": ["rbind", how] });
    runtime.change(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.extend([mount("/tmp/shared", "rw"), mount("/tmp/same", "ro")]);
    });
    for name in ["shared", "same"] {
        fs::create_dir_all(runtime.folder.join("bundle/rootfs/tmp").join(name)).unwrap();
    }
    assert_eq!(runtime.create("c1", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c1"]).expect_status(0);
    runtime.wait_until("up", || runtime.out().contains("up"));
    let pid = runtime.state("c1")["pid"].to_string();
    // As Podman does to copy files.
    let inside = |script: &str| {
        let words = ["--target", &pid, "--mount", "--pid", "/bin/busybox", "sh", "-c", script];
        let output = Command::new("nsenter").args(words).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    assert_eq!(inside("ls -d /etc /usr /bin 2>/dev/null"), "/bin");
    assert_eq!(inside("echo kept >/tmp/shared/made; cat /tmp/same/made"), "kept");
    assert!(inside("echo lost >/tmp/same/made").contains("Read-only"));
    assert_eq!(fs::read_to_string(shared.join("made")).unwrap(), "kept\n");
    assert_eq!(runtime.call(&["exec", "c1", "cat", "/tmp/shared/made"]).expect_status(0).out(), "kept\n");
    // Itself, and whoever looks.
    assert!(inside("ls -d /proc/[0-9]* | wc -l").parse::<u32>().unwrap() < 5);
    runtime.call(&["delete", "--force", "c1"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_container_that_names_anothers_namespaces_is_in_its_machine() {
    let runtime = Runtime::new();
    assert_eq!(runtime.create("c1", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c1"]).expect_status(0);
    runtime.wait_until("up", || runtime.out().contains("up"));
    let pid = runtime.state("c1")["pid"].to_string();
    let namespace = |kind: &str, name: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") });
    let own = |kind: &str| json!({ "type": kind });
    let with = |namespaces: &[Value]| {
        let all = [&[own("mount"), own("ipc")], namespaces].concat();
        runtime.change(|config| config["linux"]["namespaces"] = json!(all));
    };
    with(&[namespace("pid", "pid"), own("network")]);
    runtime.call(&["create", "--bundle", &runtime.bundle(), "c2"]).expect_error(1, &["c1", "a network of its own"]);
    with(&[namespace("pid", "pid"), namespace("network", "net"), namespace("uts", "uts")]);
    runtime.command("cat /proc/1/cmdline; exit 4");
    runtime.call(&["run", "--bundle", &runtime.bundle(), "c2"]).expect_status(4);
    let listed = runtime.call(&["list", "-q"]).expect_status(0).out();
    assert_eq!(listed, "c1\n");
    runtime.call(&["exec", "c1", "true"]).expect_status(0);
    runtime.call(&["delete", "--force", "c1"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn containers_of_a_pod_by_crio_share_the_namespaces_that_it_keeps_by_files() {
    let runtime = Runtime::new();
    // Nothing is there: the guest has its own.
    let kept = |kind: &str| json!({ "type": kind, "path": runtime.folder.join(kind) });
    let describe = |kind: &str, pod: &str, network: Value| {
        runtime.change(|config| {
            let (this, whose) = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID");
            config["annotations"] = json!({ this: kind, whose: pod });
            config["linux"]["namespaces"] =
                json!([{ "type": "mount" }, { "type": "pid" }, network, kept("ipc"), kept("uts")]);
        });
    };
    describe("sandbox", "c1", json!({ "type": "network" }));
    assert_eq!(runtime.create("c1", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c1"]).expect_status(0);
    let seen = |id: &str| {
        let namespaces = ["exec", id, "sh", "-c", "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"];
        runtime.call(&namespaces).expect_status(0).out()
    };
    let network = json!({ "type": "network", "path": format!("/proc/{}/ns/net", runtime.state("c1")["pid"]) });
    describe("container", "c1", network);
    assert_eq!(runtime.create("c2", &[]), 0, "{}", runtime.out());
    runtime.call(&["start", "c2"]).expect_status(0);
    assert_eq!(seen("c2"), seen("c1"));
    runtime.call(&["delete", "--force", "c2"]).expect_status(0);
    runtime.call(&["delete", "--force", "c1"]).expect_status(0);
    describe("container", "c1", json!({ "type": "network" }));
    runtime.call(&["create", "--bundle", &runtime.bundle(), "c2"]).expect_error(1, &["c1", "drop_infra_ctr"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn hooks_run_in_their_order() {
    let runtime = Runtime::new();
    let told = runtime.folder.join("told").display().to_string();
    runtime.change(|config| {
        for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
            let script = format!("echo {kind} >> {told}");
            config["hooks"][kind] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
        }
    });
    runtime.command("exit 0");
    runtime.call(&["run", "--bundle", &runtime.bundle(), "c1"]).expect_status(0);
    assert_eq!(fs::read_to_string(&told).unwrap(), "prestart\ncreateRuntime\npoststart\npoststop\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_is_wrong_is_said_in_one_line_and_nothing_is_left() {
    let runtime = Runtime::new();
    let bundle = runtime.bundle();
    let create = |words: &[&str]| runtime.call(&[&["create"], words].concat());
    let config = format!("{bundle}/config.json");
    create(&["--bundle", &config, "c1"]).expect_error(1, &["config.json", "not a folder"]);
    create(&["--bundle", "/no/such", "c1"]).expect_error(1, &["/no/such"]);
    for id in ["a/b", "../a", ""] {
        create(&["--bundle", &bundle, id]).expect_error(1, &["invalid container ID"]);
        runtime.call(&["state", id]).expect_error(1, &["invalid container ID"]);
    }
    create(&["--frob", "c1"]).expect_error(1, &["not defined", "frob"]);
    create(&["--bundle", &bundle, "--console-socket", "/s", "c1"]).expect_error(1, &["console socket"]);
    runtime.change(|config| config["process"]["terminal"] = json!(true));
    create(&["--bundle", &bundle, "c1"]).expect_error(1, &["cannot allocate tty"]);
    let socket = runtime.folder.join("console.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let socket = socket.display().to_string();
    create(&["--bundle", &bundle, "--console-socket", &socket, "c1"]).expect_error(1, &[&socket]);
    let root = runtime.folder.join("root");
    assert!(fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_none()));
    runtime.change(|config| {
        config["process"]["terminal"] = json!(false);
        config["mounts"] = json!([{ "destination": "/x", "type": "nfs", "source": "h:/x" }]);
    });
    create(&["--bundle", &bundle, "c1"]).expect_error(1, &["nfs"]);
    runtime.call(&["state", "c1"]).expect_error(1, &["does not exist"]);
    half_written(&runtime, &root);
    let log = runtime.folder.join("log").display().to_string();
    runtime.call(&["--log", &log, "--log-format", "json", "state", "none"]).expect_status(1);
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
}

/// A folder whose maker was killed is no container, and is removed when somebody insists.
fn half_written(runtime: &Runtime, root: &Path) {
    fs::create_dir_all(root.join("half")).unwrap();
    fs::write(root.join("half/state.json"), "{\"id\":").unwrap();
    nix::unistd::mkfifo(&root.join("half/stdin"), Mode::S_IRWXU).unwrap();
    assert_eq!(runtime.call(&["list", "-q"]).expect_status(0).out(), "");
    runtime.call(&["delete", "half"]).expect_error(1, &["half"]);
    runtime.call(&["delete", "--force", "half"]).expect_status(0);
    assert!(!root.join("half").exists());
}
