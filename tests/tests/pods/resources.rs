//! What a pod's containers may use, and what they are said to use.

use std::thread;
use std::time::{Duration, Instant};

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::api;

use tatami_tests::daemons::kubelet::{Kubelet, SOON, host, told};

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("limits of a container, and changes of them", limits),
    Case::new("what a container uses", usage).long(),
    Case::new("a pod is as large as its containers need", size)
        .without_reference("with runc a pod's machine is the host"),
    Case::new("a machine as Kata's configuration has it", configured)
        .without_reference("runc reads no configuration of Kata's")
        .long(),
    Case::new("a whole pod in its cgroup, and its vCPU on a processor of its own", held)
        .without_reference("with runc containers have cgroups of their own, and there are no vCPUs")
        .long(),
    Case::new("vCPUs come and go with limits", processors)
        .without_reference("with runc a container sees all of the host's processors"),
];

const MIB: i64 = 1 << 20;

fn limited(memory: i64, quota: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: quota,
        memory_limit_in_bytes: memory,
        ..Default::default()
    }
}

/// A container's description with limits.
fn with(name: &str, command: &[&str], resources: api::LinuxContainerResources) -> api::ContainerConfig {
    let mut config = Kubelet::container(name, command);
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(resources);
    }
    config
}

fn limits(kubelet: &mut Kubelet, notes: &mut Notes) {
    let mut described = kubelet.described("pod");
    if let Some(linux) = &mut described.linux {
        linux.resources = Some(limited(128 * MIB, 100_000));
    }
    let pod = kubelet.run_described(described).expect("a pod with a size");
    let id =
        kubelet.start_described(&pod, with("c", &["sleep", "100000"], limited(64 * MIB, 50_000))).expect("it starts");
    let seen = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    notes.want("its limits", kubelet.shell(&id, seen), "67108864\n50000 100000");
    let update = |resources| {
        let request = api::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        told(kubelet.cri().call(async |mut client| client.update_container_resources(request).await).map(drop))
    };
    notes.want("more", update(limited(96 * MIB, 80_000)), "ok");
    notes.want("its limits then", kubelet.shell(&id, seen), "100663296\n80000 100000");
    notes.want("less", update(limited(32 * MIB, 20_000)), "ok");
    notes.want("its limits at last", kubelet.shell(&id, seen), "33554432\n20000 100000");
    let hungry = "dd if=/dev/zero of=/dev/null bs=60M count=1 2>/dev/null; echo $?";
    notes.want("what takes more is killed", kubelet.shell(&id, hungry), "137");
    notes.want("it lives", kubelet.state(&id), "running");
}

fn size(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let first = kubelet.start(&pod, "first", &["sleep", "100000"]);
    let total = || -> i64 {
        let text = kubelet.shell(&first, "grep MemTotal /proc/meminfo | tr -dc 0-9");
        text.parse::<i64>().unwrap_or(0) >> 10
    };
    let at_first = total();
    let more = || (total() - at_first + 8) / 16 * 16;
    let second = with("second", &["sleep", "100000"], limited(256 * MIB, 50_000));
    let second = kubelet.start_described(&pod, second).expect("it starts");
    notes.want("MiB more with a second container", more(), 256);
    let update = |memory: i64| {
        let request = api::UpdateContainerResourcesRequest {
            container_id: second.clone(),
            linux: Some(limited(memory, 50_000)),
            ..Default::default()
        };
        told(kubelet.cri().call(async |mut client| client.update_container_resources(request).await).map(drop))
    };
    notes.want("more", update(512 * MIB), "ok");
    notes.want("MiB more then", more(), 512);
    // A buffer as large as that.
    let hungry = "dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null && echo ok";
    notes.want("it can use them", kubelet.shell(&second, hungry), "ok");
    let refused = update(1 << 50);
    notes.want("more than there is", refused.contains("that this sandbox can have"), true);
    notes.want("nothing has changed", more(), 512);
    notes.want("its limit neither", kubelet.shell(&second, "cat /sys/fs/cgroup/memory.max"), 512 * MIB);
    notes.want("the end of the second", kubelet.remove_container(&second), "ok");
    let deadline = Instant::now() + SOON;
    while more() > 64 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(500));
    }
    notes.want("what is given back", more() <= 64, true);
}

