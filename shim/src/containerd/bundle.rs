//! A bundle as containerd makes it: whose sandbox its container belongs to, and how large a machine it needs.
//!
//! Reads the specification; knows nothing of how it is carried out.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use tatami_vmm::{FolderConfig, MemoryKind, VmConfig};

use super::growth::Size;
use super::share::Share;
use crate::configuration::Configuration;

/// The guest's own share of memory, in MiB, beside what its containers may use.
const OWN_MEMORY_MIB: u32 = 256;

/// The annotations that tell whose sandbox a container belongs to: containerd's CRI plug-in, CRI-O, dockershim. Type,
/// sandbox id.
const POD_ANNOTATIONS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    (CRIO_TYPE, "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
];

const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";

/// Slots for disks in a pod's machine: so many containers with disks of their own, raw and direct volumes it can have at once. Each costs
/// the guest some 100 KiB, used or not.
const POD_DISK_SLOTS: u8 = 8;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// Not there, or not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not a specification.
    #[error("{} is not a valid OCI specification: {source}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

/// The folder in which containerd 2.x makes the bundles of its Sandbox API, and nothing else.
const SANDBOX_BUNDLES: &str = "io.containerd.sandbox.controller.v1.shim";

/// Reads `bundle`'s specification.
///
/// # Errors
/// [`BundleError`] says what is wrong with which file.
pub(crate) fn read(bundle: &Path) -> Result<Spec, BundleError> {
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(BundleError::Read { path, source }),
    };
    serde_json::from_slice(&text).map_err(|source| BundleError::Malformed { path, source })
}

/// The id of the sandbox that container `id` belongs to; its own if it is none of a pod's further containers.
pub(crate) fn sandbox_of<'a>(id: &'a str, spec: &'a Spec) -> &'a str {
    let Some(annotations) = spec.annotations() else { return id };
    let member = POD_ANNOTATIONS.iter().find_map(|(kind, sandbox)| {
        // dockershim calls a pod's first container `podsandbox`, the others `sandbox`.
        let further = annotations.get(*kind).is_some_and(|kind| kind == "container");
        annotations.get(*sandbox).filter(|_| further)
    });
    member.map_or(id, String::as_str)
}

/// Whether `bundle` is a sandbox's, by containerd 2.x's Sandbox API: without a container of its own, often without a
/// specification, and from a caller that takes an answer in JSON.
pub(super) fn is_of_sandbox(bundle: &Path) -> bool {
    bundle.components().any(|component| component.as_os_str() == SANDBOX_BUNDLES)
}

/// The most vCPUs that a pod can grow to, where nobody has set another number: each costs guest and VMM some memory, used or not.
const POD_VCPUS: u64 = 8;

/// What Linux adds memory in; of the VMM, less would become as much.
const MEMORY_BLOCK_MIB: u32 = 128;

/// The guest's own share of a machine, beside its containers'.
pub(super) fn own(set: &Configuration) -> Size {
    Size { memory_mib: set.memory_mib.unwrap_or(OWN_MEMORY_MIB), vcpus: set.vcpus.unwrap_or(0) }
}

/// A machine for the container of `spec`: what it may use, and the guest's own share, as it is set. With `sandbox`, for containers that
/// will come.
pub(super) fn machine(spec: Option<&Spec>, sandbox: bool, set: &Configuration) -> VmConfig {
    let share = spec.map(Share::of_all).unwrap_or_default();
    let limit_mib = share.memory.div_ceil(1 << 20);
    let host = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let own = own(set);
    let vcpus = share.processors().saturating_add(own.vcpus.into()).clamp(1, host.min(64)) as u8;
    let host_mib = host_memory_mib().min(u32::MAX.into()) as u32;
    let limit_mib = limit_mib.min(u32::MAX.into()) as u32;
    // Limits promise more than a host has, often.
    let memory_mib = own.memory_mib.saturating_add(limit_mib).min(host_mib.max(own.memory_mib));
    let is_pod = sandbox || spec.is_some_and(is_pod);
    let most = Size {
        memory_mib: set.max_memory_mib.unwrap_or(host_mib),
        // One container alone seldom gets more; a pod gets more containers.
        vcpus: set.max_vcpus.unwrap_or(if is_pod { host.min(POD_VCPUS) as u8 } else { 0 }),
    };
    // Huge pages are set aside for all that there may be.
    let set_aside = set.max_memory_mib.is_none() && matches!(set.memory, Some((MemoryKind::HugePages, _)));
    let most = if set_aside { Size { memory_mib: 0, ..most } } else { most };
    let most = if set.fixed_memory { Size { memory_mib: 0, ..most } } else { most };
    let most = if set.fixed_size { Size { memory_mib: 0, vcpus: 0 } } else { most };
    let plain = VmConfig::default();
    VmConfig {
        vcpus,
        max_vcpus: vcpus.max(most.vcpus),
        memory_mib,
        spare_memory_mib: most.memory_mib.saturating_sub(memory_mib) / MEMORY_BLOCK_MIB * MEMORY_BLOCK_MIB,
        memory_kind: set.memory.as_ref().map_or(plain.memory_kind, |(kind, _)| *kind),
        page_reporting: !set.no_reporting,
        command_line_extra: set.kernel_params.clone(),
        folder: FolderConfig { cache: set.cache.unwrap_or(plain.folder.cache), ..plain.folder },
        disk_slots: if is_pod { POD_DISK_SLOTS } else { 1 },
        disk_queues: set.disk_queues.unwrap_or(plain.disk_queues),
        disk_uring: !set.disk_threads,
        disk_limit: set.disk_limit,
        disk_direct: set.disk_direct,
        disk_unflushed: set.disk_unflushed,
        ..plain
    }
}

