//! What a sandbox's guest says of itself and its containers, as samples.
//!
//! A guest may say anything. It can be wrong about itself, but not spoil the page for others: names are escaped, said once, and
//! not more than there can be.

use std::collections::BTreeMap;

use tatami_protocol::agent::{ContainerFigures, DiskFigures, Figures, InterfaceFigures};

use super::exposition::{Exposition, Family};

/// The most of a kind that a page shows of one guest, and the longest name, in bytes.
const MOST: usize = 256;
const LONGEST: usize = 128;
/// What a container's id begins with that its client knows nothing of.
pub(super) const INNER: char = '_';
/// The kinds of time in the order in which they come.
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

static MEMORY: Family = Family::gauge("tatami_guest_memory_total_bytes", "Memory that the guest's kernel has.");
static FREE: Family = Family::gauge("tatami_guest_memory_free_bytes", "Memory that the guest makes no use of.");
static AVAILABLE: Family = Family::gauge(
    "tatami_guest_memory_available_bytes",
    "Memory that the guest's programs could have without swapping, as its kernel estimates it.",
);
static CACHED: Family = Family::gauge("tatami_guest_memory_cached_bytes", "Memory that the guest keeps of files.");
static LOADS: [Family; 3] = [
    Family::gauge("tatami_guest_load1", "The guest's load, averaged over a minute."),
    Family::gauge("tatami_guest_load5", "The guest's load, averaged over five minutes."),
    Family::gauge("tatami_guest_load15", "The guest's load, averaged over a quarter of an hour."),
];
static THREADS: Family = Family::gauge("tatami_guest_threads", "Threads in the guest, the kernel's own among them.");
static UPTIME: Family = Family::gauge(
    "tatami_guest_uptime_seconds",
    "How long the guest's kernel has run; where it went on from a template, with what that had.",
);
static CPU: Family = Family::counter("tatami_guest_cpu_seconds_total", "Time of the guest's CPUs, by what they did.");
static RECEIVED: [Family; 3] = [
    Family::counter("tatami_guest_network_receive_bytes_total", "Bytes that came to the guest."),
    Family::counter("tatami_guest_network_receive_packets_total", "Packets that came to the guest."),
    Family::counter(
        "tatami_guest_network_receive_drop_total",
        "Packets that came to the guest and were dropped there.",
    ),
];
static SENT: [Family; 3] = [
    Family::counter("tatami_guest_network_transmit_bytes_total", "Bytes that the guest sent."),
    Family::counter("tatami_guest_network_transmit_packets_total", "Packets that the guest sent."),
    Family::counter("tatami_guest_network_transmit_drop_total", "Packets that the guest dropped instead of sending."),
];
static DISKS: [Family; 4] = [
    Family::counter("tatami_guest_disk_reads_completed_total", "Reads that the guest's disks completed."),
    Family::counter("tatami_guest_disk_read_bytes_total", "Bytes that the guest read from its disks."),
    Family::counter("tatami_guest_disk_writes_completed_total", "Writes that the guest's disks completed."),
    Family::counter("tatami_guest_disk_written_bytes_total", "Bytes that the guest wrote to its disks."),
];
static VOLUMES: [Family; 6] = [
    Family::gauge("tatami_volume_size_bytes", "Size of the file system on a volume that the guest has mounted itself."),
    Family::gauge("tatami_volume_used_bytes", "What is taken of it."),
    Family::gauge("tatami_volume_available_bytes", "What is left of it for users."),
    Family::gauge("tatami_volume_inodes", "Inodes of the file system on a volume, if that counts them."),
    Family::gauge("tatami_volume_inodes_used", "Inodes that are taken."),
    Family::gauge("tatami_volume_inodes_available", "Inodes that are left for users."),
];
static CONTAINER_CPU: Family =
    Family::counter("tatami_container_cpu_usage_seconds_total", "CPU time that a container has used.");
