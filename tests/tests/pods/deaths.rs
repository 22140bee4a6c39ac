//! What dies under a pod, and what comes back.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::compare::{Case, Notes};

use tatami_tests::daemons::kubelet::{Kubelet, Pod, SOON};

use super::plugins::ON_THE_HOSTS_NETWORK;

const SERVER: &str = "a pod's server is killed";

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("containerd restarts under a pod", restart),
    Case::new("what a pod runs in is killed", ground)
        .without_reference("it is the pause container with runc, whose shim then stays for good"),
    Case::new(SERVER, server).without_reference("runc leaves the container's processes running, then"),
    Case::new("a client gives up on a pod that is being made", given_up)
        .without_reference("runc has nothing that could take so long"),
    Case::new("twenty pods at once", twenty).long(),
];

/// Whether a case is lost on containerd's Sandbox API: 2.1 forgets neither the pod nor the containers of a server that has died, and
/// falls over a pod on the host's network itself, before it calls anybody (a nil pointer in `NewBundle`).
pub(crate) fn is_not_for_the_sandbox_api(case: &Case<Kubelet>) -> bool {
    [SERVER, ON_THE_HOSTS_NETWORK].contains(&case.name)
}

fn restart(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    kubelet.restart(Signal::SIGKILL);
    notes.want("the pod is ready", kubelet.status(&pod).state, 0);
    notes.want("the container runs", kubelet.state(&id), "running");
    notes.want("a command in it", kubelet.exec(&id, &["echo", "here"]), "here");
    let other = kubelet.start(&pod, "other", &["sleep", "100000"]);
    notes.want("another one", kubelet.state(&other), "running");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

/// Waits until a pod is not ready any more.
fn end_of(kubelet: &Kubelet, pod: &Pod) -> i32 {
    let deadline = Instant::now() + SOON;
    loop {
        let state = kubelet.status(pod).state;
        if state != 0 || Instant::now() > deadline {
            return state;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn ground(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    kill(Pid::from_raw(kubelet.ground()), Signal::SIGKILL).expect("it is there");
    notes.want("the pod is ready no more", end_of(kubelet, &pod), 1);
    notes.want("the container", kubelet.end_of(&id), "exited 137");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

fn server(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    kill(Pid::from_raw(kubelet.server()), Signal::SIGKILL).expect("it is there");
    notes.want("the pod is ready no more", end_of(kubelet, &pod), 1);
    notes.want("the container has ended", kubelet.end_of(&id).starts_with("exited"), true);
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

fn given_up(kubelet: &mut Kubelet, notes: &mut Notes) {
    let said = kubelet.give_up_on(kubelet.described("pod"), Duration::from_secs(10));
    notes.want("the client's time is up", said.contains("Deadline") || said.contains("Cancelled"), true);
    notes.want("nothing left", kubelet.containerd().remains_within(SOON).join("\n"), "");
}

fn twenty(kubelet: &mut Kubelet, notes: &mut Notes) {
    let names: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    let descriptions: Vec<_> = names.iter().map(|name| kubelet.described(name)).collect();
    let pods = kubelet.run_at_once(descriptions);
    let ready = pods.iter().filter(|pod| pod.as_ref().is_ok_and(|pod| kubelet.status(pod).state == 0)).count();
    notes.want("ready", ready, 20);
    let reasons: Vec<_> = pods.iter().filter_map(|pod| pod.as_ref().err()).collect();
    notes.want("what went wrong", format!("{reasons:?}"), "[]");
    let pods: Vec<Pod> = pods.into_iter().flatten().collect();
    let mut addresses: Vec<String> = pods.iter().map(|pod| kubelet.addresses(pod).0).collect();
    addresses.sort();
    addresses.dedup();
    notes.want("each with an address of its own", addresses.len(), 20);
    let ids: Vec<String> = pods.iter().map(|pod| kubelet.start(pod, "c", &["sleep", "100000"])).collect();
    notes.want("each with a container", ids.iter().filter(|id| kubelet.state(id) == "running").count(), 20);
    notes.want("removed", pods.iter().filter(|pod| kubelet.remove(&pod.id) == "ok").count(), 20);
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}
