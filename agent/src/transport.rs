//! What the server connects through: vsock in a guest, unix sockets where the agent is tested without one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// A connection in either transport.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Connection for T {}

/// An accepted connection.
pub(crate) type Stream = Box<dyn Connection>;

/// A listening socket.
pub enum Listener {
    /// A vsock port; connections from anyone but the host are closed unheard.
    Vsock(VsockListener),
    /// A unix socket; its folder's permissions say who connects.
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a vsock `port`.
    ///
    /// # Errors
    /// When the kernel has no vsock device, or the port is taken.
    pub(crate) fn vsock(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self::Vsock)
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of accept(2): mostly that descriptors ran out.
    pub(crate) async fn accept(&mut self) -> io::Result<Stream> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        loop {
            match self {
                Self::Unix(listener) => {
                    let (stream, _) = ready!(listener.poll_accept(context))?;
                    return Poll::Ready(Ok(Box::new(stream)));
                }
                Self::Vsock(listener) => {
                    let (stream, peer) = ready!(listener.poll_accept(context))?;
                    if peer.cid() == VMADDR_CID_HOST {
                        return Poll::Ready(Ok(Box::new(stream)));
                    }
                    log::warn!("refused a vsock connection from context {}", peer.cid());
                }
            }
        }
    }
}

/// The listener as the stream of connections that ttrpc takes.
pub(crate) struct Incoming(pub(crate) Listener);

impl futures_core::Stream for Incoming {
    type Item = io::Result<Stream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(context).map(Some)
    }
}

/// Tells the host, by a connection to its `port` that is closed at once, that the agent listens.
///
/// # Errors
/// When the host refuses.
pub(crate) async fn announce(port: u32) -> io::Result<()> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await.map(drop)
}
