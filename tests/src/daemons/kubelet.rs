//! The kubelet as stories and benchmarks use it: pods and containers by short names, answers in words that are the same for every run.

use std::cell::{Ref, RefCell};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Containerd, Cri, Home, IMAGE, api};
use crate::compare::Stage;
use http::HeaderValue;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

/// How long what must come may take, on an emulated host.
pub const SOON: Duration = Duration::from_secs(30);

/// The host's bridges that pods are on, and the addresses that it has there.
pub struct Networks {
    bridge: String,
}

/// The host's address on the pods' bridge.
pub const HOST: &str = "10.88.0.1";
/// The same of version 6.
pub const HOST_6: &str = "fd00:88::1";
/// The largest packet there.
pub const MTU: u32 = 1400;

impl Networks {
    /// For the pods of `home`, nothing done yet.
    pub fn lay_out(home: &Home) -> Self {
        let number = home.name().rsplit('-').nth(1).unwrap_or_default().to_owned();
        Self { bridge: format!("ttb{number}") }
    }

    /// Tells containerd of them: a bridge with both versions of IP, and ports of the host.
    pub fn describe(&self, containerd: &Containerd) {
        let store = containerd.home().path("cni-addresses").display().to_string();
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[
            {{"type":"bridge","bridge":"{}","isGateway":true,"mtu":{MTU},"hairpinMode":true,
            "ipam":{{"type":"host-local","dataDir":"{store}","ranges":[[{{"subnet":"10.88.0.0/16"}}],[{{"subnet":"fd00:88::/64"}}]],
            "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}},{{"dst":"10.99.0.0/16","gw":"10.88.0.1"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}},"snat":true}}]}}"#,
            self.bridge
        );
        fs::write(containerd.home().path("cni").join(USUAL), text).expect("a file");
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).output();
    }
}

/// A containerd's CRI and the runtime handler that stories are told with.
pub struct Kubelet {
    containerd: Rc<RefCell<Containerd>>,
    cri: Cri,
    /// The handler of all stories that say nothing else.
    usual: &'static str,
    handler: &'static str,
    story: u32,
    /// The host's interfaces that this story's own networks are on, if it has its own.
    links: Option<Vec<String>>,
}

/// The network of all stories that say nothing else, below the folder `cni`; and where it is out of the way.
const USUAL: &str = "10-pods.conflist";
const ASIDE: &str = "10-pods.aside";

/// A pod.
#[derive(Clone)]
pub struct Pod {
    /// By which CRI knows it.
    pub id: String,
    config: api::PodSandboxConfig,
}

impl Kubelet {
    /// Of `containerd`, with the runtime that it has as `handler`.
    pub fn new(containerd: Rc<RefCell<Containerd>>, handler: &'static str) -> Self {
        let cri = Cri::new(&containerd.borrow().socket());
        Self { containerd, cri, usual: handler, handler, story: 0, links: None }
    }

    /// The daemon.
    pub fn containerd(&self) -> Ref<'_, Containerd> {
        self.containerd.borrow()
    }

    /// The calls.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// A folder for this story's files.
    pub fn scratch(&self) -> PathBuf {
        let path = self.containerd().home().path(&format!("scratch-{}-{}", self.handler, self.story));
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// From here to the story's end pods that are ours are run by this handler.
    pub fn by_handler(&mut self, handler: &'static str) {
        if self.is_ours() {
            self.handler = handler;
        }
    }

    /// From here to the story's end pods have these networks in place of the usual one, each with these plug-ins, and an interface of each.
    /// They are on these interfaces of the host's, which go with them.
    ///
    /// # Panics
    /// When the daemon does not take them.
    pub fn on_networks(&mut self, networks: &[(&str, String)], links: &[&str]) {
        let folder = self.containerd().home().path("cni");
        self.links = Some(links.iter().map(|&link| link.to_owned()).collect());
        for (number, (name, plugins)) in networks.iter().enumerate() {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{plugins}]}}"#);
            fs::write(folder.join(format!("2{number}-{name}.conflist")), text).expect("a file");
        }
        fs::rename(folder.join(USUAL), folder.join(ASIDE)).expect("the usual network");
        self.wait_for_networks(&networks.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    /// Takes back what [`Self::on_networks`] did. The pods are gone.
    fn off_networks(&mut self) {
        let Some(links) = self.links.take() else { return };
        let folder = self.containerd().home().path("cni");
        fs::rename(folder.join(ASIDE), folder.join(USUAL)).expect("the usual network");
        for file in fs::read_dir(&folder).expect("the networks").flatten() {
            if file.file_name() != USUAL {
                fs::remove_file(file.path()).expect("a network's file goes");
            }
        }
        self.wait_for_networks(&["pods"]);
        for link in links {
            let _ = Command::new("ip").args(["link", "del", &link]).output();
        }
    }

    /// Waits until the daemon has seen that these are the networks.
    fn wait_for_networks(&self, names: &[&str]) {
        let deadline = Instant::now() + SOON;
        let request = api::StatusRequest { verbose: true };
        loop {
            let answer = self.cri.call(async |mut client| client.status(request).await).expect("the daemon's status");
            let config = answer.info.get("cniconfig").cloned().unwrap_or_default();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap_or_default();
            let seen = config["Networks"].as_array().into_iter().flatten();
            let seen = seen.map(|network| network["Config"]["Name"].as_str().unwrap_or_default());
            if seen.filter(|name| *name != "cni-loopback").eq(names.iter().copied()) {
                return;
            }
            assert!(Instant::now() < deadline, "containerd does not see {names:?}: {config}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// How a pod `name` of this story is described, before a story adds to it.
    pub fn described(&self, name: &str) -> api::PodSandboxConfig {
        let unique = format!("{}-{}-{name}", self.handler, self.story);
        api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: unique.clone(),
                uid: unique,
                namespace: "stories".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.scratch().join(name).display().to_string(),
            linux: Some(api::LinuxPodSandboxConfig {
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(of_kubernetes()),
                    ..Default::default()
                }),
                cgroup_parent: format!("/{}", self.containerd().home().containers_cgroup()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// What the server says.
    pub fn run_described(&self, config: api::PodSandboxConfig) -> Result<Pod, String> {
        run_pod(&self.cri, self.handler, config)
    }

    /// Runs several pods at once.
    pub fn run_at_once(&self, configs: Vec<api::PodSandboxConfig>) -> Vec<Result<Pod, String>> {
        let socket = self.containerd().socket();
        let run = |config: api::PodSandboxConfig| {
            let (cri, handler) = (Cri::new(&socket), self.handler);
            thread::spawn(move || run_pod(&cri, handler, config))
        };
        let running: Vec<_> = configs.into_iter().map(run).collect();
        running
            .into_iter()
            .map(|pod| pod.join().unwrap_or_else(|_| Err("the client has panicked".to_owned())))
            .collect()
    }

    /// Asks for a pod whose VMM stands still from its first moments on, and gives it up after `limit`; what containerd says then. Whatever it
    /// lists of that is removed.
    ///
    /// # Panics
    /// When there is no VMM to be stopped.
    pub fn give_up_on(&self, config: api::PodSandboxConfig, limit: Duration) -> String {
        fs::create_dir_all(&config.log_directory).expect("a folder");
        let (cri, handler) = (Cri::new(&self.containerd().socket()), self.handler.to_owned());
        let asked = thread::spawn(move || {
            let mut request =
                tonic::Request::new(api::RunPodSandboxRequest { config: Some(config), runtime_handler: handler });
            request.set_timeout(limit);
            cri.call(async |mut client| client.run_pod_sandbox(request).await).map(|pod| pod.pod_sandbox_id)
        });
        let vmm = loop {
            match self.find("tatami-vmm") {
                Some(vmm) => break vmm,
                None if asked.is_finished() => panic!("no VMM: {:?}", asked.join()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        kill(Pid::from_raw(vmm), Signal::SIGSTOP).expect("it is there");
        let said = told(asked.join().expect("the client does not panic").map(drop));
        let listed =
            self.cri.call(async |mut client| client.list_pod_sandbox(api::ListPodSandboxRequest::default()).await);
        for pod in listed.map(|list| list.items).unwrap_or_default() {
            self.remove(&pod.id);
        }
        said
    }

    /// Ends the daemon with `signal` and starts it again.
    ///
    /// # Panics
    /// When it has no CRI then.
    pub fn restart(&self, signal: Signal) {
        self.containerd.borrow_mut().restart(signal);
        let deadline = Instant::now() + SOON;
        // Its sockets come before its plug-ins.
        let version = || self.cri.call(async |mut client| client.version(api::VersionRequest::default()).await);
        while let Err(error) = version() {
            assert!(Instant::now() < deadline, "containerd's CRI does not come back: {error}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the only pod's processes live in: with ours the VMM, with the reference what holds the pod together.
    ///
    /// # Panics
    /// When it is not there.
    pub fn ground(&self) -> i32 {
        if self.is_ours() { self.process("tatami-vmm") } else { self.process("sleep 2147483647") }
    }

    /// The shim of the only pod.
    ///
    /// # Panics
    /// When it is not there.
    pub fn server(&self) -> i32 {
        self.process("containerd-shim")
    }

    fn process(&self, words: &str) -> i32 {
        self.find(words).unwrap_or_else(|| panic!("no {words}: {:?}", self.containerd().home().processes()))
    }

    fn find(&self, words: &str) -> Option<i32> {
        let processes = self.containerd().home().processes();
        // The VMM's and the cleaner's command lines are the server's; their names are their own.
        let named = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let found = processes.iter().find(|process| match words {
            "tatami-vmm" => named(process.pid).trim() == words,
            // As much of it as the kernel keeps.
            "containerd-shim" => {
                let name = named(process.pid);
                name.trim() == "tatami-shim" || name.trim() == words
            }
            _ => process.command.contains(words) && !process.command.contains("exec "),
        });
        Some(found?.pid)
    }

    /// The same with nothing added.
    ///
    /// # Panics
    /// When it does not run: the story cannot go on.
    pub fn run(&self, name: &str) -> Pod {
        self.run_described(self.described(name)).unwrap_or_else(|error| panic!("the pod {name} does not run: {error}"))
    }

    /// How a container is described, before a story adds to it.
    pub fn container(name: &str, command: &[&str]) -> api::ContainerConfig {
        api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(api::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(api::LinuxContainerConfig {
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: Some(of_kubernetes()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates a container; its id.
    ///
    /// # Errors
    /// What the server says.
    pub fn create(&self, pod: &Pod, config: api::ContainerConfig) -> Result<String, String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.cri.call(async |mut client| client.create_container(request).await)?.container_id)
    }

    /// Starts one that was created.
    ///
    /// # Errors
    /// What the server says.
    pub fn start_created(&self, id: &str) -> Result<(), String> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        self.cri.call(async |mut client| client.start_container(request).await).map(drop)
    }

    /// Creates a container and starts it; its id.
    ///
    /// # Errors
    /// What the server says.
    pub fn start_described(&self, pod: &Pod, config: api::ContainerConfig) -> Result<String, String> {
        let id = self.create(pod, config)?;
        self.start_created(&id)?;
        Ok(id)
    }

    /// The same with nothing added.
    ///
    /// # Panics
    /// When it does not start: the story cannot go on.
    pub fn start(&self, pod: &Pod, name: &str, command: &[&str]) -> String {
        let started = self.start_described(pod, Self::container(name, command));
        started.unwrap_or_else(|error| panic!("the container {name} does not start: {error}"))
    }

    /// What `command` says in a container, without the blanks around it, and its status unless that is 0.
    pub fn exec(&self, container: &str, command: &[&str]) -> String {
        let request = api::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 0,
        };
        match self.cri.call(async |mut client| client.exec_sync(request).await) {
            Err(error) => error,
            Ok(answer) => {
                let mut text = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
                if answer.exit_code != 0 {
                    let error = String::from_utf8_lossy(&answer.stderr);
                    text += &format!("[{}] {}", answer.exit_code, error.trim());
                }
                text
            }
        }
    }

    /// The same through a shell.
    pub fn shell(&self, container: &str, script: &str) -> String {
        self.exec(container, &["sh", "-c", script])
    }

    /// How a container is: `running`, `exited 3`.
    pub fn state(&self, container: &str) -> String {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        match self.cri.call(async |mut client| client.container_status(request).await) {
            Err(error) => error,
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                match status.state() {
                    api::ContainerState::ContainerRunning => "running".to_owned(),
                    api::ContainerState::ContainerExited => format!("exited {}", status.exit_code),
                    other => format!("{other:?}"),
                }
            }
        }
    }

    /// The same when it has ended, or is late.
    pub fn end_of(&self, container: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let state = self.state(container);
            if state != "running" || Instant::now() > deadline {
                return state;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// A pod's status.
    ///
    /// # Panics
    /// When there is none.
    pub fn status(&self, pod: &Pod) -> api::PodSandboxStatus {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let answer = self.cri.call(async |mut client| client.pod_sandbox_status(request).await);
        answer.expect("a pod's status").status.unwrap_or_default()
    }

    /// A pod's addresses: of version 4 and of version 6.
    pub fn addresses(&self, pod: &Pod) -> (String, String) {
        let network = self.status(pod).network.unwrap_or_default();
        (network.ip, network.additional_ips.into_iter().next().unwrap_or_default().ip)
    }

    /// What comes back from a pod's port when `bytes` are sent there, through the CRI server's port-forward.
    ///
    /// # Panics
    /// When the server does not forward.
    pub fn over_port(&self, pod: &Pod, port: u16, bytes: &[u8]) -> Vec<u8> {
        /// The channel of the port's bytes; the next one is that of its errors.
        const DATA: u8 = 0;
        let request = api::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port.into()] };
        let answer = self.cri.call(async |mut client| client.port_forward(request).await).expect("a port is forwarded");
        let address = answer.url.trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
        let url = format!("{}?port={port}", answer.url.replace("http://", "ws://"));
        let mut call = url.into_client_request().expect("an address");
        call.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("v4.channel.k8s.io"));
        let stream = TcpStream::connect(address).expect("the server of streams");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        let (mut socket, _) = tungstenite::client(call, stream).expect("a WebSocket");
        let message = [&[DATA], bytes].concat();
        socket.send(Message::binary(message)).expect("the bytes are sent");
        let (mut seen, mut frames) = (Vec::new(), 0);
        while let Ok(message) = socket.read() {
            let Message::Binary(frame) = message else { continue };
            // The first of each channel says which port it is.
            match frame.first() {
                Some(&DATA) if frames > 0 => seen.extend(&frame[1..]),
                Some(&DATA) => frames += 1,
                Some(_) if frame.len() > 3 => break,
                _ => {}
            }
        }
        seen
    }

    /// What a container has written, without the times.
    pub fn log(&self, pod: &Pod, name: &str) -> String {
        let text = fs::read_to_string(PathBuf::from(&pod.config.log_directory).join(format!("{name}.log")));
        let text = text.unwrap_or_else(|error| error.to_string());
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// Stops a container, with a moment's notice, and removes it: `ok`, or what went wrong.
    pub fn remove_container(&self, id: &str) -> String {
        let stop = api::StopContainerRequest { container_id: id.to_owned(), timeout: 1 };
        let remove = api::RemoveContainerRequest { container_id: id.to_owned() };
        let stopped = self.cri.call(async |mut client| client.stop_container(stop).await).map(drop);
        told(stopped.and_then(|()| self.cri.call(async |mut client| client.remove_container(remove).await).map(drop)))
    }

    /// Stops a pod and removes it: `ok`, or what went wrong.
    pub fn remove(&self, id: &str) -> String {
        let stop = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let remove = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let stopped = self.cri.call(async |mut client| client.stop_pod_sandbox(stop).await).map(drop);
        told(stopped.and_then(|()| self.cri.call(async |mut client| client.remove_pod_sandbox(remove).await).map(drop)))
    }
}

fn run_pod(cri: &Cri, handler: &str, config: api::PodSandboxConfig) -> Result<Pod, String> {
    fs::create_dir_all(&config.log_directory).expect("a folder");
    let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
    let answer = cri.call(async |mut client| client.run_pod_sandbox(request).await)?;
    Ok(Pod { id: answer.pod_sandbox_id, config })
}

/// A folder or file of the host's for a container.
pub fn mount(host: &Path, container: &str, readonly: bool) -> api::Mount {
    api::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    }
}

/// The namespaces that Kubernetes gives a pod unless it is told otherwise: containers share all but the processes.
fn of_kubernetes() -> api::NamespaceOption {
    api::NamespaceOption { pid: api::NamespaceMode::Container.into(), ..Default::default() }
}

/// Makes a pod one with `hostNetwork`. Its containers have to be told as well.
pub fn with_host_network(pod: &mut api::PodSandboxConfig) {
    // The kubelet gives such a pod no name: with runc it has the host's.
    pod.hostname = String::new();
    if let Some(context) = pod.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(of_host());
    }
}

/// Makes a container one of a pod with `hostNetwork`.
pub fn in_host_network(container: &mut api::ContainerConfig) {
    if let Some(context) = container.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(of_host());
    }
}

fn of_host() -> api::NamespaceOption {
    api::NamespaceOption { network: api::NamespaceMode::Node.into(), ..of_kubernetes() }
}

/// `ok`, or the error.
pub fn told(result: Result<(), String>) -> String {
    result.err().unwrap_or_else(|| "ok".to_owned())
}

/// What a command of the host's says, with its status unless that is 0.
pub fn host(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("a program of the host's");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { text } else { format!("{text}[{}]", output.status) }
}

impl Stage for Kubelet {
    fn is_ours(&self) -> bool {
        self.handler != "runc"
    }

    fn clear(&mut self) -> String {
        let all =
            self.cri.call(async |mut client| client.list_pod_sandbox(api::ListPodSandboxRequest::default()).await);
        let mut words: Vec<String> = Vec::new();
        for pod in all.map(|answer| answer.items).unwrap_or_default() {
            let removed = self.remove(&pod.id);
            if removed != "ok" {
                words.push(removed);
            }
        }
        words.extend(self.containerd().remains());
        if !words.is_empty() {
            words.push(format!("containerd's last words:\n{}", self.containerd().last_words()));
        }
        self.off_networks();
        self.handler = self.usual;
        self.story += 1;
        words.join("\n")
    }
}
