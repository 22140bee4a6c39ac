//! What a container may use, what it uses, and standing still.

use std::time::Duration;

use serde_json::json;
use tatami_protocol::agent::{Empty, Stdio};
use tatami_protocol::stream::Kind;
use tokio::io::AsyncReadExt;
use ttrpc::Code;

use crate::cases::{Case, code, ended};
use crate::rig::{Rig, context, output};

pub(crate) const ALL: &[(&str, Case)] = &[
    ("processes_are_listed", processes_are_listed),
    ("a_paused_container_stands_still", a_paused_container_stands_still),
    ("a_paused_container_can_be_deleted", a_paused_container_can_be_deleted),
    ("limits_that_cannot_be_are_refused", limits_that_cannot_be),
    ("a_wait_for_memory_ends_with_the_container", a_wait_for_memory_ends),
    ("a_fork_bomb_is_held", a_fork_bomb_is_held),
    ("limits_are_set_and_changed", limits_are_set_and_changed),
    ("use_is_measured", use_is_measured),
    ("kills_for_want_of_memory_are_told", kills_for_want_of_memory),
    ("cpu_time_is_limited", cpu_time_is_limited),
];

/// The cgroup controller without which a case says nothing.
pub(crate) fn needs(case: &str) -> Option<&'static str> {
    match case {
        "a_fork_bomb_is_held" | "limits_are_set_and_changed" => Some("pids"),
        "use_is_measured" | "kills_for_want_of_memory_are_told" | "a_wait_for_memory_ends_with_the_container" => {
            Some("memory")
        }
        "cpu_time_is_limited" => Some("cpu"),
        _ => None,
    }
}

fn processes_are_listed(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let init = container.create(Stdio::default()).unwrap();
    assert_eq!(container.pids().unwrap(), [init]);
    container.start("").unwrap();
    let pids = until(|| container.pids().ok().filter(|pids| pids.len() == 3));
    assert!(pids.contains(&init), "{pids:?}");
    container.delete().unwrap();
    assert_eq!(code(container.pids()).0, Code::NOT_FOUND);
}

fn a_paused_container_stands_still(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "while :; do echo tick; sleep 0.01; done"]);
    container.create(output()).unwrap();
    let mut stdout = container.attach("", Kind::STDOUT);
    let _stderr = container.attach("", Kind::STDERR);
    container.start("").unwrap();
    let mut buffer = [0; 5];
    rig.wait(stdout.read_exact(&mut buffer)).unwrap();
    container.pause().unwrap();
    container.pause().unwrap();
    let mut drain = async || {
        let mut rest = vec![0; 1 << 16];
        let quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, stdout.read(&mut rest)).await.is_ok() {}
        tokio::time::timeout(quiet, stdout.read(&mut rest)).await.is_err()
    };
    assert!(rig.wait(drain()), "it still writes");
    container.create_exec("e", &["true"], Stdio::default()).unwrap();
    assert_eq!(code(container.start("e")).0, Code::FAILED_PRECONDITION);
    container.resume().unwrap();
    container.resume().unwrap();
    rig.wait(stdout.read_exact(&mut buffer)).unwrap();
    container.start("e").unwrap();
    assert_eq!(container.wait("e").unwrap(), 0);
    container.delete().unwrap();
}

fn a_paused_container_can_be_deleted(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container.pause().unwrap();
    container.signal("", libc::SIGKILL, false).unwrap();
    assert_eq!(container.wait("").unwrap(), 128 + 9);
    container.delete().unwrap();
}

