//! A dockerd of one's own on a containerd of one's own, and `docker` as its user has it.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use super::containerd::COMMAND_PATIENCE;
use super::{CLEARANCE, Containerd, Daemon, Home};
use crate::{Finished, Running};

/// The namespace in containerd that dockerd uses unless told otherwise.
const NAMESPACE: &str = "moby";

/// A dockerd that runs, with the sample image in its store.
pub struct Docker {
    // Before its containerd, so that it ends first.
    daemon: Daemon,
    containerd: Containerd,
    networks: &'static [&'static str],
}

impl Docker {
    /// Our runtime by its command line, whose path Docker is told.
    pub const BY_PATH: &str = "tatami";

    /// Starts one in `home`, with a containerd.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(home: Home) -> Self {
        // Networks are other tests'.
        Self::start_with(home, &["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
    }

    /// Starts one with Docker's own networks.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_networked(home: Home) -> Self {
        Self::start_with(home, &["--bip=172.29.0.1/24"])
    }

    fn start_with(home: Home, networks: &'static [&'static str]) -> Self {
        let containerd = Containerd::start(home);
        let daemon = start_daemon(&containerd, networks);
        let mut started = Self { daemon, containerd, networks };
        started.wait_ready();
        let loaded = started.docker(&["load", "--quiet", "--input", &crate::image().display().to_string()]);
        assert_eq!(loaded.status, 0, "loading the sample image: {}", loaded.err());
        started
    }

    /// The containerd beneath.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// `docker ARGUMENTS…`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        docker(self.containerd.home(), arguments)
    }

    /// `docker ARGUMENTS…`, to its end.
    ///
    /// # Panics
    /// When it takes longer than two minutes.
    pub fn docker(&self, arguments: &[&str]) -> Finished {
        Running::start(self.command(arguments)).finish_within(COMMAND_PATIENCE)
    }

    /// Ends dockerd with `signal`, does `meanwhile`, and starts it again, on what it left. Its containerd stays, and so do
    /// containers.
    pub fn restart(&mut self, signal: Signal, meanwhile: impl FnOnce()) {
        self.daemon.end(signal);
        meanwhile();
        self.daemon = start_daemon(&self.containerd, self.networks);
        self.wait_ready();
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        self.daemon.last_words()
    }

    /// What there is of containers beside the daemons themselves.
    pub fn remains(&self) -> Vec<String> {
        // Not dockerd's docker-exec/netns: it unmounts a network namespace at once, and version 26 collects the empty file a
        // minute later, whatever the runtime.
        let bundles = self.containerd.home().path("state/io.containerd.runtime.v2.task").join(NAMESPACE);
        self.containerd.home().remains(&[self.daemon.pid(), self.containerd.pid()], &[bundles], CLEARANCE)
    }

    /// The processes that were started here, other than the daemons.
    pub fn strangers(&self) -> Vec<i32> {
        let pids = self.containerd.home().processes().into_iter().map(|process| process.pid);
        pids.filter(|pid| ![self.daemon.pid(), self.containerd.pid()].contains(pid)).collect()
    }

    /// Ends both in order.
    pub fn stop(mut self) {
        self.daemon.end(Signal::SIGTERM);
        if !self.networks.contains(&"--bridge=none") {
            // It leaves its bridge behind.
            let _ = Command::new("ip").args(["link", "del", "docker0"]).output();
        }
        self.containerd.stop();
    }

    fn wait_ready(&mut self) {
        let home = self.containerd.home();
        self.daemon.wait_until(|| docker(home, &["version"]).output().is_ok_and(|output| output.status.success()));
    }
}

fn socket(home: &Home) -> PathBuf {
    home.path("docker.sock")
}

fn docker(home: &Home, arguments: &[&str]) -> Command {
    let program = Path::new(home.release().programs()).join("docker");
    let mut command = home.command(&program.display().to_string());
    command.env("DOCKER_HOST", format!("unix://{}", socket(home).display()));
    command.env("DOCKER_CONFIG", home.path("docker-config")).args(arguments);
    command
}

fn start_daemon(containerd: &Containerd, networks: &[&str]) -> Daemon {
    let home = containerd.home();
    let text = |path: PathBuf| path.display().to_string();
    let parent = format!("/{}", home.containers_cgroup());
    let host = format!("unix://{}", socket(home).display());
    let (data, exec) = (text(home.path("docker-data")), text(home.path("docker-exec")));
    let (pid, beneath) = (text(home.path("docker.pid")), text(containerd.socket()));
    let config = text(home.path("daemon.json"));
    let runtimes = json!({ Docker::BY_PATH: { "path": home.runtime("tatami-runtime") } });
    let settings = json!({ "live-restore": true, "runtimes": runtimes });
    std::fs::write(home.path("daemon.json"), settings.to_string()).expect("a file");
    let words = [
        ["--data-root", &data],
        ["--exec-root", &exec],
        ["--host", &host],
        ["--pidfile", &pid],
        ["--containerd", &beneath],
        ["--cgroup-parent", &parent],
        ["--config-file", &config],
    ];
    home.start("dockerd", &[words.as_flattened(), networks].concat())
}
