//! What the guest as a whole uses, read from `/proc` (proc(5)), and how full file systems are (statvfs(3)).
//!
//! A file or number that this kernel does not have reads as zero: as with [`crate::stats`], this is no place to fail.

use std::fs;
use std::path::Path;

use tatami_protocol::agent::{DiskFigures, Figures, InterfaceFigures, VolumeFigures};

/// Where it is mounted.
pub(crate) const PROC: &str = "/proc";
/// What diskstats counts in, whatever the disk's own blocks are.
const SECTOR: u64 = 512;
/// How many kinds of time stat tells that are not parts of others.
const KINDS_OF_TIME: usize = 8;

/// Reads everything below `folder`; of containers it knows nothing.
pub(crate) fn read(folder: &Path) -> Figures {
    let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let (meminfo, loadavg, stat) = (file("meminfo"), file("loadavg"), file("stat"));
    let memory = |key| kibibytes(&meminfo, key).unwrap_or_default();
    let total = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    Figures {
        mem_total: memory("MemTotal"),
        mem_free: memory("MemFree"),
        mem_available: memory("MemAvailable"),
        cached: memory("Cached"),
        load: loadavg.split_whitespace().take(3).filter_map(hundredths).collect(),
        threads: loadavg.split_whitespace().nth(3).and_then(threads).unwrap_or_default(),
        uptime: file("uptime").split_whitespace().next().and_then(hundredths).unwrap_or_default(),
        cpu: total.split_whitespace().take(KINDS_OF_TIME).map_while(|ticks| ticks.parse().ok()).collect(),
        interfaces: file("net/dev").lines().filter_map(interface).collect(),
        disks: file("diskstats").lines().filter_map(disk).collect(),
        ..Default::default()
    }
}

/// How full the file system is that is mounted at `path`; nothing if it does not tell.
pub(crate) fn volume(path: &Path) -> Option<VolumeFigures> {
    let status = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
    Some(VolumeFigures {
        total_bytes: bytes(status.f_blocks),
        used_bytes: bytes(status.f_blocks.saturating_sub(status.f_bfree)),
        available_bytes: bytes(status.f_bavail),
        total_inodes: status.f_files,
        used_inodes: status.f_files.saturating_sub(status.f_ffree),
        available_inodes: status.f_favail,
        ..Default::default()
    })
}

/// In bytes, what a line of meminfo tells in KiB.
pub(crate) fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A number with two digits behind the point.
fn hundredths(word: &str) -> Option<u64> {
    let (whole, part) = word.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.get(..2)?.parse::<u64>().ok()?)
}

/// Those that there are, of `running/all`.
fn threads(word: &str) -> Option<u64> {
    word.split_once('/')?.1.parse().ok()
}

/// `eth0: ` and sixteen numbers, eight of what was received and eight of what was sent.
fn interface(line: &str) -> Option<InterfaceFigures> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [
        received_bytes,
        received_packets,
        _,
        received_dropped,
        _,
        _,
        _,
        _,
        sent_bytes,
        sent_packets,
        _,
        sent_dropped,
        ..,
    ] = numbers[..]
    else {
        return None;
    };
    (received_packets + sent_packets > 0).then(|| InterfaceFigures {
        name: name.trim().to_owned(),
        received_bytes,
        received_packets,
        received_dropped,
        sent_bytes,
        sent_packets,
        sent_dropped,
        ..Default::default()
    })
}

/// `254 0 vda `, then reads, merged, sectors, time, and the same of writes.
fn disk(line: &str) -> Option<DiskFigures> {
    let mut words = line.split_whitespace();
    let name = words.nth(2)?.to_owned();
    let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let [reads, _, read, _, writes, _, written, ..] = numbers[..] else { return None };
    (reads + writes > 0).then(|| DiskFigures {
        name,
        reads,
        read_bytes: read * SECTOR,
        writes,
        written_bytes: written * SECTOR,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_understood() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("net")).unwrap();
        for (name, text) in [
            ("meminfo", "MemTotal:  100 kB\nMemFree: 60 kB\nMemAvailable:   80 kB\nSwapCached: 9 kB\nCached: 10 kB\n"),
            ("loadavg", "0.05 1.50 12.00 1/73 99\n"),
            ("uptime", "61.25 100.00\n"),
            ("stat", "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n"),
            (
                "net/dev",
                "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n  \
                 eth0:1500 10 0 1 0 0 0 0 900 9 0 2 0 0 0 0\n",
            ),
            (
                "diskstats",
                " 254  0 vda 10 0 16 1 2 0 8 1 0 1 2 0 0 0 0 0 0\n 254 16 vdb 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
            ),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let figures = read(folder.path());
        let memory = (figures.mem_total, figures.mem_free, figures.mem_available, figures.cached);
        assert_eq!(memory, (102_400, 61_440, 81_920, 10_240));
        assert_eq!((figures.load, figures.threads, figures.uptime), (vec![5, 150, 1200], 73, 6125));
        assert_eq!(figures.cpu, [1, 2, 3, 4, 5, 6, 7, 8]);
        let [eth0] = &figures.interfaces[..] else { panic!("{:?}", figures.interfaces) };
        assert_eq!((eth0.name.as_str(), eth0.received_bytes, eth0.received_dropped), ("eth0", 1500, 1));
        assert_eq!((eth0.sent_bytes, eth0.sent_packets, eth0.sent_dropped), (900, 9, 2));
        let [vda] = &figures.disks[..] else { panic!("{:?}", figures.disks) };
        assert_eq!((vda.name.as_str(), vda.reads, vda.read_bytes), ("vda", 10, 8192));
        assert_eq!((vda.writes, vda.written_bytes), (2, 4096));
    }

    #[test]
    fn a_file_system_tells_how_full_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let figures = volume(folder.path()).unwrap();
        assert!(figures.total_bytes > 0 && figures.used_bytes + figures.available_bytes <= figures.total_bytes);
        assert!(figures.used_inodes <= figures.total_inodes);
        assert!(volume(&folder.path().join("gone")).is_none());
    }

    #[test]
    fn a_guest_without_files_reads_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), Figures::default());
        assert_eq!((hundredths("1"), hundredths("1.5"), hundredths("x.50"), threads("1")), (None, None, None, None));
    }
}
