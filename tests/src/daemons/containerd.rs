//! A containerd of one's own, and `ctr` as its user has it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::thin_pool::ThinPool;
use super::{CLEARANCE, Daemon, Home, Release};
use crate::{Finished, Running};

/// The sample image's name.
pub const IMAGE: &str = "localhost/tatami-sample:latest";

/// The image whose container holds a pod together where a runtime needs one.
const PAUSE: &str = "localhost/tatami-pause:latest";

/// How long a single command of `ctr` or `docker` may take.
pub(crate) const COMMAND_PATIENCE: Duration = Duration::from_secs(120);

/// Where CRI keeps what is Kubernetes'.
const KUBERNETES: &str = "k8s.io";

/// A containerd that runs, with the sample image in its store.
pub struct Containerd {
    /// Its namespace, in which the containers are.
    namespace: String,
    // Before the home, so that they end before their folder goes.
    daemon: Daemon,
    events: Child,
    pool: ThinPool,
    home: Home,
}

impl Containerd {
    /// Starts one in `home`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(home: Home) -> Self {
        // CRI and NRI are other tests'; without them it starts in half the time. What CRI consists of stays, for without it
        // there is no service of sandboxes.
        let namespace = home.containers_cgroup();
        Self::start_with(home, namespace, &["grpc.v1.cri", "nri.v1.nri"], "", &[crate::image()])
    }

    /// Starts one in `home` that serves CRI, with runc and with ours as the runtimes `runc` and `kata`, and for ours with containerd's
    /// Sandbox API too, as `kata-sandbox`, with macvtaps, as `kata-macvtap`, with networks that are slow, as `kata-slow`, and with much
    /// that is not as usual, as `kata-set`; `kata-verity` has what a story writes into `kata-verity/config.d`. Its pods' networks are all
    /// that lie in the folder `cni` of the home, and their plug-ins what lies in `cni-plugins`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_for_pods(home: Home) -> Self {
        fs::create_dir(home.path("cni")).expect("a folder");
        fs::create_dir(home.path("cni-plugins")).expect("a folder");
        for plugin in fs::read_dir("/usr/lib/cni").expect("the CNI plug-ins").flatten() {
            let link = home.path("cni-plugins").join(plugin.file_name());
            std::os::unix::fs::symlink(plugin.path(), link).expect("a link");
        }
        let table = "plugins.\"io.containerd.grpc.v1.cri\"";
        let runtime = |name: &str, kind: &str, more: &str| {
            format!("[{table}.containerd.runtimes.{name}]\nruntime_type = \"io.containerd.{kind}.v2\"\n{more}\n")
        };
        let configured = |name: &str, text: &str| {
            // Each has a folder of its own, for drop-ins.
            fs::create_dir(home.path(name)).expect("a folder");
            let file = home.path(name).join("configuration.toml");
            fs::write(&file, text).expect("a file");
            let options = format!(
                "pod_annotations = [\"io.katacontainers.*\"]\n[{table}.containerd.runtimes.{name}.options]\n\
                 TypeUrl = \"runtimeoptions.v1.Options\"\nConfigPath = \"{}\"",
                file.display()
            );
            runtime(name, "kata", &options)
        };
        let more = [
            format!("[{table}]\nsandbox_image = \"{PAUSE}\"\n"),
            format!(
                "[{table}.cni]\nbin_dir = \"{}\"\nconf_dir = \"{}\"\nmax_conf_num = 0\n",
                home.path("cni-plugins").display(),
                home.path("cni").display()
            ),
            runtime("runc", "runc", ""),
            runtime("kata", "kata", ""),
            configured("kata-macvtap", "[runtime]\ninternetworking_model = \"macvtap\"\n"),
            // 100 and 50 kB a second.
            configured(
                "kata-slow",
                "[hypervisor.tatami]\nenable_annotations = [\"tx_rate_limiter_max_rate\"]\nnetwork_queues = 2\n\
                 rx_rate_limiter_max_rate = 800000\ntx_rate_limiter_max_rate = 400000\n",
            ),
            configured(
                "kata-set",
                &format!(
                    "[hypervisor.tatami]\nenable_virtio_mem = false\nreclaim_guest_freed_memory = false\nnum_queues = 2\n\
                     default_maxvcpus = 3\nblock_device_aio = \"threads\"\nblock_device_cache_set = true\n\
                     block_device_cache_direct = true\nblock_device_cache_noflush = true\n[agent.kata]\ncontainer_pipe_size = 4096\n[runtime]\n\
                     sandbox_cgroup_only = true\nenable_vcpus_pinning = true\n\
                     sandbox_bind_mounts = [\"{}\"]\n",
                    home.path("kata-set/configuration.toml").display()
                ),
            ),
            configured("kata-verity", ""),
            runtime("kata-sandbox", "kata", if home.release() == Release::Newer { "sandboxer = \"shim\"" } else { "" }),
        ];
        let images = [crate::image(), crate::pause_image()];
        Self::start_with(home, KUBERNETES.to_owned(), &["nri.v1.nri"], &more.concat(), &images)
    }

    fn start_with(home: Home, namespace: String, disabled: &[&str], more: &str, images: &[PathBuf]) -> Self {
        let disabled = disabled.iter().map(|name| format!("\"io.containerd.{name}\"")).collect::<Vec<_>>().join(", ");
        // What its blockfile snapshotter copies for each image's first layer.
        let scratch = home.path("scratch.ext4");
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&scratch).arg("32m").status();
        assert!(made.is_ok_and(|status| status.success()), "mke2fs does not make {}", scratch.display());
        let pool = ThinPool::new(home.name(), &home.path(""));
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [{disabled}]\n[grpc]\naddress = \"{}\"\n\
             [plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = \"{}\"\n\
             [plugins.\"io.containerd.snapshotter.v1.devmapper\"]\nroot_path = \"{}\"\npool_name = \"{}\"\n\
             base_image_size = \"64MB\"\n{more}",
            home.path("root").display(),
            home.path("state").display(),
            home.path("containerd.sock").display(),
            scratch.display(),
            home.path("devmapper").display(),
            pool.name()
        );
        fs::write(home.path("config.toml"), config).expect("a file");
        let daemon = start_daemon(&home);
        let mut started = Self { events: start_events(&home, &namespace), namespace, daemon, pool, home };
        started.wait_ready();
        for image in images {
            let imported = started.ctr(&["image", "import", &image.display().to_string()]);
            assert_eq!(imported.status, 0, "importing {}: {}", image.display(), imported.err());
        }
        started
    }

    /// Where it lives.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.home.path("containerd.sock")
    }

    /// `ctr ARGUMENTS…`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        ctr(&self.home, &self.namespace, arguments)
    }

    /// `ctr ARGUMENTS…`, to its end.
    ///
    /// # Panics
    /// When it takes longer than two minutes.
    pub fn ctr(&self, arguments: &[&str]) -> Finished {
        Running::start(self.command(arguments)).finish_within(COMMAND_PATIENCE)
    }

    /// The shim of `runtime` as containerd calls it to do `what` (`start`, `delete`) for a container, not started yet.
    pub fn shim(&self, runtime: &str, id: &str, bundle: &Path, what: &str) -> Command {
        let name = runtime.trim_start_matches("io.containerd.").replace('.', "-");
        let socket = self.socket().display().to_string();
        // Through a shell, for the shim is looked up on the path that containerd has.
        let mut command = self.home.command("/bin/sh");
        command.args(["-c", "exec \"$0\" \"$@\"", &format!("containerd-shim-{name}")]);
        command.args(["-namespace", &self.namespace, "-address", &socket]);
        command.args(["-publish-binary", "/usr/bin/true", "-id", id, "-bundle"]).arg(bundle).arg(what);
        command.env("TTRPC_ADDRESS", format!("{socket}.ttrpc")).env("MAX_SHIM_VERSION", "2").current_dir(bundle);
        command
    }

    /// Ends it with `signal` and starts it again, on what it left.
    pub fn restart(&mut self, signal: Signal) {
        self.daemon.end(signal);
        self.daemon = start_daemon(&self.home);
        self.wait_ready();
    }

    /// The events of tasks so far, each as its topic, container and content.
    pub fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.home.path("events")).expect("the file of events");
        text.lines().filter_map(Event::parse).collect()
    }

    /// The bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        self.daemon.last_words()
    }

    /// What there is of containers beside the daemon itself.
    pub fn remains(&self) -> Vec<String> {
        self.remains_within(CLEARANCE)
    }

    /// The same, when what ends by itself may take so long.
    pub fn remains_within(&self, patience: Duration) -> Vec<String> {
        let sandboxes = self.home.path("state/io.containerd.sandbox.controller.v1.shim").join(&self.namespace);
        self.home.remains(&[self.daemon.pid()], &[self.bundles(), sandboxes], patience)
    }

    /// The disks of its devmapper snapshotter that are active on the host.
    pub fn thin_disks(&self) -> Vec<String> {
        self.pool.disks()
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        self.daemon.end(Signal::SIGTERM);
    }

    fn bundles(&self) -> PathBuf {
        self.home.path("state/io.containerd.runtime.v2.task").join(&self.namespace)
    }

    fn wait_ready(&mut self) {
        let (home, namespace) = (&self.home, &self.namespace);
        self.daemon
            .wait_until(|| ctr(home, namespace, &["version"]).output().is_ok_and(|output| output.status.success()));
        let _ = self.events.kill();
        let _ = self.events.wait();
        self.events = start_events(home, namespace);
        // A subscriber is silent until something happens: make something happen until it speaks.
        let deadline = Instant::now() + Duration::from_secs(30);
        let size = || fs::metadata(home.path("events")).map_or(0, |metadata| metadata.len());
        let before = size();
        for round in 0.. {
            let label = format!("round={round}");
            let _ = ctr(home, namespace, &["namespaces", "label", namespace, &label]).output();
            let _ = ctr(home, namespace, &["namespaces", "create", namespace]).output();
            thread::sleep(Duration::from_millis(200));
            if size() > before {
                return;
            }
            assert!(Instant::now() < deadline, "ctr events shows nothing");
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.events.kill();
        let _ = self.events.wait();
    }
}

