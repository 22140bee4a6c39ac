//! The options about a container's walls: how they are written on the command line, and the files that they name.
//!
//! What they mean for the specification is in [`crate::spec`].

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::options::OptionsError;
use crate::spec::{CapabilityName, Isolation, SeccompProfile, Tmpfs, Ulimit};

/// What turns a profile of system calls off.
const UNCONFINED: &str = "unconfined";

/// The options as they are written.
#[derive(Args, Debug)]
pub(super) struct IsolationArguments {
    /// Mount an empty file system in memory there; options are size=64m, mode=1777, uid=, gid=, ro, exec and the like
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<Tmpfs>,
    /// Give the container a capability beyond the usual ones, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<CapabilityName>,
    /// Take one of the usual capabilities away, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<CapabilityName>,
    /// Limit each process, as setrlimit(2) does: nofile, nproc, core, memlock, stack and the like; -1 for no limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<Ulimit>,
    /// Allow only the system calls of this profile, a JSON file as docker or the OCI have it; all are allowed without one
    #[arg(long, value_name = "FILE|unconfined")]
    seccomp: Option<PathBuf>,
    /// Name servers for the container's /etc/resolv.conf, which it cannot change then
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
}

impl IsolationArguments {
    /// What they mean, and the name servers.
    ///
    /// # Errors
    /// [`OptionsError::Seccomp`] for a profile that is not there or not understood.
    pub(super) fn validate(self) -> Result<(Isolation, Vec<IpAddr>), OptionsError> {
        let seccomp = match self.seccomp {
            Some(path) if path.as_os_str() != UNCONFINED => Some(read_profile(path)?),
            _ => None,
        };
        let IsolationArguments { tmpfs, cap_add, cap_drop, ulimit: ulimits, dns, .. } = self;
        Ok((Isolation { tmpfs, cap_add, cap_drop, ulimits, seccomp }, dns))
    }
}

fn read_profile(path: PathBuf) -> Result<SeccompProfile, OptionsError> {
    let read = std::fs::read(&path).map_err(|error| error.to_string());
    let profile = read.and_then(|text| SeccompProfile::parse(&text).map_err(|error| error.to_string()));
    profile.map_err(|why| OptionsError::Seccomp(path, why))
}
