//! `--disk-rate` and `--net-rate`: how fast disks and networks may be, as text and as the devices' limits.

use std::num::NonZeroU64;

use clap::Args;
use tatami_vmm::{Allowance, NicLimits, RateLimit};

use super::size::parse_size;

/// The options as they are written.
#[derive(Args, Debug)]
pub(super) struct RateArguments {
    /// How fast the disk with the root and the devices may be, in bytes and requests a second
    #[arg(long, value_name = "bytes=SIZE[,ops=NUMBER]", value_parser = disk_rate)]
    disk_rate: Option<RateLimit>,
    /// How fast the network may be, in bytes and frames a second, to the container (rx) and from it (tx)
    #[arg(long, value_name = "rx=SIZE[,tx=SIZE][,rx-frames=NUMBER][,tx-frames=NUMBER]", value_parser = net_rate)]
    net_rate: Option<NicLimits>,
}

/// What is limited; none: nothing was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of the disk.
    pub disk: Option<RateLimit>,
    /// Of the network.
    pub net: Option<NicLimits>,
}

impl RateArguments {
    pub(super) fn rates(&self) -> Rates {
        Rates { disk: self.disk_rate, net: self.net_rate }
    }
}

fn disk_rate(text: &str) -> Result<RateLimit, String> {
    let mut limit = RateLimit::default();
    read(text, "bytes=SIZE and ops=NUMBER", |key, number| match key {
        "bytes" => set(&mut limit.bytes, bytes(number)?),
        "ops" => set(&mut limit.operations, operations(number)?),
        _ => Err("unknown".to_owned()),
    })?;
    Ok(limit)
}

fn net_rate(text: &str) -> Result<NicLimits, String> {
    let mut limits = NicLimits::default();
    read(text, "rx=SIZE, tx=SIZE, rx-frames=NUMBER and tx-frames=NUMBER", |key, number| match key {
        "rx" => set(&mut limits.receive.bytes, bytes(number)?),
        "tx" => set(&mut limits.transmit.bytes, bytes(number)?),
        "rx-frames" => set(&mut limits.receive.operations, operations(number)?),
        "tx-frames" => set(&mut limits.transmit.operations, operations(number)?),
        _ => Err("unknown".to_owned()),
    })?;
    Ok(limits)
}

/// Gives `take` each `KEY=VALUE`; what it does not take is told with what is `known`.
fn read(text: &str, known: &str, mut take: impl FnMut(&str, &str) -> Result<(), String>) -> Result<(), String> {
    for word in text.split(',') {
        let taken = match word.split_once('=') {
            Some((key, value)) => take(key, value),
            None => Err("it has no value".to_owned()),
        };
        taken.map_err(|why| format!("{word:?}: {why}; {known} are known, each a second"))?;
    }
    Ok(())
}

fn set(place: &mut Option<Allowance>, allowance: Allowance) -> Result<(), String> {
    match place.replace(allowance) {
        None => Ok(()),
        Some(_) => Err("given twice".to_owned()),
    }
}

fn bytes(text: &str) -> Result<Allowance, String> {
    more_than_none(parse_size(text)?).map(Allowance::of_bytes)
}

fn operations(text: &str) -> Result<Allowance, String> {
    more_than_none(text.parse().map_err(|_| "expected a number".to_owned())?).map(Allowance::of_operations)
}

fn more_than_none(number: u64) -> Result<NonZeroU64, String> {
    number.try_into().map_err(|_| "nothing would ever get through".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(per_second: u64, burst: u64) -> Option<Allowance> {
        Some(Allowance { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    }

    #[test]
    fn rates_are_read_with_a_burst_that_fits() {
        let disk = disk_rate("bytes=10m,ops=50").unwrap();
        assert_eq!((disk.bytes, disk.operations), (allowed(10 << 20, 1 << 20), allowed(50, 5)));
        assert_eq!(disk_rate("ops=3").unwrap(), RateLimit { bytes: None, operations: allowed(3, 1) });
        let net = net_rate("rx=1m,tx-frames=1000,tx=1k").unwrap();
        assert_eq!((net.receive.bytes, net.receive.operations), (allowed(1 << 20, (1 << 20) / 10), None));
        assert_eq!((net.transmit.bytes, net.transmit.operations), (allowed(1024, 64 << 10), allowed(1000, 100)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("", "no value"),
            ("bytes", "no value"),
            ("bytes=", "expected a size"),
            ("bytes=0", "nothing would ever"),
            ("ops=-1", "expected a number"),
            ("ops=1,ops=2", "twice"),
            ("rx=1m", "unknown"),
        ] {
            let error = disk_rate(text).unwrap_err();
            assert!(error.contains(why) && error.contains("bytes=SIZE"), "{text}: {error}");
        }
        assert!(net_rate("rx=1m,bytes=3").unwrap_err().contains("\"bytes=3\": unknown; rx=SIZE"));
    }
}
