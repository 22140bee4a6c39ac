//! A disk that another process serves (vhost-user): a driver without manners in front, and behind it a back end that answers what
//! it likes, gives back what it likes, and leaves when it likes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use tatami_devices::virtio::{GuestMemory, VhostUser};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::devices::{buffers, file};
use crate::driver::{Buffer, Driver, HIGH, HIGH_BYTES, LOW_BYTES, Rig, areas, drive_in, threads};
use crate::input::Input;

/// A message's header (QEMU's documentation, vhost-user.rst): request, flags, length of what follows.
const HEADER: usize = 12;
const VERSION_AND_REPLY: u32 = 5;
const NEED_REPLY: u32 = 8;

const GET_FEATURES: u32 = 1;
const SET_VRING_NUM: u32 = 8;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;

/// Of 256 answers, so many are as they should be.
const HONEST: u8 = 240;

/// The input's first bytes, up to 64, are the back end's answers; the rest is the driver's.
pub fn vhost_user(data: &[u8]) {
    let (answers, data) = data.split_at(data.len().min(64));
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let (memory, calls) = (memory(), Arc::new(Mutex::new(Vec::new())));
    let back_end = {
        let (answers, memory, calls) = (answers.to_vec(), memory.clone(), Arc::clone(&calls));
        let socket = ours.try_clone().expect("a descriptor");
        std::thread::spawn(move || serve(&socket, &answers, &memory, &calls))
    };
    if let Ok(device) = VhostUser::disk(theirs, 2, false, threads()) {
        let request = &mut |driver: &mut Driver, input: &mut Input<'_>| match input.byte() % 16 {
            0 => drop(ours.shutdown(Shutdown::Both)),
            1 => drop((&ours).write(input.bytes(64))),
            2..=6 => {
                // As the back end, which shares the driver's memory: some chain comes back, true or not.
                for _ in 0..input.byte() % 16 {
                    driver.give_back(usize::from(input.byte() % 2), input.word(), input.word());
                }
                call(&calls, input.byte());
            }
            7 => call(&calls, input.byte()),
            _ => {
                let header = 0x100 * u64::from(input.byte());
                driver.put(header, &[input.byte(), 0, 0, 0]);
                let mut chain = vec![Buffer { address: header, len: 16, writable: false }];
                let is_read = input.byte().is_multiple_of(2);
                chain.extend(buffers(input, is_read));
                chain.push(Buffer { address: 0x7_0000, len: 1, writable: true });
                driver.post(usize::from(input.byte() % 2), &chain);
            }
        };
        // Kicks are the back end's to hear.
        drive_in(memory, Rig { device: Box::new(device), served: 0, request }, data);
    }
    let _ = ours.shutdown(Shutdown::Both);
    back_end.join().expect("the back end does not panic");
}

/// RAM in files, as others can map it.
fn memory() -> GuestMemory {
    let range = |start: u64, bytes: usize| (GuestAddress(start), bytes, Some(FileOffset::new(file(bytes as u64), 0)));
    GuestMemory::from_ranges_with_files([range(0, LOW_BYTES), range(HIGH, HIGH_BYTES)]).expect("a megabyte of memory")
}

fn call(calls: &Mutex<Vec<File>>, number: u8) {
    let calls = calls.lock().expect("not poisoned");
    if let Some(call) = calls.get(usize::from(number) % calls.len().max(1)) {
        let mut call: &File = call;
        let _ = call.write(&1_u64.to_ne_bytes());
    }
}

/// Answers until the other side hangs up, as a back end should, or as `answers` say. It is never silent: then each run would last as long
/// as the device's patience.
fn serve(mut socket: &UnixStream, answers: &[u8], memory: &GuestMemory, calls: &Mutex<Vec<File>>) {
    let (mut input, mut size) = (Input::new(answers), 1);
    loop {
        let mut header = [0; HEADER];
        // Of several files, one is as good as all.
        let Ok((HEADER, file)) = socket.recv_with_fd(&mut header) else { return };
        let mut body = vec![0; word(&header, 8) as usize];
        if socket.read_exact(&mut body).is_err() {
            return;
        }
        let (request, flags) = (word(&header, 0), word(&header, 4));
        match request {
            SET_VRING_CALL => calls.lock().expect("not poisoned").extend(file),
            SET_VRING_NUM => size = word(&body, 4) as u16,
            _ => {}
        }
        let honest = match request {
            // More than the device knows, which is for it to leave out.
            GET_FEATURES | GET_PROTOCOL_FEATURES => Some(u64::MAX.to_le_bytes().to_vec()),
            GET_QUEUE_NUM => Some(2_u64.to_le_bytes().to_vec()),
            GET_CONFIG => Some(body),
            GET_VRING_BASE => {
                let used = areas(usize::from(body[0] % 2), size)[2] + 2;
                let used: u16 = memory.read_obj(GuestAddress(used)).unwrap_or_default();
                Some([&body[..4], &u32::from(used).to_le_bytes()].concat())
            }
            _ => (flags & NEED_REPLY != 0).then(|| vec![0; 8]),
        };
        let Some(mut answer) = honest else { continue };
        let (mut told, mood) = (request, input.byte());
        match mood {
            0..HONEST => {}
            HONEST..=247 => answer = input.bytes(16).to_vec(),
            248..=251 => told = input.word(),
            252 | 253 => drop(socket.write(input.bytes(32))),
            _ => return drop(socket.shutdown(Shutdown::Both)),
        }
        let header = [told, VERSION_AND_REPLY, answer.len() as u32].map(u32::to_le_bytes).concat();
        let said = socket.write_all(&[header, answer].concat());
        if said.is_err() || mood >= HONEST {
            // What the device still waits for will not come.
            return drop(socket.shutdown(Shutdown::Both));
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}
