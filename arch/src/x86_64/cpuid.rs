//! Which CPUID leaves a vCPU shows: what the host's KVM supports, with the machine's own topology written over the host's
//! and without what a guest has no use for (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
//!
//! The topology is one socket, one core a vCPU, no hyper-threads: the scheduler in the guest can assume nothing better,
//! because the host moves vCPUs as it likes.

/// One answer of the CPUID instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// `eax` on entry.
    pub function: u32,
    /// `ecx` on entry, where the leaf has sub-leaves.
    pub index: u32,
    /// Whether `index` matters.
    pub indexed: bool,
    /// The answers.
    pub eax: u32,
    /// See `eax`.
    pub ebx: u32,
    /// See `eax`.
    pub ecx: u32,
    /// See `eax`.
    pub edx: u32,
}

/// What is the same for all vCPUs of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// vCPUs that may ever be online.
    pub max_vcpus: u8,
    /// KVM emulates the local APIC's TSC-deadline timer, which its list of leaves does not tell.
    pub tsc_deadline: bool,
}

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const PMU: u32 = 0xa;
const EXTENDED_TOPOLOGY: u32 = 0xb;
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
const PROCESSOR_TRACE: u32 = 0x14;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_PMU: u32 = 0x8000_0022;
const AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERF_COUNTERS: u32 = 1 << 23;

/// The leaves of the vCPU with this `apic_id`, from those that KVM says it supports.
#[must_use]
pub fn leaves(supported: &[Leaf], topology: Topology, apic_id: u8) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2 | AMD_EXTENDED_TOPOLOGY))
        .copied()
        .collect();
    for leaf in &mut leaves {
        tailor(leaf, topology, apic_id);
    }
    let highest = supported.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    for function in [EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2] {
        if highest >= function {
            leaves.extend(extended_topology(function, topology, apic_id));
        }
    }
    leaves
}

