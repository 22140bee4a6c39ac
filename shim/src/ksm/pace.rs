//! How fast the kernel is to look for equal pages: at once when sandboxes have come, and slower as less and less is found.
//!
//! A page is compared the second time that it is met with the same contents, so what a gear finds shows after two rounds. Knows
//! neither the kernel's knobs nor time: looks are as far apart as its caller makes them.

use super::knobs::Speed;

/// Rounds after which a gear has found what it finds.
const ROUNDS: u64 = 2;
/// Looks that a gear lasts at most: where nothing can be merged, there are no rounds.
const LOOKS: u32 = 60;

/// How fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gear {
    /// As the host has it.
    #[default]
    Host,
    /// 50 MB a second of ordinary pages.
    Slow,
    /// 200 MB a second.
    Steady,
    /// 800 MB a second.
    Fast,
}

/// What a look has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// There are sandboxes that were not there at the last look.
    pub(super) more: bool,
    /// How many there are.
    pub(super) sandboxes: usize,
    /// Rounds so far.
    pub(super) full_scans: u64,
    /// Pages saved.
    pub(super) saved: u64,
}

/// What is being done.
#[derive(Debug, Default)]
pub(super) struct Pace {
    gear: Gear,
    /// Looks in this gear.
    looks: u32,
    /// The rounds when the present ones began to be counted, and the pages saved by then.
    rounds: u64,
    saved: u64,
}

impl Gear {
    /// What it means where the host has `host`; never slower than that.
    pub(super) fn speed(self, host: Speed) -> Speed {
        let pages_to_scan = match self {
            Gear::Host => return host,
            Gear::Slow => 250,
            Gear::Steady => 1000,
            Gear::Fast => 4000,
        };
        Speed { pages_to_scan: pages_to_scan.max(host.pages_to_scan), sleep_millisecs: host.sleep_millisecs.min(20) }
    }

    /// In a word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Gear::Host => "at rest",
            Gear::Slow => "slow",
            Gear::Steady => "steady",
            Gear::Fast => "fast",
        }
    }

    fn slower(self) -> Gear {
        match self {
            Gear::Host | Gear::Slow => Gear::Host,
            Gear::Steady => Gear::Slow,
            Gear::Fast => Gear::Steady,
        }
    }
}

impl Pace {
    /// Takes a look in; the gear, if it changes.
    pub(super) fn look(&mut self, seen: Seen) -> Option<Gear> {
        self.looks += 1;
        let next = if seen.more {
            Gear::Fast
        } else if self.gear == Gear::Host {
            return None;
        } else if seen.sandboxes == 0 {
            Gear::Host
        } else if seen.full_scans.saturating_sub(self.rounds) >= ROUNDS {
            // A hundredth more is still something.
            let settled = seen.saved <= self.saved + self.saved / 100;
            if settled { self.gear.slower() } else { self.gear }
        } else if self.looks >= LOOKS {
            self.gear.slower()
        } else {
            return None;
        };
        let changes = next != self.gear;
        if changes {
            self.looks = 0;
        }
        (self.gear, self.rounds, self.saved) = (next, seen.full_scans, seen.saved);
        changes.then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Seen = Seen { more: false, sandboxes: 0, full_scans: 10, saved: 0 };

    fn some(full_scans: u64, saved: u64) -> Seen {
        Seen { more: false, sandboxes: 2, full_scans, saved }
    }

    #[test]
    fn it_hurries_when_sandboxes_come_and_backs_off_as_sharing_settles() {
        let mut pace = Pace::default();
        assert_eq!(pace.look(NONE), None);
        assert_eq!(pace.look(Seen { more: true, ..some(10, 0) }), Some(Gear::Fast));
        assert_eq!(pace.look(some(11, 500)), None, "one round says nothing");
        assert_eq!(pace.look(some(12, 900)), None, "it still finds");
        assert_eq!(pace.look(some(14, 905)), Some(Gear::Steady));
        assert_eq!(pace.look(some(15, 905)), None);
        assert_eq!(pace.look(some(16, 905)), Some(Gear::Slow));
        assert_eq!(pace.look(Seen { more: true, ..some(17, 905) }), Some(Gear::Fast));
        assert_eq!(pace.look(Seen { more: true, ..some(18, 905) }), None, "it cannot go faster");
        assert_eq!(pace.look(Seen { full_scans: 18, ..NONE }), Some(Gear::Host), "nobody is left");
        assert_eq!(pace.look(NONE), None);
    }

    #[test]
    fn it_comes_to_rest_where_nothing_can_be_merged() {
        let mut pace = Pace::default();
        pace.look(Seen { more: true, ..some(0, 0) });
        let gears: Vec<_> = (0..LOOKS * 4).filter_map(|_| pace.look(some(0, 0))).collect();
        assert_eq!(gears, [Gear::Steady, Gear::Slow, Gear::Host]);
    }

    #[test]
    fn no_gear_is_slower_than_the_hosts_own() {
        let host = Speed { pages_to_scan: 2000, sleep_millisecs: 10 };
        assert_eq!(Gear::Host.speed(host), host);
        assert_eq!(Gear::Slow.speed(host), host);
        assert_eq!(Gear::Fast.speed(host), Speed { pages_to_scan: 4000, sleep_millisecs: 10 });
        let lazy = Speed { pages_to_scan: 100, sleep_millisecs: 500 };
        assert_eq!(Gear::Slow.speed(lazy), Speed { pages_to_scan: 250, sleep_millisecs: 20 });
    }
}
