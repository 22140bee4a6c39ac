//! Where network interfaces wait that nothing is plugged into: a network namespace of their own, for no container is to see them.
//!
//! Knows where they are; what they are to be like when they are wanted, [`crate::network`] says.
#![allow(unsafe_code, reason = "rustix calls leaving a namespace unsafe")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::netlink::Netlink;
use crate::network::links;

static DEPOT: OnceLock<Depot> = OnceLock::new();

struct Depot {
    /// The namespace.
    namespace: OwnedFd,
    /// A connection to its configuration.
    netlink: Mutex<Netlink>,
    /// The namespace where the containers are.
    containers: OwnedFd,
}

/// Brings every interface there is but loopback into the depot. Call it while the process has one thread.
///
/// # Errors
/// The kernel's.
pub(crate) fn fill() -> io::Result<()> {
    let mut netlink = Netlink::connect()?;
    let waiting: Vec<u32> =
        links(&mut netlink)?.into_iter().filter(|link| !link.loopback).map(|link| link.index).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let containers = OwnedFd::from(File::open("/proc/self/ns/net")?);
    // SAFETY: there is no other thread, and this one is back in its namespace before there is.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let made = (|| Ok::<_, io::Error>((Netlink::connect()?, File::open("/proc/self/ns/net")?)))();
    move_into_link_name_space(containers.as_fd(), Some(LinkNameSpaceType::Network))?;
    let (depots, depot) = made?;
    for index in waiting {
        send(&mut netlink, index, &depot, None)?;
    }
    // It is filled once.
    let _ = DEPOT.set(Depot { namespace: depot.into(), netlink: Mutex::new(depots), containers });
    Ok(())
}

/// Brings the interface of the device with this permanent hardware address to where the containers are, under a name that is free
/// there; whether it was in the depot.
///
/// # Errors
/// The kernel's.
pub(crate) fn fetch(device: &[u8], name: &str) -> io::Result<bool> {
    let Some(depot) = DEPOT.get() else { return Ok(false) };
    let mut netlink = depot.netlink.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(link) = links(&mut netlink)?.into_iter().find(|link| link.is(device)) else { return Ok(false) };
    send(&mut netlink, link.index, &depot.containers, Some(name))?;
    Ok(true)
}

/// Brings the interface of this device from where `netlink` leads to, if it is there, back into the depot, where it has no addresses.
///
/// # Errors
/// The kernel's.
pub(crate) fn put(netlink: &mut Netlink, device: &[u8]) -> io::Result<()> {
    let Some(depot) = DEPOT.get() else { return Ok(()) };
    match links(netlink)?.into_iter().find(|link| link.is(device)) {
        // A name that no other has: the depot has seen none of this number.
        Some(link) => send(netlink, link.index, &depot.namespace, Some(&format!("slot{}", link.index))),
        None => Ok(()),
    }
}

fn send(netlink: &mut Netlink, index: u32, namespace: &impl AsRawFd, name: Option<&str>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::NetNsFd(namespace.as_raw_fd())];
    message.attributes.extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
    netlink.order(RouteNetlinkMessage::SetLink(message), 0)
}
