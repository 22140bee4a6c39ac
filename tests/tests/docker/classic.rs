//! Docker's classic path: a runtime that `daemon.json` names by its path, called by the OCI runtime's command line.

use std::fs;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;

use crate::life;
use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker, by a runtime's path: hello, and the kernel", hello)
        .differs(&[("the host's kernel", "a guest has a kernel of its own")]),
    Case::new("docker, by a runtime's path: a life, step by step", life::step_by_step).long(),
    Case::new("docker, by a runtime's path: exec", life::exec).long(),
    Case::new("docker, by a runtime's path: a terminal", life::terminal).long(),
    Case::new("docker, by a runtime's path: logs", life::logs).long(),
    Case::new("docker, by a runtime's path: input", life::input).long(),
    Case::new("docker, by a runtime's path: stop and kill", life::stop_and_kill).long(),
    Case::new("docker, by a runtime's path: cp", life::cp).long(),
    Case::new("docker, by a runtime's path: restart", life::restart).long(),
];

fn hello(cli: &mut Cli, notes: &mut Notes) {
    let finished = cli.run("a", &["--rm"], &["sh", "-c", "echo hello; uname -r; exit 42"]);
    notes.want("status", finished.status, 42);
    let output = finished.out();
    let (first, kernel) = output.split_once('\n').unwrap_or_default();
    notes.want("output", first, "hello");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    notes.want("the host's kernel", kernel == host, true);
}
