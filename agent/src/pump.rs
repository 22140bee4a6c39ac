//! The pumps between a process's streams and the server's connections.
//!
//! Flow control is the reader's: a pump that cannot write does not read. What a process wrote before it ended reaches its
//! stream, also when a child of it keeps the other end of the pipe open; what that child writes later does not.
//!
//! A machine that was saved goes on without its connections. That is no reason to end a process's streams: a pump whose
//! connection is lost so waits, with what it had read and not sent, until it is given another.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};

use crate::stdio::End;
use crate::transport::Stream;

/// How much a pump moves at once, in bytes. Memory is taken as it is first used.
const BUFFER: usize = crate::stdio::PIPE_SIZE;

/// Moves what the server sends into the process, until either side has had enough. The last of `streams` counts.
pub(crate) async fn pump_input(mut streams: UnboundedReceiver<ReadHalf<Stream>>, end: Arc<End>) {
    let mut buffer = vec![0; BUFFER];
    let Some(mut stream) = streams.recv().await else { return };
    loop {
        let read = tokio::select! {
            biased;
            Some(newer) = streams.recv() => {
                stream = newer;
                continue;
            }
            read = stream.read(&mut buffer) => read,
        };
        match read {
            Err(cause) if is_lost(&cause) => match streams.recv().await {
                Some(newer) => stream = newer,
                None => return,
            },
            Ok(0) | Err(_) => return,
            Ok(length) => {
                // The process has closed its standard input: what is left has no reader.
                if end.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Moves what the process writes to the server, and tells `drained` once everything written before `ended` is there. The last of
/// `streams` counts.
///
/// When the server closes the stream the process finds its pipe closed.
pub(crate) async fn pump_output(
    end: Arc<End>,
    streams: UnboundedReceiver<WriteHalf<Stream>>,
    mut ended: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut sink = Sink { streams, current: None };
    let open = match move_output(&end, &mut sink, &mut ended, &mut buffer).await {
        Ok(open) => open,
        Err(cause) => {
            log::debug!("an output stream ended early: {cause}");
            false
        }
    };
    sink.close().await;
    // The process may have been deleted, then nobody waits.
    let _ = drained.send(());
    // A child of the process that outlives it must not be stopped by a full pipe; its output belongs to no one.
    while open && matches!(end.read(&mut buffer).await, Ok(1..)) {}
}

/// Whether this says that the machine goes on without the connection: neither side has closed it.
fn is_lost(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
}

/// Where output goes: the connection that came last.
struct Sink {
    streams: UnboundedReceiver<WriteHalf<Stream>>,
    current: Option<WriteHalf<Stream>>,
}

impl Sink {
    /// Sends all of `bytes`, to a further connection if one is lost.
    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(current) = &mut self.current else {
                let next = self.streams.recv().await;
                self.current = Some(next.ok_or(io::ErrorKind::BrokenPipe)?);
                continue;
            };
            let written = tokio::select! {
                biased;
                Some(newer) = self.streams.recv() => {
                    self.current = Some(newer);
                    continue;
                }
                written = current.write(bytes) => written,
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => bytes = &bytes[length..],
                Err(cause) if is_lost(&cause) => self.current = None,
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Ends the connection, and any that came and was not needed.
    async fn close(mut self) {
        while let Ok(newer) = self.streams.try_recv() {
            self.current = Some(newer);
        }
        if let Some(mut current) = self.current {
            // It may be closed already, which is as good.
            let _ = current.shutdown().await;
        }
    }
}

/// Returns whether somebody still has the other end open.
async fn move_output(
    end: &End,
    sink: &mut Sink,
    ended: &mut watch::Receiver<bool>,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let mut sent: Option<Instant> = None;
    loop {
        let length = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => None,
            result = end.gather(buffer, sent) => Some(result?),
        };
        let Some(length) = length else { return drain(end, sink, buffer).await };
        if length == 0 {
            return Ok(false);
        }
        sink.write_all(&buffer[..length]).await?;
        sent = Some(Instant::now());
    }
}

/// Moves what is there now: a child of the process may write for ever.
async fn drain(end: &End, sink: &mut Sink, buffer: &mut [u8]) -> io::Result<bool> {
    let mut left = end.backlog()?;
    while left > 0 {
        let size = left.min(buffer.len());
        match end.try_read(&mut buffer[..size]) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Ok(0) => return Ok(false),
            result => {
                let length = result?;
                sink.write_all(&buffer[..length]).await?;
                left -= length;
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::sync::mpsc;

    /// A connection of a machine that went on elsewhere: reading from it never ends, writing to it fails.
    struct Lost;

    impl AsyncRead for Lost {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Lost {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
        }
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
    }

    fn split(stream: impl crate::transport::Connection) -> (ReadHalf<Stream>, WriteHalf<Stream>) {
        tokio::io::split(Box::new(stream) as Stream)
    }

    #[tokio::test]
    async fn output_waits_for_another_connection_and_is_whole() {
        let (reader, writer) = pipe();
        let (feed, streams) = mpsc::unbounded_channel();
        let (ended, ending) = watch::channel(false);
        let (drained, done) = oneshot::channel();
        let pump = tokio::spawn(pump_output(Arc::new(End::new(reader).unwrap()), streams, ending, drained));
        let (near, mut far) = tokio::io::duplex(16);
        feed.send(split(near).1).unwrap();
        rustix::io::write(&writer, b"before, ").unwrap();
        let mut text = [0; 8];
        far.read_exact(&mut text).await.unwrap();
        feed.send(split(Lost).1).unwrap();
        rustix::io::write(&writer, b"meanwhile, ").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        assert!(!pump.is_finished());
        let (near, mut far) = tokio::io::duplex(16);
        feed.send(split(near).1).unwrap();
        rustix::io::write(&writer, b"after").unwrap();
        drop(writer);
        ended.send_replace(true);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "meanwhile, after");
        done.await.unwrap();
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn input_goes_on_from_another_connection() {
        let (reader, writer) = pipe();
        let (feed, streams) = mpsc::unbounded_channel();
        let pump = tokio::spawn(pump_input(streams, Arc::new(End::new(writer).unwrap())));
        feed.send(split(Lost).0).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let (near, mut far) = tokio::io::duplex(16);
        feed.send(split(near).0).unwrap();
        far.write_all(b"text").await.unwrap();
        drop(far);
        pump.await.unwrap();
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"text");
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 0, "and its end is the input's end");
    }
}
