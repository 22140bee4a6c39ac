//! Podman, through `podman`: the same stories with crun and with Tatami, called by the OCI runtime's command line.
//!
//! Run by `make test-clients`; arguments are parts of the names of the cases to tell. It takes a host with Podman and KVM
//! (`tests/with-kvm`), and root.

mod life;
mod networks;
mod pods;
mod settings;
mod stage;

use std::process::ExitCode;
use std::rc::Rc;

use tatami_tests::compare::{Case, Selection, compare, show_remains};
use tatami_tests::daemons::{Home, Podman, Release};

use stage::Cli;

fn main() -> ExitCode {
    let selection = Selection::from_environment();
    let cases: Vec<&Case<Cli>> =
        [life::CASES, settings::CASES, pods::CASES, networks::CASES].into_iter().flatten().collect();
    if !cases.iter().any(|case| selection.takes(case)) {
        return ExitCode::SUCCESS;
    }
    // There is one release, where those of Debian 13 are.
    let release = Release::Older;
    let podman = Rc::new(Podman::new(Home::new(release)));
    let mut reference = Cli::new(Rc::clone(&podman), Podman::REFERENCE);
    let mut ours = Cli::new(Rc::clone(&podman), Podman::OURS);
    let mut failures = compare(&release.version_of("podman"), &cases, &selection, &mut reference, &mut ours);
    failures += show_remains(&podman.remains());
    drop((reference, ours));
    Rc::into_inner(podman).expect("the stages are gone").stop();
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
