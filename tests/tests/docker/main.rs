//! Docker, 26 and 28, through `docker`: the same stories with runc and with Tatami, without networks first, and then those of networks.
//! Tatami is containerd's shim there, and in some more stories a runtime that Docker is told the path of.
//!
//! Run by `make test-clients`; arguments are parts of the names of the cases to tell. It takes a host with Docker and KVM
//! (`tests/with-kvm`), and root.

mod classic;
mod deaths;
mod life;
mod limits;
mod networks;
mod settings;
mod stage;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use tatami_tests::compare::{Case, OURS, REFERENCE, Selection, compare, show_remains};
use tatami_tests::daemons::{Docker, Home, Release};

use stage::Cli;

/// The cases that the other release of Docker is asked too, unless everything is asked for.
const BOTH: &[&str] = &["docker: hello", "docker: its bridge and a port of the host"];

fn main() -> ExitCode {
    let cases: Vec<&Case<Cli>> =
        [life::CASES, settings::CASES, limits::CASES, deaths::CASES].into_iter().flatten().collect();
    let by_path: Vec<&Case<Cli>> = classic::CASES.iter().collect();
    let networked: Vec<&Case<Cli>> = networks::CASES.iter().collect();
    Release::tell_on_each(BOTH, |release, selection| {
        tell_all(release, &[(OURS, &cases), (Docker::BY_PATH, &by_path)], selection, Docker::start)
            + tell_all(release, &[(OURS, &networked)], selection, Docker::start_networked)
    })
}

/// Tells the cases that are asked for, each with what our runtime is called in them.
fn tell_all(
    release: Release,
    told: &[(&'static str, &[&Case<Cli>])],
    selection: &Selection,
    start: fn(Home) -> Docker,
) -> usize {
    if !told.iter().any(|(_, cases)| cases.iter().any(|case| selection.takes(case))) {
        return 0;
    }
    let docker = Rc::new(RefCell::new(start(Home::new(release))));
    let mut failures = 0;
    for (runtime, cases) in told.iter().filter(|(_, cases)| cases.iter().any(|case| selection.takes(case))) {
        let mut reference = Cli::new(Rc::clone(&docker), REFERENCE);
        let mut ours = Cli::new(Rc::clone(&docker), runtime);
        failures += compare(&release.version_of("dockerd"), cases, selection, &mut reference, &mut ours);
    }
    failures += show_remains(&docker.borrow().remains());
    Rc::into_inner(docker).expect("the stages are gone").into_inner().stop();
    failures
}
