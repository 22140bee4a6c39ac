//! The device with the host's own vhost-net and a tap of the kernel's, in a network namespace that is the test's thread's.
#![allow(unsafe_code, reason = "makes a namespace, taps and a packet socket")]

use std::ffi::c_int;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;

use super::*;
use crate::virtio::spec::INTERRUPT_USED;

/// An Ethernet type for experiments, which nobody else's frames have.
const KIND: u16 = 0x88b5;

/// A tap, called `tap0`, and a socket for its frames of that type.
struct Host {
    packets: OwnedFd,
    flags: c_int,
}

fn checked(result: c_int) -> c_int {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().expect("ip").success(), "ip {arguments:?}");
}

impl Host {
    fn new(several: bool) -> Host {
        // SAFETY: concerns this thread only.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) });
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        Host::with(flags | if several { libc::IFF_MULTI_QUEUE } else { 0 })
    }

    fn with(flags: c_int) -> Host {
        let several = if flags & libc::IFF_MULTI_QUEUE != 0 { &["multi_queue"][..] } else { &[] };
        ip(&[&["tuntap", "add", "tap0", "mode", "tap"], several].concat());
        // It says nothing of its own.
        ip(&["link", "set", "tap0", "addrgenmode", "none", "up"]);
        // SAFETY: takes numbers only.
        let socket = checked(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, c_int::from(KIND.to_be())) });
        // SAFETY: it has just been opened, and nobody else has it.
        let packets = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol) = (libc::AF_PACKET as u16, KIND.to_be());
        // SAFETY: the name is a C string.
        address.sll_ifindex = unsafe { libc::if_nametoindex(c"tap0".as_ptr()) } as c_int;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel reads one sockaddr_ll, which lives across the call.
        checked(unsafe { libc::bind(socket, (&raw const address).cast(), len) });
        Host { packets, flags }
    }

    /// Queues of the tap, and vhost for each.
    fn open(&self, pairs: usize) -> Vec<OwnedFd> {
        let device = |path| OwnedFd::from(fs::File::options().read(true).write(true).open(path).expect(path));
        let mut ends: Vec<_> = (0..pairs).map(|_| device("/dev/net/tun")).collect();
        for queue in &ends {
            // SAFETY: ifreq is plain data for which all zeroes is a valid value.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            request.ifr_name[..4].copy_from_slice(&b"tap0".map(|byte| byte as libc::c_char));
            request.ifr_ifru.ifru_flags = self.flags as libc::c_short;
            let (header, one) = (HEADER_BYTES as c_int, 1 as c_int);
            // SAFETY: the kernel reads and writes one ifreq, which lives across the call.
            checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) });
            // SAFETY: the kernel reads one number, which lives across the call.
            checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header) });
            // SAFETY: as above.
            checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETLE as _, &raw const one) });
        }
        ends.extend((0..pairs).map(|_| device("/dev/vhost-net")));
        ends
    }

    /// A driver in front of a device with the tap.
    fn start(&self, slot: &NicSlot) -> Driver {
        slot.plug(self.open(slot.0.shape.pairs.into())).unwrap();
        let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
        driver.bring_up(u64::MAX);
        driver
    }

    /// A frame each way, the driver's with buffer `head`.
    fn exchange(&self, driver: &mut Driver, head: u16) {
        let sent = ethernet(head, 1);
        transmit(driver, &[&[0; HEADER_BYTES][..], &sent].concat());
        assert!(super::receive(&self.packets) == sent);
        let sent = ethernet(head, 2);
        post(driver, head, 1536);
        super::send(&self.packets, &sent);
        let len = HEADER_BYTES + sent.len();
        assert_eq!(driver.take(RX), (u32::from(head), len as u32));
        assert!(buffer(driver, head.into(), len as u32)[HEADER_BYTES..] == sent);
    }
}

/// A frame to everybody that no other is like.
fn ethernet(number: u16, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[2, 0, 0, 0, 0, seed]);
    frame.extend_from_slice(&KIND.to_be_bytes());
    frame.extend((0..100 + number).map(|at| (at as u8).wrapping_mul(seed).wrapping_add(number as u8)));
    frame
}

