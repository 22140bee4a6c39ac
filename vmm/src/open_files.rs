//! Room for a guest's files: each that it knows costs the process that serves it a descriptor.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most that any process can have open.
const MOST: &str = "/proc/sys/fs/nr_open";

/// Lets this process have as many descriptors as it may: with CAP_SYS_RESOURCE as many as the kernel gives to anybody, else those of its
/// hard limit, which a service's or a login's settings may have made small.
///
/// # Errors
/// The kernel's.
pub fn raise() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let most = std::fs::read_to_string(MOST).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if let (Some(most), Some(maximum)) = (most, maximum)
        && most > maximum
        && setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).is_ok()
    {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_there_may_be() {
        let before = getrlimit(Resource::Nofile).maximum;
        raise().unwrap();
        let limit = getrlimit(Resource::Nofile);
        // None: no limit at all.
        assert_eq!(limit.current, limit.maximum);
        assert!(limit.maximum.is_none_or(|now| before.is_some_and(|before| now >= before)));
    }
}
