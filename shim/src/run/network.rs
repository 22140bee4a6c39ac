//! `--net` and `--publish`: their text, and the guest's network made of them.
//!
//! Knows what a person asks for; how taps are opened and user-mode networks started is [`crate::network`]'s.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tatami_protocol::agent::{Interface, NetworkRequest, Route};
use tatami_vmm::{NicConfig, NicLimits, VmConfig, nic_address};

use crate::network::passt::{self, Passt, PasstError, Published};
use crate::network::resolv_conf;
use crate::network::tap::{Tap, TapError};
use crate::network::vhost::{self, VhostError, VhostUse};
use crate::sandbox::{self, Sandbox};

/// What the only interface of such a sandbox is called.
const NAME: &str = "eth0";

/// How a tap is written.
const TAP_FORM: &str = "tap:NAME[,ip=ADDRESS/PREFIX][,gw=ADDRESS][,mac=ADDRESS][,mtu=BYTES][,vhost=auto|on|off]";

/// `--net` as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Net {
    /// Loopback only.
    #[default]
    None,
    /// A tap that somebody has made.
    Tap(TapNet),
    /// User mode.
    Passt,
}

/// `--net tap:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapNet {
    /// The tap's name.
    pub name: String,
    /// The guest's addresses, with prefixes.
    pub addresses: Vec<String>,
    /// Where it sends what is not for its own networks; one for each version of IP at most.
    pub gateways: Vec<IpAddr>,
    /// Its hardware address; none: a random one.
    pub hardware_address: Option<[u8; 6]>,
    /// Its largest packet, in bytes; none: the tap's.
    pub mtu: Option<u32>,
    /// Whether the host's kernel moves its frames.
    pub vhost: VhostUse,
}

