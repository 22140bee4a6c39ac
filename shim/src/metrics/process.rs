//! What a process of this host uses, as `/proc` tells anybody: the process is not asked, and does not notice.
//!
//! Reads nothing that walks a process's memory, as `smaps` does: that would hold up the threads of a large machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Parts of a second in which the kernel counts time here: `USER_HZ`, 100 on every architecture that is ours.
const TICKS: f64 = 100.0;

/// What a process uses, with all its threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Use {
    pub(super) parent: i32,
    pub(super) threads: u64,
    /// In seconds, of all processors; a guest's is part of the user's.
    pub(super) user: f64,
    pub(super) system: f64,
    pub(super) guest: f64,
}

/// What it has of the host's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resident {
    /// Its own.
    pub(super) anonymous: u64,
    /// Pages of files, which others may have as well.
    pub(super) file: u64,
    /// Memory that can be shared: a guest's that is in no template.
    pub(super) shared: u64,
}

/// What the process uses; nothing if it is gone.
pub(super) fn usage(pid: i32) -> Option<Use> {
    Line::parse(&read(format!("/proc/{pid}/stat"))?).map(|line| line.used)
}

/// What it has in memory.
pub(super) fn resident(pid: i32) -> Option<Resident> {
    resident_of(&read(format!("/proc/{pid}/status"))?)
}

/// How many files it has open.
pub(super) fn descriptors(pid: i32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// The seconds that its threads have run, by their names; those of one name together.
pub(super) fn threads(pid: i32) -> BTreeMap<String, f64> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let stat = read(entry.path().join("stat"));
        if let Some(line) = stat.as_deref().and_then(Line::parse) {
            *threads.entry(line.name.to_owned()).or_default() += line.used.user + line.used.system;
        }
    }
    threads
}

/// A file whose text may hold a name that anybody has chosen.
fn read(path: impl Into<PathBuf>) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path.into()).ok()?).into_owned())
}

/// What `stat` says of a process or a thread (proc_pid_stat(5)).
struct Line<'a> {
    name: &'a str,
    used: Use,
}

impl Line<'_> {
    fn parse(text: &str) -> Option<Line<'_>> {
        // The name may have brackets of its own.
        let (start, rest) = text.rsplit_once(')')?;
        let (_, name) = start.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Counted from 1, of which the process id and the name were two.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let seconds = |field| number(field).map(|ticks| ticks as f64 / TICKS);
        let used = Use {
            parent: number(4)? as i32,
            threads: number(20)?,
            user: seconds(14)?,
            system: seconds(15)?,
            guest: seconds(43).unwrap_or_default(),
        };
        Some(Line { name, used })
    }
}

/// Of proc_pid_status(5). A process that is ending has none.
fn resident_of(status: &str) -> Option<Resident> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
    };
    Some(Resident { anonymous: bytes("RssAnon")?, file: bytes("RssFile")?, shared: bytes("RssShmem")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "41 (a) R 1 (b c) S 7 41 41 0 -1 4194560 9 0 0 0 250 125 0 0 20 0 12 0 100 0 0 \
        18446744073709551615 0 0 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 200 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn a_process_is_understood_whatever_it_is_called() {
        let line = Line::parse(STAT).unwrap();
        assert_eq!(line.name, "a) R 1 (b c");
        assert_eq!(line.used, Use { parent: 7, threads: 12, user: 2.5, system: 1.25, guest: 2.0 });
        for broken in ["", "41", "41 (a", "41 (a)", "41 (a) S", &STAT[..60], "41 )a( S 1 2 3", "1 (a) S x y z"] {
            assert!(Line::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn memory_is_told_by_what_it_is() {
        let status = "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t     100 kB\nRssFile:\t     200 kB\nRssShmem:\t 600 kB\n";
        let resident = Resident { anonymous: 102_400, file: 204_800, shared: 614_400 };
        assert_eq!(resident_of(status), Some(resident));
        assert_eq!(resident_of("Name:\tRssAnon: 1 kB\nState:\tZ (zombie)\n"), None);
        assert_eq!(resident_of("RssAnon:\tmany kB\nRssFile:\t1 kB\nRssShmem:\t1 kB\n"), None);
    }

    #[test]
    fn this_process_is_found_and_one_that_is_not_there_is_not() {
        let own = std::process::id() as i32;
        assert!(usage(own).unwrap().threads >= 1 && descriptors(own).unwrap() > 2);
        assert!(resident(own).unwrap().anonymous > 0 && !threads(own).is_empty());
        assert!(usage(0).is_none() && resident(-1).is_none() && descriptors(0).is_none() && threads(0).is_empty());
    }
}
