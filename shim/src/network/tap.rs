//! A tap that somebody has made, opened for a VMM: with virtio's header before each frame, one descriptor a queue.
//!
//! Makes none and changes none: addresses, bridges and whether it is up are its owner's business.
#![allow(unsafe_code, reason = "taps and interfaces are asked and told by ioctl, which has no safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Opcode, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tatami_vmm::{MAX_QUEUE_PAIRS, NicConfig, NicKind, NicLimits};

const DEVICE: &str = "/dev/net/tun";

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
        let failed = |action| move |source| TapError::System { action, name: name.to_owned(), source };
        let (mtu, flags) = ask(name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => TapError::Missing(name.to_owned()),
            _ => failed("look at")(error),
        })?;
        let (first, several) = match join(name, true) {
            Err(TapError::Kind(_)) => (join(name, false)?, false),
            joined => (joined?, true),
        };
        let mut descriptors = vec![first];
        while several && descriptors.len() < usize::from(queues.clamp(1, MAX_QUEUE_PAIRS)) {
            descriptors.push(join(name, true)?);
        }
        for queue in &descriptors {
            number(queue.as_fd(), SET_HEADER_SIZE, HEADER_BYTES).map_err(failed("set up the header of"))?;
            number(queue.as_fd(), SET_LITTLE_ENDIAN, 1).map_err(failed("set up the header of"))?;
        }
        // Only to know: what it is to do, the VMM says when the guest has said what it takes.
        let cuts_udp = offload(descriptors[0].as_fd(), OFFLOADS | UDP_OFFLOADS).is_ok();
        offload(descriptors[0].as_fd(), 0).map_err(failed("set up the offloads of"))?;
        Ok(Tap { queues: descriptors, cuts_udp, mtu, up: flags & libc::IFF_UP as libc::c_short != 0 })
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

/// One more descriptor of the tap, of `several` queues or of one.
fn join(name: &str, several: bool) -> Result<OwnedFd, TapError> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE);
    let device = device.map_err(TapError::Device)?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
    let joined = checked(unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE as _, &raw mut request) });
    match joined.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(device.into()),
        Err((Some(libc::EINVAL), _)) => Err(TapError::Kind(name.to_owned())),
        Err((Some(libc::EBUSY), _)) => Err(TapError::InUse(name.to_owned())),
        Err((_, source)) => Err(TapError::System { action: "open", name: name.to_owned(), source }),
    }
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
    fn what_is_no_tap_is_named_with_the_remedy() {
        let error = |name: &str| Tap::open(name, 1).unwrap_err().to_string();
        assert!(error("no-such-tap").contains("ip tuntap add no-such-tap mode tap"), "{}", error("no-such-tap"));
        for name in ["", "sixteen-letters-"] {
            assert!(error(name).contains("1 to 15"), "{}", error(name));
        }
    }
}
