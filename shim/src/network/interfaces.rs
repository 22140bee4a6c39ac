//! A sandbox's network: the interfaces of its network namespace joined to the guest's slots, whenever they come.
//!
//! A tap is made beside each interface, the two are joined, and the guest gets the interface's name, addresses, routes and
//! neighbours. The taps are open in the VMM only, so they go with it. Knows the namespace and the guest; not who made the former.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, LinkMacVtap, LinkUnspec, MulticastGroup};
use tatami_protocol::agent::{Interface, NetworkRequest};
use tatami_vmm::{NicConfig, NicKind, NicLimits, VmConfig, nic_address};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::namespace::{self, Found, Kind, View};
use super::redirect;
use super::tap::{self, Tap, TapError};
use super::vhost::{self, VhostUse};
use crate::sandbox;
use crate::sandbox::guest::Guest;

/// Who changes a network does so in several steps, and joining it to a guest changes it too; so long after the first it is looked at.
const CALM: Duration = Duration::from_millis(100);

/// How a guest is joined to the interfaces of its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// Each is joined to a tap by the kernel's traffic control.
    #[default]
    TcFilter,
    /// A macvtap lies on each, but for those that lie on another themselves: they are joined as by the first.
    MacVtap,
    /// It is not.
    None,
}

/// The number of every namespace's loopback interface.
const LOOPBACK: u32 = 1;

/// Why the guest does not have the network of its namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel does not answer, or refuses.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was attempted.
        action: String,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// Not one that a guest can be joined to.
    #[error(
        "the network interface {0} is a device of the host, which no guest can be given: use a macvlan, ipvlan or vlan on it"
    )]
    Physical(String),
    /// Not one that a guest can be joined to.
    #[error("the network interface {0} does not carry Ethernet, so no guest can be joined to it")]
    NotEthernet(String),
    /// More interfaces than slots.
    #[error("the network interface {name} is one too many: this guest has room for {slots}")]
    Full {
        /// Which.
        name: String,
        /// How many there are.
        slots: usize,
    },
    /// A namespace serves one guest.
    #[error("the network namespace serves another guest already (it has the tap {0}), and can serve only one")]
    Shared(String),
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The guest.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
}

/// What an operator chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// How interfaces are joined to the guest.
    pub model: Model,
    /// Whether the host's kernel moves the frames.
    pub vhost: VhostUse,
}

/// A sandbox's network.
pub struct Network {
    netlink: Handle,
    slots: usize,
    /// Queue pairs of each slot.
    queues: u8,
    how: How,
    joined: Mutex<Joined>,
}

/// What was done so far.
struct Joined {
    /// What each slot is joined to.
    slots: Vec<Option<End>>,
    /// What the guest was told.
    told: View,
    /// Taps made so far: one whose interface is gone keeps its name until another takes its slot.
    taps: u32,
    /// The namespace's loopback interface is up.
    loopback: bool,
}

/// The host's end of a slot.
struct End {
    /// The interface's number.
    index: u32,
    /// The number of the macvtap that lies on it, if one does.
    macvtap: Option<u32>,
}

