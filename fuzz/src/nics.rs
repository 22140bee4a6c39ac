//! The network device: frames both ways, headers that lie, offloads and pairs that change, and a network that comes and goes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tatami_devices::virtio::{Net, NicKind, NicLimits, NicShape, NicSlot};

use crate::devices::buffers;
use crate::driver::{Buffer, Driver, Rig, drive, threads};
use crate::input::Input;

/// An empty slot for a network.
///
/// # Panics
/// When event descriptors are not to be had.
pub fn slot(kind: NicKind, pairs: u16) -> NicSlot {
    let shape = NicShape { address: [2, 0, 0, 0, 0, 1], kind, pairs, mtu: Some(1500), limits: NicLimits::NONE };
    NicSlot::empty(shape).expect("event descriptors")
}

/// Plugged into a stream: what comes from the other side may be no frame.
pub fn net(data: &[u8]) {
    nic(NicKind::Stream, SocketType::STREAM, 1, data);
}

/// Plugged into two sockets that keep frames apart, as a tap's queues do. Of a tap's ioctls they know nothing.
pub fn tap(data: &[u8]) {
    nic(NicKind::Tap { cuts_udp: true }, SocketType::SEQPACKET, 2, data);
}

fn nic(kind: NicKind, socket: SocketType, pairs: u16, data: &[u8]) {
    let mut network = Network { slot: slot(kind, pairs), socket, pairs, ends: Vec::new() };
    network.plug();
    let device = Net::new(network.slot.clone(), 0, threads());
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() % 8 {
        0..=2 => network.act(input),
        3 | 4 => {
            let queue = 2 * usize::from(input.byte() % 2) * usize::from(pairs - 1);
            for _ in 0..input.byte() % 16 {
                driver.post(queue, &buffers(input, true));
            }
        }
        5 => {
            // 5.1.6.5: class, command, a number; a byte for the answer. The queue is the last that was negotiated.
            let command = [[4, 0], [5, 0], [input.byte(), input.byte()]][usize::from(input.byte() % 3)];
            driver.put(0x6_0000, &[&command[..], &input.double().to_le_bytes()].concat());
            let len = [4, 10, input.word()][usize::from(input.byte() % 3)];
            let chain = [(0x6_0000, len, false), (0x6_1000, 1, true)].map(|(address, len, writable)| Buffer {
                address,
                len,
                writable,
            });
            driver.post(2 * usize::from(input.pick(&[1, pairs])), &chain);
        }
        _ => {
            // 5.1.6: flags, kind of piece, its header's length and its size, where the checksum begins and goes.
            let address = 0x400 * u64::from(input.byte());
            let mut header = vec![input.byte() % 4, input.pick(&[0, 0, 0, 1, 3, 4, 5, 0x81, 0xff])];
            header.extend([(); 4].map(|()| (input.word() as u16).to_le_bytes()).as_flattened());
            driver.put(address, &header);
            let len = if input.byte() < 200 { 12 + u32::from(input.half() % 2000) } else { input.word() };
            let mut chain = vec![Buffer { address, len, writable: false }];
            chain.extend(buffers(input, false));
            driver.post(1 + 2 * usize::from(input.byte() % 2) * usize::from(pairs - 1), &chain);
        }
    };
    drive(Rig { device: Box::new(device), served: 2, request }, data);
    network.slot.pull();
    assert!(!network.slot.is_up(), "pulled out, and up");
}

/// The other side.
struct Network {
    slot: NicSlot,
    socket: SocketType,
    pairs: u16,
    ends: Vec<File>,
}

impl Network {
    fn plug(&mut self) {
        let pair = |_| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socketpair(AddressFamily::UNIX, self.socket, flags, None).expect("sockets")
        };
        let (ours, theirs): (Vec<OwnedFd>, Vec<OwnedFd>) = (0..self.pairs).map(pair).unzip();
        self.ends = ours.into_iter().map(File::from).collect();
        self.slot.plug(theirs).expect("as many as there are pairs");
    }

    /// Something that a network does.
    fn act(&mut self, input: &mut Input<'_>) {
        let kind = input.byte() % 16;
        let end = usize::from(input.byte()) % self.ends.len().max(1);
        match (kind, self.ends.get_mut(end)) {
            (0, _) => self.slot.pull(),
            (1, _) => self.plug(),
            (2, Some(_)) => drop(self.ends.swap_remove(end)),
            (3..=6, Some(end)) => drop(end.read(&mut vec![0; usize::from(input.half())])),
            (7..=13, Some(end)) => {
                let frame = vec![b'x'; usize::from(input.half())];
                let length = if input.byte() < 200 { frame.len() as u32 } else { input.word() };
                let length = if self.socket == SocketType::STREAM { &length.to_be_bytes()[..] } else { &[] };
                let _ = end.write(&[length, &frame].concat());
            }
            (_, Some(end)) => drop(end.write(input.bytes(64))),
            (_, None) => {}
        }
    }
}
