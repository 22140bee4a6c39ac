//! The state of one stream between a guest port and a host port: what may be sent, what is owed, when it is over.
//!
//! A pure state machine: packets and the host socket's fate go in, packets to send come out. It knows neither queues nor sockets
//! nor time, so every rule of opening, flow control and closing can be tested without any.
//!
//! Closing, the delicate part (virtio 1.2, 5.10.6.5): each side announces with SHUTDOWN that it will send, or receive, no more. A
//! direction's end is only passed on when every byte before it has been. When one side has announced both ends, the other
//! answers RST as soon as it holds nothing more for it, and that frees the pair of ports. A guest that gets no such answer
//! waits for seconds in `close`.

use super::credit::Credit;
use super::spec::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Which directions of a stream one side has given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// It sends no more.
    pub(super) send: bool,
    /// It receives no more.
    pub(super) receive: bool,
}

impl Ends {
    fn from_flags(flags: u32) -> Ends {
        Ends { send: flags & SHUTDOWN_SEND != 0, receive: flags & SHUTDOWN_RECEIVE != 0 }
    }

    fn flags(self) -> u32 {
        (u32::from(self.send) * SHUTDOWN_SEND) | (u32::from(self.receive) * SHUTDOWN_RECEIVE)
    }

    fn add(&mut self, other: Ends) {
        self.send |= other.send;
        self.receive |= other.receive;
    }

    fn both(self) -> bool {
        self.send && self.receive
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The host wants it, the guest has not been asked yet.
    Wanted,
    /// The guest has been asked.
    Requested,
    /// The guest wants it and the host took it; the guest does not know yet.
    Accepted,
    /// Both know.
    Open,
}

/// What a packet from the guest means for the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Accounts or ends have changed; nothing else.
    Noted,
    /// The guest took the connection that the host asked for.
    Connected,
    /// The payload belongs to the host.
    Data,
    /// The guest is done with it: what is held for the host is still the host's, everything else is over.
    Reset,
    /// No guest may send this here: the stream ends with RST.
    Violation,
}

/// What to send to the guest next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A packet without payload.
    Control(Op, u32),
    /// At most this many bytes from the host.
    Data(u32),
}

/// One stream.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    stage: Stage,
    credit: Credit,
    /// The guest's ends, as it announced them.
    guest: Ends,
    /// The host's ends, as its socket showed them.
    host: Ends,
    /// Which of the host's ends the guest has been told.
    told: Ends,
    owes_update: bool,
    owes_credit_request: bool,
}

impl Connection {
    /// A stream that the host asks for.
    pub(super) fn wanted() -> Connection {
        Connection::at(Stage::Wanted)
    }