/// Why a text says nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    /// Unknown kind.
    #[error("expected none, passt, or {TAP_FORM}")]
    Kind,
    /// Unknown word.
    #[error(
        "unknown word {0:?}: ip=ADDRESS/PREFIX, gw=ADDRESS, mac=ADDRESS, mtu=BYTES and vhost=auto|on|off are known"
    )]
    Word(String),
    /// A value that cannot be.
    #[error("{0}={1}: expected {2}")]
    Value(String, String, &'static str),
    /// Not of the form that is expected.
    #[error("expected [ADDRESS:]HOST:GUEST[/tcp|/udp] with ports from 1 to 65535")]
    Port,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The tap.
    #[error("--net: {0}")]
    Tap(#[from] TapError),
    /// The kernel's part, which was asked for.
    #[error("--net: {0}; without vhost=on the VMM does that work")]
    Vhost(#[from] VhostError),
    /// The user-mode network.
    #[error("--net: {0}")]
    Passt(#[from] PasstError),
    /// What a saved guest has a device for is something else.
    #[error("--net: the guest was saved with {was}, which {is} is not")]
    Unlike {
        /// What it had.
        was: String,
        /// What it would have.
        is: String,
    },
    /// `--publish` without passt.
    #[error("--publish needs a guest that was saved with --net passt")]
    Publish,
    /// Written by nobody who knows of networks.
    #[error("what was saved of the network cannot be understood: {0}")]
    Saved(#[from] serde_json::Error),
    /// No random bytes.
    #[error("no random hardware address: {0}")]
    Random(rustix::io::Errno),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
}

impl Net {
    /// Whether it is to be the kernel's vhost-net or nothing.
    pub(super) fn insists_on_vhost(&self) -> bool {
        matches!(self, Net::Tap(TapNet { vhost: VhostUse::On, .. }))
    }
}

impl FromStr for Net {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Net, NetError> {
        match text {
            "none" => return Ok(Net::None),
            "passt" => return Ok(Net::Passt),
            _ => {}
        }
        let mut words = text.strip_prefix("tap:").ok_or(NetError::Kind)?.split(',');
        let name = words.next().filter(|name| !name.is_empty()).ok_or(NetError::Kind)?.to_owned();
        let mut tap = TapNet { name, ..TapNet::default() };
        for word in words {
            tap.take(word)?;
        }
        Ok(Net::Tap(tap))
    }
}

impl TapNet {
    /// Whether it says what the guest's interface is to be like.
    fn describes(&self) -> bool {
        let silent = self.addresses.is_empty() && self.gateways.is_empty();
        !silent || self.hardware_address.is_some() || self.mtu.is_some()
    }

    fn take(&mut self, word: &str) -> Result<(), NetError> {
        let (key, value) = word.split_once('=').ok_or_else(|| NetError::Word(word.to_owned()))?;
        let wrong = |expected| NetError::Value(key.to_owned(), value.to_owned(), expected);
        match key {
            "ip" => {
                if !is_prefixed(value) {
                    return Err(wrong("an address with a prefix, such as 192.0.2.2/24"));
                }
                self.addresses.push(value.to_owned());
            }
            "gw" => self.gateways.push(value.parse().map_err(|_| wrong("an address, such as 192.0.2.1"))?),
            "mac" => {
                self.hardware_address = Some(hardware(value).ok_or(wrong("an address, such as 02:00:00:00:00:01"))?)
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                self.mtu = Some(mtu.ok_or(wrong("a number of bytes from 68 to 65535"))?);
            }
            "vhost" => {
                self.vhost = match value {
                    "auto" => VhostUse::Auto,
                    "on" => VhostUse::On,
                    "off" => VhostUse::Off,
                    _ => return Err(wrong("auto, on or off")),
                }
            }
            _ => return Err(NetError::Word(word.to_owned())),
        }
        Ok(())
    }

    /// Whether the host's kernel is to move its frames, which is possible unless they are `limited`.
    fn finds_vhost(&self, limited: bool) -> Result<bool, VhostError> {
        match self.vhost {
            VhostUse::Off => Ok(false),
            VhostUse::On => vhost::open().map(|_| true),
            VhostUse::Auto if limited => Ok(false),
            VhostUse::Auto => {
                let found = vhost::open();
                Ok(found.inspect_err(|error| log::info!("the VMM moves the frames of {}: {error}", self.name)).is_ok())
            }
        }
    }
}

fn is_prefixed(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let longest = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= longest)
}

/// A hardware address that an interface can have: not that of a group.
fn hardware(text: &str) -> Option<[u8; 6]> {
    // Numbers may have a sign, bytes of an address not.
    let is_byte = |text: &str| text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| is_byte(byte)))
        .collect::<Option<_>>()?;
    <[u8; 6]>::try_from(bytes).ok().filter(|address| address[0] & 1 == 0 && *address != [0; 6])
}

/// Reads one `--publish`.
///
/// # Errors
/// [`NetError::Port`].
pub fn published(text: &str) -> Result<Published, NetError> {
    let (ports, udp) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
        Some((ports, "udp")) => (ports, true),
        Some(_) => return Err(NetError::Port),
    };
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or(NetError::Port);
    let (rest, guest) = ports.rsplit_once(':').ok_or(NetError::Port)?;
    let (address, host) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((address, host)) => (Some(address.parse().map_err(|_| NetError::Port)?), host),
    };
    Ok(Published { address, host: port(host)?, guest: port(guest)?, udp })
}

/// The guest's network, from the command line to the sandbox's end.
pub(crate) struct Network {
    net: Net,
    published: Vec<Published>,
    queues: u8,
    mtu: u32,
    slot: Option<NicConfig>,
    /// The host's kernel moves the tap's frames.
    vhost: bool,
    passt: Option<Passt>,
    guest: Knows,
}

/// What the guest knows of its network before it is joined to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    Nothing,
    /// All: it goes on from where it had it.
    All,
    /// What it had before, which is not so any more.
    Otherwise,
}

/// A network, as a saved sandbox's folder says it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNetwork {
    net: Net,
    published: Vec<Published>,
}

