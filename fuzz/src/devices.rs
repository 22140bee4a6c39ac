//! Each device behind a driver without manners. A new device takes one function here, one line in [`crate::TARGETS`] and a file
//! in `targets/`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use rustix::fs::{MemfdFlags, memfd_create};
use tatami_devices::virtio::{Blk, BlkConfig, DiskPart, HostPorts, Rng, Slot, Vsock};

use crate::driver::{Buffer, Driver, Rig, drive, threads};
use crate::input::Input;

/// A file of `bytes` bytes that is nowhere.
pub fn file(bytes: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(bytes).expect("a file in memory can grow");
    file
}

/// Some buffers of one kind, none of them long unless the input insists.
pub fn buffers(input: &mut Input<'_>, writable: bool) -> Vec<Buffer> {
    let count = usize::from(input.byte() % 4);
    let mut buffer = || match input.byte() % 8 {
        0 => Buffer { address: Driver::address(input), len: input.word(), writable },
        _ => Buffer { address: u64::from(input.half()) * 4, len: u32::from(input.half() % 5000), writable },
    };
    (0..count).map(|_| buffer()).collect()
}

/// The entropy device.
pub fn rng(data: &[u8]) {
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| driver.post(0, &buffers(input, true));
    drive(Rig { device: Box::new(Rng::new(threads())), served: 1, request }, data);
}

/// The block device, one request after another.
pub fn blk(data: &[u8]) {
    disk(data, false);
}

/// The block device, many requests at once through the kernel's io_uring.
pub fn uring(data: &[u8]) {
    disk(data, true);
}

/// Two images, one of them read-only, that come and go. The first byte says how many queues there are.
fn disk(data: &[u8], uring: bool) {
    const PART: u64 = 32 << 10;
    let (images, slot) = ([file(PART), file(2 * PART)], Slot::empty("fuzz"));
    images[1].write_all_at(b"read-only", 0).expect("a file in memory");
    let parts = || {
        let part = |image: usize, start: u64| DiskPart {
            image: images[image].try_clone().expect("a descriptor"),
            start,
            length: PART,
            read_only: image == 1,
        };
        vec![part(0, 0), part(1, 2 * PART)]
    };
    slot.insert(parts()).expect("a disk");
    let (queues, data) = data.split_first().map_or((1, data), |(first, rest)| (1 + first % 3, rest));
    let config = BlkConfig { queues, uring, ..BlkConfig::default() };
    let device = Blk::new(slot.clone(), config, threads()).expect("a device without a limit");
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() {
        0 => slot.eject(),
        1 => slot.insert(parts()).expect("a disk"),
        _ => {
            // virtio 1.2, 5.2.6: type, reserved, sector; data; a byte for the status.
            let header = 0x100 * u64::from(input.byte());
            let kind = input.pick(&[0, 1, 4, 8, 11, 13, 14]) | u32::from(input.byte() / 250) << 31;
            driver.put(header, &[kind.to_le_bytes(), [0; 4]].concat());
            driver.put(header + 8, &input.double().to_le_bytes());
            driver.put(u64::from(input.half()) * 4, input.bytes(48));
            let mut chain = vec![Buffer { address: header, len: 16, writable: false }];
            chain.extend(buffers(input, kind == 0 || kind == 8));
            chain.push(Buffer { address: 0x7_0000, len: 1, writable: true });
            driver.post(usize::from(input.byte() % queues), &chain);
        }
    };
    drive(Rig { device: Box::new(device), served: 1, request }, data);
    let sizes = images.each_ref().map(|image| image.metadata().expect("a file").len());
    assert_eq!(sizes, [PART, 2 * PART], "a guest changed the size of an image");
    let mut text = [0; 9];
    images[1].read_exact_at(&mut text, 0).expect("a file in memory");
    assert_eq!(&text, b"read-only", "a guest wrote to an image that it must not write to");
}

/// Takes every connection to an even port.
struct EvenPorts(std::sync::mpsc::Sender<UnixStream>);

