//! Kernel parameters of the network, which belong to the guest: containers share its network namespace.
//!
//! libcontainer sets parameters of namespaces that a container has for itself, and refuses these. Knows nothing of what
//! they do.

use std::fs;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::error::Error;

const PARAMETERS: &str = "/proc/sys";

/// Sets the network's parameters of a container that has no network namespace of its own, and takes them out of its
/// specification.
///
/// # Errors
/// [`Error::InvalidArgument`] for one that the guest does not have, or not with that value.
pub(crate) fn apply_network(linux: &mut Linux) -> Result<(), Error> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        return Ok(());
    }
    let Some(mut parameters) = linux.sysctl().clone() else { return Ok(()) };
    let network: Vec<String> = parameters.keys().filter(|name| is_network(name)).cloned().collect();
    for name in network {
        let value = parameters.remove(&name).unwrap_or_default();
        let refused = |reason: String| Error::InvalidArgument(format!("sysctl {name}={value}: {reason}"));
        let path = file_of(&name).ok_or_else(|| refused("no such name".to_owned()))?;
        fs::write(path, &value).map_err(|cause| refused(cause.to_string()))?;
    }
    linux.set_sysctl(Some(parameters));
    Ok(())
}

fn is_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// Dots part a name, unless it is parted by slashes; then dots are part of an interface's name.
fn file_of(name: &str) -> Option<PathBuf> {
    let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let climbs = name.split('/').any(|part| part.is_empty() || part == "..");
    (!climbs).then(|| Path::new(PARAMETERS).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_files_below_the_parameters() {
        let of = |name: &str| file_of(name).map(|path| path.display().to_string());
        assert_eq!(of("net.ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(of("net/ipv4/conf/eth0.1/forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        for bad in ["net/../kernel/panic", "net..x", "net//x"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_not_the_networks_or_has_a_namespace_stays() {
        let read = |text: &str| serde_json::from_str::<Linux>(text).unwrap();
        let mut own = read(r#"{"namespaces":[{"type":"network"}],"sysctl":{"net.ipv4.ip_forward":"1"}}"#);
        apply_network(&mut own).unwrap();
        assert_eq!(own.sysctl().as_ref().unwrap().len(), 1);
        let mut other = read(r#"{"sysctl":{"kernel.msgmax":"8192"}}"#);
        apply_network(&mut other).unwrap();
        assert_eq!(other.sysctl().as_ref().unwrap().len(), 1);
        let mut missing = read(r#"{"sysctl":{"net.no.such":"1"}}"#);
        assert!(matches!(apply_network(&mut missing), Err(Error::InvalidArgument(_))));
    }
}
