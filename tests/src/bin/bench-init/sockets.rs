//! The socket benchmarks in the guest or a container: streams to a service on the host, and 64 bytes there and back.
#![allow(unsafe_code, reason = "the network interface is set up by ioctl, which has no safe wrapper")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Where the service is.
const PORT: u32 = 5000;
/// MiB of a stream.
const STREAM: u8 = 32;
/// Messages that go there and back.
const TRIPS: usize = 1000;
/// Bytes of each.
const MESSAGE: usize = 64;

/// The guest's end of the tap, in a network of class C, and the host's.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// By vsock: `NAME=REQUESTS/NANOSECONDS …`; a request of a stream is a MiB.
pub(crate) fn vsock() -> Result<String> {
    measure(|| {
        let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(stream.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, PORT)).context("connecting to the host")?;
        Ok(stream)
    })
}

/// By TCP, over the one network interface.
pub(crate) fn tcp() -> Result<String> {
    bring_up().context("setting eth0 up")?;
    tcp_to(HOST)
}

/// The same from where the network is there already.
pub(crate) fn tcp_to(host: Ipv4Addr) -> Result<String> {
    measure(|| {
        let stream = TcpStream::connect((host, PORT as u16)).context("connecting to the host")?;
        stream.set_nodelay(true)?;
        Ok(stream.into())
    })
}

fn measure(connect: impl Fn() -> Result<OwnedFd>) -> Result<String> {
    // Each is told what is wanted of it.
    let wish = |what: u8| {
        let mut stream = File::from(connect()?);
        stream.write_all(&[what])?;
        anyhow::Ok(stream)
    };
    let (mut send, mut receive, mut echo) = (wish(b's')?, wish(b'r')?, wish(b'e')?);
    let mut piece = vec![7; 64 << 10];
    let pieces = usize::from(STREAM) * 16;
    let sent = timed(|| {
        send.write_all(&[STREAM])?;
        (0..pieces).try_for_each(|_| send.write_all(&piece))?;
        send.read_exact(&mut [0])
    })?;
    let received = timed(|| {
        receive.write_all(&[STREAM])?;
        (0..pieces).try_for_each(|_| receive.read_exact(&mut piece))
    })?;
    echo.write_all(&[0])?;
    let trips = timed(|| {
        (0..TRIPS).try_for_each(|_| {
            echo.write_all(&[1; MESSAGE])?;
            echo.read_exact(&mut [0; MESSAGE])
        })
    })?;
    let figure = |name: &str, requests: usize, took: Duration| format!(" {name}={requests}/{}", took.as_nanos());
    Ok([
        figure("send-1m", STREAM.into(), sent),
        figure("receive-1m", STREAM.into(), received),
        figure("round-trip", TRIPS, trips),
    ]
    .concat())
}

/// Gives the interface its address (netdevice(7)).
fn bring_up() -> io::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(GUEST.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are sixteen bytes, of which the family says what they are.
    let address = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    order(libc::SIOCSIFADDR, libc::__c_anonymous_ifr_ifru { ifru_addr: address })?;
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    order(libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })
}

fn order(what: libc::c_ulong, value: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
    request.ifr_name.iter_mut().zip(b"eth0").for_each(|(place, byte)| *place = *byte as libc::c_char);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the request is valid for the call, which only reads it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn timed(work: impl FnOnce() -> std::io::Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
