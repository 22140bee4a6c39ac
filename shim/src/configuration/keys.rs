//! Which settings there are: those that are carried out, and those of Kata's that have no meaning here, or none yet, with what to do.
//!
//! A setting that asks for nothing (false, 0, nothing in quotes or brackets) needs no word said about it, whatever it is.

use super::document::Value;

/// A section, whatever its hypervisor or agent is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Hypervisor,
    Agent,
    Runtime,
    Factory,
}

/// What becomes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is carried out.
    Used,
    /// It is not, and why.
    Idle(&'static str),
    /// Nobody knows it.
    Unknown,
}

use Section::{Agent, Factory, Hypervisor, Runtime};

const USED: &[(Section, &[&str])] = &[
    (
        Hypervisor,
        &[
            "kernel",
            "image",
            "initrd",
            "kernel_params",
            "kernel_verity_params",
            "default_vcpus",
            "default_maxvcpus",
            "default_memory",
            "default_maxmemory",
            "enable_hugepages",
            "file_mem_backend",
            "mergeable_memory",
            "virtio_fs_cache",
        ],
    ),
    (Hypervisor, &["disable_vhost_net", "network_queues", "rx_rate_limiter_max_rate", "tx_rate_limiter_max_rate"]),
    (Hypervisor, &["enable_annotations", "valid_file_mem_backends", "valid_entropy_sources"]),
    (Hypervisor, &["enable_virtio_mem", "reclaim_guest_freed_memory", "entropy_source", "virtio_fs_queue_size"]),
    (Hypervisor, &["guest_hook_path"]),
    (Hypervisor, &["block_device_cache_set", "block_device_cache_direct", "block_device_cache_noflush"]),
    (Hypervisor, &["num_queues", "queue_size", "block_device_aio"]),
    (Hypervisor, &["disk_rate_limiter_bw_max_rate", "disk_rate_limiter_ops_max_rate"]),
    (Runtime, &["internetworking_model", "emptydir_mode", "sandbox_bind_mounts"]),
    (Runtime, &["enable_debug", "hypervisor_name", "agent_name", "name", "disable_guest_seccomp"]),
    (
        Runtime,
        &["create_container_timeout", "static_sandbox_resource_mgmt", "sandbox_cgroup_only", "enable_vcpus_pinning"],
    ),
    (Agent, &["create_container_timeout", "container_pipe_size", "debug_console_enabled"]),
];

const VMM: &str = "the VMM is Tatami itself";
const MACHINE: &str = "the virtual machine has one form, without firmware, buses and bridges";
const GUEST: &str = "the host gives a guest memory when it touches it";
const NAMESPACE: &str =
    "a sandbox's network is that of its network namespace; an internetworking_model of \"none\" leaves it alone";
const FILES: &str = "the file server is part of Tatami: only virtio_fs_cache is a choice";
const DISKS: &str = "disks are virtio-blk, by io_uring where the host has it";
const BURSTS: &str = "a disk may always be ahead of its rate by a tenth of a second, and never by more";
const CONFIDENTIAL: &str = "there are no confidential guests";
const PASSTHROUGH: &str = "host devices are not passed through";
const TRACING: &str = "there are no traces: `tatami inspect` and the log say what there is";
/// Also said of values of `emptydir_mode`, which is carried out as far as it asks for this.
pub(super) const EMPTY_DIRS: &str = "an emptyDir on disk is always a folder of the host's, which the guest shares";
const KERNEL: &str = "the guest kernel has all that it knows built in";

