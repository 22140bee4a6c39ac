//! A tap, opened for a VMM: with virtio's header before each frame, one descriptor a queue.
//!
//! One that somebody has made is not changed: addresses, bridges and whether it is up are its owner's business.
#![allow(unsafe_code, reason = "taps and interfaces are asked and told by ioctl, which has no safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::ioctl::{Opcode, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tatami_vmm::{MAX_QUEUE_PAIRS, NicConfig, NicKind, NicLimits};

const DEVICE: &str = "/dev/net/tun";

/// The interface must not be there yet.
const EXCLUSIVE: libc::c_int = 0x8000;

// The macros differ between architectures, so the numbers are computed.
const SET_INTERFACE: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const SET_OFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const SET_HEADER_SIZE: Opcode = opcode::write::<libc::c_int>(b'T', 216);
const SET_LITTLE_ENDIAN: Opcode = opcode::write::<libc::c_int>(b'T', 220);

/// Checksums, TCP in large pieces with and without ECN (TUN_F_CSUM, TSO4, TSO6, TSO_ECN).
const OFFLOADS: libc::c_ulong = 0x0f;
/// UDP in large pieces (TUN_F_USO4, USO6).
const UDP_OFFLOADS: libc::c_ulong = 0x60;
/// Bytes of virtio's header (virtio 1.2, 5.1.6).
const HEADER_BYTES: libc::c_int = 12;

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No such interface.
    #[error(
        "there is no network interface {0}: make one with `ip tuntap add {0} mode tap` and `ip link set {0} up`, and give it an \
         address or add it to a bridge"
    )]
    Missing(String),
    /// Longer than any, or empty.
    #[error("{0:?} cannot be the name of a network interface: it has 1 to 15 characters")]
    Name(String),
    /// Another kind of interface.
    #[error("the network interface {0} is not a tap: `ip tuntap add NAME mode tap` makes one")]
    Kind(String),
    /// Somebody has it open.
    #[error("the tap {0} is in use by another process: a tap serves one sandbox")]
    InUse(String),
    /// There is no such device.
    #[error("cannot open {DEVICE}: {0} (`modprobe tun` loads its driver)")]
    Device(io::Error),
    /// Something else.
    #[error("cannot {action} the tap {name}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Which one.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// A descriptor for each of its queues.
    pub queues: Vec<OwnedFd>,
    cuts_udp: bool,
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
}

impl Tap {
    /// Opens the tap called `name`, with up to `queues` queues if it is one of several.
    ///
    /// # Errors
    /// [`TapError`], with the remedy.
    pub fn open(name: &str, queues: u8) -> Result<Tap, TapError> {
        if !(1..libc::IFNAMSIZ).contains(&name.len()) || name.contains('\0') {
            return Err(TapError::Name(name.to_owned()));
        }
        let (mtu, flags) = ask(name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => TapError::Missing(name.to_owned()),
            _ => failed(name, "look at")(error),
        })?;
        let (first, several) = match join(name, true, 0) {
            Err(TapError::Kind(_)) => (join(name, false, 0)?, false),
            joined => (joined?, true),
        };
        let mut descriptors = vec![first];
        while several && descriptors.len() < usize::from(queues.clamp(1, MAX_QUEUE_PAIRS)) {
            descriptors.push(join(name, true, 0)?);
        }
        Tap::set_up(name, descriptors, mtu, flags & libc::IFF_UP as libc::c_short != 0)
    }

    /// Makes a tap of `queues` queues in the caller's network namespace, which is gone when nobody has it open any more.
    ///
    /// # Errors
    /// [`TapError`]; [`TapError::InUse`] when there is an interface of that name.
    pub fn create(name: &str, queues: u8) -> Result<Tap, TapError> {
        let first = join(name, true, EXCLUSIVE)?;
        let mut queues_of_it = vec![first];
        while queues_of_it.len() < usize::from(queues.clamp(1, MAX_QUEUE_PAIRS)) {
            queues_of_it.push(join(name, true, 0)?);
        }
        let (mtu, _) = ask(name).map_err(failed(name, "look at"))?;
        Tap::set_up(name, queues_of_it, mtu, false)
    }

    /// Opens the macvtap called `name`, which was made in the caller's network namespace under the number `index`, one of
    /// [`free_macvtap_index`]'s, with `queues` queues.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn of_macvtap(name: &str, index: u32, queues: u8) -> Result<Tap, TapError> {
        let device = macvtap_device(index);
        let open = || {
            let options = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&device);
            let queue = OwnedFd::from(options?);
            let mut request = request("");
            request.ifr_ifru.ifru_flags = flags(true) as libc::c_short;
            // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
            checked(unsafe { libc::ioctl(queue.as_raw_fd(), SET_INTERFACE as _, &raw mut request) })?;
            Ok(queue)
        };
        let all: io::Result<Vec<OwnedFd>> = (0..queues.clamp(1, MAX_QUEUE_PAIRS)).map(|_| open()).collect();
        let (mtu, _) = ask(name).map_err(failed(name, "look at"))?;
        Tap::set_up(name, all.map_err(failed(name, "open"))?, mtu, true)
    }

    fn set_up(name: &str, queues: Vec<OwnedFd>, mtu: u32, up: bool) -> Result<Tap, TapError> {
        for queue in &queues {
            number(queue.as_fd(), SET_HEADER_SIZE, HEADER_BYTES).map_err(failed(name, "set up the header of"))?;
            number(queue.as_fd(), SET_LITTLE_ENDIAN, 1).map_err(failed(name, "set up the header of"))?;
        }
        // Only to know: what it is to do, the VMM says when the guest has said what it takes.
        let cuts_udp = offload(queues[0].as_fd(), OFFLOADS | UDP_OFFLOADS).is_ok();
        offload(queues[0].as_fd(), 0).map_err(failed(name, "set up the offloads of"))?;
        Ok(Tap { queues, cuts_udp, mtu, up })
    }

    /// The slot that it fits into.
    pub fn slot(&self) -> NicConfig {
        let queue_pairs = self.queues.len() as u8;
        NicConfig {
            kind: NicKind::Tap { cuts_udp: self.cuts_udp },
            queue_pairs,
            mtu: None,
            limits: NicLimits::default(),
        }
    }
}

