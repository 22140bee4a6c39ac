//! The guest's network interfaces, which all containers share: found by their devices, named, addressed, brought up, and routes.
//!
//! Does as it is told; knows nothing of where addresses come from.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tatami_protocol::agent::{Interface, Neighbour, NetworkRequest, Route};

use crate::depot;
use crate::error::Error;
use crate::netlink::Netlink;

/// The longest name of an interface, in bytes.
const MAX_NAME: usize = 15;

/// Does what `request` says, as far as it comes.
///
/// # Errors
/// [`Error::InvalidArgument`] for what cannot be understood, [`Error::NotFound`] for an interface that is not there, else the kernel's,
/// each naming what it is about.
pub(crate) fn configure(request: &NetworkRequest) -> Result<(), Error> {
    let mut netlink = Netlink::connect().map_err(Error::internal("reach the kernel's network configuration"))?;
    for device in &request.gone {
        depot::put(&mut netlink, device)
            .map_err(Error::internal(format!("put the network interface of the device {} aside", hardware(device))))?;
    }
    for interface in &request.interfaces {
        set_up(&mut netlink, interface)?;
    }
    for route in &request.routes {
        add_route(&mut netlink, route)?;
    }
    for neighbour in &request.neighbours {
        add_neighbour(&mut netlink, neighbour)?;
    }
    Ok(())
}

/// A network interface as the kernel lists it.
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) loopback: bool,
    name: String,
    address: Vec<u8>,
    /// Given to the device when it was made.
    permanent: Vec<u8>,
}

impl Link {
    /// Whether it is that of the device with this permanent hardware address.
    pub(crate) fn is(&self, device: &[u8]) -> bool {
        self.permanent == device || self.address == device
    }
}

/// All that are where `netlink` leads to.
///
/// # Errors
/// The kernel's.
pub(crate) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let all = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |message| match message {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
        _ => None,
    };
    Ok(all.into_iter().filter_map(link).collect())
}

/// The same, for who is asked to change them.
fn listed(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    links(netlink).map_err(Error::internal("list the network interfaces"))
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let (mut name, mut address, mut permanent) = (String::new(), Vec::new(), Vec::new());
        let loopback = message.header.flags.contains(LinkFlags::Loopback);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = text,
                LinkAttribute::Address(bytes) => address = bytes,
                LinkAttribute::PermAddress(bytes) => permanent = bytes,
                _ => {}
            }
        }
        Link { index: message.header.index, loopback, name, address, permanent }
    }
}

/// The index of the interface called `name`.
fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let found = listed(netlink)?.into_iter().find(|link| link.name == name);
    found.map(|link| link.index).ok_or_else(|| Error::NotFound(format!("the guest has no network interface {name}")))
}

fn set_up(netlink: &mut Netlink, interface: &Interface) -> Result<(), Error> {
    let Interface { device, name, hardware_address, mtu, addresses, no_prefix_routes, no_arp, .. } = interface;
    if !(1..=MAX_NAME).contains(&name.len()) || name.contains(['/', ' ']) {
        return Err(Error::InvalidArgument(format!("{name:?} cannot be the name of a network interface")));
    }
    let addresses = addresses.iter().map(|text| prefixed(text)).collect::<Result<Vec<_>, _>>()?;
    let failed = |what: &str| Error::internal(format!("{what} network interface {name}"));
    let all = listed(netlink)?;
    if let Some(other) = all.iter().find(|other| &other.name == name && !other.is(device)) {
        let aside = LinkAttribute::IfName(format!("other{}", other.index));
        change(netlink, other.index, vec![aside], LinkFlags::empty()).map_err(failed("make way for"))?;
    }
    let mut found = all.into_iter().find(|link| link.is(device));
    if found.is_none() && depot::fetch(device, name).map_err(failed("bring in"))? {
        found = listed(netlink)?.into_iter().find(|link| link.is(device));
    }
    let link = found.ok_or_else(|| {
        Error::NotFound(format!("the guest has no network interface of the device {}", hardware(device)))
    })?;
    let mut attributes = vec![LinkAttribute::IfName(name.clone())];
    if !hardware_address.is_empty() {
        attributes.push(LinkAttribute::Address(hardware_address.clone()));
    }
    if *mtu > 0 {
        attributes.push(LinkAttribute::Mtu(*mtu));
    }
    let flags = if *no_arp { LinkFlags::Noarp } else { LinkFlags::empty() };
    change(netlink, link.index, attributes, flags).map_err(failed("set up"))?;
    for (address, prefix) in addresses {
        add_address(netlink, link.index, address, prefix, *no_prefix_routes)
            .map_err(failed(&format!("give {address}/{prefix} to")))?;
    }
    change(netlink, link.index, Vec::new(), LinkFlags::Up).map_err(failed("bring up"))
}

