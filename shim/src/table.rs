//! Tables for people: columns as wide as what stands in them; sizes and times in few digits.

use std::time::{Duration, SystemTime};

use clap::ValueEnum;

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// The lines as text; all have as many cells as the first, which is the head.
pub(crate) fn table(lines: &[impl AsRef<[String]>]) -> String {
    let mut widths = vec![0; lines.first().map_or(0, |head| head.as_ref().len())];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line.as_ref()) {
            *width = cell.chars().count().max(*width);
        }
    }
    let text = |line: &[String]| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}   "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    lines.iter().map(|line| text(line.as_ref())).collect()
}

/// Without what would move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How long ago, in one unit.
pub(crate) fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    let units = [(86_400 * 2, 86_400, "days"), (7200, 3600, "hours"), (120, 60, "minutes")];
    let (number, unit) = units
        .iter()
        .find(|(from, ..)| seconds >= *from)
        .map_or((seconds, "seconds"), |(_, length, unit)| (seconds / length, *unit));
    if number == 1 { format!("1 {}", unit.trim_end_matches('s')) } else { format!("{number} {unit}") }
}

/// A number of bytes with at most four digits.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut number = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to the next.
    while number >= 1023.5 && unit + 1 < units.len() {
        number /= 1024.0;
        unit += 1;
    }
    if number < 99.95 { format!("{number:.1} {}", units[unit]) } else { format!("{number:.0} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let line = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(&[line("ID", "NAME"), line("0123456789", "ä"), line("1", "")]);
        assert_eq!(text, "ID           NAME\n0123456789   ä\n1\n");
    }

    #[test]
    fn times_are_told_in_one_unit() {
        let after = |seconds| ago(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let told = [0, 1, 119, 120, 7199, 7200, 172_800].map(after);
        assert_eq!(told, ["0 seconds", "1 second", "119 seconds", "2 minutes", "119 minutes", "2 hours", "2 days"]);
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(60), SystemTime::UNIX_EPOCH), "0 seconds");
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("a\u{1b}[2J\nb"), "a [2J b");
    }

    #[test]
    fn sizes_have_few_digits() {
        let told = [0, 1023, 1024, 1536, 102_400, 1_048_524, 1_048_576, 15_833_498, u64::MAX].map(size);
        let wanted = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "100 KiB", "1.0 MiB", "1.0 MiB", "15.1 MiB", "16.0 EiB"];
        assert_eq!(told, wanted);
    }
}
