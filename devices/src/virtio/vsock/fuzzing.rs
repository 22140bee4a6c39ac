//! The entry point of the fuzz target that drives one stream's state by itself: no queue, no socket, no time.

use super::connection::{Connection, Heard, Next};
use super::credit::WINDOW;
use super::spec::{HOST_CID, Header, Op, TYPE_STREAM};

/// Any packets from a guest, and any fate of the host's socket, as `bytes` say. Ten bytes make a step.
///
/// # Panics
/// When the stream holds more than it granted, sends more than it was granted, or finds no end of things to say.
pub fn connection(bytes: &[u8]) {
    let mut steps = bytes.chunks_exact(10);
    let header = |step: &[u8]| {
        let word = |at: usize| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], 0]) << (step[at + 2] % 9);
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: 2,
            len: if step[1] < 200 { u32::from(step[1]) * 1500 } else { word(7) },
            kind: TYPE_STREAM,
            op: Op(u16::from(step[0] >> 4)),
            flags: u32::from(step[3]),
            buf_alloc: word(4),
            fwd_cnt: word(7),
        }
    };
    let mut connection = match steps.next() {
        Some(step) if step[0] & 1 == 0 => Connection::accepted(&header(step)),
        _ => Connection::wanted(),
    };
    for step in steps {
        match step[0] & 7 {
            0..=3 => match connection.hear(&header(step)) {
                Heard::Reset | Heard::Violation => return,
                Heard::Noted | Heard::Connected | Heard::Data => {}
            },
            // The host's socket takes some of what is held for it.
            4 => connection.forwarded(connection.held().min(u32::from(step[1]) * 2000)),
            5 => connection.ask_for_credit(),
            6 if step[1] & 1 == 0 => connection.host_sent_last(),
            6 => connection.host_reads_no_more(),
            _ => pump(&mut connection, step[1] & 1 == 0),
        }
        assert!(connection.held() <= WINDOW, "more is held than was granted");
        assert!(!connection.is_over() || connection.held() == 0, "over, with bytes left");
        assert!(!(connection.may_read() && connection.is_stalled()), "both able to send and not");
    }
}

/// Sends all there is to say, as if the guest took it.
fn pump(connection: &mut Connection, readable: bool) {
    for _ in 0..64 {
        match connection.next(readable) {
            None => return,
            Some(Next::Control(op, _)) => drop(connection.say(op, 0)),
            Some(Next::Data(most)) => {
                assert!(most > 0, "a turn to send nothing");
                connection.say(Op::RW, most);
            }
        }
    }
    panic!("no end of packets");
}