/// Something that containerd told its subscribers about a task.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, as time since midnight, UTC.
    pub at: Duration,
    /// `create`, `start`, `exit`, …
    pub topic: String,
    /// The container.
    pub container: String,
    /// Everything else.
    pub content: serde_json::Value,
}

impl Event {
    /// From a line of `ctr events`: date, time, zone, zone's name, namespace, topic, JSON.
    fn parse(line: &str) -> Option<Self> {
        let at = time_of_day(line.split(' ').nth(1)?)?;
        let topic = line.split(' ').find_map(|word| word.strip_prefix("/tasks/"))?.to_owned();
        let content: serde_json::Value = serde_json::from_str(&line[line.find('{')?..]).ok()?;
        let container = content["container_id"].as_str()?.to_owned();
        Some(Self { at, topic, container, content })
    }

    /// In a few words that are the same for every run: topic, process, status.
    pub fn brief(&self) -> String {
        let mut words = self.topic.clone();
        let process = self.content["exec_id"].as_str().or_else(|| self.content["id"].as_str()).unwrap_or("");
        if !process.is_empty() && process != self.container {
            words += &format!("[{process}]");
        }
        if self.topic == "exit" {
            words += &format!("({})", self.content["exit_status"].as_u64().unwrap_or(0));
        }
        words
    }
}

