//! A Podman of one's own: there is no daemon, but images, networks and settings are its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::containerd::COMMAND_PATIENCE;
use super::{CLEARANCE, Home};
use crate::{Finished, Running};

/// A Podman with the sample image in its store.
pub struct Podman {
    home: Home,
}

impl Podman {
    /// The runtime to compare with, by the name that Podman knows it by.
    pub const REFERENCE: &str = "crun";
    /// And ours.
    pub const OURS: &str = "tatami-runtime";

    /// Sets one up in `home`.
    ///
    /// # Panics
    /// When it does not take the image.
    pub fn new(home: Home) -> Self {
        let ours = Self::OURS;
        let runtime = home.runtime(ours);
        let text = |name: &str| home.path(name).display().to_string();
        // There is no systemd, which has the cgroups and the log elsewhere.
        let settings = format!(
            "[containers]\ncgroups = \"no-conmon\"\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"{}\"\n\
             runtime_supports_json = [\"crun\", \"{ours}\"]\n\
             static_dir = \"{}\"\ntmp_dir = \"{}\"\nvolume_path = \"{}\"\n\
             [engine.runtimes]\ncrun = [\"/usr/bin/crun\"]\n{ours} = [\"{}\"]\n\
                 [network]\nfirewall_driver = \"iptables\"\nnetwork_config_dir = \"{}\"\n",
            Self::REFERENCE,
            text("podman/libpod"),
            text("podman/tmp"),
            text("podman/volumes"),
            runtime.display(),
            text("podman/networks"),
        );
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            text("podman/storage"),
            text("podman/run")
        );
        fs::create_dir_all(home.path("podman/networks")).expect("a folder");
        fs::write(home.path("containers.conf"), settings).expect("a file");
        fs::write(home.path("storage.conf"), storage).expect("a file");
        let podman = Self { home };
        let loaded = podman.podman(&["load", "--quiet", "--input", &crate::image().display().to_string()]);
        assert_eq!(loaded.status, 0, "loading the sample image: {}", loaded.err());
        podman
    }

    /// Where it lives.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// `podman ARGUMENTS…`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command_within("podman");
        command.env("CONTAINERS_CONF", self.home.path("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.home.path("storage.conf"));
        command.args(arguments);
        command
    }

    /// `podman ARGUMENTS…`, to its end.
    ///
    /// # Panics
    /// When it takes longer than two minutes.
    pub fn podman(&self, arguments: &[&str]) -> Finished {
        Running::start(self.command(arguments)).finish_within(COMMAND_PATIENCE)
    }

    /// What there is of containers.
    pub fn remains(&self) -> Vec<String> {
        let store = self.home.path("podman/storage").display().to_string();
        let mut left = self.home.remains(&[], &[], CLEARANCE);
        // The store's own mount, on itself, is there as long as it is used.
        left.retain(|what| !what.contains(&format!(" {store}/overlay ")));
        left
    }

    /// The processes that were started here.
    pub fn strangers(&self) -> Vec<i32> {
        self.home.processes().into_iter().map(|process| process.pid).collect()
    }

    /// Ends it: nothing of it runs on.
    pub fn stop(self) {
        let network: PathBuf = "/sys/class/net/podman0".into();
        if network.exists() {
            let _ = Command::new("ip").args(["link", "del", "podman0"]).output();
        }
    }
}
