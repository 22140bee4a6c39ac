//! Flow control of one stream: who may still send how much (virtio 1.2, 5.10.6.3).
//!
//! Pure arithmetic modulo 2^32; knows neither packets nor sockets. Counters run freely and wrap, so only their differences
//! mean anything, and a difference is only trusted where it is within the window that makes sense.

/// Bytes of one stream that the device promises to hold for a host that does not read. Memory is used only while it is so.
pub(super) const WINDOW: u32 = 256 * 1024;

/// How far the guest's idea of our space may lag behind before it is told, unasked: small enough that a guest which sends
/// without pause always has a window to send into, large enough that telling it costs little.
const UPDATE_AFTER: u32 = WINDOW / 4;

/// The accounts of one stream, both ways.
#[derive(Clone, Debug)]
pub(super) struct Credit {
    /// Guest to host: bytes that arrived.
    received: u32,
    /// Guest to host: bytes that the host's socket has taken.
    forwarded: u32,
    /// Guest to host: the value of `forwarded` that the guest has been told last.
    advertised: u32,
    /// Host to guest: the guest's buffer space, as it said last.
    peer_window: u32,
    /// Host to guest: bytes sent.
    sent: u32,
    /// Host to guest: how many of those the guest has consumed, as far as it said.
    peer_forwarded: u32,
}

impl Credit {
    /// Accounts of a new stream; the guest has no space until it says so.
    pub(super) fn new() -> Credit {
        Credit { received: 0, forwarded: 0, advertised: 0, peer_window: 0, sent: 0, peer_forwarded: 0 }
    }