    /// A stream that the guest asked for with `request` and the host took.
    pub(super) fn accepted(request: &Header) -> Connection {
        let mut connection = Connection::at(Stage::Accepted);
        connection.credit.hear(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn at(stage: Stage) -> Connection {
        Connection {
            stage,
            credit: Credit::new(),
            guest: Ends::default(),
            host: Ends::default(),
            told: Ends::default(),
            owes_update: false,
            owes_credit_request: false,
        }
    }

    /// Takes in a packet from the guest. Its payload has been found to be as long as `header.len` says.
    pub(super) fn hear(&mut self, header: &Header) -> Heard {
        if header.op == Op::RST {
            return Heard::Reset;
        }
        match self.stage {
            Stage::Requested if header.op == Op::RESPONSE => {
                self.credit.hear(header.buf_alloc, header.fwd_cnt);
                self.stage = Stage::Open;
                return Heard::Connected;
            }
            Stage::Open => {}
            // Before it has seen our answer, the guest has nothing to say but RST.
            Stage::Wanted | Stage::Requested | Stage::Accepted => return Heard::Violation,
        }
        self.credit.hear(header.buf_alloc, header.fwd_cnt);
        match header.op {
            Op::RW if self.guest.send || !self.credit.receive(header.len) => Heard::Violation,
            // It was sent before the guest knew that nobody reads; its space is given back like that of any other byte.
            Op::RW if self.host.receive => {
                self.forwarded(header.len);
                Heard::Noted
            }
            Op::RW => Heard::Data,
            Op::SHUTDOWN => {
                self.guest.add(Ends::from_flags(header.flags));
                Heard::Noted
            }
            Op::CREDIT_UPDATE => Heard::Noted,
            Op::CREDIT_REQUEST => {
                self.owes_update = true;
                Heard::Noted
            }
            _ => Heard::Violation,
        }
    }

    /// The host has taken `len` of the bytes that came as [`Heard::Data`].
    pub(super) fn forwarded(&mut self, len: u32) {
        self.credit.forwarded(len);
        // To a guest that is to send no more, space is no news.
        self.owes_update |= self.credit.update_due() && !self.host.receive;
    }

    /// The host has sent its last byte, and all of them have been sent to the guest.
    pub(super) fn host_sent_last(&mut self) {
        self.host.send = true;
    }

    /// The host will read nothing more; what is held for it is to be thrown away.
    pub(super) fn host_reads_no_more(&mut self) {
        self.host.receive = true;
        self.forwarded(self.credit.held());
    }

    /// The packet to send next, if one is due. `readable`: the host's socket may have bytes or an end to give.
    pub(super) fn next(&self, readable: bool) -> Option<Next> {
        match self.stage {
            Stage::Wanted => return Some(Next::Control(Op::REQUEST, 0)),
            Stage::Requested => return None,
            Stage::Accepted => return Some(Next::Control(Op::RESPONSE, 0)),
            Stage::Open => {}
        }
        if readable && self.may_read() {
            return Some(Next::Data(self.credit.may_send()));
        }
        if self.host.flags() & !self.told.flags() != 0 && !self.guest.both() {
            return Some(Next::Control(Op::SHUTDOWN, self.host.flags()));
        }
        if self.owes_update {
            return Some(Next::Control(Op::CREDIT_UPDATE, 0));
        }
        if self.owes_credit_request {
            return Some(Next::Control(Op::CREDIT_REQUEST, 0));
        }
        None
    }

    /// Records that `op` goes out with `len` bytes of payload, and gives the pair (`buf_alloc`, `fwd_cnt`) for its header.
    pub(super) fn say(&mut self, op: Op, len: u32) -> (u32, u32) {
        match op {
            Op::REQUEST => self.stage = Stage::Requested,
            Op::RESPONSE => self.stage = Stage::Open,
            Op::SHUTDOWN => self.told = self.host,
            Op::CREDIT_REQUEST => self.owes_credit_request = false,
            _ => {}
        }
        self.credit.sent(len);
        // Every header carries the account, so every packet settles it.
        self.owes_update = false;
        self.credit.tell()
    }

    /// Whether reading from the host's socket leads anywhere now.
    pub(super) fn may_read(&self) -> bool {
        self.stage == Stage::Open && !self.host.send && !self.guest.receive && self.credit.may_send() > 0
    }

    /// Whether the stream is open towards the guest and only its lack of space stops the host's bytes.
    pub(super) fn is_stalled(&self) -> bool {
        self.stage == Stage::Open && !self.host.send && !self.guest.receive && self.credit.may_send() == 0
    }

    /// Asks the guest for its account: it has been silent with a full buffer for long.
    pub(super) fn ask_for_credit(&mut self) {
        self.owes_credit_request = true;
    }

    /// Whether the host asked for it and has no answer yet.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.stage, Stage::Wanted | Stage::Requested)
    }

    /// Whether the guest may know of it, so that ending it takes a RST.
    pub(super) fn is_known_to_guest(&self) -> bool {
        self.stage != Stage::Wanted
    }

    /// Whether the guest has sent its last byte and the host has them all: time for the socket's own end of stream.
    pub(super) fn guest_sent_last(&self) -> bool {
        self.guest.send && self.credit.held() == 0
    }

    /// Whether the guest takes nothing more from the host.
    pub(super) fn guest_is_deaf(&self) -> bool {
        self.guest.receive
    }

    /// Whether the guest wants no more of it and nothing is held for the host: time for the RST that frees its port.
    pub(super) fn is_over(&self) -> bool {
        self.guest.both() && self.credit.held() == 0
    }

    /// Whether the guest knows that the host is gone entirely, and owes the RST that ends the stream.
    pub(super) fn awaits_reset(&self) -> bool {
        self.told.both()
    }

    /// Bytes held for the host.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> u32 {
        self.credit.held()
    }
}

