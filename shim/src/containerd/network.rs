//! The network namespace of a containerd sandbox: which it is, and how the server comes into it.
//!
//! Whoever looks for a container's namespace looks at the server's, because the pid that containerd knows is the server's. What is in it
//! is joined to the guest by [`interfaces`].

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tatami_vmm::MAX_NICS;

use crate::network::interfaces;

/// Slots for interfaces that come after the guest has started: a client's that lays out the network late, or adds one later.
const LATE: usize = 2;

/// Where a sandbox's server belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    /// In the host's: the guest gets no network.
    Host,
    /// In one of its own, that nobody has made yet.
    Own,
    /// In one that somebody has made.
    Given(PathBuf),
}

impl Namespace {
    /// As a specification has it.
    pub(super) fn of(spec: &Spec) -> Namespace {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces.into_iter().flatten().find(|ns| ns.typ() == LinuxNamespaceType::Network);
        match network.map(|network| network.path()) {
            None => Namespace::Host,
            Some(None) => Namespace::Own,
            Some(Some(path)) => Namespace::Given(path.clone()),
        }
    }

    /// Joins it with this thread.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        match self {
            Namespace::Host => Ok(()),
            Namespace::Own => unshare(CloneFlags::CLONE_NEWNET).context("a network namespace"),
            Namespace::Given(path) => enter(path),
        }
    }

    /// How many slots a guest needs for it: called by who has entered it.
    pub(super) fn slots(&self) -> usize {
        match self {
            Namespace::Host => 0,
            Namespace::Own => LATE,
            Namespace::Given(_) => {
                // One is loopback, in whose place another may come.
                let present = nix::net::if_::if_nameindex().map_or(LATE, |all| all.iter().count());
                present.clamp(LATE, MAX_NICS)
            }
        }
    }
}

/// Whether a container of `spec` may be in a sandbox that is in `network`: a machine has one network.
///
/// # Errors
/// When the namespace that it names is not there.
pub(crate) fn fits(spec: &Spec, network: &File) -> io::Result<bool> {
    let identity = |data: Metadata| (data.dev(), data.ino());
    Ok(match Namespace::of(spec) {
        Namespace::Host => true,
        Namespace::Own => false,
        Namespace::Given(path) => identity(path.metadata()?) == identity(network.metadata()?),
    })
}

/// Joins the network namespace at `path` with this thread.
///
/// # Errors
/// When there is none.
pub(super) fn enter(path: &Path) -> anyhow::Result<()> {
    let at = || format!("the network namespace {}", path.display());
    setns(File::open(path).with_context(at)?, CloneFlags::CLONE_NEWNET).with_context(at)
}

/// Leaves the interfaces of the namespace at `path` as they were, after a server that could not do so. Nothing, if the namespace is gone.
///
/// # Errors
/// When something of ours remains.
pub(super) fn clear(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // A thread of its own: nobody else is to move to the namespace.
    let path = path.to_owned();
    let cleared = std::thread::spawn(move || {
        if enter(&path).is_err() {
            // CNI unmounts a namespace before it removes the file, and a restart of the host leaves such files: nothing is in them.
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(interfaces::clear())?)
    });
    cleared.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that clears the network namespace has panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_specifications() {
        let with = |namespaces: &str| {
            let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{namespaces}]}}}}"#);
            Namespace::of(&serde_json::from_str(&json).unwrap())
        };
        assert_eq!(with(r#"{"type":"pid"}"#), Namespace::Host);
        assert_eq!(with(r#"{"type":"network"}"#), Namespace::Own);
        assert_eq!(with(r#"{"type":"network","path":"/run/netns/a"}"#), Namespace::Given("/run/netns/a".into()));
    }

    #[test]
    fn a_machine_has_one_network() {
        let fits = |network: &str| {
            let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{network}]}}}}"#);
            fits(&serde_json::from_str(&json).unwrap(), &File::open("/proc/self/ns/net").unwrap())
        };
        assert!(fits("").unwrap());
        assert!(!fits(r#"{"type":"network"}"#).unwrap());
        assert!(fits(r#"{"type":"network","path":"/proc/thread-self/ns/net"}"#).unwrap());
        assert!(!fits(r#"{"type":"network","path":"/proc/self/ns/uts"}"#).unwrap());
        assert!(fits(r#"{"type":"network","path":"/no/such"}"#).is_err());
    }

    #[test]
    fn a_namespace_that_is_gone_is_named_and_needs_no_clearing() {
        let path = Path::new("/run/netns/no-such");
        assert!(enter(path).unwrap_err().to_string().contains("/run/netns/no-such"));
        clear(path).unwrap();
        let unmounted = tempfile::NamedTempFile::new().unwrap();
        assert!(enter(unmounted.path()).is_err());
        clear(unmounted.path()).unwrap();
    }
}
