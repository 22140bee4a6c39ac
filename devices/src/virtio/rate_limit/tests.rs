//! Buckets against a clock of our own: bursts, long runs, large operations, clocks that jump.

use super::*;

fn allowance(per_second: u64, burst: u64) -> Option<Allowance> {
    Some(Allowance { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

fn limited(bytes: Option<Allowance>, operations: Option<Allowance>) -> (RateLimiter, Instant) {
    let now = Instant::now();
    (RateLimiter::new(RateLimit { bytes, operations }, now), now)
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn what_is_not_limited_is_not_held_up() {
    let (mut limiter, now) = limited(None, None);
    for _ in 0..1000 {
        limiter.admit(u64::MAX, now).unwrap();
    }
    assert!(RateLimit::default().is_unlimited());
}

#[test]
fn a_burst_goes_through_and_the_next_waits_its_share() {
    let (mut limiter, now) = limited(None, allowance(1000, 3));
    for _ in 0..3 {
        limiter.admit(0, now).unwrap();
    }
    assert_eq!(limiter.admit(0, now), Err(MS));
    assert_eq!(limiter.admit(0, now + MS / 4), Err(MS * 3 / 4));
    limiter.admit(0, now + MS).unwrap();
    assert_eq!(limiter.admit(0, now + MS), Err(MS));
    // However long the quiet was, no more than the burst has gathered.
    let later = now + Duration::from_secs(1 << 40);
    assert_eq!((0..10).take_while(|_| limiter.admit(0, later).is_ok()).count(), 3);
}

#[test]
fn waiting_exactly_as_long_as_told_is_enough() {
    for (per_second, burst, cost) in [(3, 1, 1), (7, 5, 2), (999_999_937, 4096, 4096), (1, 1, 1), (u64::MAX, 1, 1)] {
        let (mut limiter, mut now) = limited(allowance(per_second, burst), None);
        for _ in 0..100 {
            if let Err(wait) = limiter.admit(cost, now) {
                assert!(!wait.is_zero());
                now += wait;
                limiter.admit(cost, now).unwrap();
            }
        }
    }
}

#[test]
fn in_the_long_run_the_rate_is_exact() {
    let (per_second, burst) = (1_000_003, 65_536);
    let (mut limiter, start) = limited(allowance(per_second, burst), None);
    let (mut now, mut through) = (start, 0);
    while now < start + Duration::from_secs(60) {
        match limiter.admit(4096, now) {
            Ok(()) => through += 4096,
            Err(wait) => now += wait,
        }
    }
    let most = burst + 60 * per_second;
    assert!(through <= most + 4096 && through + 2 * 4096 >= most, "{through} of {most}");
}

#[test]
fn the_scarcer_of_two_decides_and_nothing_is_taken_in_vain() {
    let (mut limiter, now) = limited(allowance(1000, 1000), allowance(1, 1));
    limiter.admit(100, now).unwrap();
    for _ in 0..50 {
        assert_eq!(limiter.admit(100, now), Err(Duration::from_secs(1)));
    }
    limiter.admit(1000, now + Duration::from_secs(1)).unwrap();
    let (mut bytes_only, now) = limited(allowance(1000, 1000), None);
    bytes_only.admit(1000, now).unwrap();
    assert_eq!(bytes_only.admit(500, now), Err(MS * 500));
}

#[test]
fn what_is_larger_than_the_bucket_goes_when_it_is_full_and_is_paid_for() {
    let (mut limiter, now) = limited(allowance(1000, 100), None);
    limiter.admit(1100, now).unwrap();
    // A thousand bytes of debt, and one to come.
    assert_eq!(limiter.admit(1, now), Err(MS * 1001));
    limiter.admit(1, now + MS * 1001).unwrap();
    assert_eq!(limiter.admit(5000, now + MS * 1001), Err(MS * 100), "it waits for a full bucket");
}

#[test]
fn extreme_numbers_and_a_clock_that_goes_backwards_do_no_harm() {
    let (mut limiter, now) = limited(allowance(u64::MAX, u64::MAX), allowance(1, u64::MAX));
    limiter.admit(u64::MAX, now).unwrap();
    let later = now + Duration::from_secs(1 << 50);
    limiter.admit(u64::MAX, later).unwrap();
    assert_eq!(limiter.admit(u64::MAX, now), Err(Duration::from_secs(1)));
    limiter.admit(u64::MAX, later + Duration::from_secs(1)).unwrap();
    let (mut slow, now) = limited(allowance(1, 1), None);
    slow.admit(u64::MAX, now).unwrap();
    assert_eq!(slow.admit(1, now), Err(Duration::from_secs(u64::MAX)));
    let (mut limiter, now) = limited(None, allowance(1000, 1));
    limiter.admit(0, now + MS).unwrap();
    assert_eq!(limiter.admit(0, now), Err(MS), "time that has passed once does not pass again");
    assert_eq!(limiter.admit(0, now + MS), Err(MS));
}

#[test]
fn it_travels_as_plain_data() {
    let limit = RateLimit { bytes: allowance(1 << 20, 1 << 16), operations: None };
    let text = serde_json::to_string(&limit).unwrap();
    assert_eq!(serde_json::from_str::<RateLimit>(&text).unwrap(), limit);
    assert_eq!(serde_json::from_str::<RateLimit>("{}").unwrap(), RateLimit::default());
    assert!(serde_json::from_str::<RateLimit>(r#"{"bytes":{"per_second":0,"burst":1}}"#).is_err());
}