/// News of the namespace.
pub struct News(futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

/// The slots for so many interfaces that a guest has from its start on, each with so many pairs of queues and no faster than `limits` say.
pub fn slots(count: usize, queues: u8, limits: NicLimits) -> Vec<NicConfig> {
    let kind = NicKind::Tap { cuts_udp: tap::host_cuts_udp() };
    vec![NicConfig { kind, queue_pairs: queues, mtu: None, limits }; count]
}

impl Network {
    /// Of the network namespace that the caller is in, for a guest that has [`slots`]; nothing for one that has none. Call it inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn for_guest(vm: &VmConfig, how: How) -> io::Result<Option<(Network, News)>> {
        vm.nics.first().map(|nic| Network::open(vm.nics.len(), nic.queue_pairs, how)).transpose()
    }

    /// Of the network namespace that the caller is in by now, for the same guest: one that was joined to nothing so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn here(&self) -> io::Result<(Network, News)> {
        Network::open(self.slots, self.queues, self.how)
    }

    fn open(slots: usize, queues: u8, how: How) -> io::Result<(Network, News)> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv6Ifaddr, Ipv6Route, Link};
        let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route];
        let (connection, netlink, news) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let joined = Mutex::new(Joined {
            slots: (0..slots).map(|_| None).collect(),
            told: View::default(),
            taps: 0,
            loopback: false,
        });
        Ok((Network { netlink, slots, queues, how, joined }, News(news)))
    }

    /// Joins what is there by now to the guest, and tells it.
    ///
    /// # Errors
    /// [`NetworkError`] names the interface; those before it are joined.
    pub async fn follow(&self, guest: &Guest) -> Result<(), NetworkError> {
        let mut joined = self.joined.lock().await;
        if !joined.loopback {
            // A runtime that makes a namespace does so, and Docker's resolver listens there.
            let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
            self.netlink.link().set(up).execute().await.map_err(failed("bring the loopback interface up"))?;
            joined.loopback = true;
        }
        let view = namespace::view(&self.netlink).await.map_err(failed("look at the network namespace"))?;
        if view == joined.told {
            return Ok(());
        }
        let mut request = NetworkRequest {
            routes: added(&view.routes, &joined.told.routes),
            neighbours: added(&view.neighbours, &joined.told.neighbours),
            ..Default::default()
        };
        for (number, slot) in joined.slots.iter_mut().enumerate() {
            if let Some(end) = slot.take_if(|end| view.interfaces.iter().all(|found| found.index != end.index)) {
                self.part(end).await;
                request.gone.push(nic_address(number as u8).to_vec());
            }
        }
        for found in &view.interfaces {
            let is_its = |slot: &Option<End>| slot.as_ref().is_some_and(|end| end.index == found.index);
            let slot = match joined.slots.iter().position(is_its) {
                Some(_) if joined.told.interfaces.contains(found) => continue,
                Some(slot) => slot,
                None => self.join(&mut joined, found, guest).await?,
            };
            request.interfaces.push(described(found, slot as u8));
        }
        guest.call(guest.agent().configure_network(request)).await?;
        joined.told = view;
        Ok(())
    }

    /// Joins an interface to a slot that is free; which.
    async fn join(&self, joined: &mut Joined, found: &Found, guest: &Guest) -> Result<usize, NetworkError> {
        let full = || NetworkError::Full { name: found.name.clone(), slots: self.slots };
        let slot = joined.slots.iter().position(Option::is_none).ok_or_else(full)?;
        let name = name_of(joined.taps);
        let (tap, macvtap) = match (found.kind, self.how.model) {
            (Kind::Physical, _) => return Err(NetworkError::Physical(found.name.clone())),
            (Kind::NotEthernet, _) => return Err(NetworkError::NotEthernet(found.name.clone())),
            (Kind::Tap, _) => (Tap::open(&found.name, self.queues)?, None),
            (Kind::Virtual, Model::MacVtap) => {
                let (tap, index) = self.tap_upon(found, &name).await?;
                (tap, Some(index))
            }
            // A macvtap on one of these would lie on what it lies on itself, perhaps in another namespace.
            (Kind::Virtual | Kind::Stacked, _) => (self.tap_beside(found, &name).await?, None),
        };
        joined.taps += 1;
        let mut ends = tap.queues;
        if self.how.vhost != VhostUse::Off {
            let opened: Result<Vec<_>, _> = ends.iter().map(|_| vhost::open()).collect();
            match opened {
                Ok(kernels) => ends.extend(kernels),
                Err(error) => log::info!("the VMM moves the frames of {}: {error}", found.name),
            }
        }
        guest.vm().plug(slot as u8, ends).await.map_err(sandbox::Error::from)?;
        joined.slots[slot] = Some(End { index: found.index, macvtap });
        Ok(slot)
    }

    async fn tap_beside(&self, found: &Found, name: &str) -> Result<Tap, NetworkError> {
        let tap = Tap::create(name, self.queues).map_err(|error| match error {
            TapError::InUse(name) => NetworkError::Shared(name),
            other => other.into(),
        })?;
        let index = tap::index_of(name)?;
        let up = LinkUnspec::new_with_index(index).mtu(found.mtu).up().build();
        self.netlink.link().set(up).execute().await.map_err(failed(format!("bring up the tap {name}")))?;
        let joined = redirect::join(&self.netlink, found.index, index).await;
        joined.map_err(failed(format!("join the network interface {} to the tap {name}", found.name)))?;
        Ok(tap)
    }

    /// A macvtap, which has the interface's hardware address, and its number.
    ///
    /// What is broadcast the kernel would give the interface too, and it would answer in the guest's place for the addresses, which it
    /// keeps: so the macvtap gets everything before that.
    async fn tap_upon(&self, found: &Found, name: &str) -> Result<(Tap, u32), NetworkError> {
        let index = tap::free_macvtap_index().map_err(|errno| TapError::System {
            action: "number",
            name: name.to_owned(),
            source: errno.into(),
        })?;
        let mut macvtap = LinkMacVtap::new(name, found.index, MacVtapMode::Passthrough).mtu(found.mtu).up().build();
        macvtap.header.index = index;
        let made = self.netlink.link().add(macvtap).execute().await;
        made.map_err(failed(format!("put a macvtap on the network interface {}", found.name)))?;
        let given = redirect::receive_in_place(&self.netlink, found.index, index).await;
        given.map_err(failed(format!("give the macvtap {name} what the network interface {} receives", found.name)))?;
        Ok((Tap::of_macvtap(name, index, self.queues)?, index))
    }

    /// Follows the namespace as long as the guest lives.
    pub fn keep_following(self: &Arc<Network>, news: News, guest: Guest) -> JoinHandle<()> {
        let (network, mut news) = (self.clone(), news.0);
        tokio::spawn(async move {
            while news.next().await.is_some() {
                tokio::time::sleep(CALM).await;
                while news.try_recv().is_ok() {}
                match network.follow(&guest).await {
                    Ok(()) => {}
                    Err(NetworkError::Sandbox(error)) if error.is_of_dead_guest() => return,
                    Err(error) => log::warn!("the guest's network is not as its namespace has it: {error}"),
                }
            }
        })
    }

    /// Leaves the namespace's interfaces as they were found.
    pub async fn end(&self) {
        let mut joined = self.joined.lock().await;
        for end in joined.slots.iter_mut().filter_map(Option::take) {
            self.part(end).await;
        }
    }

    /// Leaves one as it was found. It may be gone.
    async fn part(&self, end: End) {
        let parted = async {
            redirect::part(&self.netlink, end.index).await?;
            match end.macvtap {
                Some(index) => self.netlink.link().del(index).execute().await,
                None => Ok(()),
            }
        };
        if let Err(error) = parted.await {
            log::debug!("the network interface {}: {error}", end.index);
        }
    }
}