fn configured(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-set");
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    // Virtio 1.2, 5.5.3 and 5.2.3: bits 5 and 12 of the features that driver and device agree on, the lowest first.
    let drivers = "cd /sys/bus/virtio/drivers; ";
    let seen = |script: &str| kubelet.shell(&id, &format!("{drivers}{script}"));
    notes.want("free pages are reported", seen("cut -c6 virtio_balloon/virtio*/features"), "0");
    notes.want("disks have several queues", seen("cat virtio_blk/virtio*/features | cut -c13 | sort -u"), "1");
    notes.want("memory can come", seen("ls virtio_mem | grep ^virtio | wc -l"), "0");
    notes.want("what comes through small pipes", seen("head -c 300000 /dev/zero | tr '\\0' x").len(), 300_000);
    let shown =
        std::path::Path::new("/proc").join(kubelet.ground().to_string()).join("root/sandbox-mounts/configuration.toml");
    let text = std::fs::read_to_string(&shown).unwrap_or_else(|error| error.to_string());
    notes.want("the guest is shown a file", text.contains("sandbox_bind_mounts"), true);
    let written = std::fs::write(&shown, "").map_err(|error| error.kind());
    notes.want("it can be written", format!("{written:?}"), "Err(ReadOnlyFilesystem)");
}

fn held(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-set");
    let pod = kubelet.run("pod");
    let place = format!("0::/{}/{}/", kubelet.containerd().home().containers_cgroup(), pod.id);
    let vmm = kubelet.ground();
    for (who, pid) in [("the server", kubelet.server()), ("its VMM", vmm)] {
        let seen = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_else(|error| error.to_string());
        notes.want(who, if seen.starts_with(&place) { "there" } else { seen.trim() }, "there");
    }
    let resources = api::LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..limited(64 * MIB, 100_000) };
    kubelet.start_described(&pod, with("c", &["sleep", "100000"], resources)).expect("it starts");
    // Of one processor each pod has all. Where there are more, this is seen to change.
    let threads =
        format!("grep -lx vcpu0 /proc/{vmm}/task/*/comm | sed 's/comm$/status/' | xargs grep -h Cpus_allowed_list:");
    notes.want("where its vCPU runs", host(&["sh", "-c", &threads]).replace('\t', " "), "Cpus_allowed_list: 0");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

fn processors(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-set");
    let pod = kubelet.run("pod");
    let first = kubelet.start(&pod, "first", &["sleep", "100000"]);
    let run = || kubelet.exec(&first, &["nproc"]);
    notes.want("at first", run(), "1");
    let second = with("second", &["sleep", "100000"], limited(64 * MIB, 200_000));
    let second = kubelet.start_described(&pod, second).expect("it starts");
    notes.want("with a container of two", run(), "2");
    let update = |quota: i64| {
        let request = api::UpdateContainerResourcesRequest {
            container_id: second.clone(),
            linux: Some(limited(64 * MIB, quota)),
            ..Default::default()
        };
        told(kubelet.cri().call(async |mut client| client.update_container_resources(request).await).map(drop))
    };
    notes.want("more", format!("{} {}", update(250_000), run()), "ok 3");
    notes.want("more than there are", format!("{} {}", update(900_000), run()), "ok 3");
    notes.want("less", format!("{} {}", update(150_000), run()), "ok 2");
    notes.want("without it", format!("{} {}", kubelet.remove_container(&second), run()), "ok 1");
}

fn usage(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sh", "-c", "head -c 20000000 /dev/zero >/dev/shm/x; while :; do :; done"]);
    let stats = || {
        let request = api::ContainerStatsRequest { container_id: id.clone() };
        kubelet
            .cri()
            .call(async |mut client| client.container_stats(request).await)
            .map(|answer| answer.stats.unwrap_or_default())
    };
    let deadline = Instant::now() + SOON;
    let mut seen = (false, false);
    while seen != (true, true) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(500));
        let Ok(stats) = stats() else { continue };
        let busy = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|usage| usage.value > 1_000_000);
        let bytes = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
        seen = (busy, (20_000_000..60_000_000).contains(&bytes));
    }
    notes.want("its processor time and memory", format!("{seen:?}"), "(true, true)");
    let all = kubelet
        .cri()
        .call(async |mut client| client.list_container_stats(api::ListContainerStatsRequest::default()).await);
    notes.want("it is in the list", all.is_ok_and(|all| all.stats.len() == 1), true);
}
