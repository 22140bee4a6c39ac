//! Files of a temporary folder through the device, as a guest's FUSE client would reach them; and a client that lies.

#![allow(unsafe_code, reason = "gives a thread of the tests a mount namespace of its own")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use tempfile::TempDir;

use super::*;
use crate::virtio::testing::{Dice, Driver, LOW_BYTES, into, out, threads};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const LISTXATTR: u32 = 23;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const FALLOCATE: u32 = 43;
const TMPFILE: u32 = 51;

const HIPRIO: usize = 0;
const REQUESTS: usize = 1;
const ROOT: u64 = 1;

const REQUEST_AT: u64 = 0x1000;
const DATA_AT: u64 = 0x10_0000;
const REPLY_AT: u64 = 0x30_0000;

fn config(folder: &TempDir) -> FsConfig {
    let root = folder.path().to_str().unwrap().to_owned();
    let proc_self_fd = File::open("/proc/self/fd").unwrap();
    FsConfig { tag: "shared".into(), root, cache: FsCache::default(), queues: 1, proc_self_fd }
}

mod choices;

/// A FUSE client on a device.
struct Client {
    driver: Driver,
    folder: TempDir,
}

impl Client {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::on(config(&folder), folder)
    }

    fn on(config: FsConfig, folder: TempDir) -> Self {
        let device = Fs::new(config, threads()).unwrap();
        let mut client = Client { driver: Driver::start(Box::new(device)), folder };
        client.init();
        client
    }

    fn init(&mut self) {
        // Flags: extended ones follow, and of those FUSE_SUBMOUNTS and FUSE_CREATE_SUPP_GROUP, as Linux since 6.3 has them.
        let words = [7_u32, 39, 1 << 17, 1 << 30 | 1 << 27, 1 << 2];
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        body.resize(64, 0);
        let reply = self.ask(INIT, 0, &body, 4096).unwrap();
        assert_eq!(word(&reply, 0), 7, "protocol version");
    }

    /// A request's bytes, in root's name.
    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        Self::request_of(0, opcode, node, body)
    }

    fn request_of(user: u32, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let len = 40 + body.len() as u32;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&opcode.to_le_bytes());
        bytes.extend_from_slice(&77_u64.to_le_bytes());
        bytes.extend_from_slice(&node.to_le_bytes());
        // User and group; process and lengths of extensions.
        bytes.extend_from_slice(&[user.to_le_bytes(), user.to_le_bytes()].concat());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        bytes
    }

    /// Sends a request in three pieces and gives what comes after the reply's header, or the error number.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Result<Vec<u8>, i32> {
        self.ask_as(0, opcode, node, body, room)
    }

    fn ask_as(&mut self, user: u32, opcode: u32, node: u64, body: &[u8], room: u32) -> Result<Vec<u8>, i32> {
        self.ask_on(REQUESTS, user, opcode, node, body, room)
    }

    fn ask_on(
        &mut self,
        queue: usize,
        user: u32,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> Result<Vec<u8>, i32> {
        let request = Self::request_of(user, opcode, node, body);
        self.driver.put(REQUEST_AT, &request[..40]);
        self.driver.put(DATA_AT, body);
        let (half, len) = (body.len() as u32 / 2, body.len() as u32);
        let chain = [
            out(REQUEST_AT, 40),
            out(DATA_AT, half),
            out(DATA_AT + u64::from(half), len - half),
            into(REPLY_AT, 16),
            into(REPLY_AT + 16, room),
        ];
        self.driver.post(queue, 5, &chain);
        let (head, written) = self.driver.take(queue);
        assert_eq!(head, 5);
        let reply = self.driver.bytes(REPLY_AT, written as usize);
        assert_eq!(word(&reply, 0), written, "the reply's own length");
        assert_eq!(reply[8..16], 77_u64.to_le_bytes(), "the reply's name");
        match word(&reply, 4) as i32 {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// `struct fuse_create_in` and a name, for reading and writing.
    fn creation(name: &str, mode: u32) -> Vec<u8> {
        let mut body: Vec<u8> = [libc::O_RDWR as u32, mode, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        body.extend(name.bytes().chain([0]));
        body
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let name: Vec<u8> = name.bytes().chain([0]).collect();
        self.ask(LOOKUP, parent, &name, 128).map(|entry| double(&entry, 0))
    }

    /// `struct fuse_read_in` and `fuse_write_in` begin alike.
    fn transfer(handle: u64, offset: u64, size: u32) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&handle.to_le_bytes());
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&size.to_le_bytes());
        body.extend_from_slice(&[0; 20]);
        body
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn the_configuration_holds_the_tag_and_one_request_queue() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Driver::new(Box::new(Fs::new(config(&folder), threads()).unwrap()));
    assert_eq!(driver.config::<8>(0), *b"shared\0\0");
    assert_eq!(driver.config::<4>(36), [1, 0, 0, 0]);
    assert_eq!(driver.config::<4>(38), [0, 0, 0, 0]);
    assert_eq!(driver.config::<4>(0xe00), [0; 4]);
}

#[test]
fn tags_that_cannot_be_written_down_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for tag in ["", "a tag of no less than thirty-seven bytes"] {
        let config = FsConfig { tag: tag.into(), ..config(&folder) };
        assert!(matches!(Fs::new(config, threads()), Err(FsError::Tag(_))));
    }
}

