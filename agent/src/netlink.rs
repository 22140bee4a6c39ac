//! The kernel's network configuration: questions and orders, each answered before the next (rtnetlink(7)).
//!
//! Knows the exchange, not what is asked.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// A connection to the kernel.
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Connects, in the caller's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn connect() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket })
    }

    /// Has an order carried out; `flags` are those beyond the ones that every order has.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn order(&mut self, order: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(order, flags | NLM_F_ACK)?;
        self.answers(|_| {})
    }

    /// Asks for all there is of something.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn dump(&mut self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(question, NLM_F_DUMP)?;
        let mut all = Vec::new();
        self.answers(|answer| all.push(answer))?;
        Ok(all)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Reads until the kernel says that this was all.
    fn answers(&mut self, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are padded to four bytes.
                let len = (message.header.length as usize).next_multiple_of(4).clamp(1, rest.len());
                rest = &rest[len..];
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
                    }
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    _ => {}
                }
            }
        }
    }
}