/// Gives an interface these attributes and, beside those that it has, these flags.
fn change(netlink: &mut Netlink, index: u32, attributes: Vec<LinkAttribute>, flags: LinkFlags) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    (message.header.flags, message.header.change_mask) = (flags, flags);
    message.attributes = attributes;
    netlink.order(RouteNetlinkMessage::SetLink(message), 0)
}

fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr, prefix: u8, without_route: bool) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, without_route);
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast((address.to_bits() | hosts).into()));
        }
        IpAddr::V4(_) => {}
        // A test for duplicates would keep it from being used for a second.
        IpAddr::V6(_) => flags |= AddressFlags::Nodad,
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    netlink.order(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn add_route(netlink: &mut Netlink, route: &Route) -> Result<(), Error> {
    let Route { interface, destination, gateway, source, metric, on_link, .. } = route;
    let gateway = (!gateway.is_empty()).then(|| address(gateway)).transpose()?;
    let source = (!source.is_empty()).then(|| address(source)).transpose()?;
    let destination = (!destination.is_empty()).then(|| prefixed(destination)).transpose()?;
    let version = destination.map(|(address, _)| address).or(gateway).or(source);
    let mut message = RouteMessage::default();
    message.header.address_family = version.map_or(AddressFamily::Inet, family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if let Some((address, prefix)) = destination {
        message.header.destination_prefix_length = prefix;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    if !interface.is_empty() {
        message.attributes.push(RouteAttribute::Oif(index_of(netlink, interface)?));
    }
    if *metric > 0 {
        message.attributes.push(RouteAttribute::Priority(*metric));
    }
    if *on_link {
        message.header.flags = RouteFlags::Onlink;
    }
    netlink
        .order(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(Error::internal(format!("add the route {}", described(route))))
}

/// A route as `ip route` writes it.
fn described(route: &Route) -> String {
    let mut text = if route.destination.is_empty() { "default".to_owned() } else { route.destination.clone() };
    for (word, value) in [("via", &route.gateway), ("dev", &route.interface), ("src", &route.source)] {
        if !value.is_empty() {
            text.push_str(&format!(" {word} {value}"));
        }
    }
    text
}

fn add_neighbour(netlink: &mut Netlink, neighbour: &Neighbour) -> Result<(), Error> {
    let address = address(&neighbour.address)?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index_of(netlink, &neighbour.interface)?;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(neighbour.hardware_address.clone()),
    ];
    netlink
        .order(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(Error::internal(format!("add the neighbour {address} on {}", neighbour.interface)))
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::InvalidArgument(format!("{text:?} is no IP address")))
}

/// An address and its prefix's length.
fn prefixed(text: &str) -> Result<(IpAddr, u8), Error> {
    let invalid = || Error::InvalidArgument(format!("{text:?} is no IP address with a prefix, as 192.0.2.1/24 is"));
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    let (address, length): (IpAddr, u8) =
        (address.parse().map_err(|_| invalid())?, length.parse().map_err(|_| invalid())?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest { Err(invalid()) } else { Ok((address, length)) }
}

/// A hardware address as people write it.
fn hardware(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_prefixes() {
        assert_eq!(prefixed("192.0.2.1/24").unwrap(), ("192.0.2.1".parse().unwrap(), 24));
        assert_eq!(prefixed("2001:db8::1/128").unwrap(), ("2001:db8::1".parse().unwrap(), 128));
        for bad in ["", "192.0.2.1", "192.0.2.1/", "192.0.2.1/33", "192.0.2/24", "2001:db8::1/129", "x/8", "1.2.3.4/-1"]
        {
            assert!(matches!(prefixed(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }

    #[test]
    fn routes_are_named_as_people_write_them() {
        let route = Route { gateway: "192.0.2.1".into(), interface: "eth0".into(), ..Default::default() };
        assert_eq!(described(&route), "default via 192.0.2.1 dev eth0");
        assert_eq!(hardware(&[2, 0, 0xab, 0, 0, 1]), "02:00:ab:00:00:01");
    }
}
