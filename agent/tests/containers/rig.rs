//! The agent in namespaces of its own, and its client.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tatami_agent::{Listener, Sandbox, Server, Zygote};
use tatami_protocol::agent::{
    ContainerRequest, CreateContainerRequest, CreateExecRequest, OomRequest, ProcessRequest, ShutdownRequest,
    SignalRequest, Stats, Stdio, UpdateRequest,
};
use tatami_protocol::agent_ttrpc::AgentClient;
use tatami_protocol::stream::{self, Kind, StreamHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use ttrpc::context::Context;

/// Where the agent has its control groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// The argument that makes this binary the agent.
pub(crate) const SERVE: &str = "--serve";
/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const CAPABILITIES: &[&str] = &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"];
const APPLETS: &[&str] = &[
    "cat", "chmod", "dd", "echo", "env", "false", "grep", "head", "id", "ls", "mkdir", "mknod", "ps", "pwd", "rm",
    "seq", "sh", "sleep", "stat", "stty", "tail", "test", "touch", "tr", "true", "yes",
];

/// The agent's part: serves on sockets in `folder`; ends by a shutdown request.
pub(crate) fn serve(folder: &Path) {
    let mount = |arguments: &[&str]| {
        assert!(Command::new("mount").args(arguments).status().unwrap().success(), "mount {arguments:?}");
    };
    mount(&["-t", "tmpfs", "run", "/run"]);
    // Mounted in its own place once more, it is busy to some kernels.
    if !Path::new(GROUPS).join("cgroup.controllers").exists() {
        mount(&["-t", "cgroup2", "cgroup", GROUPS]);
    }
    let own = Path::new(GROUPS).join(format!("tatami-test{}", folder.file_name().unwrap().display()));
    for name in fs::read_to_string(format!("{GROUPS}/cgroup.controllers")).unwrap().split_whitespace() {
        // What a machine does not hand down, `Rig::has` does not find.
        let _ = fs::write(format!("{GROUPS}/cgroup.subtree_control"), format!("+{name}"));
    }
    fs::create_dir(&own).unwrap();
    // The agent takes it for the whole hierarchy, so that it meets no other test's groups.
    mount(&["--bind", own.to_str().unwrap(), GROUPS]);
    tatami_agent::enable_controllers().unwrap();
    let zygote = Zygote::start().unwrap();
    let listen = |name: &str| Listener::Unix(UnixListener::bind(folder.join(name)).unwrap());
    runtime().block_on(async {
        let (control, streams) = (listen("control"), listen("streams"));

        let shutdown = Box::new(move || {
            // The hierarchy outlives these namespaces.
            let _ = fs::remove_dir(Path::new(GROUPS).join("tatami"));
            let _ = Command::new("umount").args(["-l", GROUPS]).status();
            let _ = fs::remove_dir(&own);
            std::process::exit(0)
        });
        let server = Server::start(Sandbox::new(zygote), control, streams, 0.0, shutdown).await.unwrap();
        fs::write(folder.join("ready"), "").unwrap();
        server.run().await.unwrap();
    });
}

/// A running agent, and what tests need to talk to it.
pub(crate) struct Rig {
    pub(crate) runtime: Runtime,
    pub(crate) client: AgentClient,
    pub(crate) root: PathBuf,
    folder: tempfile::TempDir,
    agent: Child,
}

impl Rig {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "run as root: the agent makes namespaces, mounts and cgroups");
        let folder = tempfile::tempdir().unwrap();
        let root = busybox_root(folder.path());
        let agent = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .arg(SERVE)
            .arg(folder.path())
            .spawn()
            .expect("unshare is there (package util-linux)");
        let deadline = Instant::now() + PATIENCE;
        while !folder.path().join("ready").exists() {
            assert!(Instant::now() < deadline, "the agent did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        let runtime = runtime();
        let address = format!("unix://{}", folder.path().join("control").display());
        let client = runtime.block_on(ttrpc::r#async::Client::connect(&address)).unwrap();
        Self { runtime, client: AgentClient::new(client), root, folder, agent }
    }

    /// Whether the agent's cgroups have this controller: where version 1 has taken it, version 2 does not.
    pub(crate) fn has(&self, controller: &str) -> bool {
        let listing = fs::read_to_string(self.agent_root().join("sys/fs/cgroup/cgroup.controllers")).unwrap();
        listing.split_whitespace().any(|name| name == controller)
    }

    /// The root of the agent's file systems, as seen from here.
    pub(crate) fn agent_root(&self) -> PathBuf {
        let listing = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.agent.id())).unwrap();
        PathBuf::from(format!("/proc/{}/root", listing.trim()))
    }

    /// Runs `future`, and fails if it hangs.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await }).expect("an answer in time")
    }

    /// A container that runs `command`, not created yet.
    pub(crate) fn container(&self, command: &[&str]) -> Container<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Container { rig: self, id, spec: spec(&self.root, command), guest_hooks: String::new() }
    }

    /// What the agent has left of containers, in its own view of the file system.
    pub(crate) fn left_over(&self) -> BTreeSet<String> {
        let inside = self.agent_root();
        let places = ["run/tatami/containers", "run/tatami/state", "run/tatami/terminals", "sys/fs/cgroup/tatami"];
        let folders = places.iter().flat_map(|place| fs::read_dir(inside.join(place)).into_iter().flatten());
        let paths = folders.map(|entry| entry.unwrap().path());
        let groups_and_files = paths.filter(|path| path.is_dir() || !path.starts_with(inside.join(places[3])));
        groups_and_files.map(|path| path.display().to_string()).collect()
    }

    /// Connects a stream and returns it with the agent's answer.
    pub(crate) async fn stream(&self, container_id: &str, exec_id: &str, kind: Kind) -> (UnixStream, u8) {
        let header = StreamHeader {
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            kind: kind.into(),
            ..Default::default()
        };
        let mut connection = UnixStream::connect(self.folder.path().join("streams")).await.unwrap();
        connection.write_all(&stream::encode(&header).unwrap()).await.unwrap();
        let answer = connection.read_u8().await.unwrap();
        (connection, answer)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let ended = self.runtime.block_on(self.client.shutdown(context(), &ShutdownRequest::default()));
        if ended.is_err() {
            self.agent.kill().unwrap();
        }
        self.agent.wait().unwrap();
    }
}

