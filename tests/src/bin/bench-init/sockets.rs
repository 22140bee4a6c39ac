//! The socket benchmark in the guest: streams to a service on the host, and a byte there and back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Where the service is.
const PORT: u32 = 5000;
/// MiB of a stream.
const STREAM: u8 = 32;
/// Bytes that go there and back.
const TRIPS: usize = 1000;

/// `NAME=REQUESTS/NANOSECONDS …`; a request of a stream is a MiB.
pub(crate) fn measure() -> Result<String> {
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
            echo.write_all(&[1])?;
            echo.read_exact(&mut [0])
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

/// A stream to the service, which is told what is wanted of it.
fn wish(what: u8) -> Result<File> {
    let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, PORT)).context("connecting to the host")?;
    let mut stream = File::from(stream);
    stream.write_all(&[what])?;
    Ok(stream)
}

fn timed(work: impl FnOnce() -> std::io::Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