/// Whether further containers will come into the sandbox of `spec`'s.
pub(super) fn is_pod(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    POD_ANNOTATIONS.iter().any(|(kind, _)| annotations.is_some_and(|annotations| annotations.contains_key(*kind)))
}

/// Whether CRI-O describes a pod's first container: it has made the pod's namespaces before, and keeps them by files.
pub(super) fn is_first_by_crio(spec: &Spec) -> bool {
    crio_type(spec) == Some("sandbox")
}

/// Whether CRI-O describes a container of a pod that is there.
pub(crate) fn is_further_by_crio(spec: &Spec) -> bool {
    crio_type(spec) == Some("container")
}

/// Whether CRI-O describes a container. What it mounts for one is seen by nobody whose mount namespace is older.
pub(super) fn is_by_crio(spec: &Spec) -> bool {
    crio_type(spec).is_some()
}

fn crio_type(spec: &Spec) -> Option<&str> {
    spec.annotations().as_ref()?.get(CRIO_TYPE).map(String::as_str)
}

/// The host's memory: a guest with more would be a promise that cannot be kept.
fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn pods_of_every_kind_are_known() {
        for (kind, sandbox) in POD_ANNOTATIONS {
            let member =
                spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{kind}":"container","{sandbox}":"pod1"}}}}"#));
            assert_eq!(sandbox_of("c1", &member), "pod1");
            let first =
                spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{kind}":"sandbox","{sandbox}":"pod1"}}}}"#));
            assert_eq!(sandbox_of("pod1", &first), "pod1");
        }
        assert_eq!(sandbox_of("c1", &spec(r#"{"ociVersion":"1.0.2"}"#)), "c1");
    }

    #[test]
    fn a_machine_holds_what_its_container_may_use() {
        let machine = |spec: Option<&Spec>, sandbox| super::machine(spec, sandbox, &Configuration::default());
        assert_eq!(machine(None, true).memory_mib, 256);
        assert_eq!((machine(None, true).disk_slots, machine(None, false).disk_slots), (POD_DISK_SLOTS, 1));
        let limited = |json: &str| {
            machine(Some(&spec(&format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{json}}}}}"#))), false)
        };
        assert_eq!(limited(r#"{"memory":{"limit":67108864}}"#).memory_mib, 256 + 64);
        assert_eq!(limited(r#"{"memory":{"limit":-1}}"#).memory_mib, 256);
        assert_eq!(limited(r#"{"cpu":{"quota":50000,"period":100000}}"#).vcpus, 1);
        let host = std::thread::available_parallelism().unwrap().get().min(64) as u8;
        assert_eq!(limited(r#"{"cpu":{"quota":100000000,"period":100000}}"#).vcpus, host);
        let huge = limited(r#"{"memory":{"limit":9223372036854771712}}"#);
        assert_eq!(u64::from(huge.memory_mib), host_memory_mib());
        huge.validate().unwrap();
    }

    #[test]
    fn a_pods_machine_can_grow_unless_it_is_set_otherwise() {
        let of = |set: &Configuration| machine(None, true, set);
        let free = of(&Configuration::default());
        let most = u64::from(free.memory_mib + free.spare_memory_mib);
        assert!(most <= host_memory_mib() && most + u64::from(MEMORY_BLOCK_MIB) > host_memory_mib());
        assert!(free.max_vcpus >= free.vcpus && u64::from(free.max_vcpus) <= POD_VCPUS);
        let bounded = Configuration { max_vcpus: Some(3), max_memory_mib: Some(1024), ..Configuration::default() };
        assert_eq!((of(&bounded).max_vcpus, of(&bounded).spare_memory_mib), (3, 1024 - 256));
        let fixed = of(&Configuration { fixed_memory: true, ..bounded.clone() });
        assert_eq!((fixed.max_vcpus, fixed.spare_memory_mib), (3, 0));
        let fixed = of(&Configuration { fixed_size: true, ..bounded });
        assert_eq!((fixed.vcpus, fixed.max_vcpus, fixed.spare_memory_mib), (1, 1, 0));
    }

    #[test]
    fn a_machines_devices_are_as_they_are_set() {
        let of = |set: &Configuration| machine(None, true, set);
        let VmConfig { page_reporting, disk_queues, disk_uring, .. } = of(&Configuration::default());
        assert_eq!((page_reporting, disk_queues, disk_uring), (true, 1, true));
        let set = Configuration { no_reporting: true, disk_queues: Some(2), disk_threads: true, ..Default::default() };
        let VmConfig { page_reporting, disk_queues, disk_uring, .. } = of(&set);
        assert_eq!((page_reporting, disk_queues, disk_uring), (false, 2, false));
    }

    #[test]
    fn a_sandboxes_bundle_is_known_by_where_it_lies() {
        assert!(is_of_sandbox(Path::new("/run/containerd/io.containerd.sandbox.controller.v1.shim/default/pod1")));
        assert!(!is_of_sandbox(Path::new("/run/containerd/io.containerd.runtime.v2.task/default/c1")));
    }

    #[test]
    fn a_bundle_without_specification_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(matches!(read(dir.path()), Err(BundleError::Malformed { .. })));
    }
}
