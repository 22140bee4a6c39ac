//! The reference of settings, as the documentation has it: written from the tables that `configuration.toml` is read by, so that it
//! names what is carried out and what is not, and nothing else. No part of the binary.

use std::fmt::Write;

use super::keys::{self, Section};

/// What each setting that is carried out means: its type, what it is if it is not set, what it does.
const MEANINGS: &[(Section, &str, &str, &str, &str)] = &[
    (
        Section::Hypervisor,
        "kernel",
        "path",
        "the installed one",
        "The guest's kernel. One of Kata's own folders is named in the log and left alone: Kata's guest has another agent.",
    ),
    (Section::Hypervisor, "image", "path", "none", "A disk with the guest's root (erofs or ext4). Excludes `initrd`."),
    (Section::Hypervisor, "initrd", "path", "the installed one", "The guest's initrd. Excludes `image`."),
    (
        Section::Hypervisor,
        "kernel_params",
        "text",
        "none",
        "Further parameters on the guest kernel's command line. An annotation adds to them.",
    ),
    (
        Section::Hypervisor,
        "kernel_verity_params",
        "text, as `tatami rootfs build --dm-verity` prints it",
        "what the image says itself",
        "The guest's root must be a disk (`image`) with just this root hash, and the guest's kernel checks by it whatever it reads (dm-verity). A disk that is another is refused; a guest that finds it damaged panics.",
    ),
    (
        Section::Hypervisor,
        "default_vcpus",
        "number",
        "1",
        "vCPUs beside those that containers' limits ask for. Less than 0: as many as the host has. 0: the default.",
    ),
    (
        Section::Hypervisor,
        "default_maxvcpus",
        "number",
        "the host's, 8 at most, for pods",
        "vCPUs that a sandbox may grow to.",
    ),
    (
        Section::Hypervisor,
        "default_memory",
        "MiB",
        "256",
        "The guest's own share of memory, beside containers' limits.",
    ),
    (Section::Hypervisor, "default_maxmemory", "MiB", "the host's", "Memory that a sandbox may grow to."),
    (
        Section::Hypervisor,
        "enable_hugepages",
        "boolean",
        "false",
        "Guest memory in huge pages, which `vm.nr_hugepages` has set aside. Excludes `file_mem_backend`.",
    ),
    (
        Section::Hypervisor,
        "file_mem_backend",
        "folder",
        "none",
        "Guest memory in a file without a name in this folder.",
    ),
    (
        Section::Hypervisor,
        "mergeable_memory",
        "boolean",
        "false",
        "Guest memory in pages that sandboxes with equal ones have together, as `tatami ksm` finds them. A guest can learn by the time that a \
         write takes whether another has the same page: for sandboxes that trust each other. Excludes `enable_hugepages` and `file_mem_backend`.",
    ),
    (Section::Hypervisor, "enable_virtio_mem", "boolean", "true", "Memory comes and goes while a sandbox lives."),
    (Section::Hypervisor, "reclaim_guest_freed_memory", "boolean", "true", "What a guest frees is the host's again."),
    (
        Section::Hypervisor,
        "guest_hook_path",
        "folder of the guest's",
        "none",
        "Programs in its folders `prestart`, `poststart` and `poststop` are hooks of every container, in the order of their names and after its own. They lie in the guest's own root, which must be a disk (`image`), and run there, outside the container.",
    ),
    (
        Section::Hypervisor,
        "virtio_fs_cache",
        "`never`, `auto` or `always`",
        "`auto`",
        "How long a guest believes what it has read of shared files. With `always` nobody else may change them.",
    ),
    (
        Section::Hypervisor,
        "virtio_fs_queue_size",
        "number",
        "1024",
        "Checked, and named in the log if it is another: the queues of shared files have one size.",
    ),
    (Section::Hypervisor, "num_queues", "number", "as many as vCPUs", "Queues of a disk."),
    (
        Section::Hypervisor,
        "queue_size",
        "number",
        "512",
        "Checked, and named in the log if it is another: the queues of disks have one size.",
    ),
    (
        Section::Hypervisor,
        "block_device_aio",
        "`io_uring` or `threads`",
        "`io_uring`",
        "How disks are read and written. Where the host has no io_uring it is threads.",
    ),
    (
        Section::Hypervisor,
        "block_device_cache_set",
        "boolean",
        "false",
        "The two that follow count. Otherwise containers' disks are in the host's page cache, and a guest's flush reaches the disk.",
    ),
    (
        Section::Hypervisor,
        "block_device_cache_direct",
        "boolean",
        "false",
        "Containers' disks are read and written without the host's page cache (O_DIRECT). What lies on blocks of more than 512 bytes, or on a file system that cannot, is refused with the reason.",
    ),
    (
        Section::Hypervisor,
        "block_device_cache_noflush",
        "boolean",
        "false",
        "A guest's flush is answered and not carried out: what it believes to be written may be lost if the host fails.",
    ),
    (
        Section::Hypervisor,
        "disk_rate_limiter_bw_max_rate",
        "bit/s",
        "no limit",
        "How fast each disk may be, reading and writing together.",
    ),
    (
        Section::Hypervisor,
        "disk_rate_limiter_ops_max_rate",
        "requests/s",
        "no limit",
        "How many requests each disk may serve in a second.",
    ),
    (
        Section::Hypervisor,
        "disable_vhost_net",
        "boolean",
        "false",
        "The VMM moves network frames even where the host's kernel could (vhost-net).",
    ),
    (Section::Hypervisor, "network_queues", "number", "as many as vCPUs", "Pairs of queues of each network interface."),
    (
        Section::Hypervisor,
        "rx_rate_limiter_max_rate",
        "bit/s",
        "no limit",
        "How fast each interface may receive. The VMM then moves the frames.",
    ),
    (Section::Hypervisor, "tx_rate_limiter_max_rate", "bit/s", "no limit", "How fast each interface may send."),
    (
        Section::Hypervisor,
        "entropy_source",
        "path",
        "the host's getrandom",
        "Checked, and named in the log if it is not one of the host kernel's own.",
    ),
    (
        Section::Hypervisor,
        "enable_annotations",
        "list of regular expressions",
        "none",
        "Names of settings of this section that a pod's annotations may change.",
    ),
    (
        Section::Hypervisor,
        "valid_file_mem_backends",
        "list of patterns",
        "none",
        "Folders that an annotation may name as `file_mem_backend`.",
    ),
    (
        Section::Hypervisor,
        "valid_entropy_sources",
        "list of patterns",
        "none",
        "Paths that an annotation may name as `entropy_source`.",
    ),
    (
        Section::Runtime,
        "enable_debug",
        "boolean",
        "false",
        "The server, the VMM and the agent log more, and the guest kernel all it has to say.",
    ),
    (
        Section::Runtime,
        "internetworking_model",
        "`tcfilter`, `macvtap` or `none`",
        "`tcfilter`",
        "How the guest is joined to the network that CNI has laid out.",
    ),
    (
        Section::Runtime,
        "disable_guest_seccomp",
        "boolean",
        "false",
        "Containers' seccomp profiles are not applied in the guest.",
    ),
    (
        Section::Runtime,
        "create_container_timeout",
        "seconds",
        "120",
        "How long a guest may take to come up. The shorter one counts, of this and the agent's.",
    ),
    (Section::Runtime, "static_sandbox_resource_mgmt", "boolean", "false", "Sandboxes stay as large as they start."),
    (
        Section::Runtime,
        "sandbox_cgroup_only",
        "boolean",
        "false",
        "Server and VMM are in the cgroup that the client names for the pod. Not by containerd's Sandbox API, which says it too late.",
    ),
    (
        Section::Runtime,
        "enable_vcpus_pinning",
        "boolean",
        "false",
        "Each vCPU runs on a processor of its own, where containers name as many as there are vCPUs.",
    ),
    (
        Section::Runtime,
        "sandbox_bind_mounts",
        "list of paths",
        "none",
        "What of the host the guest itself is shown, read-only unless `:rw` is behind it. No annotation may set it.",
    ),
    (
        Section::Runtime,
        "emptydir_mode",
        "`shared-fs`",
        "`shared-fs`",
        "Where an emptyDir lies: always in a folder of the host's.",
    ),
    (
        Section::Runtime,
        "hypervisor_name",
        "name",
        "the only one",
        "Which `[hypervisor.…]` section counts where there are several. One called `tatami` goes before all.",
    ),
    (Section::Runtime, "agent_name", "name", "`kata`", "Accepted: there is one agent."),
    (Section::Runtime, "name", "name", "none", "Accepted: there is one runtime."),
    (Section::Agent, "create_container_timeout", "seconds", "120", "As `create_container_timeout` of `[runtime]`."),
    (
        Section::Agent,
        "container_pipe_size",
        "bytes",
        "the kernel's",
        "What a pipe of a process's standard streams holds in the guest.",
    ),
    (
        Section::Agent,
        "debug_console_enabled",
        "boolean",
        "false",
        "`tatami console SANDBOX` opens a shell in the guest itself, outside its containers. The guest's own root must be a disk (`image`) that has one.",
    ),
];