/// Of the tap called `name`, what was attempted.
fn failed(name: &str, action: &'static str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::System { action, name: name.to_owned(), source }
}

/// Whether the host's taps take UDP in large pieces: since Linux 6.2. A slot says so before there is a tap that could be asked.
pub fn host_cuts_udp() -> bool {
    let system = rustix::system::uname();
    let mut numbers = system.release().to_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    (next(), next()) >= (6, 2)
}

/// The number of the interface called `name` in the caller's network namespace.
///
/// # Errors
/// [`TapError::Missing`].
pub fn index_of(name: &str) -> Result<u32, TapError> {
    nix::net::if_::if_nametoindex(name).map_err(|_| TapError::Missing(name.to_owned()))
}

/// A number for a macvtap that no other of the host has. Numbers are each namespace's own, but a macvtap's device is called by its
/// number in a folder that all namespaces share, where the first of a name stays: the second's owner would open the first.
///
/// # Errors
/// When the kernel has no random bytes.
pub fn free_macvtap_index() -> rustix::io::Result<u32> {
    loop {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        // Small ones the kernel gives itself; of the others there are so many that two made at once do not get the same.
        let index = u32::from_ne_bytes(bytes) >> 2 | 1 << 29;
        if !Path::new(&macvtap_device(index)).exists() {
            return Ok(index);
        }
    }
}

fn macvtap_device(index: u32) -> String {
    format!("/dev/tap{index}")
}

/// One more descriptor of the tap, of `several` queues or of one, with `more` flags.
fn join(name: &str, several: bool, more: libc::c_int) -> Result<OwnedFd, TapError> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE);
    let device = device.map_err(TapError::Device)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (flags(several) | more) as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
    let joined = checked(unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE as _, &raw mut request) });
    match joined.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(device.into()),
        Err((Some(libc::EINVAL), _)) => Err(TapError::Kind(name.to_owned())),
        Err((Some(libc::EBUSY), _)) => Err(TapError::InUse(name.to_owned())),
        Err((_, source)) => Err(TapError::System { action: "open", name: name.to_owned(), source }),
    }
}

/// What every descriptor of a tap, of `several` queues or of one, is opened with.
fn flags(several: bool) -> libc::c_int {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several { flags | libc::IFF_MULTI_QUEUE } else { flags }
}

/// An interface's MTU and flags.
fn ask(name: &str) -> io::Result<(u32, libc::c_short)> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = request(name);
    // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
    // SAFETY: this is the member that the kernel has written.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // SAFETY: as above.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: this is the member that the kernel has written.
    Ok((mtu.try_into().unwrap_or(0), unsafe { request.ifr_ifru.ifru_flags }))
}

/// A request about the interface called `name`, which is short enough.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request
}

fn number(fd: BorrowedFd<'_>, what: Opcode, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one number, which lives across the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), what as _, &raw const value) })
}

fn offload(fd: BorrowedFd<'_>, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the argument is a number.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), SET_OFFLOAD as _, flags) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_macvtap_has_a_number_that_no_other_has() {
        let (one, other) = (free_macvtap_index().unwrap(), free_macvtap_index().unwrap());
        assert_ne!(one, other);
        for index in [one, other] {
            // Far above those that the kernel gives itself.
            assert!((1 << 29..1 << 30).contains(&index), "{index}");
        }
    }

    #[test]
    fn what_is_no_tap_is_named_with_the_remedy() {
        let error = |name: &str| Tap::open(name, 1).unwrap_err().to_string();
        assert!(error("no-such-tap").contains("ip tuntap add no-such-tap mode tap"), "{}", error("no-such-tap"));
        for name in ["", "sixteen-letters-"] {
            assert!(error(name).contains("1 to 15"), "{}", error(name));
        }
    }
}
