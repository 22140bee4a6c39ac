//! Who a process is and what it may do: user, groups, capabilities.
//!
//! For processes that join; libcontainer does this for a container's first. The calling process has one thread.

use std::io;

use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capabilities, LinuxCapabilities, User};
use rustix::fs::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Becomes `user`. The permitted capabilities stay, and are effective again.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    match set_thread_groups(&groups) {
        // A user namespace may forbid it; then there were none to begin with.
        Err(_) if groups.is_empty() => {}
        result => result?,
    }
    set_ids(user.uid(), user.gid())
}

/// Changes all user and group ids. The permitted capabilities stay, and are effective again.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_keep_capabilities(true)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)?;
    let now = capabilities(None)?;
    Ok(set_capabilities(None, CapabilitySets { effective: now.permitted, ..now })?)
}

/// Gives up every capability but those `wanted`; a set that is not named is empty.
///
/// # Errors
/// What the kernel refuses, such as a capability that the caller itself does not have.
pub(crate) fn limit(wanted: &LinuxCapabilities) -> io::Result<()> {
    let bounding = set(wanted.bounding());
    for capability in (CapabilitySet::all() - bounding).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Newer than the kernel.
            Err(rustix::io::Errno::INVAL) => {}
            result => result?,
        }
    }
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: set(wanted.effective()),
            permitted: set(wanted.permitted()),
            inheritable: set(wanted.inheritable()),
        },
    )?;
    for capability in set(wanted.ambient()).iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

fn set(capabilities: &Option<Capabilities>) -> CapabilitySet {
    let bits = capabilities.iter().flatten().map(|capability| capability.to_cap().bitmask());
    CapabilitySet::from_bits_retain(bits.fold(0, |bits, bit| bits | bit))
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn names_become_bits() {
        let names: Capabilities = [Capability::Chown, Capability::Kill, Capability::CheckpointRestore].into();
        let expected = CapabilitySet::CHOWN | CapabilitySet::KILL | CapabilitySet::CHECKPOINT_RESTORE;
        assert_eq!(set(&Some(names)), expected);
        assert_eq!(set(&None), CapabilitySet::empty());
    }
}
