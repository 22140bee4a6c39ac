//! What a container may use, as its limits say it, and on which processors: the one place that reads them.
//!
//! Knows specifications and CRI's annotations; nothing of machines.

use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxResources, Spec};

/// A cgroup's period where a limit names none, in microseconds.
const PERIOD: u64 = 100_000;
/// The highest number that a processor has on Linux.
const LAST_PROCESSOR: usize = 8191;

/// What a container may use. 0: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Bytes.
    pub(super) memory: u64,
    /// Thousandths of a processor.
    pub(super) millicpus: u64,
}

impl Share {
    /// What `spec` allows its container.
    pub(super) fn of(spec: &Spec) -> Share {
        limits(spec).map(|limits| Share::default().after(limits)).unwrap_or_default()
    }

    /// What `spec` allows its container or, where it is a pod's first, what CRI says that all of them together may use.
    pub(super) fn of_all(spec: &Spec) -> Share {
        let said = |name: &str| {
            let text = spec.annotations().as_ref()?.get(&format!("io.kubernetes.cri.sandbox-{name}"))?;
            text.parse().ok().filter(|number: &i64| *number > 0)
        };
        let own = Share::of(spec);
        Share {
            memory: said("memory").map_or(own.memory, positive),
            millicpus: said("cpu-quota")
                .map_or(own.millicpus, |quota| millicpus(quota, said("cpu-period").map(positive))),
        }
    }

    /// The same after a change to `limits`: what they do not name stays.
    pub(super) fn after(self, limits: &LinuxResources) -> Share {
        let memory = limits.memory().as_ref().and_then(|memory| memory.limit());
        let cpu = limits.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota());
        let period = cpu.and_then(|cpu| cpu.period());
        Share {
            memory: memory.map_or(self.memory, positive),
            millicpus: quota.map_or(self.millicpus, |quota| millicpus(quota, period)),
        }
    }

    /// Whole processors that are as many as it at least.
    pub(super) fn processors(self) -> u64 {
        self.millicpus.div_ceil(1000)
    }
}

/// The processors of the host that `spec` has its container run on; none if it does not say.
pub(super) fn processors_of(spec: &Spec) -> BTreeSet<usize> {
    limits(spec).and_then(processors).unwrap_or_default()
}

/// The processors of the host that `limits` name; nothing if they do not speak of any. A list that is not understood names none.
pub(super) fn processors(limits: &LinuxResources) -> Option<BTreeSet<usize>> {
    limits.cpu().as_ref()?.cpus().as_deref().map(|list| parse(list).unwrap_or_default())
}

fn limits(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn millicpus(quota: i64, period: Option<u64>) -> u64 {
    let period = period.filter(|period| *period > 0).unwrap_or(PERIOD);
    positive(quota).saturating_mul(1000).div_ceil(period)
}

/// A list of numbers and ranges, as the kernel writes sets of processors: `0-3,8`.
fn parse(list: &str) -> Option<BTreeSet<usize>> {
    let mut found = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > LAST_PROCESSOR {
            return None;
        }
        found.extend(first..=last);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn spec(rest: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2"{rest}}}"#)).unwrap()
    }

    #[test]
    fn it_is_what_the_limits_say_and_what_they_do_not_name_stays() {
        let first =
            spec(r#","linux":{"resources":{"memory":{"limit":67108864},"cpu":{"quota":150000,"period":100000}}}"#);
        let first = Share::of(&first);
        assert_eq!(first, Share { memory: 64 << 20, millicpus: 1500 });
        assert_eq!(first.processors(), 2);
        let change = |json: &str| first.after(&limits(json));
        assert_eq!(change(r#"{"memory":{"limit":1048576}}"#), Share { memory: 1 << 20, millicpus: 1500 });
        assert_eq!(change(r#"{"cpu":{"quota":1000}}"#), Share { memory: 64 << 20, millicpus: 10 });
        assert_eq!(change(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}"#), Share::default());
        assert_eq!((Share::of(&spec("")), change("{}")), (Share::default(), first));
    }

    #[test]
    fn a_pods_is_that_of_all_its_containers() {
        let pod = |memory: &str| {
            Share::of_all(&spec(&format!(
                r#","annotations":{{"io.kubernetes.cri.container-type":"sandbox",
                "io.kubernetes.cri.sandbox-memory":"{memory}","io.kubernetes.cri.sandbox-cpu-quota":"150000",
                "io.kubernetes.cri.sandbox-cpu-period":"50000"}},"linux":{{"resources":{{"cpu":{{"shares":2}}}}}}"#
            )))
        };
        assert_eq!(pod("134217728"), Share { memory: 134_217_728, millicpus: 3000 });
        // Kubernetes says 0 where it does not limit, and a word that is no number says nothing.
        assert_eq!((pod("0").memory, pod("x").memory), (0, 0));
    }

    #[test]
    fn processors_are_numbers_and_ranges() {
        let set = |list: &str| processors(&limits(&format!(r#"{{"cpu":{{"cpus":"{list}"}}}}"#))).unwrap();
        assert_eq!(set("0-2,8"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(set("3\\n"), BTreeSet::from([3]));
        for nothing in ["", "x", "3-1", "0-99999999999", "-1"] {
            assert_eq!(set(nothing), BTreeSet::new(), "{nothing}");
        }
        assert_eq!(processors(&limits("{}")), None);
        assert_eq!(processors_of(&spec("")), BTreeSet::new());
    }
}
