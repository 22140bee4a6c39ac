//! What processes cost the host: memory that is theirs alone, processor time.

use std::fs;
use std::time::Duration;

/// The host's available memory in KiB, as proc(5) has it under meminfo.
pub(crate) fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("Linux tells its available memory");
    number(line)
}

/// A process's memory in KiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// In the guest's RAM.
    pub(crate) guest: u64,
    /// Everything else: code, heap, stacks.
    pub(crate) own: u64,
}

impl Memory {
    /// What no other process shares, as proc(5) has it under smaps. Nothing of a process that has ended.
    pub(crate) fn private(pid: i32) -> Self {
        Self::parse(&smaps(pid), &["Private_Clean:", "Private_Dirty:"])
    }

    /// Its proportional share: of a page that several have, a part as large as everybody else's.
    pub(crate) fn proportional(pid: i32) -> Self {
        Self::parse(&smaps(pid), &["Pss:"])
    }

    /// The guest's RAM may be mapped in pieces, with its template between: mappings without a gap between them are one area, and
    /// an area of this size is a guest's.
    fn parse(smaps: &str, counted: &[&str]) -> Self {
        const GUEST: u64 = 48 << 20;
        let (mut sum, mut area) = (Self::default(), (0, 0, 0));
        let mut close = |(start, end, size): (u64, u64, u64)| match end - start >= GUEST {
            true => sum.guest += size,
            false => sum.own += size,
        };
        for line in smaps.lines() {
            if let Some((start, end)) = range(line) {
                if start != area.1 {
                    close(area);
                    area = (start, start, 0);
                }
                area.1 = end;
            } else if let Some(size) = counted.iter().find_map(|name| line.strip_prefix(name)) {
                area.2 += number(size);
            }
        }
        close(area);
        sum
    }
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.guest += other.guest;
        self.own += other.own;
    }
}

fn smaps(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default()
}

/// The processor time that a process has had, its guest's included: fields 14 and 15 of proc(5)'s stat.
pub(crate) fn processor_time(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold blanks; the fields after it are the third and on.
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ, which is 100 on every architecture of ours.
    Duration::from_millis(ticks * 10)
}

/// `7f00-7f10 rw-p …`: start and end in bytes.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The number in `   123 kB`.
fn number(text: &str) -> u64 {
    text.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes")
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn what_lies_without_a_gap_in_a_large_area_is_the_guests() {
        let smaps = "\
            1000-2000 r-xp 0 0 0 /x\nSize: 4 kB\nPrivate_Clean:        3 kB\nPrivate_Dirty:   1 kB\n\
            7f0000000000-7f0002000000 rw-p 0 0 0\nPrivate_Clean: 0 kB\nPrivate_Dirty: 100 kB\n\
            7f0002000000-7f0004000000 rw-p 0 0 0 /template\nPrivate_Clean: 7 kB\nPrivate_Dirty: 20 kB\n\
            7f1000000000-7f1000001000 rw-p 0 0 0\nPrivate_Clean: 0 kB\nPrivate_Dirty: 2 kB\n";
        let private = Memory::parse(smaps, &["Private_Clean:", "Private_Dirty:"]);
        assert_eq!((private.guest, private.own), (127, 6));
    }
}
