//! The pumps between a process's streams and the server's connections.
//!
//! Flow control is the reader's: a pump that cannot write does not read. What a process wrote before it ended reaches its
//! stream, also when a child of it keeps the other end of the pipe open; what that child writes later does not.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{oneshot, watch};

use crate::stdio::End;
use crate::transport::Stream;

/// How much a pump moves at once, in bytes. Memory is taken as it is first used.
const BUFFER: usize = crate::stdio::PIPE_SIZE;

/// Moves what the server sends into the process, until either side has had enough.
pub(crate) async fn pump_input(mut stream: ReadHalf<Stream>, end: Arc<End>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await {
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

/// Moves what the process writes to the server, and tells `drained` once everything written before `ended` is there.
///
/// When the server closes the stream the process finds its pipe closed.
pub(crate) async fn pump_output(
    end: Arc<End>,
    mut stream: WriteHalf<Stream>,
    mut ended: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = vec![0; BUFFER];
    let open = match move_output(&end, &mut stream, &mut ended, &mut buffer).await {
        Ok(open) => open,
        Err(cause) => {
            log::debug!("an output stream ended early: {cause}");
            false
        }
    };
    // It may be closed already, which is as good.
    let _ = stream.shutdown().await;
    drop(stream);
    // The process may have been deleted, then nobody waits.
    let _ = drained.send(());
    // A child of the process that outlives it must not be stopped by a full pipe; its output belongs to no one.
    while open && matches!(end.read(&mut buffer).await, Ok(1..)) {}
}

/// Returns whether somebody still has the other end open.
async fn move_output(
    end: &End,
    stream: &mut WriteHalf<Stream>,
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
        let Some(length) = length else { return drain(end, stream, buffer).await };
        if length == 0 {
            return Ok(false);
        }
        stream.write_all(&buffer[..length]).await?;
        sent = Some(Instant::now());
    }
}

/// Moves what is there now: a child of the process may write for ever.
async fn drain(end: &End, stream: &mut WriteHalf<Stream>, buffer: &mut [u8]) -> io::Result<bool> {
    let mut left = end.backlog()?;
    while left > 0 {
        let size = left.min(buffer.len());
        match end.try_read(&mut buffer[..size]) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Ok(0) => return Ok(false),
            result => {
                let length = result?;
                stream.write_all(&buffer[..length]).await?;
                left -= length;
            }
        }
    }
    Ok(true)
}