    /// Takes in what a packet from the guest says about its space.
    ///
    /// A count of consumed bytes that lies behind the newest one is an overtaken packet (several guest CPUs may queue them), one
    /// that lies ahead of what was sent is nonsense; neither moves the account.
    pub(super) fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_window = buf_alloc;
        if fwd_cnt.wrapping_sub(self.peer_forwarded) <= self.sent.wrapping_sub(self.peer_forwarded) {
            self.peer_forwarded = fwd_cnt;
        }
    }

    /// How many bytes may be sent to the guest now.
    pub(super) fn may_send(&self) -> u32 {
        self.peer_window.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Records that `len` bytes were sent to the guest; at most [`Credit::may_send`].
    pub(super) fn sent(&mut self, len: u32) {
        debug_assert!(len <= self.may_send());
        self.sent = self.sent.wrapping_add(len);
    }

    /// Records `len` bytes from the guest. `false` if they exceed the window it was given: they are not recorded then.
    #[must_use]
    pub(super) fn receive(&mut self, len: u32) -> bool {
        if len > WINDOW - self.held() {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Records that the host has taken `len` of the bytes held.
    pub(super) fn forwarded(&mut self, len: u32) {
        debug_assert!(len <= self.held());
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Bytes from the guest that the host has not taken yet; never more than [`WINDOW`].
    pub(super) fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Whether the guest should be told of space it does not know of yet.
    pub(super) fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.advertised) >= UPDATE_AFTER
    }

    /// The pair (`buf_alloc`, `fwd_cnt`) for a packet that is going out now; the guest counts as told.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (WINDOW, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accounts close to the point where every counter wraps.
    fn about_to_wrap() -> Credit {
        let near = u32::MAX - 10;
        Credit { received: near, forwarded: near, advertised: near, peer_window: 100, sent: near, peer_forwarded: near }
    }

    #[test]
    fn sending_stops_at_the_peers_window_across_the_wrap() {
        let mut credit = about_to_wrap();
        assert_eq!(credit.may_send(), 100);
        credit.sent(100);
        assert_eq!(credit.may_send(), 0);
        credit.hear(100, (u32::MAX - 10).wrapping_add(40));
        assert_eq!(credit.may_send(), 40);
    }

    #[test]
    fn receiving_is_bounded_by_the_window_across_the_wrap() {
        let mut credit = about_to_wrap();
        assert!(credit.receive(WINDOW));
        assert!(!credit.receive(1));
        credit.forwarded(1);
        assert!(credit.receive(1));
        assert_eq!(credit.held(), WINDOW);
        assert!(!credit.receive(u32::MAX));
    }

    #[test]
    fn an_overtaken_or_impossible_count_changes_nothing() {
        let mut credit = Credit::new();
        credit.hear(1000, 0);
        credit.sent(600);
        credit.hear(1000, 500);
        assert_eq!(credit.may_send(), 900);
        credit.hear(1000, 200);
        assert_eq!(credit.may_send(), 900, "a count from the past");
        credit.hear(1000, 601);
        assert_eq!(credit.may_send(), 900, "more consumed than sent");
    }

    #[test]
    fn a_shrunken_window_stops_sending_without_underflow() {
        let mut credit = Credit::new();
        credit.hear(1000, 0);
        credit.sent(600);
        credit.hear(100, 0);
        assert_eq!(credit.may_send(), 0);
        credit.hear(100, 550);
        assert_eq!(credit.may_send(), 50);
    }

    /// The same accounts in numbers that never wrap, kept the obvious way.
    #[derive(Default)]
    struct Ledger {
        received: u64,
        forwarded: u64,
        sent: u64,
        consumed: u64,
        window: u64,
    }

    #[test]
    fn accounts_that_wrap_agree_with_accounts_that_do_not() {
        let (mut dice, mut refused) = (crate::virtio::testing::Dice::new(7), 0);
        // Wherever the counters begin, near the wrap among others, only differences count.
        for base in [0, 1, u32::MAX / 2, u32::MAX - WINDOW, u32::MAX - 5, u32::MAX] {
            let mut credit = Credit {
                received: base,
                forwarded: base,
                advertised: base,
                peer_window: 0,
                sent: base,
                peer_forwarded: base,
            };
            let mut ledger = Ledger::default();
            for _ in 0..20_000 {
                match dice.below(5) {
                    0 => {
                        let len = dice.below(u64::from(WINDOW) / 3) as u32;
                        let fits = ledger.received - ledger.forwarded + u64::from(len) <= u64::from(WINDOW);
                        assert_eq!(credit.receive(len), fits);
                        refused += u32::from(!fits);
                        ledger.received += if fits { u64::from(len) } else { 0 };
                    }
                    1 => {
                        let len = dice.below(u64::from(credit.held()) + 1);
                        credit.forwarded(len as u32);
                        ledger.forwarded += len;
                    }
                    2 => {
                        let len = dice.below(u64::from(credit.may_send()) + 1);
                        credit.sent(len as u32);
                        ledger.sent += len;
                    }
                    3 => {
                        // An honest account; every window there can be.
                        ledger.consumed += dice.below(ledger.sent - ledger.consumed + 1);
                        ledger.window = u64::from(dice.roll() as u32 >> dice.below(32));
                        credit.hear(ledger.window as u32, base.wrapping_add(ledger.consumed as u32));
                    }
                    _ => {
                        // One from the future changes the window only. It is told from one of the past as long as it is not so far
                        // ahead that it has come all the way round.
                        let future = u64::from(u32::MAX) - (ledger.sent - ledger.consumed);
                        let ahead = ledger.sent + u64::from(future > 0) * (1 + dice.below(future.clamp(1, 1 << 30)));
                        credit.hear(ledger.window as u32, base.wrapping_add(ahead as u32));
                    }
                }
                assert_eq!(u64::from(credit.held()), ledger.received - ledger.forwarded);
                let space = ledger.window.saturating_sub(ledger.sent - ledger.consumed);
                assert_eq!(u64::from(credit.may_send()), space);
            }
        }
        assert!(refused > 1000, "the window was hardly ever full: {refused}");
    }

    #[test]
    fn the_guest_is_told_before_its_window_closes() {
        let mut credit = Credit::new();
        assert!(credit.receive(UPDATE_AFTER));
        assert!(!credit.update_due(), "nothing was forwarded");
        credit.forwarded(UPDATE_AFTER - 1);
        assert!(!credit.update_due());
        credit.forwarded(1);
        assert!(credit.update_due());
        assert_eq!(credit.tell(), (WINDOW, UPDATE_AFTER));
        assert!(!credit.update_due());
    }
}
