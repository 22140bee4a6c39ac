//! What a container uses, read from the files of its cgroup (version 2).
//!
//! A file or key that this kernel does not have reads as zero, or as no limit: statistics are no place to fail.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use tatami_protocol::agent::{CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats, Stats};

/// Reads everything below the group's folder.
pub(crate) fn read(folder: &Path) -> Stats {
    let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    Stats {
        cpu: Some(cpu(&file("cpu.stat"))).into(),
        memory: Some(memory(&file)).into(),
        pids: Some(PidsStats {
            current: number(&file("pids.current")),
            max: limit(&file("pids.max")),
            ..Default::default()
        })
        .into(),
        io: file("io.stat").lines().filter_map(io).collect(),
        hugetlb: page_sizes(folder).into_iter().map(|size| hugetlb(size, &file)).collect(),
        ..Default::default()
    }
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn cpu(text: &str) -> CpuStats {
    let get = |key| keyed(text, key).unwrap_or_default();
    CpuStats {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        ..Default::default()
    }
}

fn memory(file: &dyn Fn(&str) -> String) -> MemoryStats {
    MemoryStats {
        current: number(&file("memory.current")),
        max: limit(&file("memory.max")),
        swap_current: number(&file("memory.swap.current")),
        swap_max: limit(&file("memory.swap.max")),
        peak: number(&file("memory.peak")),
        stat: all(&file("memory.stat")),
        events: all(&file("memory.events")),
        ..Default::default()
    }
}

/// `8:0 rbytes=1 wbytes=2 …`; a device without a line has moved nothing.
fn io(line: &str) -> Option<IoStats> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let values: HashMap<&str, u64> = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
        .collect();
    let get = |key| values.get(key).copied().unwrap_or_default();
    Some(IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        rbytes: get("rbytes"),
        wbytes: get("wbytes"),
        rios: get("rios"),
        wios: get("wios"),
        ..Default::default()
    })
}

fn hugetlb(size: String, file: &dyn Fn(&str) -> String) -> HugetlbStats {
    HugetlbStats {
        current: number(&file(&format!("hugetlb.{size}.current"))),
        max: limit(&file(&format!("hugetlb.{size}.max"))),
        failures: keyed(&file(&format!("hugetlb.{size}.events")), "max").unwrap_or_default(),
        page_size: size,
        ..Default::default()
    }
}

fn page_sizes(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        // `2MB.rsvd` is what is reserved.
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> = names.filter_map(size).collect();
    sizes.sort();
    sizes
}

fn all(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

fn limit(text: &str) -> u64 {
    text.trim().parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_group_are_understood() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "0\n"),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\noom_group_kill 0\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n254:16 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.max", "4194304\n"),
            ("hugetlb.2MB.events", "max 5\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let stats = read(folder.path());
        assert_eq!((stats.cpu.usage_usec, stats.cpu.nr_throttled, stats.cpu.throttled_usec), (30, 2, 1));
        assert_eq!((stats.memory.current, stats.memory.max, stats.memory.swap_max), (4096, u64::MAX, 0));
        assert_eq!((stats.memory.stat["file"], stats.memory.events["oom_kill"]), (200, 2));
        assert_eq!((stats.pids.current, stats.pids.max), (3, 10));
        let io: Vec<_> = stats.io.iter().map(|io| (io.major, io.minor, io.rbytes, io.wios)).collect();
        assert_eq!(io, [(254, 0, 1, 4), (254, 16, 0, 0)]);
        let pages: Vec<_> = stats.hugetlb.iter().map(|it| (it.page_size.as_str(), it.current, it.failures)).collect();
        assert_eq!(pages, [("2MB", 2_097_152, 5)]);
    }

    #[test]
    fn a_group_without_files_reads_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let stats = read(folder.path());
        assert_eq!((stats.cpu.usage_usec, stats.memory.max, stats.pids.current), (0, u64::MAX, 0));
        assert_eq!(keyed("oom_kill 3\noom_group_kill 4\n", "oom"), None);
    }
}
