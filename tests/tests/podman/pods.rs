//! Podman's pods: with our runtime one machine for all their containers.

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::Engine;

use crate::stage::Cli;

/// Why there is one.
const ONE: &str = "a pod is one machine";
/// Asks the web server of the same pod until it answers.
const FETCH: &str = "i=0; until wget -qO- http://127.0.0.1:8080/x || test $i -gt 100; do i=$((i+1)); sleep 0.2; done";

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("podman: a pod", pod).differs(&[("machines", ONE)]),
    Case::new("podman: a pod's life", life).differs(&[("machines", ONE), ("machines then", ONE)]).long(),
];

/// A pod with a web server and a container that does nothing; its name.
fn web_and_another(cli: &Cli, notes: &mut Notes) -> String {
    let (pod, group) = (cli.id("pod"), cli.group());
    let created = cli.call(&["pod", "create", "--name", &pod, "--network", "none", "--cgroup-parent", &group]);
    notes.want("a pod", created.status, 0);
    notes.want("its words", created.err(), "");
    let serve = "mkdir /www; echo page >/www/x; exec httpd -f -p 127.0.0.1:8080 -h /www";
    cli.detached("web", &["--pod", &pod], &["sh", "-c", serve]);
    cli.detached("c", &["--pod", &pod], &["sleep", "1000"]);
    pod
}

fn pod(cli: &mut Cli, notes: &mut Notes) {
    web_and_another(cli, notes);
    notes.want("machines", cli.machines(), 0);
    notes.want("loopback is shared", cli.exec("c", &[], &["sh", "-c", FETCH]).out(), "page\n");
}

fn life(cli: &mut Cli, notes: &mut Notes) {
    let pod = web_and_another(cli, notes);
    notes.want("machines", cli.machines(), 0);
    let name = |name: &str| cli.exec(name, &[], &["hostname"]).out().trim().to_owned();
    notes.want("the name is shared", name("web") == name("c") && name("c") == pod, true);
    let processes = cli.exec("c", &[], &["sh", "-c", "ps -o comm | grep -c httpd"]);
    notes.want("processes are not", processes.out(), "0\n");
    notes.want("one ends", cli.on("c", &["rm", "--force", "--time", "0"]), "ok");
    notes.want("the other runs on", cli.exec("web", &[], &["cat", "/www/x"]).out(), "page\n");
    cli.detached("d", &["--pod", &pod], &["sleep", "1000"]);
    notes.want("a later one", cli.exec("d", &[], &["sh", "-c", FETCH]).out(), "page\n");
    notes.want("machines then", cli.machines(), 0);
    notes.want("stopped", cli.call(&["pod", "stop", "--time", "1", &pod]).status, 0);
    let state = cli.call(&["pod", "inspect", "--format", "{{.State}}", &pod]);
    notes.want("its state", state.out(), "Exited\n");
    notes.want("started", cli.call(&["pod", "start", &pod]).status, 0);
    notes.want("all run", cli.exec("d", &[], &["hostname"]).status, 0);
    notes.want("removed", cli.call(&["pod", "rm", "--force", "--time", "0", &pod]).status, 0);
}
