//! What of a specification this kind of guest cannot do: it is refused, because nothing is left out in silence.
//!
//! Limits are `limits`' business. What only the host can know, such as which profile was meant to guard its kernel and not the
//! guest's, the server decides before it asks.

use std::fs;

use libcontainer::oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Process,
};

use crate::error::Error;

/// Says yes or no, if the kernel has AppArmor.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";

/// Checks the container's part.
///
/// # Errors
/// [`Error::InvalidArgument`], with key and reason.
pub(crate) fn check(linux: &Linux) -> Result<(), Error> {
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(refusal("linux.mountLabel", "the guest's kernel has no SELinux"));
    }
    if linux.intel_rdt().is_some() {
        return Err(refusal("linux.intelRdt", "the guest has no control over the processor's caches"));
    }
    if linux.seccomp().as_ref().is_some_and(notifies) {
        return Err(refusal("linux.seccomp", "its listener is on the host, out of the guest's reach"));
    }
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none()) {
        check_mapping("linux.uidMappings", linux.uid_mappings())?;
        check_mapping("linux.gidMappings", linux.gid_mappings())?;
    }
    Ok(())
}

/// Checks a process's part.
///
/// # Errors
/// [`Error::InvalidArgument`], with key and reason.
pub(crate) fn check_process(process: &Process) -> Result<(), Error> {
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(refusal("process.selinuxLabel", "the guest's kernel has no SELinux"));
    }
    if process.apparmor_profile().is_some() && !fs::read_to_string(APPARMOR).is_ok_and(|text| text.starts_with('Y')) {
        return Err(refusal("process.apparmorProfile", "the guest's kernel has no AppArmor"));
    }
    Ok(())
}

fn notifies(profile: &LinuxSeccomp) -> bool {
    let asks = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().iter().flatten();
    profile.listener_path().is_some()
        || asks(profile.default_action())
        || rules.into_iter().any(|rule| asks(rule.action()))
}

fn check_mapping(key: &str, ranges: &Option<Vec<LinuxIdMapping>>) -> Result<(), Error> {
    match ranges.as_ref().map_or(0, Vec::len) {
        1 => Ok(()),
        0 => Err(refusal(key, "a user namespace needs a range of ids")),
        _ => Err(refusal(key, "more than one range is not supported in the guest")),
    }
}

fn refusal(key: &str, reason: &str) -> Error {
    Error::InvalidArgument(format!("{key}: {reason}"))
}