#[test]
fn a_file_is_found_and_read() {
    let mut client = Client::new();
    fs::create_dir(client.folder.path().join("sub")).unwrap();
    fs::write(client.folder.path().join("sub/file"), "what the host wrote").unwrap();
    let sub = client.lookup(ROOT, "sub").unwrap();
    let file = client.lookup(sub, "file").unwrap();
    let opened = client.ask(OPEN, file, &[0; 8], 16).unwrap();
    let body = Client::transfer(double(&opened, 0), 5, 4096);
    assert_eq!(client.ask(READ, file, &body, 4096).unwrap(), b"the host wrote");
    assert_eq!(client.lookup(ROOT, "nothing"), Err(libc::ENOENT));
}

#[test]
fn a_file_is_made_and_written_in_many_pieces() {
    let mut client = Client::new();
    let body = Client::creation("new", 0o100640);
    let created = client.ask(CREATE, ROOT, &body, 144).unwrap();
    let (file, handle) = (double(&created, 0), double(&created, 128));
    let text: Vec<u8> = (0..1 << 20).map(|index| (index / 7) as u8).collect();
    let mut body = Client::transfer(handle, 0, text.len() as u32);
    body.extend_from_slice(&text);
    let written = client.ask(WRITE, file, &body, 8).unwrap();
    assert_eq!(word(&written, 0), text.len() as u32);
    let path = client.folder.path().join("new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(fs::read(path).unwrap() == text, "the file holds something else");
}

#[test]
fn no_path_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(folder.path().join("secret"), "").unwrap();
    let outside = folder.path().join("new").to_str().unwrap().to_owned();
    let config = FsConfig { root: inside.to_str().unwrap().to_owned(), ..config(&folder) };
    let mut client = Client::on(config, folder);
    for (opcode, skip) in [(LOOKUP, 0), (SYMLINK, 0), (MKDIR, 8)] {
        for name in ["..", "../secret", "../new", &outside, "/", "sub/../../new"] {
            let body = [&[0; 8][..skip], name.as_bytes(), b"\0target\0"].concat();
            let body = if opcode == SYMLINK { &body[..] } else { &body[..body.len() - 7] };
            let request = Client::request(opcode, ROOT, body);
            client.driver.put(REQUEST_AT, &request);
            client.driver.post(REQUESTS, 0, &[out(REQUEST_AT, request.len() as u32), into(REPLY_AT, 144)]);
            client.driver.wait_for_needs_reset();
            assert!(!Path::new(&outside).exists(), "{opcode} {name}");
            client.driver.reset();
            client.driver.bring_up(u64::MAX);
            client.init();
        }
        let good = [&[0; 8][..skip], b"good\0target\0"].concat();
        let good = if opcode == SYMLINK { &good[..] } else { &good[..good.len() - 7] };
        let answer = client.ask(opcode, ROOT, good, 128);
        assert_eq!(answer.is_ok(), opcode != LOOKUP, "{opcode}: {answer:?}");
        let _ = fs::remove_file(inside.join("good"));
    }
}

#[test]
fn what_needs_no_reply_gets_none() {
    let mut client = Client::new();
    fs::write(client.folder.path().join("file"), "").unwrap();
    let file = client.lookup(ROOT, "file").unwrap();
    let forget = Client::request(FORGET, file, &1_u64.to_le_bytes());
    client.driver.put(REQUEST_AT, &forget);
    client.driver.post(HIPRIO, 0, &[out(REQUEST_AT, forget.len() as u32)]);
    assert_eq!(client.driver.take(HIPRIO), (0, 0));
    assert_eq!(client.ask(GETATTR, file, &[0; 16], 104), Err(libc::EBADF), "it is not forgotten");
}

