//! What the kubelet waits and pays for: pods through containerd's CRI and CNI's bridge, with runc and with Tatami.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tatami_tests::compare::Stage;
use tatami_tests::daemons::kubelet::{HOST, Kubelet, Networks, in_host_network, mount, with_host_network};
use tatami_tests::daemons::{Containerd, Home, Release, api};
use tatami_tests::program;

use crate::contest::{self, Times, median};
use crate::cost::{Memory, available};
use crate::requests::compare;
use crate::sockets::{serve_tcp, succeed};

/// The contestants, ours first: as containerd knows them, and as the tables do.
const HANDLERS: [(&str, &str); 2] = [("kata", "Tatami"), ("runc", "runc")];
/// Rounds of pods that come and go: an emulated host takes a minute for each.
const ROUNDS: usize = 3;
/// Rounds of the tables of requests.
const REQUEST_ROUNDS: usize = 3;
/// Time for what was started or has ended to be quiet.
const REST: Duration = Duration::from_secs(2);
/// Time for the host to have back what a pod does not use any more.
const GIVEN_BACK: Duration = Duration::from_secs(40);
/// Bytes that a container may use, more than it takes up.
const LIMIT: i64 = 384 << 20;
/// How long a container may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(60);
/// The cases of `bench-init` that are about one large file.
const FILES: [&str; 4] = ["write-1m", "read-1m", "read-4k", "write-4k"];

/// All of them, with a containerd 2.1 of their own.
///
/// # Errors
/// When a pod does not run or its container does not do what it is told.
///
/// # Panics
/// When something is left behind.
pub(crate) fn tables() -> Result<()> {
    // What a tap's frames are moved by where a user has it: the pods' servers open it, but load no module.
    succeed("modprobe", "-a tun vhost_net")?;
    let home = Home::new(Release::Newer);
    let networks = Networks::lay_out(&home);
    let containerd = Rc::new(RefCell::new(Containerd::start_for_pods(home)));
    networks.describe(&containerd.borrow());
    let mut kubelets = HANDLERS.map(|(handler, _)| Kubelet::new(Rc::clone(&containerd), handler));
    requests(&kubelets)?;
    // A pod of each runs by now: what all have in common is there.
    for (kubelet, (_, name)) in kubelets.iter().zip(HANDLERS) {
        print_memory(name, &memory(kubelet)?);
    }
    clear(&mut kubelets);
    lives(&kubelets)?;
    clear(&mut kubelets);
    drop(kubelets);
    Rc::into_inner(containerd).expect("its clients are gone").into_inner().stop();
    Ok(())
}

/// Removes all pods.
fn clear(kubelets: &mut [Kubelet; 2]) {
    for kubelet in kubelets {
        let left = kubelet.clear();
        assert!(left.is_empty(), "left behind:\n  {left}");
    }
}

/// The phases of a pod's life.
const PHASES: [&str; 3] =
    ["RunPodSandbox", "CreateContainer and StartContainer", "StopPodSandbox and RemovePodSandbox"];

/// Pods with one container come and go, on CNI's bridge and with `hostNetwork`, where CNI has nothing to do.
fn lives(kubelets: &[Kubelet; 2]) -> Result<()> {
    let mut times = PHASES.map(|_| HANDLERS.map(|(_, name)| Times::of(name)));
    // What a pod on the bridge takes longer than one that is not: of each contestant, by round.
    let mut longer = PHASES.map(|_| HANDLERS.map(|_| Vec::new()));
    for round in 0..ROUNDS {
        for (index, kubelet) in kubelets.iter().enumerate() {
            let on_bridge = life(kubelet, &format!("bridge{round}"), false)?;
            let on_host = life(kubelet, &format!("host{round}"), true)?;
            for phase in 0..PHASES.len() {
                times[phase][index].add(on_bridge[phase]);
                let [with, without] = [on_bridge[phase], on_host[phase]].map(contest::milliseconds);
                longer[phase][index].push(with - without);
            }
        }
    }
    for (phase, times) in PHASES.into_iter().zip(&times) {
        contest::print(&format!("{phase}, a pod of one container on CNI's bridge, containerd 2.1"), times);
    }
    println!("the network's share: longer on CNI's bridge than with hostNetwork, median of {ROUNDS} rounds");
    println!("  {:<36} {:>11} {:>9} {:>21}", "", "Tatami ms", "runc ms", "Tatami's own ms");
    for (phase, [ours, theirs]) in PHASES.into_iter().zip(&longer) {
        // What both have is CNI's.
        let (ours, theirs) = (median(ours), median(theirs));
        println!("  {phase:<36} {ours:>11.1} {theirs:>9.1} {:>21.1}", ours - theirs);
    }
    println!();
    Ok(())
}

/// How long each phase of a pod's life takes.
fn life(kubelet: &Kubelet, name: &str, host_network: bool) -> Result<[Duration; 3]> {
    let (mut described, mut container) = (kubelet.described(name), Kubelet::container("c", &["sleep", "100000"]));
    if host_network {
        with_host_network(&mut described);
        in_host_network(&mut container);
    }
    let begun = Instant::now();
    let pod = said(kubelet.run_described(described)).with_context(|| format!("the pod {name}"))?;
    let ready = begun.elapsed();
    said(kubelet.start_described(&pod, container)).with_context(|| format!("the container of {name}"))?;
    let started = begun.elapsed();
    let removed = kubelet.remove(&pod.id);
    ensure!(removed == "ok", "the removal of {name}: {removed}");
    Ok([ready, started - ready, begun.elapsed() - started])
}

