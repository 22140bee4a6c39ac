//! A connection from the host to a port of the guest's loopback: what `kubectl port-forward` reaches.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tatami_protocol::stream::{ACCEPTED, REFUSED};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::transport::Stream;

/// Connects `stream` to `port`, and moves bytes both ways until both sides have had enough.
///
/// # Errors
/// What went wrong with either.
pub(crate) async fn serve(mut stream: Stream, port: u32) -> io::Result<()> {
    let Some(mut listener) = connect(port).await else { return stream.write_all(&[REFUSED]).await };
    stream.write_all(&[ACCEPTED]).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut listener).await.map(drop)
}

async fn connect(port: u32) -> Option<TcpStream> {
    let port = u16::try_from(port).ok()?;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        if let Ok(listener) = TcpStream::connect((address, port)).await {
            return Some(listener);
        }
    }
    None
}