#[test]
fn unknown_requests_are_answered() {
    let mut client = Client::new();
    assert_eq!(client.ask(9999, ROOT, &[], 16), Err(libc::ENOSYS));
    assert_eq!(client.ask(TMPFILE, ROOT, &[0; 16], 144), Err(libc::ENOSYS));
}

/// Requests over which virtiofsd would panic, loop, or end its process.
#[test]
fn a_client_that_lies_only_stops_its_device() {
    let read = Client::transfer(0, 0, 4096);
    let name = [b'x'; 100];
    type Lie<'a> = (&'a str, u32, &'a [u8], Option<u32>);
    let lies: &[Lie<'_>] = &[
        ("a read without room for a reply", READ, &read, None),
        ("a read with room for half a header", READ, &read, Some(8)),
        ("an unknown request without room", 9999, &[], None),
        ("an init without room", INIT, &read, None),
        ("a name without an end", LOOKUP, &name, Some(144)),
    ];
    for (what, opcode, body, room) in lies {
        let mut client = Client::new();
        let request = Client::request(*opcode, ROOT, body);
        client.driver.put(REQUEST_AT, &request);
        let mut chain = vec![out(REQUEST_AT, request.len() as u32)];
        chain.extend(room.map(|room| into(REPLY_AT, room)));
        client.driver.post(REQUESTS, 0, &chain);
        client.driver.wait_for_needs_reset();
        assert_eq!(client.driver.used(REQUESTS), 1, "{what} was answered");
        client.driver.reset();
        client.driver.bring_up(u64::MAX);
        client.init();
        assert_eq!(client.lookup(ROOT, "nothing"), Err(libc::ENOENT), "after {what}");
    }
}

/// Whatever opcode with whatever words: an answer or a reset, and nothing outside the folder has changed.
#[test]
fn nonsense_is_answered_or_stops_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let config = FsConfig { root: inside.to_str().unwrap().to_owned(), ..config(&folder) };
    let mut client = Client::on(config, folder);
    let (mut answers, mut resets) = (0, 0);
    for seed in 0..3000 {
        let mut dice = Dice::new(seed);
        // Not FALLOCATE, which may well do what it is asked to, and fill the disk.
        let opcode = dice.below(54) as u32;
        if opcode == FALLOCATE {
            continue;
        }
        let mut body = Vec::new();
        for _ in 0..dice.below(16) {
            let name = u64::from_le_bytes(*b"../name\0");
            let number = dice.roll();
            body.extend_from_slice(&dice.pick(&[0, 1, 2, 40, 4096, u64::MAX, name, number]).to_le_bytes());
        }
        let mut request = Client::request(opcode, dice.pick(&[0, ROOT, ROOT, 2, 3, u64::MAX]), &body);
        if dice.below(8) == 0 {
            request[..4].copy_from_slice(&(dice.roll() as u32).to_le_bytes());
        }
        client.driver.put(REQUEST_AT, &request);
        let room = dice.pick(&[0, 15, 16, 144, 8192]);
        let before = client.driver.used(REQUESTS);
        let chain = [out(REQUEST_AT, request.len() as u32), into(REPLY_AT, room)];
        client.driver.post(REQUESTS, (seed % 100) as u16, &chain);
        crate::virtio::testing::wait_for(&format!("answer to {seed}"), || {
            client.driver.used(REQUESTS) != before || client.driver.status() & 64 != 0
        });
        if client.driver.status() & 64 == 0 {
            answers += 1;
            let (_, written) = client.driver.take(REQUESTS);
            assert!(written <= room, "seed {seed}: {written} bytes into {room}");
        } else {
            resets += 1;
            client.driver.reset();
            client.driver.bring_up(u64::MAX);
            client.init();
        }
    }
    assert!(answers > 500 && resets > 500, "the nonsense is of one kind: {answers} answers, {resets} resets");
    let beside: Vec<_> = fs::read_dir(client.folder.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(beside, [inside]);
}

