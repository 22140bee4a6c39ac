//! Pods as the kubelet has them, through containerd's CRI, 1.7 and 2.1: the same stories with runc and with Tatami.
//!
//! Run by `make test-clients`; arguments are parts of the names of the cases to tell. It takes a host with containerd, the CNI
//! plug-ins and KVM (`tests/with-kvm`), and root.

mod deaths;
mod life;
mod networks;
mod plugins;
mod resources;
mod roots;
mod volumes;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use tatami_tests::compare::{Case, Selection, compare, show_remains};
use tatami_tests::daemons::{Containerd, Home, Release};

use tatami_tests::daemons::kubelet::{Kubelet, Networks};

/// The cases that the other release of containerd is asked too, unless everything is asked for.
const BOTH: &[&str] = &["two containers of a pod"];

fn main() -> ExitCode {
    let cases: Vec<&Case<Kubelet>> =
        [life::CASES, deaths::CASES, networks::CASES, plugins::CASES, resources::CASES, roots::CASES, volumes::CASES]
            .into_iter()
            .flatten()
            .collect();
    Release::tell_on_each(BOTH, |release, selection| {
        let mut failures = tell_all(release, "kata", &cases, selection);
        if release == Release::Newer {
            // The Sandbox API drives the same pods.
            let fewer = selection.narrowed_to(BOTH);
            let asked = if selection.full || !selection.names.is_empty() { selection } else { &fewer };
            let told: Vec<_> = cases.iter().copied().filter(|case| !deaths::is_not_for_the_sandbox_api(case)).collect();
            failures += tell_all(release, "kata-sandbox", &told, asked);
        }
        if selection.full && release == Release::Newer {
            let networked: Vec<&Case<Kubelet>> = networks::CASES.iter().chain(plugins::CASES).collect();
            failures += tell_all(release, "kata-macvtap", &networked, selection);
        }
        failures
    })
}

fn tell_all(release: Release, handler: &'static str, cases: &[&Case<Kubelet>], selection: &Selection) -> usize {
    let home = Home::new(release);
    let networks = Networks::lay_out(&home);
    let containerd = Rc::new(RefCell::new(Containerd::start_for_pods(home)));
    networks.describe(&containerd.borrow());
    let mut reference = Kubelet::new(Rc::clone(&containerd), "runc");
    let mut ours = Kubelet::new(Rc::clone(&containerd), handler);
    let title = format!("{}, runtime handler {handler}", release.version_of("containerd"));
    let mut failures = compare(&title, cases, selection, &mut reference, &mut ours);
    failures += show_remains(&containerd.borrow().remains());
    drop((reference, ours));
    Rc::into_inner(containerd).expect("the stages are gone").into_inner().stop();
    failures
}