/// Whether a thread of vhost's is there: one of this process (Linux 6.4), or the kernel's.
fn is_served() -> bool {
    let of = |folder: &str| fs::read_dir(folder).unwrap().filter_map(|entry| Some(entry.ok()?.path().join("comm")));
    let mut names = of("/proc/self/task").chain(of("/proc"));
    names.any(|comm| fs::read_to_string(comm).is_ok_and(|name| name.starts_with("vhost-")))
}

#[test]
#[ignore = "needs /dev/vhost-net: make test"]
fn the_kernel_moves_frames_and_goes_on_after_pauses_and_in_another_device() {
    let (host, slot) = (Host::new(false), slot(TAP, 1));
    let mut driver = host.start(&slot);
    // Round after round, the rings' indices come round, too.
    for round in 1..4 {
        driver.set(0x64, INTERRUPT_USED);
        for head in 0..100 {
            host.exchange(&mut driver, head);
        }
        wait_for("the interrupt", || driver.get(0x60) & INTERRUPT_USED != 0);
        assert!(is_served());
        driver.transport.transport_mut().pause();
        let state = driver.transport.save().unwrap();
        let position = Some((100 * round, 100 * round));
        assert_eq!([state.queues[RX].position, state.queues[TX].position], [position; 2]);
        driver.transport.transport_mut().resume();
    }
    driver.transport.transport_mut().pause();
    let state = driver.transport.save().unwrap();
    slot.pull();
    let other = super::slot(TAP, 1);
    let mut second = driver.continue_with(Box::new(Net::new(other.clone(), 0, threads())), &state);
    second.transport.transport_mut().resume();
    other.plug(host.open(1)).unwrap();
    for head in 0..100 {
        host.exchange(&mut second, head);
    }
    // A driver that begins anew finds a device that is new.
    second.reset();
    second.bring_up(!FEATURE_MERGE);
    host.exchange(&mut second, 7);
}

#[test]
#[ignore = "needs /dev/vhost-net: make test"]
fn a_ring_that_the_kernel_cannot_use_stops_the_device_until_it_is_reset() {
    let (host, slot) = (Host::new(false), slot(TAP, 1));
    let mut driver = host.start(&slot);
    host.exchange(&mut driver, 0);
    driver.post(TX, 1, &[out(0x8000_0000, 72)]);
    driver.wait_for_needs_reset();
    driver.reset();
    driver.bring_up(u64::MAX);
    host.exchange(&mut driver, 0);
}

#[test]
#[ignore = "needs /dev/vhost-net: make test"]
fn pairs_that_the_driver_does_not_use_are_the_threads_and_come_back() {
    let (host, slot) = (Host::new(true), slot(TAP, 2));
    let mut driver = host.start(&slot);
    let sent = ethernet(0, 3);
    transmit(&mut driver, &[&[0; HEADER_BYTES][..], &sent].concat());
    assert!(super::receive(&host.packets) == sent);
    for pairs in [2, 1, 2, 1, 2] {
        assert_eq!(command(&mut driver, 4, &[CLASS_MQ, MQ_PAIRS_SET, pairs, 0]), CONTROL_OK);
        driver.put(FRAME_AT, &[&[0; HEADER_BYTES][..], &sent].concat());
        // What comes before the second pair's queue is attended goes to nobody.
        wait_for("a frame of the second pair", || {
            driver.post(3, 0, &[out(FRAME_AT, (HEADER_BYTES + sent.len()) as u32)]);
            driver.take(3);
            let mut bytes = [0; 2048];
            let got = rustix::net::recv(&host.packets, &mut bytes, RecvFlags::DONTWAIT);
            pairs == 1 || got.is_ok_and(|(len, _)| bytes[..len] == sent)
        });
    }
}

#[test]
#[ignore = "needs /dev/vhost-net: make test"]
fn a_tap_that_is_deleted_takes_the_link_down_and_another_brings_it_up() {
    let (mut host, slot) = (Host::new(false), slot(TAP, 1));
    let mut driver = host.start(&slot);
    for frames in 0..3 {
        (0..frames).for_each(|head| host.exchange(&mut driver, head));
        assert!(is_up(&driver));
        ip(&["link", "del", "tap0"]);
        wait_for("end of the link", || !slot.is_up());
        assert!(!is_up(&driver));
        // To nobody; the kernel, if it has the queue still, takes it and keeps it.
        transmit(&mut driver, &frame(60, 1));
        host = Host::with(host.flags);
        slot.plug(host.open(1)).unwrap();
        host.exchange(&mut driver, 9);
    }
}