static CONTAINER_THROTTLED: Family = Family::counter(
    "tatami_container_cpu_throttled_seconds_total",
    "Time for which a container's limit kept it from a CPU.",
);
static CONTAINER_MEMORY: Family = Family::gauge(
    "tatami_container_memory_usage_bytes",
    "Memory that a container uses, what it keeps of files included.",
);
static CONTAINER_SET: Family = Family::gauge(
    "tatami_container_memory_working_set_bytes",
    "Memory that a container uses, without files that it has not looked at lately.",
);
static CONTAINER_LIMIT: Family =
    Family::gauge("tatami_container_memory_limit_bytes", "Memory that a container may use, if that is limited.");
static CONTAINER_KILLS: Family =
    Family::counter("tatami_container_oom_kills_total", "Processes of a container killed for want of memory.");
static CONTAINER_PIDS: Family = Family::gauge("tatami_container_pids", "Processes and threads of a container.");

/// Adds what the guest of the sandbox `id` says.
pub(super) fn add(id: &str, figures: &Figures, page: &mut Exposition) {
    let id = ("sandbox_id", id);
    page.add(&MEMORY, &[id], figures.mem_total);
    page.add(&FREE, &[id], figures.mem_free);
    page.add(&AVAILABLE, &[id], figures.mem_available);
    page.add(&CACHED, &[id], figures.cached);
    for (family, load) in LOADS.iter().zip(&figures.load) {
        page.add(family, &[id], hundredths(*load));
    }
    page.add(&THREADS, &[id], figures.threads);
    page.add(&UPTIME, &[id], hundredths(figures.uptime));
    for (mode, time) in MODES.iter().zip(&figures.cpu) {
        page.add(&CPU, &[id, ("mode", mode)], hundredths(*time));
    }
    for (name, interface) in named(&figures.interfaces, |it: &InterfaceFigures| &it.name) {
        let received = [interface.received_bytes, interface.received_packets, interface.received_dropped];
        let sent = [interface.sent_bytes, interface.sent_packets, interface.sent_dropped];
        for (family, value) in RECEIVED.iter().zip(received).chain(SENT.iter().zip(sent)) {
            page.add(family, &[id, ("device", name)], value);
        }
    }
    for (name, disk) in named(&figures.disks, |it: &DiskFigures| &it.name) {
        for (family, value) in DISKS.iter().zip([disk.reads, disk.read_bytes, disk.writes, disk.written_bytes]) {
            page.add(family, &[id, ("device", name)], value);
        }
    }
    // These names are the host's.
    for volume in figures.volumes.iter().take(MOST) {
        let bytes = [volume.total_bytes, volume.used_bytes, volume.available_bytes];
        let inodes = [volume.total_inodes, volume.used_inodes, volume.available_inodes];
        let counted = if volume.total_inodes == 0 { &[][..] } else { &inodes[..] };
        for (family, value) in VOLUMES.iter().zip(bytes.iter().chain(counted)) {
            page.add(family, &[id, ("volume", &volume.source)], *value);
        }
    }
    for (name, container) in named(&figures.containers, |it: &ContainerFigures| &it.container_id) {
        if !name.starts_with(INNER) {
            add_container(&[id, ("container_id", name)], container, page);
        }
    }
}

fn add_container(labels: &[(&str, &str)], container: &ContainerFigures, page: &mut Exposition) {
    let (cpu, memory) = (&container.stats.cpu, &container.stats.memory);
    page.add(&CONTAINER_CPU, labels, microseconds(cpu.usage_usec));
    page.add(&CONTAINER_THROTTLED, labels, microseconds(cpu.throttled_usec));
    page.add(&CONTAINER_MEMORY, labels, memory.current);
    let stale = memory.stat.get("inactive_file").copied().unwrap_or_default();
    page.add(&CONTAINER_SET, labels, memory.current.saturating_sub(stale));
    if memory.max != u64::MAX {
        page.add(&CONTAINER_LIMIT, labels, memory.max);
    }
    page.add(&CONTAINER_KILLS, labels, memory.events.get("oom_kill").copied().unwrap_or_default());
    page.add(&CONTAINER_PIDS, labels, container.stats.pids.current);
}

/// Each by its name; of two with one name, one.
fn named<T>(all: &[T], name: impl Fn(&T) -> &str) -> BTreeMap<&str, &T> {
    all.iter().map(|one| (name(one), one)).filter(|(name, _)| name.len() <= LONGEST).take(MOST).collect()
}

fn hundredths(value: u64) -> f64 {
    value as f64 / 100.0
}