impl Network {
    /// Finds out whether it can be had, for a guest of so many vCPUs, no faster than `limits` say.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(super) fn find(
        net: &Net,
        published: &[Published],
        vcpus: u8,
        limits: Option<NicLimits>,
    ) -> Result<Network, NetworkError> {
        let (slot, mtu, vhost) = match net {
            Net::None => (None, 0, false),
            Net::Passt => {
                Passt::find()?;
                (Some(passt::SLOT), passt::MTU, false)
            }
            Net::Tap(tap) => {
                // It is opened again when the guest is there: what holds it meanwhile must not be a process that outlives this one.
                let found = Tap::open(&tap.name, vcpus)?;
                if !found.up {
                    log::warn!("the tap {0} is down, and carries nothing until `ip link set {0} up`", tap.name);
                }
                (Some(found.slot()), tap.mtu.unwrap_or(found.mtu), tap.finds_vhost(limits.is_some())?)
            }
        };
        let slot = slot.map(|slot| NicConfig { limits: limits.unwrap_or_default(), ..slot });
        let (net, published) = (net.clone(), published.to_vec());
        Ok(Network { net, published, queues: vcpus, mtu, slot, vhost, passt: None, guest: Knows::Nothing })
    }

    /// What a folder with the saved sandbox is to say of it.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let saved = SavedNetwork { net: self.net.clone(), published: self.published.clone() };
        serde_json::to_value(saved).expect("texts and numbers are JSON")
    }

    /// Finds out whether what was saved can be had again for a machine as `vm` says, or in its place `net` and `published` where they are
    /// given.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn find_again(
        saved: &serde_json::Value,
        vm: &VmConfig,
        net: Option<Net>,
        published: Vec<Published>,
    ) -> Result<Network, NetworkError> {
        let SavedNetwork { net: was, published: were } = SavedNetwork::deserialize(saved)?;
        let guest = match &net {
            Some(Net::Tap(tap)) if tap.describes() => Knows::Otherwise,
            _ => Knows::All,
        };
        let net = net.unwrap_or_else(|| was.clone());
        if !published.is_empty() && net != Net::Passt {
            return Err(NetworkError::Publish);
        }
        let published = if published.is_empty() { were } else { published };
        let limits = vm.nics.first().map(|nic| nic.limits).filter(|limits| *limits != NicLimits::NONE);
        let network = Network::find(&net, &published, vm.vcpus, limits)?;
        if network.slots() != vm.nics {
            let told = |net: &Net, nics: &[NicConfig]| match (net, nics) {
                (Net::Tap(tap), [nic]) => format!("tap {} ({} queues)", tap.name, nic.queue_pairs),
                (Net::Tap(tap), _) => format!("tap {}", tap.name),
                (Net::Passt, _) => "passt".to_owned(),
                (Net::None, _) => "no network".to_owned(),
            };
            return Err(NetworkError::Unlike { was: told(&was, &vm.nics), is: told(&net, &network.slots()) });
        }
        Ok(Network { guest, ..network })
    }

    /// The slot for it that the guest has from its start on.
    pub(super) fn slots(&self) -> Vec<NicConfig> {
        self.slot.into_iter().collect()
    }

    /// Joins the guest, whose agent has answered, to it.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) async fn connect(&mut self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        let (ends, mut request) = match &self.net {
            Net::None => return Ok(()),
            Net::Tap(tap) => (self.open(tap)?, describe(tap)),
            Net::Passt => {
                let (passt, end) = Passt::start(&self.published).await?;
                self.passt = Some(passt);
                (vec![end], describe_user_mode())
            }
        };
        for interface in &mut request.interfaces {
            interface.device = nic_address(0).to_vec();
            interface.name = NAME.to_owned();
            interface.mtu = self.mtu;
            if interface.hardware_address.is_empty() {
                interface.hardware_address = random_address()?.to_vec();
            }
        }
        sandbox.vm().plug(0, ends).await.map_err(sandbox::Error::from)?;
        match self.guest {
            Knows::All => return Ok(()),
            Knows::Otherwise => request.gone.push(nic_address(0).to_vec()),
            Knows::Nothing => {}
        }
        Ok(sandbox.configure_network(request).await?)
    }

    /// The tap's queues, and behind them as many of vhost-net where that is used.
    fn open(&self, tap: &TapNet) -> Result<Vec<OwnedFd>, NetworkError> {
        let mut ends = Tap::open(&tap.name, self.queues)?.queues;
        if self.vhost {
            for _ in 0..ends.len() {
                ends.push(vhost::open()?);
            }
        }
        Ok(ends)
    }

    /// What containers have as their resolver's configuration unless name servers are given; empty: what their image says.
    pub(super) fn resolv_conf(&self) -> String {
        match &self.net {
            Net::None => String::new(),
            Net::Passt => format!("nameserver {}\n", passt::NAME_SERVER),
            Net::Tap(_) => resolv_conf::of_host(),
        }
    }

    /// Ends what was started for it.
    pub(crate) async fn end(self) {
        if let Some(passt) = self.passt {
            passt.end().await;
        }
    }
}