/// All settings, as Markdown: a table for each section of those that are carried out, and one of those that are not, with the reason.
pub fn reference() -> String {
    let mut text = String::new();
    for (section, title) in
        [(Section::Hypervisor, "[hypervisor.NAME]"), (Section::Runtime, "[runtime]"), (Section::Agent, "[agent.kata]")]
    {
        let _ = writeln!(text, "## `{title}`\n\n| setting | value | if it is not set | meaning |\n|---|---|---|---|");
        for (_, name, kind, default, meaning) in MEANINGS.iter().filter(|(of, ..)| *of == section) {
            let _ = writeln!(text, "| `{name}` | {kind} | {default} | {meaning} |");
        }
        text.push('\n');
    }
    text.push_str("## Settings that change nothing\n\nThe log names those that ask for something, in one warning.\n\n| settings | why |\n|---|---|\n");
    for (section, names, why) in keys::idle() {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {} of `[{}]` | {why} |", names.join(", "), section.title());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_that_is_carried_out_has_a_meaning_and_no_other_has() {
        let mut explained: Vec<_> = MEANINGS.iter().map(|(section, name, ..)| (*section, *name)).collect();
        let mut used: Vec<_> = keys::used().collect();
        let order = |(section, name): &(Section, &'static str)| (section.title(), *name);
        explained.sort_unstable_by_key(order);
        used.sort_unstable_by_key(order);
        assert_eq!(explained, used);
    }

    #[test]
    fn what_changes_nothing_is_listed_with_the_reason() {
        let text = reference();
        assert!(text.contains("| `kernel_modules` of `[agent]` | the guest kernel has all"), "{text}");
        assert!(text.contains("| `kernel` | path |"));
    }
}
