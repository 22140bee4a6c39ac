//! Streams to the host: the same guest talks to the same service, by vsock (Tatami's own device; QEMU's microvm with the kernel's,
//! vhost-vsock) and by TCP over a tap, whose frames the VMM moves or the kernel does (vhost-net).
#![allow(unsafe_code, reason = "a vsock stream is read and written as any")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};

use crate::boot::{microvm, tatami};
use crate::requests::{Contestant, exits, table};

/// Where the service listens; see `bench-init`.
const PORT: u32 = 5000;
/// The guest's address with QEMU; its own in Tatami.
const GUEST: u32 = 77;
/// The host's end of the tap; the guest's is in `bench-init`.
const HOST: &str = "192.0.2.1";
const TAP: &str = "tatami-bench";

/// By vsock.
pub(crate) fn vsock(rounds: usize, clock: &str) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let path = folder.path().join("vsock");
    // Where the example looks for the port's service.
    let unix = UnixListener::bind(folder.path().join(format!("vsock_{PORT}")))?;
    serve(move || Ok(OwnedFd::from(unix.accept()?.0)));
    succeed("modprobe", "vhost_vsock")?;
    let vsock = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&vsock), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))
        .context("a vsock port")?;
    listen(&vsock, Backlog::new(8)?)?;
    serve(move || {
        let stream = accept(std::os::fd::AsRawFd::as_raw_fd(&vsock))?;
        // SAFETY: just accepted, and nobody else's.
        Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(stream) })
    });
    let ours = |what: &str| tatami(&format!("{what} --vsock {}", path.display()));
    let theirs = microvm(
        " BENCH=vsock",
        &format!("-global virtio-mmio.force-legacy=false -device vhost-vsock-device,guest-cid={GUEST}"),
    )?;
    let contestants =
        vec![Contestant::new("Tatami", ours("--cmdline BENCH=vsock")?), Contestant::new("QEMU vhost-vsock", theirs)];
    table(&format!("vsock, {clock}"), contestants, rounds)?;
    exits(ours("--cmdline BENCH=vsock")?, ours("")?)
}

/// By TCP.
pub(crate) fn net(rounds: usize, clock: &str) -> Result<()> {
    succeed("modprobe", "-a tun vhost_net")?;
    let _tap = Tap::new()?;
    serve_tcp(HOST)?;
    let ours = |more: &str| tatami(&format!("--cmdline BENCH=net --tap {TAP} {more}"));
    let theirs = |vhost: &str| {
        let network = format!("-netdev tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
        microvm(
            " BENCH=net",
            &format!("-global virtio-mmio.force-legacy=false {network} -device virtio-net-device,netdev=net"),
        )
    };
    let by_vmm = vec![Contestant::new("Tatami", ours("")?), Contestant::new("QEMU", theirs("off")?)];
    let by_kernel = vec![Contestant::new("Tatami", ours("--vhost")?), Contestant::new("QEMU", theirs("on")?)];
    table(&format!("TCP over a tap, {clock}"), by_vmm, rounds)?;
    exits(ours("")?, tatami(&format!("--tap {TAP}"))?)?;
    table(&format!("TCP over a tap with vhost-net, {clock}"), by_kernel, rounds)?;
    exits(ours("--vhost")?, tatami(&format!("--tap {TAP} --vhost"))?)
}

/// Serves by TCP at one of the host's addresses.
pub(crate) fn serve_tcp(host: &str) -> Result<()> {
    let service = TcpListener::bind((host, PORT as u16)).with_context(|| format!("{host}:{PORT}"))?;
    serve(move || {
        let stream = service.accept()?.0;
        stream.set_nodelay(true)?;
        Ok(stream.into())
    });
    Ok(())
}

/// A tap that is up, and gone with the benchmark.
struct Tap;

impl Tap {
    fn new() -> Result<Tap> {
        succeed("ip", &format!("tuntap add {TAP} mode tap"))?;
        let tap = Tap;
        succeed("ip", &format!("addr add {HOST}/24 dev {TAP}"))?;
        succeed("ip", &format!("link set {TAP} up"))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = succeed("ip", &format!("link del {TAP}"));
    }
}

pub(crate) fn succeed(program: &str, words: &str) -> Result<()> {
    let status =
        Command::new(program).args(words.split(' ')).status().with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} {words}: {status}");
    Ok(())
}

/// Serves whoever `accept` brings, one after another, on a thread that ends with the process.
fn serve(mut accept: impl FnMut() -> Result<OwnedFd> + Send + 'static) {
    std::thread::spawn(move || {
        while let Ok(stream) = accept() {
            // A guest that went away has had what it wanted.
            let _ = answer(std::fs::File::from(stream));
        }
    });
}

/// What a guest asks for with its first byte: `s`, so many MiB are taken and one byte is given; `r`, so many are given; `e`, what
/// comes goes back. How many is the second byte.
fn answer(mut stream: std::fs::File) -> Result<()> {
    let mut wish = [0; 2];
    stream.read_exact(&mut wish)?;
    let mut buffer = vec![0x5a; 64 << 10];
    let pieces = usize::from(wish[1]) * 16;
    match wish[0] {
        b's' => {
            (0..pieces).try_for_each(|_| stream.read_exact(&mut buffer))?;
            stream.write_all(&[1])?;
        }
        b'r' => (0..pieces).try_for_each(|_| stream.write_all(&buffer))?,
        _ => loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => stream.write_all(&buffer[..count])?,
            }
        },
    }
    Ok(())
}