impl HostPorts for EvenPorts {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port % 2 == 1 {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        self.0.send(ours).ok()?;
        Some(theirs)
    }
}

/// The host's end of things.
pub struct Host {
    address: SocketAddr,
    offered: Receiver<UnixStream>,
    streams: Vec<UnixStream>,
}

impl Host {
    /// A host, and the device through which guests reach it.
    ///
    /// # Panics
    /// When no socket is to be had.
    pub fn new() -> (Host, Vsock) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tatami-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a name of its own");
        let (sender, offered) = channel();
        let device = Vsock::new(3, listener, Box::new(EvenPorts(sender)), threads()).expect("a socket device");
        (Host { address, offered, streams: Vec::new() }, device)
    }

    /// Something that a program on the host does.
    fn act(&mut self, input: &mut Input<'_>) {
        self.streams.extend(self.offered.try_iter());
        let stream = usize::from(input.byte()) % self.streams.len().max(1);
        match (input.byte() % 4, self.streams.get_mut(stream)) {
            (0, _) => {
                let Ok(mut client) = UnixStream::connect_addr(&self.address) else { return };
                let _ = match input.byte() {
                    0 => client.write_all(input.bytes(32)),
                    port => client.write_all(format!("CONNECT {port}\n").as_bytes()),
                };
                self.streams.push(client);
            }
            (1, Some(stream)) => {
                let _ = stream.set_nonblocking(true);
                let _ = stream.write(&vec![b'x'; usize::from(input.half())]);
            }
            (2, Some(stream)) => {
                let _ = stream.set_nonblocking(true);
                let _ = stream.read(&mut vec![0; usize::from(input.half())]);
            }
            (3, Some(_)) => drop(self.streams.swap_remove(stream)),
            _ => {}
        }
    }
}

/// The socket device: packets of every kind, credit that lies, and a host that comes and goes.
pub fn vsock(data: &[u8]) {
    let (mut host, device) = Host::new();
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() % 8 {
        0 | 1 => host.act(input),
        2 | 3 => {
            for _ in 0..input.byte() % 32 {
                let address = u64::from(input.byte()) * 0x1000 % 0x6_0000;
                driver.post(0, &[Buffer { address, len: 4096, writable: true }]);
            }
        }
        _ => {
            // virtio 1.2, 5.10.6. Few ports, so that packets meet streams; 0x40000000 is the first that clients get.
            let payload = u32::from(input.half()) % 20_000;
            let ports = [u32::from(input.byte() % 4), input.pick(&[0, 1, 2, 4, 0x4000_0000, 0x4000_0001])];
            let len = if input.byte() < 240 { payload } else { input.word() };
            let kind = if input.byte() < 250 { 1_u16 } else { 2 };
            let op = u16::from(input.byte() % 9);
            let cids: [u64; 2] = if input.byte() < 250 { [3, 2] } else { [input.double(), input.double()] };
            let mut header = Vec::with_capacity(44);
            header.extend(cids.map(u64::to_le_bytes).as_flattened());
            header.extend(ports.map(u32::to_le_bytes).as_flattened());
            header.extend(len.to_le_bytes());
            header.extend([kind, op].map(u16::to_le_bytes).as_flattened());
            header
                .extend([u32::from(input.byte() % 4), input.word(), input.word()].map(u32::to_le_bytes).as_flattened());
            driver.put(0x7_0000, &header);
            let body = Buffer { address: 0x4_0000, len: payload, writable: false };
            let head = Buffer { address: 0x7_0000, len: 44, writable: false };
            driver.post(1, &[head, body][..if payload == 0 { 1 } else { 2 }]);
            // The header's place is used again.
            driver.rest();
        }
    };
    drive(Rig { device: Box::new(device), served: 2, request }, data);
}

/// One stream's state alone: any packets and any fate of the host's socket, with its rules checked after each.
pub fn connection(data: &[u8]) {
    tatami_devices::virtio::vsock::fuzzing::connection(data);
}
