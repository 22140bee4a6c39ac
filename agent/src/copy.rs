//! Copying files: between the host and a container, of which this is the end in the container, and within the guest.
//!
//! The former is done by a process that joined the container and executes nothing. So it sees what the container sees, volumes and all,
//! and needs no program in there. What it is to do stands in its arguments
//! ([`Order`]); the stream is its standard input or output, and what goes wrong or is left out is told in lines on standard error.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tatami_files::{CopyError, Destination, Options, Order, pack, unpack};

use crate::syscalls;

/// How much is read or written at a time, in bytes.
const CHUNK: usize = 64 * 1024;

/// Carries it out in this process, which is in the container and has nothing more to report; the exit status.
pub(crate) fn carry_out(order: &Order) -> i32 {
    let tell = |line: String| {
        // In one piece; and where nobody can be told, nobody is.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    };
    // It still is the agent, and has the agent's files open: what the container has to do with it are its streams.
    let alone = set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from);
    if let Err(error) = alone.and_then(|()| syscalls::close_all_but_streams()) {
        tell(format!("cannot close the agent's files: {error}"));
        return 1;
    }
    match copy(order, &mut { tell }) {
        Ok(()) => 0,
        Err(error) => {
            tell(error.to_string());
            1
        }
    }
}

fn copy(order: &Order, notes: &mut dyn FnMut(String)) -> Result<(), CopyError> {
    match order {
        Order::Pack { path, follow } => {
            let mut stream = BufWriter::with_capacity(CHUNK, owned(rustix::stdio::stdout())?);
            pack(Path::new(path), *follow, &mut stream, notes)
        }
        Order::Unpack { path, name, form, owners } => {
            let mut stream = BufReader::with_capacity(CHUNK, owned(rustix::stdio::stdin())?);
            let destination = Destination { path: path.into(), name: OsString::from(name), form: *form };
            unpack(&mut stream, &destination, Options { owners: *owners, set_id: true }, notes)
        }
    }
}

/// Copies what is at `source`, links followed, to `destination` in the agent's own sight.
///
/// # Errors
/// [`CopyError`], for the first that cannot be read or made.
pub(crate) fn within(source: &Path, destination: &Destination, options: Options) -> Result<(), CopyError> {
    let (from, to) = io::pipe().map_err(CopyError::Stream)?;
    let mut from = BufReader::with_capacity(CHUNK, File::from(OwnedFd::from(from)));
    let mut to = BufWriter::with_capacity(CHUNK, File::from(OwnedFd::from(to)));
    let note = |line: String| log::info!("{line}");
    thread::scope(|scope| {
        let packing = move || pack(source, true, &mut to, &mut { note });
        let packing = thread::Builder::new().spawn_scoped(scope, packing).map_err(CopyError::Stream)?;
        let unpacked = unpack(&mut from, destination, options, &mut { note });
        // Who packs for nobody is told by this.
        drop(from);
        match packing.join() {
            Ok(Ok(()) | Err(CopyError::Early)) => unpacked,
            Ok(error) => error,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A standard stream as it is: what the standard library puts in front of it would be in every guest, for this alone.
fn owned(stream: BorrowedFd<'_>) -> Result<File, CopyError> {
    stream.try_clone_to_owned().map(File::from).map_err(CopyError::Stream)
}
