//! Moves bytes between this process's standard streams and the guest's.
//!
//! A thread a direction with blocking calls: standard streams may be files, which cannot be waited for, and belong to
//! other processes too, so they must not be made non-blocking. Knows nothing of what the bytes mean.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;

/// How much is moved at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// Stack of a pump's thread: the chunk is on the heap.
const STACK: usize = 64 * 1024;

/// Copies everything from `stream` to `target` and then tells how that ended: whether a reader of `target` is gone (EPIPE).
/// That is no error: the stream is closed, and the process in the guest finds out as it would on this host.
///
/// # Errors
/// When there is no thread to be had.
pub fn output(
    name: &str,
    stream: impl Read + Send + 'static,
    target: OwnedFd,
) -> io::Result<oneshot::Receiver<io::Result<bool>>> {
    let (done, receiver) = oneshot::channel();
    thread(name, move || {
        // Nobody may be waiting any more.
        let _ = done.send(copy_out(stream, target.as_fd()));
    })?;
    Ok(receiver)
}

/// Copies everything from `source` to `stream`, then shuts down its writing half. The thread may wait for `source` as long
/// as this process lives.
///
/// # Errors
/// When there is no thread to be had.
pub fn input(name: &str, source: OwnedFd, stream: UnixStream) -> io::Result<()> {
    thread(name, move || {
        if let Err(error) = copy_in(source.as_fd(), &stream) {
            log::warn!("standard input: {error}");
        }
        // Fails only when the other side is gone already.
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Copies everything from `source` to `fifo`, then closes it and tells. The thread may wait for `source` as long as this process
/// lives.
///
/// # Errors
/// When there is no thread to be had.
pub fn input_of(name: &str, source: OwnedFd, fifo: impl Write + Send + 'static) -> io::Result<oneshot::Receiver<()>> {
    let (done, receiver) = oneshot::channel();
    thread(name, move || {
        if let Err(error) = copy_in(source.as_fd(), fifo) {
            log::warn!("standard input: {error}");
        }
        // Nobody may be waiting any more.
        let _ = done.send(());
    })?;
    Ok(receiver)
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).map(drop)
}

fn copy_out(mut stream: impl Read, target: BorrowedFd<'_>) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match stream.read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The VMM is gone; its end is reported elsewhere.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut rest = &chunk[..length];
        while !rest.is_empty() {
            match rustix::io::write(target, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(target, PollFlags::OUT),
                Err(Errno::PIPE) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn copy_in(source: BorrowedFd<'_>, mut stream: impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match rustix::io::read(source, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait(source, PollFlags::IN);
                continue;
            }
            // A terminal that was hung up.
            Err(Errno::IO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match stream.write_all(&chunk[..length]) {
            Ok(()) => {}
            // The process does not read any more.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Somebody else made the stream non-blocking.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags) {
    // A failure shows in the call that is tried again.
    let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn pipe() -> (File, File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (reader.into(), writer.into())
    }

    #[test]
    fn bytes_go_out_unchanged_and_the_end_is_told() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe();
        let done = output("test", host, writer.into()).unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let thread = std::thread::spawn(move || guest.write_all(&copy).unwrap());
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        thread.join().unwrap();
        assert_eq!(received, sent);
        done.blocking_recv().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_left_closes_the_guests_stream() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe();
        drop(reader);
        let done = output("test", host, writer.into()).unwrap();
        guest.write_all(b"x").unwrap();
        done.blocking_recv().unwrap().unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
        assert!(guest.write_all(b"y").is_err());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let done = output("test", host, full.into()).unwrap();
        guest.write_all(b"x").unwrap();
        assert_eq!(done.blocking_recv().unwrap().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn files_can_be_input_and_their_end_arrives() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 200_000]).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        input("test", file.into(), host.try_clone().unwrap()).unwrap();
        let mut received = Vec::new();
        guest.read_to_end(&mut received).unwrap();
        assert_eq!(received, vec![7; 200_000]);
        // Only that direction is closed.
        guest.write_all(b"back").unwrap();
        let mut back = [0; 4];
        (&host).read_exact(&mut back).unwrap();
        assert_eq!(&back, b"back");
    }

    #[test]
    fn non_blocking_streams_are_waited_for() {
        let (reader, mut writer) = pipe();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        input("test", reader.into(), host).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        writer.write_all(b"late").unwrap();
        drop(writer);
        let mut received = String::new();
        guest.read_to_string(&mut received).unwrap();
        assert_eq!(received, "late");
    }
}