/// Leaves the interfaces of the network namespace that the caller is in as they were before a guest was joined to them. Call it
/// inside a tokio runtime.
///
/// # Errors
/// The kernel's.
pub async fn clear() -> Result<(), NetworkError> {
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(|source| NetworkError::Kernel {
        action: "look at the network namespace".to_owned(),
        source: rtnetlink::Error::NamespaceError(source.to_string()),
    })?;
    tokio::spawn(connection);
    let view = namespace::view(&netlink).await.map_err(failed("look at the network namespace"))?;
    // A macvtap stays when its VMM has gone, unlike a tap. They are listed: for a name that is not there, the kernel looks for a
    // module, by a program that it starts.
    let listed = nix::net::if_::if_nameindex().map_err(|errno| NetworkError::Kernel {
        action: "list the network interfaces".to_owned(),
        source: rtnetlink::Error::NamespaceError(errno.to_string()),
    })?;
    for interface in &listed {
        let name = interface.name().to_string_lossy();
        if is_ours(&name) {
            match netlink.link().del(interface.index()).execute().await {
                // A tap goes by itself.
                Err(rtnetlink::Error::NetlinkError(refusal)) if refusal.raw_code() == -libc::ENODEV => {}
                removed => removed.map_err(failed(format!("remove the interface {name}")))?,
            }
        }
    }
    for found in view.interfaces {
        let parted = redirect::part(&netlink, found.index).await;
        parted.map_err(failed(format!("part the network interface {} from its tap", found.name)))?;
    }
    Ok(())
}

/// What the tap or macvtap made as this one in a namespace is called.
fn name_of(number: u32) -> String {
    format!("tatami{number}")
}

/// Whether one is called so.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("tatami").is_some_and(|number| number.parse::<u32>().is_ok())
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Kernel { action: action.into(), source }
}

/// What of `now` was not there `before`.
fn added<T: Clone + PartialEq>(now: &[T], before: &[T]) -> Vec<T> {
    now.iter().filter(|one| !before.contains(one)).cloned().collect()
}

/// An interface as the guest is to have it.
fn described(found: &Found, slot: u8) -> Interface {
    Interface {
        device: nic_address(slot).to_vec(),
        name: found.name.clone(),
        hardware_address: found.hardware_address.clone(),
        mtu: found.mtu,
        addresses: found.addresses.clone(),
        no_prefix_routes: true,
        no_arp: found.no_arp,
        ..Default::default()
    }
}