/// `HH:MM:SS.fraction`, as time since midnight.
fn time_of_day(text: &str) -> Option<Duration> {
    let mut parts = text.split(':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Duration::try_from_secs_f64(hours.mul_add(3600.0, minutes.mul_add(60.0, seconds))).ok()
}

fn ctr(home: &Home, namespace: &str, arguments: &[&str]) -> Command {
    let mut command = home.command(&program(home, "ctr"));
    command.env("CONTAINERD_ADDRESS", home.path("containerd.sock"));
    command.env("CONTAINERD_NAMESPACE", namespace);
    command.args(arguments);
    command
}

/// By its whole path: a command's own `PATH` is not where it is looked up.
fn program(home: &Home, name: &str) -> String {
    Path::new(home.release().programs()).join(name).display().to_string()
}

fn start_daemon(home: &Home) -> Daemon {
    let config = home.path("config.toml").display().to_string();
    home.start("containerd", &["--config", &config])
}

fn start_events(home: &Home, namespace: &str) -> Child {
    let path = home.path("events");
    let file = File::options().create(true).append(true).open(path).expect("a file of events");
    let mut command = ctr(home, namespace, &["events"]);
    command.stdout(file).stderr(Stdio::null()).spawn().expect("ctr starts")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Event;

    #[test]
    fn events_are_read_from_ctrs_lines() {
        let line =
            r#"2026-11-22 18:00:00.5 +0000 UTC ns /tasks/exit {"container_id":"a","exit_status":137,"id":"e","pid":7}"#;
        assert_eq!(Event::parse(line).unwrap().brief(), "exit[e](137)");
        assert_eq!(Event::parse(line).unwrap().at, Duration::from_millis(18 * 3_600_000 + 500));
        let line = r#"2026-11-22 18:00:00.5 +0000 UTC ns /tasks/exit {"container_id":"a","id":"a","pid":7}"#;
        assert_eq!(Event::parse(line).unwrap().brief(), "exit(0)");
        let line = r#"2026-11-22 18:00:00.5 +0000 UTC ns /tasks/exec-added {"container_id":"a","exec_id":"e"}"#;
        assert_eq!(Event::parse(line).unwrap().brief(), "exec-added[e]");
        assert!(Event::parse(r#"2026-11-22 18:00:00.5 +0000 UTC ns /containers/create {"id":"a"}"#).is_none());
    }
}
