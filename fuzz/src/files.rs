//! The file system device: nonsense in its rings, and FUSE requests of every kind, with names that lead astray. Whatever it is asked,
//! nothing beside its folder is read or written.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, symlink};

use tatami_devices::virtio::{Fs, FsCache, FsConfig};

use crate::driver::{Buffer, Driver, Rig, drive, threads};
use crate::input::Input;
use crate::scratch::{SECRET, Scratch};

const REQUEST: u64 = 0x1000;
const REPLY: u64 = 0x4_0000;
const INIT: u32 = 26;
const NAMES: [&str; 12] =
    ["file", "folder", "link", "out", "new", "..", ".", "../outside", "/etc/passwd", "folder/../..", "", "fifo"];
/// What FUSE calls its requests (kernel's fuse.h), those that Linux sends and some that are none.
const OPCODES: [u32; 46] = [
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33,
    34, 35, 36, 38, 39, 40, 42, 43, 44, 45, 46, 47, 50, 51, 4096,
];

fn device(scratch: &Scratch) -> Fs {
    fs::write(scratch.inside.join("file"), "text").expect("a folder of our own");
    fs::create_dir(scratch.inside.join("folder")).expect("a folder of our own");
    symlink("file", scratch.inside.join("link")).expect("a folder of our own");
    symlink("../outside", scratch.inside.join("out")).expect("a folder of our own");
    let config = FsConfig {
        tag: "fuzz".to_owned(),
        root: scratch.inside.to_str().expect("a plain path").to_owned(),
        cache: FsCache::default(),
        queues: 1,
        proc_self_fd: path("/proc/self/fd"),
    };
    Fs::new(config, threads()).expect("a file server")
}

fn path(path: &str) -> File {
    File::options().read(true).custom_flags(nix::libc::O_PATH).open(path).expect("a mounted /proc")
}

/// The device behind a driver without manners; its requests are half right.
pub fn fs(data: &[u8]) {
    let scratch = Scratch::new();
    let request = &mut |driver: &mut Driver, input: &mut Input<'_>| {
        let len = request(driver, input);
        let room = if input.byte() < 240 { 4096 } else { input.word() };
        let out = Buffer { address: REQUEST, len: len as u32, writable: false };
        driver.post(1, &[out, Buffer { address: REPLY, len: room, writable: true }]);
    };
    drive(Rig { device: Box::new(device(&scratch)), served: 2, request }, data);
    scratch.check();
}

/// One request after another, each well-formed as far as the ring goes, and each answered before the next.
pub fn fuse(data: &[u8]) {
    let scratch = Scratch::new();
    let mut leaked = false;
    let ask = &mut |driver: &mut Driver, input: &mut Input<'_>| {
        let len = request(driver, input);
        let out = Buffer { address: REQUEST, len: len as u32, writable: false };
        driver.post(1, &[out, Buffer { address: REPLY, len: 8192, writable: true }]);
        driver.rest();
        leaked |= driver.bytes(REPLY, 8192).windows(SECRET.len()).any(|window| window == SECRET);
        if driver.needs_reset() {
            driver.reset();
            driver.bring_up(u64::MAX);
        }
    };
    let mut steps = Vec::with_capacity(data.len() + 2);
    // The driver's own tricks are another target's: begin well, and ask as soon as a step is due.
    steps.extend([0, 0xff]);
    steps.extend_from_slice(data);
    drive(Rig { device: Box::new(device(&scratch)), served: 2, request: ask }, &steps);
    scratch.check();
    assert!(!leaked, "a file beside the folder was read");
}

/// Puts a request into memory; says how long it is.
fn request(driver: &mut Driver, input: &mut Input<'_>) -> usize {
    let opcode = match input.byte() {
        0xff => input.word(),
        index => OPCODES[usize::from(index) % OPCODES.len()],
    };
    let node = input.pick(&[1, 1, 1, 2, 3, 4, 5, 0, u64::MAX]);
    let mut body = Vec::new();
    if opcode == INIT {
        // As Linux begins: 7.38, and every feature.
        body.extend([7_u32, 38, 1 << 20, u32::MAX].map(u32::to_le_bytes).as_flattened());
        body.extend([0; 48]);
    }
    for _ in 0..input.byte() % 16 {
        match input.byte() % 5 {
            0 => body.extend(input.word().to_le_bytes()),
            1 => body.extend(input.double().to_le_bytes()),
            2 => body.extend_from_slice(input.pick(&NAMES).as_bytes()),
            3 => body.push(0),
            _ => body.extend_from_slice(input.bytes(64)),
        }
    }
    let len = 40 + body.len();
    let stated = if input.byte() < 250 { len as u32 } else { input.word() };
    let user = input.pick(&[0_u32, 0, 1000, u32::MAX]);
    let mut bytes = [stated, opcode].map(u32::to_le_bytes).as_flattened().to_vec();
    bytes.extend([7_u64, node].map(u64::to_le_bytes).as_flattened());
    bytes.extend([user, user, 1, 0].map(u32::to_le_bytes).as_flattened());
    bytes.extend(body);
    driver.put(REQUEST, &bytes);
    len
}
