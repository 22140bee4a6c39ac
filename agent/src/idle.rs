//! What would wake an idle guest: the kernel's housekeeping by the clock, which every sandbox on a host would pay for.
//!
//! Measured on one vCPU at rest: 6.5 halts a second without these settings, 2.4 with them, and an eighth of the CPU time. Knows
//! which of the kernel's settings say so, and nothing of containers'.

use std::fs;
use std::io;

/// Settings below /proc/sys (Documentation/admin-guide/sysctl/vm.rst), and what they are here.
const SETTINGS: [(&str, &str); 2] = [
    // Each node's kcompactd looks at fragmentation twice a second. It still compacts when an allocation finds nothing.
    ("vm/compaction_proactiveness", "0"),
    // Seconds from one folding of per-CPU counters into the global ones to the next. It is also when CPUs let go of free pages that
    // they keep for themselves, a fifth at a time, so that a minute here (1.3 halts a second) would keep them from the host for long.
    ("vm/stat_interval", "10"),
];

/// Has the kernel let an idle guest sleep.
///
/// # Errors
/// The first setting that cannot be made.
pub(crate) fn let_sleep() -> io::Result<()> {
    let set = |(name, value)| {
        fs::write(format!("/proc/sys/{name}"), value)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{name}={value}: {cause}")))
    };
    SETTINGS.into_iter().try_for_each(set)
}
