//! What a container uses, in the type that containerd's clients know for cgroups of version 2.
//!
//! Pure: one message into the other.

use std::collections::BTreeMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use tatami_protocol::agent::{CpuStats, IoStats, MemoryStats, PidsStats as PidsUse, Stats};

/// The name of the type, as an `Any` has it.
pub(super) const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// The same figures, for containerd.
pub(super) fn metrics(stats: &Stats) -> Metrics {
    let mut metrics = Metrics::new();
    if let Some(pids) = stats.pids.as_ref() {
        // No limit is told as none.
        let limit = if pids.max == u64::MAX { 0 } else { pids.max };
        metrics.pids = Some(PidsStat { current: pids.current, limit, ..Default::default() }).into();
    }
    if let Some(cpu) = stats.cpu.as_ref() {
        metrics.cpu = Some(CPUStat {
            usage_usec: cpu.usage_usec,
            user_usec: cpu.user_usec,
            system_usec: cpu.system_usec,
            nr_periods: cpu.nr_periods,
            nr_throttled: cpu.nr_throttled,
            throttled_usec: cpu.throttled_usec,
            ..Default::default()
        })
        .into();
    }
    if let Some(memory) = stats.memory.as_ref() {
        metrics.memory = Some(memory_stat(memory)).into();
        metrics.memory_events = Some(memory_events(memory)).into();
    }
    let entries = stats.io.iter().map(|io| IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    });
    metrics.io = Some(IOStat { usage: entries.collect(), ..Default::default() }).into();
    let pages = stats.hugetlb.iter().map(|page| HugeTlbStat {
        current: page.current,
        max: page.max,
        pagesize: page.page_size.clone(),
        failcnt: page.failures,
        ..Default::default()
    });
    metrics.hugetlb = pages.collect();
    metrics
}

/// What several containers use together. Limits are not added up: what has one has it alone.
pub(super) fn total(all: &[Stats]) -> Stats {
    let (mut cpu, mut memory, mut pids) = (CpuStats::new(), MemoryStats::new(), PidsUse::new());
    (memory.max, memory.swap_max, pids.max) = (u64::MAX, u64::MAX, u64::MAX);
    let mut io = BTreeMap::<(u64, u64), IoStats>::new();
    for stats in all {
        cpu.usage_usec += stats.cpu.usage_usec;
        cpu.user_usec += stats.cpu.user_usec;
        cpu.system_usec += stats.cpu.system_usec;
        cpu.nr_periods += stats.cpu.nr_periods;
        cpu.nr_throttled += stats.cpu.nr_throttled;
        cpu.throttled_usec += stats.cpu.throttled_usec;
        memory.current += stats.memory.current;
        memory.swap_current += stats.memory.swap_current;
        for (sum, part) in [(&mut memory.stat, &stats.memory.stat), (&mut memory.events, &stats.memory.events)] {
            part.iter().for_each(|(key, value)| *sum.entry(key.clone()).or_default() += value);
        }
        pids.current += stats.pids.current;
        for part in &stats.io {
            let new = || IoStats { major: part.major, minor: part.minor, ..Default::default() };
            let sum = io.entry((part.major, part.minor)).or_insert_with(new);
            sum.rbytes += part.rbytes;
            sum.wbytes += part.wbytes;
            sum.rios += part.rios;
            sum.wios += part.wios;
        }
    }
    Stats {
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        pids: Some(pids).into(),
        io: io.into_values().collect(),
        ..Default::default()
    }
}

fn memory_stat(memory: &MemoryStats) -> MemoryStat {
    let of = |key: &str| memory.stat.get(key).copied().unwrap_or_default();
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        // Kernels since 5.9 tell anonymous memory and files apart.
        workingset_refault: of("workingset_refault") + of("workingset_refault_anon") + of("workingset_refault_file"),
        workingset_activate: of("workingset_activate")
            + of("workingset_activate_anon")
            + of("workingset_activate_file"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: memory.current,
        usage_limit: memory.max,
        swap_usage: memory.swap_current,
        swap_limit: memory.swap_max,
        max_usage: memory.peak,
        ..Default::default()
    }
}

fn memory_events(memory: &MemoryStats) -> MemoryEvents {
    let of = |key: &str| memory.events.get(key).copied().unwrap_or_default();
    MemoryEvents {
        low: of("low"),
        high: of("high"),
        max: of("max"),
        oom: of("oom"),
        oom_kill: of("oom_kill"),
        oom_group_kill: of("oom_group_kill"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_their_meaning() {
        let mut memory = MemoryStats { current: 10, max: u64::MAX, peak: 12, ..Default::default() };
        memory.stat.insert("inactive_file".to_owned(), 7);
        memory.stat.insert("workingset_refault_file".to_owned(), 3);
        memory.events.insert("oom_kill".to_owned(), 2);
        let stats = Stats {
            cpu: Some(CpuStats { usage_usec: 5, ..Default::default() }).into(),
            memory: Some(memory).into(),
            pids: Some(PidsUse { current: 4, max: u64::MAX, ..Default::default() }).into(),
            io: vec![IoStats { major: 254, rbytes: 9, ..Default::default() }],
            ..Default::default()
        };
        let metrics = metrics(&stats);
        assert_eq!(metrics.cpu.usage_usec, 5);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (4, 0));
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit, metrics.memory.max_usage), (10, u64::MAX, 12));
        assert_eq!((metrics.memory.inactive_file, metrics.memory.workingset_refault), (7, 3));
        assert_eq!(metrics.memory_events.oom_kill, 2);
        assert_eq!((metrics.io.usage[0].major, metrics.io.usage[0].rbytes), (254, 9));
    }

    #[test]
    fn what_several_use_is_added_up() {
        let one = |rbytes| Stats {
            cpu: Some(CpuStats { usage_usec: 5, ..Default::default() }).into(),
            memory: Some(MemoryStats { current: 10, max: 64, ..Default::default() }).into(),
            io: vec![IoStats { major: 254, rbytes, ..Default::default() }],
            ..Default::default()
        };
        let total = total(&[one(1), one(2), Stats::new()]);
        assert_eq!((total.cpu.usage_usec, total.memory.current, total.memory.max), (10, 20, u64::MAX));
        assert_eq!((total.io.len(), total.io[0].rbytes), (1, 3));
    }
}