fn limits_that_cannot_be(rig: &Rig) {
    let before = rig.left_over();
    for (resources, part) in [
        (json!({ "memory": { "swappiness": 60 } }), "memory.swappiness"),
        (json!({ "network": { "classID": 7 } }), "network.classID"),
        (json!({ "unified": { "no.such": "1" } }), "no.such"),
        (json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }), "hugetlb.3MB.max"),
    ] {
        let mut container = rig.container(&["true"]);
        container.spec["linux"]["resources"] = resources;
        let (kind, message) = code(container.create(Stdio::default()));
        assert_eq!(kind, Code::INVALID_ARGUMENT, "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(rig.left_over(), before);
}

fn a_wait_for_memory_ends(rig: &Rig) {
    let container = rig.container(&["sleep", "1000"]);
    container.create(Stdio::default()).unwrap();
    let (client, request) = (rig.client.clone(), container.oom(0));
    let waiting = rig.runtime.spawn(async move { client.wait_oom(context(), &request).await });
    container.start("").unwrap();
    container.delete().unwrap();
    assert_eq!(code(rig.wait(waiting).unwrap()).0, Code::NOT_FOUND);
    assert_eq!(code(rig.wait(rig.client.wait_oom(context(), &container.oom(0)))).0, Code::NOT_FOUND);
}

fn a_fork_bomb_is_held(rig: &Rig) {
    let mut container = rig.container(&["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1000"]);
    container.spec["linux"]["resources"] = json!({ "pids": { "limit": 20 } });
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let stats = container.stats().unwrap();
    assert_eq!(stats.pids.max, 20);
    assert!(stats.pids.current <= 20, "{}", stats.pids.current);
    container.delete().unwrap();
}

fn limits_are_set_and_changed(rig: &Rig) {
    let mut container = rig.container(&["sleep", "1000"]);
    container.spec["linux"]["resources"] = json!({
        "memory": { "limit": 100 << 20, "swap": 150 << 20, "reservation": 50 << 20 },
        "cpu": { "shares": 1024, "quota": 50_000, "period": 100_000 },
        "pids": { "limit": 1 },
        "unified": { "memory.high": (90 << 20).to_string() },
    });
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    let shown = |file: &str| {
        let path = rig.agent_root().join("sys/fs/cgroup/tatami").join(&container.id).join(file);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let memory = ["memory.max", "memory.swap.max", "memory.low", "memory.high"].map(shown);
    assert_eq!(memory, ["104857600", "52428800", "52428800", "94371840"]);
    assert_eq!(["cpu.weight", "cpu.max", "pids.max"].map(shown), ["100", "50000 100000", "1"]);
    container.update(json!({ "cpu": { "period": 20_000 }, "pids": { "limit": -1 } })).unwrap();
    assert_eq!(["cpu.max", "pids.max", "memory.max"].map(shown), ["50000 20000", "max", "104857600"]);
    container.update(json!({ "memory": { "limit": 64 << 20, "swap": -1 }, "cpu": { "quota": -1 } })).unwrap();
    assert_eq!(["cpu.max", "memory.max", "memory.swap.max"].map(shown), ["max 20000", "67108864", "max"]);
    let (kind, message) = code(container.update(json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } })));
    assert_eq!(kind, Code::FAILED_PRECONDITION, "{message}");
    assert_eq!(code(container.update(json!({ "memory": "much" }))).0, Code::INVALID_ARGUMENT);
    let throttle = json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 199, "minor": 7, "rate": 1 }] } });
    let (kind, message) = code(container.update(throttle));
    assert_eq!(kind, Code::INVALID_ARGUMENT);
    assert!(message.contains("199:7"), "{message}");
    container.delete().unwrap();
}

fn use_is_measured(rig: &Rig) {
    let container = rig.container(&["sh", "-c", "i=0; while test $i -lt 20000; do i=$((i+1)); done; sleep 1000"]);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    let stats = until(|| container.stats().ok().filter(|stats| stats.cpu.usage_usec > 20_000));
    assert!(stats.memory.current > 0 && stats.memory.max == u64::MAX && stats.memory.peak >= stats.memory.current);
    assert!(stats.memory.stat["anon"] > 0 && stats.memory.events["oom_kill"] == 0);
    assert!((1..=2).contains(&stats.pids.current));
    let figures = rig.wait(rig.client.get_figures(context(), &Empty::default())).unwrap();
    assert!(figures.mem_available > 0 && figures.mem_total > figures.mem_available);
    assert!(figures.threads > 1 && figures.uptime > 0 && figures.cpu.len() == 8 && figures.load.len() == 3);
    let found = figures.containers.iter().find(|it| it.container_id == container.id).unwrap();
    assert!(found.stats.cpu.usage_usec >= stats.cpu.usage_usec);
    container.delete().unwrap();
    assert_eq!(code(container.stats()).0, Code::NOT_FOUND);
}

fn kills_for_want_of_memory(rig: &Rig) {
    let mut container = rig.container(&["sh", "-c", "tail /dev/zero; tail /dev/zero; sleep 1000"]);
    container.spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    let first = rig.wait(rig.client.wait_oom(context(), &container.oom(0))).unwrap().killed;
    assert!(first >= 1, "{first}");
    let second = rig.wait(rig.client.wait_oom(context(), &container.oom(1))).unwrap().killed;
    assert_eq!(second, 2);
    assert_eq!(container.stats().unwrap().memory.events["oom_kill"], 2);
    container.delete().unwrap();
    let mut container = rig.container(&["tail", "/dev/zero"]);
    container.spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    assert_eq!(container.run(), ended(128 + 9, "", ""));
}

fn cpu_time_is_limited(rig: &Rig) {
    let mut container = rig.container(&["sh", "-c", "while :; do :; done"]);
    container.spec["linux"]["resources"] = json!({ "cpu": { "quota": 5_000, "period": 100_000 } });
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    let stats = until(|| container.stats().ok().filter(|stats| stats.cpu.nr_throttled > 3));
    assert!(stats.cpu.throttled_usec > 0);
    container.delete().unwrap();
}

fn until<T>(mut met: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = met() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not come to that in 10 s");
}