#[test]
fn lengths_that_lie_stop_the_device() {
    for len in [0_u32, 39, 41, 44, 46, 1 << 20, u32::MAX] {
        let mut client = Client::new();
        let mut request = Client::request(LOOKUP, ROOT, b"name\0");
        request[..4].copy_from_slice(&len.to_le_bytes());
        client.driver.put(REQUEST_AT, &request);
        client.driver.post(REQUESTS, 0, &[out(REQUEST_AT, request.len() as u32), into(REPLY_AT, 144)]);
        client.driver.wait_for_needs_reset();
    }
}

#[test]
fn buffers_outside_ram_stop_the_device() {
    let mut client = Client::new();
    let request = Client::request(GETATTR, ROOT, &[0; 16]);
    client.driver.put(REQUEST_AT, &request);
    client.driver.post(REQUESTS, 0, &[out(REQUEST_AT, 56), into(LOW_BYTES as u64 - 8, 120)]);
    client.driver.wait_for_needs_reset();
}

#[test]
fn reset_closes_what_the_driver_had_open() {
    let mut client = Client::new();
    fs::write(client.folder.path().join("file"), "").unwrap();
    let path = fs::canonicalize(client.folder.path().join("file")).unwrap();
    let is_open = || {
        fs::read_dir("/proc/self/fd").unwrap().flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))
    };
    client.lookup(ROOT, "file").unwrap();
    assert!(is_open());
    client.driver.reset();
    assert!(!is_open());
}

#[test]
fn a_pause_keeps_the_session() {
    let mut client = Client::new();
    fs::create_dir(client.folder.path().join("sub")).unwrap();
    let sub = client.lookup(ROOT, "sub").unwrap();
    client.driver.transport.transport_mut().pause();
    client.driver.transport.transport_mut().resume();
    assert_eq!(client.lookup(sub, "nothing"), Err(libc::ENOENT));
}

#[test]
fn a_folder_is_listed() {
    let mut client = Client::new();
    for name in ["one", "two"] {
        fs::write(client.folder.path().join(name), "").unwrap();
    }
    let opened = client.ask(OPENDIR, ROOT, &[0; 8], 16).unwrap();
    let body = Client::transfer(double(&opened, 0), 0, 4096);
    let listing = client.ask(READDIR, ROOT, &body, 4096).unwrap();
    let has = |name: &[u8]| listing.windows(name.len()).any(|window| window == name);
    assert!(has(b"one") && has(b"two"));
}

/// The capabilities that [`Fs`] says it needs.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Makes `folder` the calling thread's root, with nothing else in reach, and leaves it the needed capabilities only.
fn confine(folder: &Path) {
    // SAFETY: concerns the calling thread only; what it opens, it opens itself.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) };
    unshared.expect("run the tests as root: this one confines itself");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount_bind(folder, folder).unwrap();
    rustix::process::chdir(folder).unwrap();
    rustix::process::pivot_root(".", ".").unwrap();
    unmount(".", UnmountFlags::DETACH).unwrap();
    rustix::process::chdir("/").unwrap();
    let sets = CapabilitySets { effective: NEEDED, permitted: NEEDED, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).unwrap();
}

#[test]
fn it_serves_from_a_jail_without_proc() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let jailed = std::thread::spawn(move || {
        let config = FsConfig { root: "/".into(), ..config(&folder) };
        confine(folder.path());
        let mut client = Client::on(config, folder);
        assert!(!Path::new("/proc").exists());
        fs::set_permissions("/", fs::Permissions::from_mode(0o755)).unwrap();
        let created = client.ask_as(1000, CREATE, ROOT, &Client::creation("mine", 0o100640), 144);
        assert_eq!(created, Err(libc::EACCES), "the folder is root's");
        fs::set_permissions("/", fs::Permissions::from_mode(0o777)).unwrap();
        client.ask_as(1000, CREATE, ROOT, &Client::creation("mine", 0o100640), 144).unwrap();
        let mine = fs::metadata("/mine").unwrap();
        assert_eq!((mine.uid(), mine.gid(), mine.mode() & 0o7777), (1000, 1000, 0o640));
        let created = client.ask(CREATE, ROOT, &Client::creation("program", 0o104755), 144).unwrap();
        let (file, handle) = (double(&created, 0), double(&created, 128));
        // A write in the name of another takes the set-user-ID bit away (FUSE_WRITE_KILL_SUIDGID). Twice, because the
        // capability that keeps it must come back in between.
        let mut body = Client::transfer(handle, 0, 4);
        body[20..24].copy_from_slice(&4_u32.to_le_bytes());
        body.extend_from_slice(b"text");
        for _ in 0..2 {
            fs::set_permissions("/program", fs::Permissions::from_mode(0o4755)).unwrap();
            assert_eq!(word(&client.ask_as(1000, WRITE, file, &body, 8).unwrap(), 0), 4);
            assert_eq!(fs::metadata("/program").unwrap().mode() & 0o7777, 0o755);
        }
        // Reached through /proc/self/fd, by a working directory that is the serving thread's alone.
        std::os::unix::fs::symlink("nowhere", "/link").unwrap();
        let link = client.lookup(ROOT, "link").unwrap();
        assert_eq!(client.ask(LISTXATTR, link, &[0; 8], 16).map(|reply| word(&reply, 0)), Ok(0));
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        client.driver.reset();
        // This thread cannot see the path to the folder any more.
        client.folder.keep()
    });
    assert_eq!(jailed.join().unwrap(), path);
    fs::remove_dir_all(path).unwrap();
}