/// A container, and the calls on it.
pub(crate) struct Container<'a> {
    pub(crate) rig: &'a Rig,
    pub(crate) id: String,
    pub(crate) spec: Value,
    pub(crate) guest_hooks: String,
}

/// What a process left when it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Container<'_> {
    pub(crate) fn create(&self, stdio: Stdio) -> ttrpc::Result<u32> {
        let request = CreateContainerRequest {
            container_id: self.id.clone(),
            spec_json: self.spec.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            guest_hooks: self.guest_hooks.clone(),
            ..Default::default()
        };
        self.rig.wait(self.rig.client.create_container(context(), &request)).map(|response| response.pid)
    }

    pub(crate) fn create_exec(&self, exec_id: &str, command: &[&str], stdio: Stdio) -> ttrpc::Result<()> {
        self.create_exec_with(exec_id, command, stdio, json!({}))
    }

    /// A process whose description differs from the first's in `changes`.
    pub(crate) fn create_exec_with(
        &self,
        exec_id: &str,
        command: &[&str],
        stdio: Stdio,
        changes: Value,
    ) -> ttrpc::Result<()> {
        let mut process = self.spec["process"].clone();
        process["args"] = json!(command);
        for (key, value) in changes.as_object().unwrap() {
            process[key] = value.clone();
        }
        let request = CreateExecRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            process_json: process.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.rig.wait(self.rig.client.create_exec(context(), &request)).map(drop)
    }

    pub(crate) fn attach(&self, exec_id: &str, kind: Kind) -> UnixStream {
        let (stream, answer) = self.rig.wait(self.rig.stream(&self.id, exec_id, kind));
        assert_eq!(answer, stream::ACCEPTED, "{kind:?} of {}/{exec_id}", self.id);
        stream
    }

    pub(crate) fn start(&self, exec_id: &str) -> ttrpc::Result<u32> {
        self.rig.wait(self.rig.client.start_process(context(), &self.process(exec_id))).map(|response| response.pid)
    }

    pub(crate) fn wait(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = self.process(exec_id);
        self.rig.wait(self.rig.client.wait_process(context(), &request)).map(|response| response.exit_status)
    }

    pub(crate) fn signal(&self, exec_id: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        let request = SignalRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        self.rig.wait(self.rig.client.signal_process(context(), &request)).map(drop)
    }

    pub(crate) fn pids(&self) -> ttrpc::Result<Vec<u32>> {
        self.rig.wait(self.rig.client.list_processes(context(), &self.itself())).map(|list| list.pids)
    }

    pub(crate) fn stats(&self) -> ttrpc::Result<Stats> {
        self.rig.wait(self.rig.client.get_stats(context(), &self.itself()))
    }

    pub(crate) fn update(&self, resources: Value) -> ttrpc::Result<()> {
        let request = UpdateRequest {
            container_id: self.id.clone(),
            resources_json: resources.to_string().into_bytes(),
            ..Default::default()
        };
        self.rig.wait(self.rig.client.update_container(context(), &request)).map(drop)
    }

    pub(crate) fn pause(&self) -> ttrpc::Result<()> {
        self.rig.wait(self.rig.client.pause_container(context(), &self.itself())).map(drop)
    }

    pub(crate) fn resume(&self) -> ttrpc::Result<()> {
        self.rig.wait(self.rig.client.resume_container(context(), &self.itself())).map(drop)
    }

    pub(crate) fn oom(&self, seen: u64) -> OomRequest {
        OomRequest { container_id: self.id.clone(), seen, ..Default::default() }
    }

    pub(crate) fn delete_exec(&self, exec_id: &str) -> ttrpc::Result<()> {
        self.rig.wait(self.rig.client.delete_exec(context(), &self.process(exec_id))).map(drop)
    }

    pub(crate) fn delete(&self) -> ttrpc::Result<()> {
        self.rig.wait(self.rig.client.delete_container(context(), &self.itself())).map(drop)
    }

    /// Starts a created process with output, waits for all of it and the status.
    pub(crate) fn finish(&self, exec_id: &str) -> Ended {
        let (mut stdout, mut stderr) = (self.attach(exec_id, Kind::STDOUT), self.attach(exec_id, Kind::STDERR));
        self.start(exec_id).unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        self.rig.wait(async {
            let (out, err) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
            out.and(err).unwrap();
        });
        Ended { status: self.wait(exec_id).unwrap(), stdout: out, stderr: err }
    }

    /// Runs the container to its end and deletes it.
    pub(crate) fn run(&self) -> Ended {
        self.create(output()).unwrap();
        let ended = self.finish("");
        self.delete().unwrap();
        ended
    }

    /// Runs `command` in the running container to its end and forgets it.
    pub(crate) fn exec(&self, command: &[&str]) -> Ended {
        self.create_exec("e", command, output()).unwrap();
        let ended = self.finish("e");
        self.delete_exec("e").unwrap();
        ended
    }

    fn itself(&self) -> ContainerRequest {
        ContainerRequest { container_id: self.id.clone(), ..Default::default() }
    }

    /// Like [`Container::exec`], with changes to the description.
    pub(crate) fn exec_with(&self, command: &[&str], changes: Value) -> Ended {
        self.create_exec_with("e", command, output(), changes).unwrap();
        let ended = self.finish("e");
        self.delete_exec("e").unwrap();
        ended
    }

    pub(crate) fn process(&self, exec_id: &str) -> ProcessRequest {
        ProcessRequest { container_id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() }
    }
}

/// Standard output and error.
pub(crate) fn output() -> Stdio {
    Stdio { stdout: true, stderr: true, ..Default::default() }
}

pub(crate) fn context() -> Context {
    Context::default()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn busybox_root(folder: &Path) -> PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is there, statically linked (package busybox-static)");
    let root = folder.join("root");
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for (name, mode) in [("data", 0o644), ("garbage", 0o755)] {
        fs::write(root.join(name), "neither ELF nor script").unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

fn spec(root: &Path, command: &[&str]) -> Value {
    let namespaces: Vec<Value> =
        ["pid", "ipc", "uts", "mount", "network", "cgroup"].iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": root, "readonly": false },
        "hostname": "box",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": command,
            "env": ["PATH=/bin", "GREETING=hello"],
            "cwd": "/",
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }],
            "noNewPrivileges": false,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": "/the/host's/idea",
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/sys/firmware", "/proc/not-there"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}
