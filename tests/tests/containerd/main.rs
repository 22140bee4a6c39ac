//! containerd, 1.7 and 2.1, through `ctr`: the same stories with runc and with Tatami.
//!
//! Run by `make test-clients`; arguments are parts of the names of the cases to tell. It takes a host with containerd and KVM
//! (`tests/with-kvm`), and root.

mod devices;
mod execs;
mod kills;
mod life;
mod limits;
mod roots;
mod sandboxes;
mod settings;
mod stage;
mod streams;
mod watches;
mod wrong;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use tatami_tests::compare::{Case, OURS, REFERENCE, Selection, compare, show_remains};
use tatami_tests::daemons::{Containerd, Home, Release};

use stage::Ctr;

/// The cases that the other release of containerd is asked too, unless everything is asked for.
const BOTH: &[&str] =
    &["hello", "a life, step by step", "an exec", "a restart of containerd", "the runtime's server killed"];

fn main() -> ExitCode {
    let cases: Vec<&Case<Ctr>> = [
        life::CASES,
        streams::CASES,
        execs::CASES,
        limits::CASES,
        roots::CASES,
        devices::CASES,
        sandboxes::CASES,
        settings::CASES,
        wrong::CASES,
        watches::CASES,
        kills::CASES,
    ]
    .into_iter()
    .flatten()
    .collect();
    Release::tell_on_each(BOTH, |release, selection| tell_all(release, &cases, selection))
}

fn tell_all(release: Release, cases: &[&Case<Ctr>], selection: &Selection) -> usize {
    let containerd = Rc::new(RefCell::new(Containerd::start(Home::new(release))));
    let mut reference = Ctr::new(Rc::clone(&containerd), REFERENCE);
    let mut ours = Ctr::new(Rc::clone(&containerd), OURS);
    let mut failures = compare(&release.version_of("containerd"), cases, selection, &mut reference, &mut ours);
    failures += show_remains(&containerd.borrow().remains());
    drop((reference, ours));
    Rc::into_inner(containerd).expect("the stages are gone").into_inner().stop();
    failures
}