/// What makes `from` the folder that a restored guest finds: the same names, other inodes.
fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_saved_client_reads_on_through_the_same_numbers_in_a_copy_of_the_folder() {
    let mut client = Client::new();
    fs::create_dir(client.folder.path().join("sub")).unwrap();
    fs::write(client.folder.path().join("sub/file"), "what the host wrote").unwrap();
    let sub = client.lookup(ROOT, "sub").unwrap();
    let file = client.lookup(sub, "file").unwrap();
    let reader = double(&client.ask(OPEN, file, &[0; 8], 16).unwrap(), 0);
    let created = client.ask(CREATE, sub, &Client::creation("new", 0o100640), 144).unwrap();
    let (new, writer) = (double(&created, 0), double(&created, 128));
    let created = client.ask(CREATE, sub, &Client::creation("gone", 0o100640), 144).unwrap();
    let (gone, lost) = (double(&created, 0), double(&created, 128));
    fs::remove_file(client.folder.path().join("sub/gone")).unwrap();
    // The host's doing, of which the guest has not heard: files are found where they are.
    fs::rename(client.folder.path().join("sub"), client.folder.path().join("moved")).unwrap();

    client.driver.transport.transport_mut().pause();
    let state = client.driver.transport.save().unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy(client.folder.path(), folder.path());
    let device = Fs::new(config(&folder), threads()).unwrap();
    let mut driver = client.driver.continue_with(Box::new(device), &state);
    driver.transport.transport_mut().resume();
    let mut second = Client { driver, folder };

    assert_eq!(second.ask(READ, file, &Client::transfer(reader, 5, 4096), 4096).unwrap(), b"the host wrote");
    let mut body = Client::transfer(writer, 0, 4);
    body.extend_from_slice(b"text");
    assert_eq!(word(&second.ask(WRITE, new, &body, 8).unwrap(), 0), 4);
    assert_eq!(fs::read(second.folder.path().join("moved/new")).unwrap(), b"text");
    assert_eq!(fs::read(client.folder.path().join("moved/new")).unwrap(), b"", "the first one's folder is its own");
    assert_eq!(second.lookup(sub, "file"), Ok(file), "a number means what it meant");
    assert!(second.ask(READ, gone, &Client::transfer(lost, 0, 4096), 4096).is_err());

    // What went on can be saved again.
    second.driver.transport.transport_mut().pause();
    second.driver.transport.save().unwrap();
}

#[test]
fn a_session_that_never_began_is_saved_and_begins_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = Driver::start(Box::new(Fs::new(config(&folder), threads()).unwrap()));
    driver.transport.transport_mut().pause();
    let state = driver.transport.save().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let mut driver = driver.continue_with(Box::new(Fs::new(config(&folder), threads()).unwrap()), &state);
    driver.transport.transport_mut().resume();
    let mut client = Client { driver, folder };
    client.init();
    client.lookup(ROOT, "file").unwrap();
}

#[test]
fn a_damaged_session_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new();
    let mut driver = client.driver;
    driver.transport.transport_mut().pause();
    let saved = driver.transport.save().unwrap().device;
    let memory = driver.memory.clone();
    for damaged in [&saved[..saved.len() - 1], &[0xff; 40], &[1]] {
        let mut device = Fs::new(config(&folder), threads()).unwrap();
        let error = device.restore(damaged, &memory).unwrap_err().to_string();
        assert!(error.contains("had open"), "{error}");
    }
}
