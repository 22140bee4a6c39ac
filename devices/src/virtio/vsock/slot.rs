//! One socket on the host and the state around it: what it is for, what it waits for, what it must be watched for.
//!
//! Moves bytes to the host; does not know the table it stands in, nor other slots.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::EventSet;

use super::connection::Connection;
use super::greeting::Greeting;
use super::outbox::Outbox;
use super::table::Ports;

/// What a slot's socket is for.
#[derive(Debug)]
pub(super) enum Side {
    /// A client on the host that has not named its port yet.
    Greeting(Greeting),
    /// One end of a stream.
    Stream(Ports, Connection),
    /// Bytes that a guest sent before its stream ended, on their way to a host that reads slowly.
    Leftover,
}

/// What a slot's deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Time for a client on the host to name a port. It does at once, unless it has hundreds of others to see to, or no CPU.
    Line,
    /// Time for the guest to answer. Its kernel does, at once, but its CPU may be starved.
    Answer,
    /// Time for a guest with a full buffer to say that it has room again.
    Credit,
    /// Time for the guest to free a stream of which it knows that the host is gone.
    Reset,
}

impl Patience {
    /// How long it lasts. Tests of what comes after do not wait as long.
    pub(super) fn length(self) -> Duration {
        match self {
            Patience::Line => Duration::from_secs(if cfg!(test) { 2 } else { 30 }),
            // A busy guest on a slow host was seen to take 14 s; one that is dead is found out by others.
            Patience::Answer => Duration::from_secs(if cfg!(test) { 5 } else { 30 }),
            Patience::Credit => Duration::from_millis(250),
            // As long as Linux waits in the same place.
            Patience::Reset => Duration::from_secs(if cfg!(test) { 3 } else { 8 }),
        }
    }
}

/// One socket and all that belongs to it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) stream: UnixStream,
    pub(super) side: Side,
    /// Bytes for the host that its socket did not take.
    pub(super) outbox: Outbox,
    /// The socket may have bytes, or its end, to give.
    pub(super) readable: bool,
    /// The host has closed its end entirely.
    pub(super) hung_up: bool,
    /// The socket's sending direction has been shut down.
    pub(super) shut_write: bool,
    /// The socket's receiving direction has been shut down.
    pub(super) shut_read: bool,
    /// It is in the queue of those that have something for the guest.
    pub(super) queued: bool,
    /// It is in the list of those whose watch may have to change.
    pub(super) touched: bool,
    /// What the socket is watched for; `None`: not at all.
    pub(super) watched: Option<EventSet>,
    /// Whom it waits for. The deadline stands in [`Table::deadlines`] until it passes.
    pub(super) patience: Option<(Patience, Instant)>,
}

impl Slot {
    /// What the socket must be watched for. Never more than can be acted upon, else its thread would spin.
    pub(super) fn interest(&self) -> Option<EventSet> {
        match &self.side {
            Side::Greeting(_) => Some(EventSet::IN),
            Side::Leftover => Some(EventSet::OUT),
            Side::Stream(_, connection) => {
                let mut set = EventSet::empty();
                set.set(EventSet::IN, connection.may_read() && !self.readable);
                set.set(EventSet::OUT, !self.outbox.is_empty());
                // The empty set still tells of the other end's closing, over and over once it has.
                (!self.hung_up || !set.is_empty()).then_some(set)
            }
        }
    }

    /// Whom the slot has to wait for, as things stand.
    pub(super) fn patience_needed(&self) -> Option<Patience> {
        match &self.side {
            Side::Greeting(_) => Some(Patience::Line),
            Side::Leftover => None,
            Side::Stream(_, connection) if connection.is_pending() => Some(Patience::Answer),
            Side::Stream(_, connection) if connection.awaits_reset() => Some(Patience::Reset),
            Side::Stream(_, connection) if connection.is_stalled() => Some(Patience::Credit),
            Side::Stream(..) => None,
        }
    }

    /// Offers the host what waits for it.
    pub(super) fn flush(&mut self) {
        match self.outbox.drain_to(&mut self.stream) {
            Ok(written) => {
                if let Side::Stream(_, connection) = &mut self.side {
                    connection.forwarded(written as u32);
                }
            }
            Err(_) => self.lose_reader(),
        }
    }

    /// The host has closed its end.
    pub(super) fn hang_up(&mut self) {
        self.hung_up = true;
        self.lose_reader();
    }

    /// Nobody on the host takes bytes any more.
    fn lose_reader(&mut self) {
        self.outbox.clear();
        if let Side::Stream(_, connection) = &mut self.side {
            connection.host_reads_no_more();
        }
    }
}
