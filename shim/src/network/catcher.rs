//! Connections to 127.0.0.1 in a network namespace, whatever their port, caught by one listener: those who connect mean the guest's
//! loopback, which is not the namespace's. That is how CRI forwards ports.
//!
//! A program of the kernel's is asked whenever a connection looks for its listener (Documentation/bpf/prog_sk_lookup.rst), and goes
//! with its descriptors. Knows nothing of guests.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper")]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// From the kernel's bpf.h: commands, kinds of maps and programs, where a program is attached.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const TYPE_SOCKMAP: u32 = 15;
const TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// A listener of a namespace's loopback.
pub struct Catcher {
    /// Connections; their local ports are those that were meant.
    pub listener: TcpListener,
    /// What keeps the program where it is.
    _link: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct Map {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Up to the last field that is set; what follows is zero for the kernel.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    namespace: u32,
    attach_type: u32,
    flags: u32,
}

/// An instruction of the kernel's machine (RFC 9669, 3).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    opcode: u8,
    /// The destination's register, and the source's in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Catcher {
    /// Catches connections in the network namespace that the caller is in.
    ///
    /// # Errors
    /// The kernel's: before Linux 5.9 there is no such program.
    pub fn start() -> io::Result<Catcher> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let map = Map { kind: TYPE_SOCKMAP, key_bytes: 4, value_bytes: 8, entries: 1 };
        let map = descriptor(call(MAP_CREATE, map)?);
        let (key, value) = (0_u32, listener.as_raw_fd() as u64);
        let update = Update {
            map: map.as_raw_fd() as u32,
            padding: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        call(MAP_UPDATE, update)?;
        let instructions = program(map.as_raw_fd());
        let load = Load {
            kind: TYPE_SK_LOOKUP,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            attach_type: ATTACH_SK_LOOKUP,
            ..Load::default()
        };
        let program = descriptor(call(PROG_LOAD, load)?);
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let link = Link {
            program: program.as_raw_fd() as u32,
            namespace: namespace.as_raw_fd() as u32,
            attach_type: ATTACH_SK_LOOKUP,
            flags: 0,
        };
        Ok(Catcher { listener, _link: descriptor(call(LINK_CREATE, link)?) })
    }
}

/// Takes every connection by TCP over IPv4 to 127.0.0.1 to the socket in `map`.
fn program(map: i32) -> Vec<Instruction> {
    // The context's fields, by their offsets (struct bpf_sk_lookup).
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    // The kernel's functions.
    const MAP_LOOKUP: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    let step = |opcode, to: u8, from: u8, offset, immediate| Instruction {
        opcode,
        registers: to | from << 4,
        offset,
        immediate,
    };
    let load = |to, from, offset| step(0x61, to, from, offset, 0);
    let copy = |to, from| step(0xbf, to, from, 0, 0);
    let set = |to, value| step(0xb7, to, 0, 0, value);
    let call = |function| step(0x85, 0, 0, 0, function);
    let unless = |register, value, skip| step(0x55, register, 0, skip, value);
    let local = i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    vec![
        copy(6, 1),
        load(2, 6, PROTOCOL),
        unless(2, libc::IPPROTO_TCP, 18),
        load(2, 6, FAMILY),
        unless(2, libc::AF_INET, 16),
        load(2, 6, LOCAL_IP4),
        unless(2, local, 14),
        // The key, 0, below the frame's end.
        step(0x62, 10, 0, -4, 0),
        copy(2, 10),
        step(0x07, 2, 0, 0, -4),
        // The map's descriptor, in two instructions; the 1 says that it is one.
        step(0x18, 1, 1, 0, map),
        step(0, 0, 0, 0, 0),
        call(MAP_LOOKUP),
        step(0x15, 0, 0, 7, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        // Whatever came of it, the connection is looked up as it was: SK_PASS.
        set(0, 1),
        step(0x95, 0, 0, 0, 0),
    ]
}

fn call<T>(command: libc::c_int, mut request: T) -> io::Result<i32> {
    // SAFETY: the kernel reads the request, which is ours alone and lives across the call, as does what it points to.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut request, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}

fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(number) }
}
