//! What the caller's network namespace has and the guest is to have as well: interfaces with addresses, routes, permanent
//! neighbours.
//!
//! Reads; changes nothing and decides nothing.

use std::collections::HashSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, IpVersion};
use tatami_protocol::agent::{Neighbour, Route};

/// An interface that has an address of more than its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub hardware_address: Vec<u8>,
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// Nobody is asked for hardware addresses there.
    pub no_arp: bool,
    /// What carries it.
    pub kind: Kind,
    /// With prefixes, as 192.0.2.1/24.
    pub addresses: Vec<String>,
}

/// What carries an interface, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tap, which a VMM can open.
    Tap,
    /// Something else that the kernel made: a veth, a vlan.
    Virtual,
    /// The same on another interface, of whose frames it gets its own: a macvlan, an ipvlan.
    Stacked,
    /// A device.
    Physical,
    /// It does not carry Ethernet's frames.
    NotEthernet,
}

/// All of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// In the order of their numbers.
    pub interfaces: Vec<Found>,
    /// Of the main table, also those that have come with an address: somebody may have removed them, or never let them come. Those that
    /// need no gateway are first.
    pub routes: Vec<Route>,
    /// Those that somebody has entered.
    pub neighbours: Vec<Neighbour>,
}

/// Looks at the namespace that `netlink` is a connection to.
///
/// # Errors
/// The kernel's.
pub async fn view(netlink: &Handle) -> Result<View, rtnetlink::Error> {
    let mut interfaces: Vec<Found> =
        netlink.link().get().execute().try_filter_map(async |link| Ok(found(link))).try_collect().await?;
    let addresses: Vec<AddressMessage> = netlink.address().get().execute().try_collect().await?;
    for message in &addresses {
        if let Some(address) = address(message)
            && let Some(of) = interfaces.iter_mut().find(|found| found.index == message.header.index)
        {
            of.addresses.push(address);
        }
    }
    interfaces.retain(|found| !found.addresses.is_empty());
    interfaces.sort_by_key(|found| found.index);

    let name = |index: u32| interfaces.iter().find(|found| found.index == index).map(|found| found.name.clone());
    let (mut routes, mut neighbours) = (Vec::new(), Vec::new());
    for (family, version) in [(AddressFamily::Inet, IpVersion::V4), (AddressFamily::Inet6, IpVersion::V6)] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let all: Vec<RouteMessage> = netlink.route().get(question).execute().try_collect().await?;
        routes.extend(all.iter().filter_map(|message| route(message, name)));
        let all = netlink.neighbours().get().set_family(version).execute();
        let all: Vec<NeighbourMessage> = all.try_collect().await?;
        neighbours.extend(all.iter().filter_map(|message| neighbour(message, name)));
    }
    Ok(View { interfaces, routes: in_order(routes), neighbours })
}

/// As they can be entered: a gateway must be reachable when a route through it is added, and of several routes to the same place only the
/// first is used.
fn in_order(mut routes: Vec<Route>) -> Vec<Route> {
    let mut known = HashSet::new();
    routes.retain(|route| known.insert((route.destination.clone(), route.metric)));
    routes.sort_by_key(|route| !route.gateway.is_empty());
    routes
}

fn found(link: LinkMessage) -> Option<Found> {
    if link.header.flags.contains(LinkFlags::Loopback) || !link.header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut found = Found {
        index: link.header.index,
        name: String::new(),
        hardware_address: Vec::new(),
        mtu: 0,
        no_arp: link.header.flags.contains(LinkFlags::Noarp),
        kind: Kind::Physical,
        addresses: Vec::new(),
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(bytes) => found.hardware_address = bytes,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::LinkInfo(about) => {
                if let Some(kind) = about.iter().find_map(|about| match about {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                }) {
                    found.kind = match kind {
                        InfoKind::Tun => Kind::Tap,
                        InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap => Kind::Stacked,
                        _ => Kind::Virtual,
                    };
                }
            }
            _ => {}
        }
    }
    if link.header.link_layer_type != LinkLayerType::Ether {
        found.kind = Kind::NotEthernet;
    }
    Some(found)
}

/// An address with its prefix; none that the guest's kernel gives itself.
fn address(message: &AddressMessage) -> Option<String> {
    // Where both ends of a link have an address, `Local` is this one's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(any).filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))?;
    Some(format!("{address}/{}", message.header.prefix_len))
}

fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route { on_link: header.flags.contains(RouteFlags::Onlink), ..Route::default() };
    let mut is_link_local = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => {
                let destination = ip(destination)?;
                is_link_local =
                    matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast());
                route.destination = format!("{destination}/{}", header.destination_prefix_length);
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway)?.to_string(),
            RouteAttribute::PrefSource(source) => route.source = ip(source)?.to_string(),
            RouteAttribute::Oif(index) => route.interface = name(*index)?,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    if header.address_family == AddressFamily::Inet6 && route.destination.is_empty() {
        route.destination = "::/0".to_owned();
    }
    (!is_link_local && !route.interface.is_empty()).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, name: impl Fn(u32) -> Option<String>) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = Neighbour { interface: name(message.header.ifindex)?, ..Neighbour::default() };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => neighbour.address = address.to_string(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = address.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.hardware_address = bytes.clone(),
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && !neighbour.hardware_address.is_empty()).then_some(neighbour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_known_by_what_carries_it() {
        let link = |kind: Option<InfoKind>, flags: LinkFlags| {
            let mut link = LinkMessage::default();
            link.header.index = 3;
            link.header.flags = flags;
            link.header.link_layer_type = LinkLayerType::Ether;
            link.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::Mtu(1400)];
            link.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
            found(link)
        };
        let veth = link(Some(InfoKind::Veth), LinkFlags::Up).unwrap();
        assert_eq!((veth.kind, veth.mtu, veth.name.as_str()), (Kind::Virtual, 1400, "eth0"));
        assert_eq!(link(Some(InfoKind::Tun), LinkFlags::Up).unwrap().kind, Kind::Tap);
        for kind in [InfoKind::MacVlan, InfoKind::IpVlan] {
            assert_eq!(link(Some(kind), LinkFlags::Up).unwrap().kind, Kind::Stacked);
        }
        assert_eq!(link(None, LinkFlags::Up).unwrap().kind, Kind::Physical);
        assert_eq!(link(None, LinkFlags::Up | LinkFlags::Loopback), None);
        assert!(!veth.no_arp && link(Some(InfoKind::IpVlan), LinkFlags::Up | LinkFlags::Noarp).unwrap().no_arp);
        assert_eq!(link(Some(InfoKind::Veth), LinkFlags::empty()), None, "what is down carries nothing");
    }

    #[test]
    fn an_address_is_ours_and_not_the_peers() {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 24;
        let (near, far) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        message.attributes = vec![AddressAttribute::Address(far), AddressAttribute::Local(near)];
        assert_eq!(address(&message).unwrap(), "192.0.2.1/24");
        message.attributes = vec![AddressAttribute::Address("fe80::1".parse().unwrap())];
        assert_eq!(address(&message), None, "the guest gives itself one");
    }

    #[test]
    fn routes_of_the_guests_interfaces_are_carried_over() {
        let name = |index: u32| (index == 3).then(|| "eth0".to_owned());
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.address_family = AddressFamily::Inet6;
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet6("2001:db8::1".parse().unwrap())),
            RouteAttribute::Oif(3),
            RouteAttribute::Priority(1024),
        ];
        let default = route(&message, name).unwrap();
        assert_eq!((default.destination.as_str(), default.gateway.as_str()), ("::/0", "2001:db8::1"));
        assert_eq!((default.interface.as_str(), default.metric), ("eth0", 1024));
        let to = |message: &mut RouteMessage, network: &str| {
            message.header.destination_prefix_length = 64;
            message.attributes[0] = RouteAttribute::Destination(RouteAddress::Inet6(network.parse().unwrap()));
        };
        to(&mut message, "fe80::");
        assert_eq!(route(&message, name), None, "the guest's kernel makes this one itself");
        to(&mut message, "2001:db8::");
        assert_eq!(route(&message, name).unwrap().destination, "2001:db8::/64");
        message.attributes[1] = RouteAttribute::Oif(4);
        assert_eq!(route(&message, name), None, "it leads through something that the guest does not have");
    }

    #[test]
    fn routes_are_in_an_order_in_which_they_can_be_entered() {
        let route = |destination: &str, gateway: &str, metric| Route {
            destination: destination.to_owned(),
            gateway: gateway.to_owned(),
            metric,
            ..Route::default()
        };
        let (first, second, last) = (route("", "10.0.0.1", 0), route("", "10.1.0.1", 0), route("", "10.1.0.1", 9));
        let near = route("10.0.0.0/24", "", 0);
        assert_eq!(in_order(vec![first.clone(), second, last.clone(), near.clone()]), [near, first, last]);
    }

    #[test]
    fn only_neighbours_that_somebody_has_entered_are_carried_over() {
        let mut message = NeighbourMessage::default();
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet("169.254.1.1".parse().unwrap())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        let entered = neighbour(&message, |_| Some("eth0".to_owned())).unwrap();
        assert_eq!((entered.address.as_str(), entered.interface.as_str()), ("169.254.1.1", "eth0"));
        message.header.state = NeighbourState::Reachable;
        assert_eq!(neighbour(&message, |_| Some("eth0".to_owned())), None);
    }
}