const IDLE: &[(Section, &[&str], &str)] = &[
    (Hypervisor, &["path", "ctlpath", "jailer_path", "rootless", "seccompsandbox", "extra_monitor_socket"], VMM),
    (Hypervisor, &["valid_hypervisor_paths", "valid_ctlpaths", "valid_jailer_paths", "disable_nesting_checks"], VMM),
    (
        Hypervisor,
        &[
            "machine_type",
            "machine_accelerators",
            "cpu_features",
            "firmware",
            "firmware_volume",
            "pflashes",
            "default_bridges",
            "memory_slots",
            "memory_offset",
            "enable_iommu",
            "enable_iommu_platform",
            "use_legacy_serial",
            "vm_rootfs_driver",
            "disable_image_nvdimm",
            "rootfs_type",
        ],
        MACHINE,
    ),
    (Hypervisor, &["enable_mem_prealloc"], GUEST),
    (
        Hypervisor,
        &[
            "shared_fs",
            "virtio_fs_daemon",
            "valid_virtio_fs_daemon_paths",
            "virtio_fs_cache_size",
            "virtio_fs_extra_args",
            "virtio_fs_inode_file_handles",
            "msize_9p",
        ],
        FILES,
    ),
    (
        Hypervisor,
        &[
            "block_device_driver",
            "disable_block_device_use",
            "enable_iothreads",
            "indep_iothreads",
            "enable_vhost_user_store",
            "vhost_user_store_path",
            "valid_vhost_user_store_paths",
            "vhost_user_reconnect_timeout_sec",
        ],
        DISKS,
    ),
    (Hypervisor, &["disk_rate_limiter_bw_one_time_burst", "disk_rate_limiter_ops_one_time_burst"], BURSTS),
    (
        Hypervisor,
        &["confidential_guest", "sev_snp_guest", "tdx_quote_generation_service_socket_port", "guest_pre_attestation"],
        CONFIDENTIAL,
    ),
    (
        Hypervisor,
        &["hotplug_vfio_on_root_bus", "hot_plug_vfio", "cold_plug_vfio", "pcie_root_port", "pcie_switch_port"],
        PASSTHROUGH,
    ),
    (Hypervisor, &["guest_memory_dump_path", "guest_memory_dump_paging"], "the memory of a guest is not dumped"),
    (Hypervisor, &["enable_guest_swap"], "guests do not swap"),
    (Hypervisor, &["disable_selinux", "disable_guest_selinux"], "SELinux is the host's alone"),
    (
        Hypervisor,
        &["enable_debug"],
        "the guest kernel's last lines are always kept: `enable_debug` of [runtime] logs more",
    ),
    (Factory, &["enable_template", "template_path"], "templates are always used: TATAMI_TEMPLATES=off does without"),
    (Factory, &["vm_cache_number", "vm_cache_endpoint"], "templates take the place of the VM cache"),
    (Agent, &["enable_debug"], "`enable_debug` of [runtime] logs more"),
    (Agent, &["enable_tracing", "trace_mode", "trace_type"], TRACING),
    (Agent, &["kernel_modules"], KERNEL),
    (
        Agent,
        &["dial_timeout", "dial_timeout_ms", "reconnect_timeout_ms"],
        "the agent calls by itself: create_container_timeout is how long all of it may take",
    ),
    (Agent, &["cdh_api_timeout", "cdh_api_timeout_ms"], CONFIDENTIAL),
    (Runtime, &["disable_new_netns", "dan_conf"], NAMESPACE),
    (Runtime, &["disable_guest_empty_dir"], EMPTY_DIRS),
    (Runtime, &["vfio_mode"], PASSTHROUGH),
    (Runtime, &["guest_selinux_label"], "SELinux is the host's alone"),
    (Runtime, &["enable_tracing", "jaeger_endpoint", "jaeger_user", "jaeger_password", "enable_pprof"], TRACING),
    (
        Runtime,
        &["experimental", "keep_abnormal", "use_passfd_io", "passfd_listener_port"],
        "it is nothing that Tatami has",
    ),
];

impl Section {
    /// What stands in brackets, without a name behind it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Hypervisor => "hypervisor",
            Agent => "agent",
            Runtime => "runtime",
            Factory => "factory",
        }
    }

    /// By what stands in brackets; and the name of the hypervisor or agent, if it has one.
    pub(super) fn of(text: &str) -> Option<(Section, Option<&str>)> {
        let (first, name) = text.split_once('.').map_or((text, None), |(first, name)| (first, Some(name)));
        match (first, name) {
            ("hypervisor", Some(_)) => Some((Hypervisor, name)),
            ("agent", Some(_)) => Some((Agent, name)),
            ("runtime", None) => Some((Runtime, None)),
            ("factory", None) => Some((Factory, None)),
            _ => None,
        }
    }
}

/// The settings that are carried out.
#[cfg(test)]
pub(super) fn used() -> impl Iterator<Item = (Section, &'static str)> {
    USED.iter().flat_map(|(section, names)| names.iter().map(|name| (*section, *name)))
}

/// Those that are not, together with others of the same reason.
pub(super) fn idle() -> impl Iterator<Item = (Section, &'static [&'static str], &'static str)> {
    IDLE.iter().copied()
}

/// What becomes of the setting `name`.
pub(super) fn fate(section: Section, name: &str) -> Fate {
    if USED.iter().any(|(of, names)| *of == section && names.contains(&name)) {
        return Fate::Used;
    }
    let idle = IDLE.iter().find(|(of, names, _)| *of == section && names.contains(&name));
    idle.map_or(Fate::Unknown, |(_, _, why)| Fate::Idle(why))
}

/// Whether a setting of this value asks for something.
pub(super) fn asks(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::Integer(number) => *number != 0,
        Value::Float(number) => *number != 0.0,
        Value::Text(text) => !text.is_empty(),
        Value::Loose(text) => !["", "0", "false"].contains(&text.as_str()),
        Value::List(values) => !values.is_empty(),
        Value::Other(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_is_listed_twice() {
        let idle = IDLE.iter().flat_map(|(section, names, _)| names.iter().map(move |name| (*section, *name)));
        let mut all: Vec<_> = idle.chain(used()).map(|(section, name)| format!("{section:?} {name}")).collect();
        all.sort_unstable();
        let twice: Vec<_> = all.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn sections_are_known_whatever_their_hypervisor_is_called() {
        assert_eq!(Section::of("hypervisor.qemu"), Some((Hypervisor, Some("qemu"))));
        assert_eq!(Section::of("agent.kata"), Some((Agent, Some("kata"))));
        assert_eq!(Section::of("runtime"), Some((Runtime, None)));
        for unknown in ["hypervisor", "runtime.x", "netmon", ""] {
            assert_eq!(Section::of(unknown), None);
        }
        assert_eq!(fate(Hypervisor, "kernel"), Fate::Used);
        assert_eq!(fate(Hypervisor, "path"), Fate::Idle(VMM));
        assert_eq!(fate(Runtime, "path"), Fate::Unknown);
    }
}
