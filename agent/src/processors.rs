//! The guest's processors: brought up and down one by one, as the host gives and takes them.
//!
//! A machine has all its processors from the start; those beyond the first ones wait until somebody brings them up. The first
//! always runs. Knows the kernel's files (Documentation/core-api/cpu_hotplug.rst) and no containers: their limits are apart.

use std::fs;
use std::path::Path;

use crate::error::Error;

/// Where the kernel has them.
pub(crate) const FOLDER: &str = "/sys/devices/system/cpu";

/// How many there are, and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Processors {
    pub(crate) online: u32,
    pub(crate) present: u32,
}

/// Has `wanted` of the processors in `folder` run, those with the lowest numbers.
pub(crate) fn set_online(folder: &Path, wanted: u32) -> Result<Processors, Error> {
    let present = count(folder, "present")?;
    if !(1..=present).contains(&wanted) {
        return Err(Error::InvalidArgument(format!("{wanted} processors of a machine that has {present}")));
    }
    for number in 1..present {
        let file = folder.join(format!("cpu{number}/online"));
        let run = if number < wanted { "1" } else { "0" };
        let failed = |cause| Error::Internal(format!("set {} to {run}: {cause}", file.display()));
        if fs::read_to_string(&file).map_err(failed)?.trim() != run {
            fs::write(&file, run).map_err(failed)?;
        }
    }
    Ok(Processors { online: count(folder, "online")?, present })
}

/// How many processors a list such as `0-3,5` in a file has.
fn count(folder: &Path, name: &str) -> Result<u32, Error> {
    let path = folder.join(name);
    let failed = |cause: &dyn std::fmt::Display| Error::Internal(format!("read {}: {cause}", path.display()));
    let text = fs::read_to_string(&path).map_err(|cause| failed(&cause))?;
    text.trim().split(',').map(length).sum::<Option<u32>>().ok_or_else(|| failed(&format!("what is {text:?}?")))
}

fn length(range: &str) -> Option<u32> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as the kernel has them; what is written stays, but changes no list.
    fn machine(present: &str, online: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("present"), present).unwrap();
        fs::write(folder.path().join("online"), online).unwrap();
        for number in 1..4 {
            fs::create_dir(folder.path().join(format!("cpu{number}"))).unwrap();
            fs::write(folder.path().join(format!("cpu{number}/online")), "0\n").unwrap();
        }
        folder
    }

    fn running(folder: &tempfile::TempDir) -> Vec<u32> {
        let runs = |number: &u32| {
            let text = fs::read_to_string(folder.path().join(format!("cpu{number}/online"))).unwrap();
            text.trim() == "1"
        };
        (1..4).filter(runs).collect()
    }

    #[test]
    fn the_lowest_numbers_run() {
        let folder = machine("0-3\n", "0\n");
        for (wanted, expected) in [(3, vec![1, 2]), (4, vec![1, 2, 3]), (2, vec![1]), (1, vec![])] {
            assert_eq!(set_online(folder.path(), wanted).unwrap().present, 4);
            assert_eq!(running(&folder), expected);
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let folder = machine("0-3\n", "0\n");
        for wanted in [0, 5, u32::MAX] {
            let error = set_online(folder.path(), wanted).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
            assert!(error.to_string().contains("a machine that has 4"), "{error}");
        }
        assert!(running(&folder).is_empty());
    }

    #[test]
    fn lists_are_counted() {
        for (text, expected) in [("0", Some(1)), ("0-31", Some(32)), ("0-3,5,7-8", Some(7)), ("", None), ("3-1", None)]
        {
            let folder = machine("0", text);
            assert_eq!(count(folder.path(), "online").ok(), expected, "{text}");
        }
    }
}