/// What a pod has of the host's memory.
struct Spent {
    when: &'static str,
    /// KiB that the host has less.
    host: u64,
    /// Of its processes.
    share: Memory,
}

/// A pod whose container does nothing, takes 200 MiB, and has given them back.
fn memory(kubelet: &Kubelet) -> Result<Vec<Spent>> {
    // Dd has filled all of its block before the first byte can be read.
    let hold = "cd /dev/shm; mkfifo go held; while read x <go; do dd if=/dev/zero of=held bs=200M count=1 2>/dev/null & \
                exec 3<held; head -c 1 <&3 >/dev/null; echo >full; read x <go; kill $!; exec 3<&-; wait; rm full; done";
    let mut container = Kubelet::container("c", &["sh", "-c", hold]);
    if let Some(linux) = &mut container.linux {
        linux.resources = Some(api::LinuxContainerResources { memory_limit_in_bytes: LIMIT, ..Default::default() });
    }
    let known = pids_of(kubelet);
    let before = available();
    let pod = said(kubelet.run_described(kubelet.described("memory")))?;
    let container = said(kubelet.start_described(&pod, container))?;
    thread::sleep(REST);
    let mut all = Vec::new();
    let mut look = |when| {
        let mut share = Memory::default();
        pids_of(kubelet).iter().filter(|pid| !known.contains(pid)).for_each(|pid| share += Memory::proportional(*pid));
        all.push(Spent { when, host: before.saturating_sub(available()), share });
    };
    look("idle");
    turn(kubelet, &container, true)?;
    look("with 200 MiB in use");
    turn(kubelet, &container, false)?;
    look("as soon as they are not");
    thread::sleep(GIVEN_BACK);
    look("40 s after");
    let removed = kubelet.remove(&pod.id);
    ensure!(removed == "ok", "{removed}");
    Ok(all)
}

/// Has the container take up its memory, or give it back.
fn turn(kubelet: &Kubelet, container: &str, full: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    kubelet.shell(container, "echo >/dev/shm/go");
    let seen = || kubelet.shell(container, "[ -e /dev/shm/full ] && echo full");
    while (seen() == "full") != full {
        ensure!(Instant::now() < deadline, "the container does not get full or empty: {}", seen());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn print_memory(name: &str, all: &[Spent]) {
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("one more pod of one container that may use {} MiB, with {name}: MB", LIMIT >> 20);
    println!("  {:<24} {:>14} {:>22} {:>20}", "", "host has less", "PSS, the rest apart", "of guest, or of dd");
    for Spent { when, host, share } in all {
        println!("  {when:<24} {:>14.1} {:>22.1} {:>20.1}", mib(*host), mib(share.own), mib(share.guest));
    }
    println!();
}

/// Files on the containers' roots, and streams to the host's end of the bridge, by the program that measures them in guests.
fn requests(kubelets: &[Kubelet; 2]) -> Result<()> {
    let names = HANDLERS.map(|(_, name)| name);
    let containers = [measuring(&kubelets[0])?, measuring(&kubelets[1])?];
    let exec = |index: usize, arguments: &[&str]| -> Result<String> {
        let line = kubelets[index].exec(&containers[index], &[&["/bench/bench-init"], arguments].concat());
        // A status other than 0 stands in brackets.
        if line.contains('[') {
            bail!("{arguments:?} with {}: {line}", names[index]);
        }
        Ok(line)
    };
    compare("files on a container's root, nothing in caches", &names, REQUEST_ROUNDS, |index| {
        let mut line = String::new();
        for case in FILES {
            // The program empties the caches of the kernel that it is on.
            nix::unistd::sync();
            fs::write("/proc/sys/vm/drop_caches", "3")?;
            line += &format!(" {}", exec(index, &["files", case])?);
        }
        Ok(line)
    })?;
    serve_tcp(HOST)?;
    compare("TCP between a pod and the host's bridge", &names, REQUEST_ROUNDS, |index| exec(index, &["net", HOST]))
}

/// A container that has the program.
fn measuring(kubelet: &Kubelet) -> Result<String> {
    let folder = kubelet.scratch().join("bench");
    fs::create_dir_all(&folder)?;
    fs::copy(program("bench-init", "make bench"), folder.join("bench-init"))?;
    let mut container = Kubelet::container("c", &["sleep", "100000"]);
    container.mounts = vec![mount(&folder, "/bench", true)];
    let pod = said(kubelet.run_described(kubelet.described("measuring")))?;
    said(kubelet.start_described(&pod, container))
}

fn said<T>(result: Result<T, String>) -> Result<T> {
    result.map_err(anyhow::Error::msg)
}

fn pids_of(kubelet: &Kubelet) -> Vec<i32> {
    kubelet.containerd().home().processes().iter().map(|process| process.pid).collect()
}