#[cfg(test)]
mod tests {
    use super::super::credit::WINDOW;
    use super::super::spec::TYPE_STREAM;
    use super::*;

    fn packet(op: Op, len: u32, flags: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1,
            dst_port: 2,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 1000,
            fwd_cnt: 0,
        }
    }

    /// Sends what is due and says what it was.
    fn pump(connection: &mut Connection) -> Vec<(Op, u32)> {
        let mut sent = Vec::new();
        while let Some(next) = connection.next(false) {
            let Next::Control(op, flags) = next else { panic!("data without a readable socket") };
            connection.say(op, 0);
            sent.push((op, flags));
            assert!(sent.len() < 10, "no end of packets: {sent:?}");
        }
        sent
    }

    fn open() -> Connection {
        let mut connection = Connection::accepted(&packet(Op::REQUEST, 0, 0));
        assert_eq!(pump(&mut connection), [(Op::RESPONSE, 0)]);
        connection
    }

    const FULL: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

    #[test]
    fn the_host_asks_and_the_guest_takes() {
        let mut connection = Connection::wanted();
        assert!(!connection.is_known_to_guest());
        assert_eq!(
            connection.clone().hear(&packet(Op::RESPONSE, 0, 0)),
            Heard::Violation,
            "an answer before the question"
        );
        assert_eq!(pump(&mut connection), [(Op::REQUEST, 0)]);
        assert!(connection.is_pending() && connection.is_known_to_guest());
        assert_eq!(connection.next(true), None, "nothing may be sent before the answer");
        assert_eq!(connection.hear(&packet(Op::RESPONSE, 0, 0)), Heard::Connected);
        assert_eq!(connection.next(true), Some(Next::Data(1000)));
        assert_eq!(connection.hear(&packet(Op::RESPONSE, 0, 0)), Heard::Violation, "a second answer");
    }

    #[test]
    fn the_host_asks_and_the_guest_refuses() {
        let mut connection = Connection::wanted();
        pump(&mut connection);
        assert_eq!(connection.hear(&packet(Op::RST, 0, 0)), Heard::Reset);
        for op in [Op::RW, Op::SHUTDOWN, Op::CREDIT_UPDATE, Op::REQUEST, Op(0), Op(99)] {
            assert_eq!(connection.clone().hear(&packet(op, 0, 0)), Heard::Violation, "{op:?} instead of an answer");
        }
    }

    #[test]
    fn the_guest_finishes_sending_first() {
        let mut connection = open();
        assert_eq!(connection.hear(&packet(Op::RW, 10, 0)), Heard::Data);
        assert_eq!(connection.hear(&packet(Op::SHUTDOWN, 0, SHUTDOWN_SEND)), Heard::Noted);
        assert!(!connection.guest_sent_last(), "ten bytes are still held");
        connection.forwarded(10);
        assert!(connection.guest_sent_last());
        assert!(!connection.is_over(), "the host may still send");
        assert_eq!(connection.hear(&packet(Op::RW, 1, 0)), Heard::Violation, "data after the end");
        assert!(matches!(connection.next(true), Some(Next::Data(_))));
        connection.host_sent_last();
        assert_eq!(pump(&mut connection), [(Op::SHUTDOWN, SHUTDOWN_SEND)]);
        assert_eq!(connection.hear(&packet(Op::SHUTDOWN, 0, SHUTDOWN_RECEIVE)), Heard::Noted);
        assert!(connection.is_over(), "flags of both packets count together");
    }

    #[test]
    fn the_host_finishes_sending_first() {
        let mut connection = open();
        connection.host_sent_last();
        assert_eq!(pump(&mut connection), [(Op::SHUTDOWN, SHUTDOWN_SEND)]);
        assert!(pump(&mut connection).is_empty(), "an end is told once");
        assert_eq!(connection.next(true), None, "nothing to read after the end");
        assert_eq!(connection.hear(&packet(Op::RW, 10, 0)), Heard::Data, "the guest goes on");
        assert_eq!(connection.hear(&packet(Op::SHUTDOWN, 0, FULL)), Heard::Noted);
        assert!(!connection.is_over());
        connection.forwarded(10);
        assert!(connection.is_over());
    }

    #[test]
    fn the_host_vanishes() {
        let mut connection = open();
        connection.host_reads_no_more();
        assert_eq!(
            pump(&mut connection),
            [(Op::SHUTDOWN, SHUTDOWN_RECEIVE)],
            "the guest learns at once that nobody listens"
        );
        assert!(matches!(connection.next(true), Some(Next::Data(_))), "what the host had sent is still delivered");
        connection.host_sent_last();
        assert_eq!(pump(&mut connection), [(Op::SHUTDOWN, FULL)]);
        assert!(connection.awaits_reset());
        assert_eq!(connection.hear(&packet(Op::RW, 5, 0)), Heard::Noted, "sent before the guest knew, and thrown away");
        assert_eq!(connection.held(), 0);
        assert_eq!(connection.hear(&packet(Op::RST, 0, 0)), Heard::Reset);
    }

    #[test]
    fn a_guest_that_is_gone_is_told_nothing_more() {
        let mut connection = open();
        connection.hear(&packet(Op::SHUTDOWN, 0, FULL));
        connection.host_sent_last();
        connection.host_reads_no_more();
        assert_eq!(connection.next(true), None);
        assert!(connection.is_over());
    }

    #[test]
    fn a_deaf_guest_stops_the_hosts_bytes_only() {
        let mut connection = open();
        connection.hear(&packet(Op::SHUTDOWN, 0, SHUTDOWN_RECEIVE));
        assert!(!connection.may_read() && !connection.is_stalled());
        assert_eq!(connection.hear(&packet(Op::RW, 10, 0)), Heard::Data);
    }

    #[test]
    fn a_flood_beyond_the_window_is_a_violation() {
        let mut connection = open();
        assert_eq!(connection.hear(&packet(Op::RW, WINDOW, 0)), Heard::Data);
        assert_eq!(connection.hear(&packet(Op::RW, 1, 0)), Heard::Violation);
        assert_eq!(connection.held(), WINDOW);
    }

    #[test]
    fn credit_is_told_when_asked_for_and_when_due() {
        let mut connection = open();
        connection.hear(&packet(Op::CREDIT_REQUEST, 0, 0));
        assert_eq!(pump(&mut connection), [(Op::CREDIT_UPDATE, 0)]);
        connection.hear(&packet(Op::RW, WINDOW, 0));
        connection.forwarded(10);
        assert!(pump(&mut connection).is_empty(), "ten bytes are not worth a packet");
        connection.forwarded(WINDOW - 10);
        assert_eq!(connection.next(true), Some(Next::Data(1000)), "data carries the account as well");
        assert_eq!(connection.say(Op::RW, 1000), (WINDOW, WINDOW));
        assert_eq!(connection.next(true), None, "the guest's space is used up, and it was told everything");
        assert!(connection.is_stalled());
        connection.ask_for_credit();
        assert_eq!(pump(&mut connection), [(Op::CREDIT_REQUEST, 0)]);
        let mut update = packet(Op::CREDIT_UPDATE, 0, 0);
        update.fwd_cnt = 600;
        connection.hear(&update);
        assert_eq!(connection.next(true), Some(Next::Data(600)));
    }
}