fn describe(tap: &TapNet) -> NetworkRequest {
    let interface = Interface {
        addresses: tap.addresses.clone(),
        hardware_address: tap.hardware_address.map(Vec::from).unwrap_or_default(),
        ..Default::default()
    };
    NetworkRequest {
        interfaces: vec![interface],
        routes: tap.gateways.iter().map(|gateway| default_route(&gateway.to_string())).collect(),
        ..Default::default()
    }
}

fn describe_user_mode() -> NetworkRequest {
    let addresses = vec![format!("{}/{}", passt::ADDRESS, passt::PREFIX)];
    NetworkRequest {
        interfaces: vec![Interface { addresses, ..Default::default() }],
        routes: vec![default_route(passt::GATEWAY)],
        ..Default::default()
    }
}

fn default_route(gateway: &str) -> Route {
    Route { gateway: gateway.to_owned(), interface: NAME.to_owned(), ..Default::default() }
}

/// A hardware address that nobody else is likely to have.
fn random_address() -> Result<[u8; 6], NetworkError> {
    let mut address = [0; 6];
    rustix::rand::getrandom(&mut address, rustix::rand::GetRandomFlags::empty()).map_err(NetworkError::Random)?;
    // Locally administered, and no group's.
    address[0] = address[0] & 0xfc | 0x02;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_with_all_they_can_have() {
        assert_eq!("none".parse(), Ok(Net::None));
        assert_eq!("passt".parse(), Ok(Net::Passt));
        let text = "tap:tap0,ip=192.0.2.2/24,ip=2001:db8::2/64,gw=192.0.2.1,mac=02:00:00:00:00:0a,mtu=9000";
        let Net::Tap(tap) = text.parse().unwrap() else { panic!("no tap") };
        assert_eq!((tap.name.as_str(), tap.addresses.len(), tap.mtu), ("tap0", 2, Some(9000)));
        assert_eq!(tap.vhost, VhostUse::Auto);
        assert_eq!(tap.hardware_address, Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(tap.gateways, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        for (word, expected) in [("auto", VhostUse::Auto), ("on", VhostUse::On), ("off", VhostUse::Off)] {
            let tap = TapNet { name: "t".to_owned(), vhost: expected, ..TapNet::default() };
            assert_eq!(format!("tap:t,vhost={word}").parse(), Ok(Net::Tap(tap)));
        }
    }

    #[test]
    fn what_is_wrong_in_a_network_is_named() {
        let error = |text: &str| text.parse::<Net>().unwrap_err().to_string();
        for text in ["", "bridge", "tap", "tap:", "tap:,ip=192.0.2.2/24"] {
            assert!(error(text).contains("tap:NAME"), "{text}: {}", error(text));
        }
        for (word, expected) in [
            ("ip=192.0.2.2", "with a prefix"),
            ("ip=192.0.2.2/33", "with a prefix"),
            ("gw=x", "an address"),
            ("mac=01:00:00:00:00:00", "02:00"),
            ("mac=2:0:0:0:0:1", "02:00"),
            ("mac=+2:00:00:00:00:01", "02:00"),
            ("mtu=67", "68 to 65535"),
            ("mtu=65536", "68 to 65535"),
            ("vhost=yes", "auto, on or off"),
            ("vlan=3", "unknown word"),
            ("up", "unknown word"),
        ] {
            let error = error(&format!("tap:t,{word}"));
            assert!(error.contains(expected) && error.contains(word.split('=').next_back().unwrap()), "{error}");
        }
    }

    #[test]
    fn ports_are_written_as_for_docker() {
        let read = |text: &str| published(text);
        let port = |address: Option<&str>, host, guest, udp| {
            Ok(Published { address: address.map(|address| address.parse().unwrap()), host, guest, udp })
        };
        assert_eq!(read("8080:80"), port(None, 8080, 80, false));
        assert_eq!(read("8080:80/tcp"), port(None, 8080, 80, false));
        assert_eq!(read("127.0.0.1:53:5353/udp"), port(Some("127.0.0.1"), 53, 5353, true));
        for bad in ["", "80", "0:80", "80:0", "80:65536", "x:80", "80:80/sctp", "host:80:80", ":80", "80:"] {
            assert_eq!(read(bad), Err(NetError::Port), "{bad}");
        }
    }
}
