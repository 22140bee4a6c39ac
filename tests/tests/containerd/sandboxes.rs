//! Sandboxes by themselves: what containerd 2.x offers for pods, and containers that come into one and go again.
//!
//! Its `ctr` lists and removes sandboxes and runs containers in them, but cannot make one: that is done here as CRI does it.

use std::thread;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::{Grpc, field, text};

use crate::stage::{Ctr, error_or_ok};

pub(crate) const CASES: &[Case<Ctr>] = &[Case::new("a sandbox and its containers", sandbox)
    .long()
    .without_reference("runc's shim does not offer sandboxes")];

/// The controller that leaves sandboxes to their shims.
const SANDBOXER: &[u8] = b"shim";

/// A sandbox as its user has it, by its id.
struct Sandbox {
    api: Grpc,
    id: String,
}

impl Sandbox {
    fn call(&self, method: &str, rest: &[u8]) -> Result<Vec<u8>, String> {
        let message = [field(1, self.id.as_bytes()), rest.to_vec(), field(10, SANDBOXER)].concat();
        self.api.call(&format!("/containerd.services.sandbox.v1.Controller/{method}"), &message)
    }

    /// `ok`, or the code of the error.
    fn told(&self, method: &str) -> String {
        kind(&self.call(method, &[]))
    }

    fn state(&self) -> String {
        self.call("Status", &[]).map_or_else(|error| error, |status| text(&status, 3))
    }
}

fn kind(answer: &Result<Vec<u8>, String>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("code {}", error.split(':').next().unwrap_or_default()),
    }
}

fn sandbox(ctr: &mut Ctr, notes: &mut Notes) {
    let plugins = ctr.ctr(&["plugins", "ls"]).out();
    let mut words = plugins.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let has = words.any(|words| words.first() == Some(&"io.containerd.sandbox.controller.v1") && words[1] == "shim");
    // 1.7 has another, which it calls an experiment.
    notes.see("this containerd has it", has);
    if !has {
        return;
    }
    let (socket, namespace) = (ctr.containerd().socket(), ctr.containerd().home().containers_cgroup());
    let sandbox = Sandbox { api: Grpc::new(&socket, &namespace), id: ctr.id("s") };
    let runtime = field(2, &field(1, ctr.runtime().as_bytes()));
    let record = [field(1, sandbox.id.as_bytes()), runtime, field(10, SANDBOXER)].concat();
    let stored = sandbox.api.call("/containerd.services.sandbox.v1.Store/Create", &field(1, &record));
    notes.want("record", kind(&stored), "ok");
    notes.want("start before it is created is refused", sandbox.told("Start") != "ok", true);
    let created = sandbox.call("Create", &field(6, &record));
    notes.want("create", created.as_ref().err().map_or("ok", String::as_str), "ok");
    notes.want("create again", kind(&sandbox.call("Create", &field(6, &record))), "code 6");
    notes.want("start", sandbox.call("Start", &[]).err().unwrap_or_else(|| "ok".to_owned()), "ok");
    notes.want("state", sandbox.state(), "SANDBOX_READY");
    notes.want("listed", ctr.ctr(&["sandboxes", "ls"]).out().contains(&sandbox.id), true);

    containers(ctr, notes, &sandbox);
    let waiter = {
        let sandbox = Sandbox { api: Grpc::new(&socket, &namespace), id: sandbox.id.clone() };
        thread::spawn(move || sandbox.told("Wait"))
    };
    notes.want("removal", error_or_ok(&ctr.ctr(&["sandboxes", "rm", &sandbox.id])), "ok");
    notes.want("its end is told", waiter.join().expect("no panic"), "ok");
    notes.want("listed no more", ctr.ctr(&["sandboxes", "ls"]).out().contains(&sandbox.id), false);
    notes.want("nothing left", ctr.containerd().remains().join("\n"), "");
}

/// What happens in it.
fn containers(ctr: &Ctr, notes: &mut Notes, sandbox: &Sandbox) {
    for name in ["a", "b"] {
        ctr.detached(name, &["--sandbox", &sandbox.id], &["sleep", "1000"]);
    }
    let processes = ctr.containerd().home().processes();
    let machines = processes.iter().filter(|process| process.command.starts_with("tatami-vmm")).count();
    notes.want("machines for two containers", machines, 1);
    ctr.restart(nix::sys::signal::Signal::SIGTERM);
    notes.want("state after a restart of containerd", sandbox.state(), "SANDBOX_READY");
    for name in ["a", "b"] {
        let finished = ctr.exec(name, "e", &[], &["sh", "-c", "hostname >/dev/null; ls /proc | grep -c '^1$'"]);
        notes.want(format!("an exec in {name}"), finished.out(), "1\n");
    }
    let metrics = sandbox.call("Metrics", &[]).expect("metrics");
    notes.want("metrics of version 2", text(&metrics, 1).contains("io.containerd.cgroups.v2.Metrics"), true);
    notes.want("end of a", ctr.finish("a"), "kill 0, STOPPED, rm 137, ok");
    notes.want("b lives on", ctr.status("b"), "RUNNING");
    notes.want("end of b", ctr.finish("b"), "kill 0, STOPPED, rm 137, ok");
    notes.want("state of the empty one", sandbox.state(), "SANDBOX_READY");
    let finished = ctr.run("c", &["--rm", "--sandbox", &sandbox.id], &["echo", "a third"]);
    notes.want("one that comes later", format!("{} {}", finished.status, finished.out()), "0 a third\n");
    notes.want(
        "events of b",
        ctr.events("b", "delete"),
        "create start exec-added[e] exec-started[e] exit[e](0) exit(137) delete",
    );
}