fn microseconds(value: u64) -> f64 {
    value as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use tatami_protocol::agent::{CpuStats, MemoryStats, PidsStats, Stats, VolumeFigures};

    fn page_of(figures: &Figures) -> String {
        let mut page = Exposition::default();
        add("box", figures, &mut page);
        page.finish()
    }

    fn container(id: &str) -> ContainerFigures {
        let mut memory = MemoryStats { current: 100, max: u64::MAX, ..Default::default() };
        memory.stat.insert("inactive_file".to_owned(), 30);
        memory.events.insert("oom_kill".to_owned(), 2);
        let stats = Stats {
            cpu: Some(CpuStats { usage_usec: 1_250_000, ..Default::default() }).into(),
            memory: Some(memory).into(),
            pids: Some(PidsStats { current: 4, ..Default::default() }).into(),
            ..Default::default()
        };
        ContainerFigures { container_id: id.to_owned(), stats: Some(stats).into(), ..Default::default() }
    }

    #[test]
    fn figures_have_the_units_that_their_names_say() {
        let eth0 =
            InterfaceFigures { name: "eth0".to_owned(), received_bytes: 9, sent_packets: 3, ..Default::default() };
        let vda = DiskFigures { name: "vda".to_owned(), reads: 1, read_bytes: 512, ..Default::default() };
        let page = page_of(&Figures {
            mem_total: 1024,
            load: vec![5, 150, 1200],
            uptime: 6125,
            cpu: vec![250, 0, 1],
            interfaces: vec![eth0],
            disks: vec![vda],
            containers: vec![container("web"), container("_pod")],
            volumes: vec![VolumeFigures {
                source: "/data".to_owned(),
                total_bytes: 512,
                used_bytes: 500,
                available_bytes: 9,
                ..Default::default()
            }],
            ..Default::default()
        });
        for line in [
            "tatami_guest_memory_total_bytes{sandbox_id=\"box\"} 1024",
            "tatami_guest_load5{sandbox_id=\"box\"} 1.5",
            "tatami_guest_uptime_seconds{sandbox_id=\"box\"} 61.25",
            "tatami_guest_cpu_seconds_total{sandbox_id=\"box\",mode=\"system\"} 0.01",
            "tatami_guest_network_receive_bytes_total{sandbox_id=\"box\",device=\"eth0\"} 9",
            "tatami_guest_network_transmit_packets_total{sandbox_id=\"box\",device=\"eth0\"} 3",
            "tatami_guest_disk_read_bytes_total{sandbox_id=\"box\",device=\"vda\"} 512",
            "tatami_volume_available_bytes{sandbox_id=\"box\",volume=\"/data\"} 9",
            "tatami_container_cpu_usage_seconds_total{sandbox_id=\"box\",container_id=\"web\"} 1.25",
            "tatami_container_memory_working_set_bytes{sandbox_id=\"box\",container_id=\"web\"} 70",
            "tatami_container_oom_kills_total{sandbox_id=\"box\",container_id=\"web\"} 2",
            "tatami_container_pids{sandbox_id=\"box\",container_id=\"web\"} 4",
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        assert!(!page.contains("limit_bytes") && !page.contains("volume_inodes") && !page.contains("_pod"), "{page}");
    }

    #[test]
    fn a_guest_that_lies_spoils_nothing() {
        let many = (0..10 * MOST).map(|number| container(&number.to_string()));
        let odd = ["twice", "twice", "a\"} 1\nx 2", &"x".repeat(LONGEST + 1)].map(container);
        let page = page_of(&Figures {
            mem_total: u64::MAX,
            load: vec![u64::MAX; 100],
            cpu: vec![u64::MAX; 100],
            containers: odd.into_iter().chain(many).collect(),
            ..Default::default()
        });
        let mut samples: Vec<&str> = page.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
        let all = samples.len();
        samples.sort_unstable();
        samples.dedup();
        assert_eq!(samples.len(), all);
        assert!(page.lines().all(|line| line.starts_with("# ") || line.starts_with("tatami_")));
        assert!(page.matches("tatami_container_pids{").count() <= MOST && !page.contains(&"x".repeat(LONGEST + 1)));
    }
}
