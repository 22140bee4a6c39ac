//! What a container uses, as runc's `events` prints it.
//!
//! Pure: one form into the other. Reads containerd's metrics of cgroups of version 2 by the numbers of their fields.

use serde_json::{Value, json};

use crate::containerd::message::{fields, number};

/// The messages in containerd's.
const PIDS: u32 = 1;
const CPU: u32 = 2;
const MEMORY: u32 = 4;
const IO: u32 = 6;
const MEMORY_EVENTS: u32 = 8;
/// And in that of disks: one for each.
const IO_USAGE: u32 = 1;

/// One line's worth.
///
/// # Errors
/// When `metrics` are no message.
pub(super) fn stats(id: &str, metrics: &[u8]) -> protobuf::Result<Value> {
    let of = |message: u32, field: u32| number(metrics, &[message, field]);
    let micros = |field: u32| Ok::<_, protobuf::Error>(of(CPU, field)? * 1000);
    let mut disks = Vec::new();
    fields(metrics, |message, content| match message {
        IO => fields(content, |field, entry| {
            if field == IO_USAGE {
                disks.push([1, 2, 3, 4, 5, 6].map(|field| number(entry, &[field])));
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    let disks =
        disks.into_iter().map(|disk| disk.into_iter().collect()).collect::<protobuf::Result<Vec<Vec<u64>>>>()?;
    let io = |read: usize| -> Vec<Value> {
        let entry = |disk: &Vec<u64>, op: &str, value: usize| json!({ "major": disk[0], "minor": disk[1], "op": op, "value": disk[value] });
        disks.iter().flat_map(|disk| [entry(disk, "Read", read), entry(disk, "Write", read + 1)]).collect()
    };
    Ok(json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": { "total": micros(1)?, "user": micros(2)?, "kernel": micros(3)? },
                "throttling": { "periods": of(CPU, 4)?, "throttledPeriods": of(CPU, 5)?, "throttledTime": micros(6)? },
            },
            "memory": {
                "cache": of(MEMORY, 2)?,
                "usage": { "usage": of(MEMORY, 32)?, "limit": of(MEMORY, 33)?, "failcnt": of(MEMORY_EVENTS, 3)? },
                "swap": { "usage": of(MEMORY, 34)?, "limit": of(MEMORY, 35)?, "failcnt": 0 },
            },
            "pids": { "current": of(PIDS, 1)?, "limit": of(PIDS, 2)? },
            "blkio": { "ioServiceBytesRecursive": io(2), "ioServicedRecursive": io(4) },
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, IOEntry, IOStat, MemoryStat, Metrics};
    use protobuf::Message;

    #[test]
    fn figures_are_where_runc_has_them() {
        let mut metrics = Metrics::new();
        metrics.cpu = Some(CPUStat { usage_usec: 7, system_usec: 2, ..Default::default() }).into();
        metrics.memory = Some(MemoryStat { usage: 300, usage_limit: 1 << 40, file: 5, ..Default::default() }).into();
        let disk = IOEntry { major: 254, rbytes: 1, wbytes: 2, rios: 3, wios: 4, ..Default::default() };
        metrics.io = Some(IOStat { usage: vec![disk], ..Default::default() }).into();
        let told = stats("c", &metrics.write_to_bytes().unwrap()).unwrap();
        let data = &told["data"];
        assert_eq!(data["cpu"]["usage"], json!({ "total": 7000, "user": 0, "kernel": 2000 }));
        assert_eq!(data["memory"]["usage"], json!({ "usage": 300, "limit": 1u64 << 40, "failcnt": 0 }));
        let bytes = &data["blkio"]["ioServiceBytesRecursive"];
        assert_eq!(bytes[1], json!({ "major": 254, "minor": 0, "op": "Write", "value": 2 }));
        assert_eq!(data["blkio"]["ioServicedRecursive"][0]["value"], 3);
        assert!(stats("c", &[0xff]).is_err());
    }
}
