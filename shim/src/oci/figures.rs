//! What a container uses, as runc's `events` prints it.
//!
//! Pure: one form into the other.

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use serde_json::{Value, json};

/// One line's worth.
pub(super) fn stats(id: &str, metrics: &Metrics) -> Value {
    let (cpu, memory, pids) = (&metrics.cpu, &metrics.memory, &metrics.pids);
    let entry = |usage: u64, limit: u64, failures: u64| json!({ "usage": usage, "limit": limit, "failcnt": failures });
    let io = |of: fn(&containerd_shim_protos::cgroups_v2::metrics::IOEntry) -> [(&'static str, u64); 2]| -> Vec<Value> {
        let entries = metrics.io.usage.iter().flat_map(|io| of(io).map(|(op, value)| (io, op, value)));
        entries
            .map(|(io, op, value)| json!({ "major": io.major, "minor": io.minor, "op": op, "value": value }))
            .collect()
    };
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": cpu.usage_usec * 1000,
                    "kernel": cpu.system_usec * 1000,
                    "user": cpu.user_usec * 1000,
                },
                "throttling": {
                    "periods": cpu.nr_periods,
                    "throttledPeriods": cpu.nr_throttled,
                    "throttledTime": cpu.throttled_usec * 1000,
                },
            },
            "memory": {
                "cache": memory.file,
                "usage": entry(memory.usage, memory.usage_limit, metrics.memory_events.max),
                "swap": entry(memory.swap_usage, memory.swap_limit, 0),
            },
            "pids": { "current": pids.current, "limit": pids.limit },
            "blkio": {
                "ioServiceBytesRecursive": io(|io| [("Read", io.rbytes), ("Write", io.wbytes)]),
                "ioServicedRecursive": io(|io| [("Read", io.rios), ("Write", io.wios)]),
            },
        },
    })
}