fn tailor(leaf: &mut Leaf, topology: Topology, apic_id: u8) {
    let id = u32::from(apic_id);
    let cores = u32::from(topology.max_vcpus);
    match leaf.function {
        FEATURES => {
            // Initial APIC id, logical processors in the package, and what was there of brand and cache line.
            leaf.ebx = (id << 24) | (cores << 16) | (leaf.ebx & 0xffff);
            leaf.ecx = (leaf.ecx & !(ECX_VMX | ECX_TSC_DEADLINE)) | ECX_HYPERVISOR;
            if topology.tsc_deadline {
                leaf.ecx |= ECX_TSC_DEADLINE;
            }
            leaf.edx = if cores > 1 { leaf.edx | EDX_HTT } else { leaf.edx & !EDX_HTT };
        }
        CACHES if leaf.eax & 0x1f != 0 => {
            let sharers = sharers(leaf.eax, cores);
            leaf.eax = (leaf.eax & 0x3fff) | ((sharers - 1) << 14) | ((cores - 1).min(63) << 26);
        }
        AMD_CACHES if leaf.eax & 0x1f != 0 => {
            leaf.eax = (leaf.eax & 0x3fff) | ((sharers(leaf.eax, cores) - 1) << 14);
        }
        AMD_FEATURES => leaf.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERF_COUNTERS),
        AMD_SIZES => leaf.ecx = (core_bits(topology) << 12) | (cores - 1),
        AMD_TOPOLOGY => {
            leaf.eax = id;
            leaf.ebx = id & 0xff;
            leaf.ecx = 0;
        }
        // No performance counters, tracing or virtualisation of their own for guests.
        PMU | PROCESSOR_TRACE | AMD_SVM | AMD_PMU => {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// How many processors share the cache that a cache leaf's `eax` describes: the third level belongs to all.
fn sharers(eax: u32, cores: u32) -> u32 {
    if (eax >> 5) & 7 >= 3 { cores } else { 1 }
}

/// Bits of the APIC id that number the cores.
fn core_bits(topology: Topology) -> u32 {
    u32::from(topology.max_vcpus).next_power_of_two().trailing_zeros()
}

/// Sub-leaves of the extended topology: threads (one), cores (all), and the end.
fn extended_topology(function: u32, topology: Topology, apic_id: u8) -> [Leaf; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let leaf = |index: u32, eax: u32, ebx: u32, kind: u32| Leaf {
        function,
        index,
        indexed: true,
        eax,
        ebx,
        ecx: index | kind,
        edx: u32::from(apic_id),
    };
    [leaf(0, 0, 1, THREADS), leaf(1, core_bits(topology), u32::from(topology.max_vcpus), CORES), leaf(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<Leaf> {
        let plain = |function, eax, ebx, ecx, edx| Leaf { function, eax, ebx, ecx, edx, ..Leaf::default() };
        vec![
            plain(0, 0xd, 0, 0, 0),
            plain(FEATURES, 0x800f12, 0x0702_0800, ECX_VMX, 0),
            Leaf { function: CACHES, indexed: true, eax: 0x21 | (3 << 26) | (1 << 14), ..Leaf::default() },
            Leaf { function: CACHES, index: 3, indexed: true, eax: 0x63, ..Leaf::default() },
            Leaf { function: EXTENDED_TOPOLOGY, indexed: true, eax: 1, ebx: 2, edx: 77, ..Leaf::default() },
            plain(PMU, 2, 3, 4, 5),
            plain(0x4000_0001, 0x0100_7efb, 0, 0, 0),
            plain(AMD_FEATURES, 0, 0, AMD_ECX_SVM | 1, 0),
            plain(AMD_SIZES, 0x3028, 0, 0x7007, 0),
            plain(AMD_TOPOLOGY, 77, 0x101, 0x300, 0),
        ]
    }

    fn get(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
        let mut found = leaves.iter().filter(|leaf| leaf.function == function && leaf.index == index);
        let leaf = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x}.{index} occurs twice");
        leaf
    }

    #[test]
    fn every_vcpu_has_its_own_id_everywhere() {
        let topology = Topology { max_vcpus: 5, tsc_deadline: true };
        for id in 0..5 {
            let leaves = leaves(&supported(), topology, id);
            assert_eq!(get(&leaves, FEATURES, 0).ebx, (u32::from(id) << 24) | (5 << 16) | 0x0800);
            for index in 0..3 {
                assert_eq!(get(&leaves, EXTENDED_TOPOLOGY, index).edx, u32::from(id));
            }
            assert_eq!(get(&leaves, AMD_TOPOLOGY, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn five_vcpus_are_five_cores_of_one_package() {
        let leaves = leaves(&supported(), Topology { max_vcpus: 5, tsc_deadline: false }, 4);
        let cores = get(&leaves, EXTENDED_TOPOLOGY, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 5, 0x201));
        assert_eq!(get(&leaves, AMD_SIZES, 0).ecx, (3 << 12) | 4);
        assert_eq!(get(&leaves, CACHES, 0).eax, 0x21 | (4 << 26));
        assert_eq!(get(&leaves, CACHES, 3).eax, 0x63 | (4 << 26) | (4 << 14));
        assert_eq!(get(&leaves, FEATURES, 0).edx & EDX_HTT, EDX_HTT);
    }

    #[test]
    fn the_guest_sees_a_hypervisor_and_no_nesting() {
        let leaves = leaves(&supported(), Topology { max_vcpus: 1, tsc_deadline: true }, 0);
        let features = get(&leaves, FEATURES, 0);
        assert_eq!(features.ecx, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(features.edx & EDX_HTT, 0);
        assert_eq!(get(&leaves, AMD_FEATURES, 0).ecx, 1);
        assert_eq!(get(&leaves, PMU, 0), Leaf { function: PMU, ..Leaf::default() });
        assert_eq!(get(&leaves, 0x4000_0001, 0).eax, 0x0100_7efb);
        // The host's highest leaf is 0xd: nothing beyond it may appear.
        assert!(leaves.iter().all(|leaf| leaf.function != EXTENDED_TOPOLOGY_V2));
    }
}
