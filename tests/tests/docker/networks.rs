//! Docker's own networks: the bridge, ports of the host, networks that a container joins and leaves while it runs.

use std::thread;
use std::time::{Duration, Instant};

use tatami_tests::compare::{Case, Notes};
use tatami_tests::engine::{Engine, SOON};
use tatami_tests::page;

use crate::stage::Cli;

pub(crate) const CASES: &[Case<Cli>] = &[
    Case::new("docker: its bridge and a port of the host", bridge),
    Case::new("docker: a network joined and left", joined_and_left).long(),
    Case::new("docker: containers of a network by their names", names).long(),
    Case::new("docker: the network of another container", of_another).long(),
];

/// What Docker gives a container that is told nothing else.
const BRIDGE: [&str; 2] = ["--network", "bridge"];

fn bridge(cli: &mut Cli, notes: &mut Notes) {
    let serve = "mkdir /www; echo page >/www/x; exec httpd -f -p 80 -h /www";
    cli.detached("web", &[BRIDGE[0], BRIDGE[1], "--publish", "127.0.0.1:18081:80"], &["sh", "-c", serve]);
    notes.want("its interfaces", interfaces(cli, "web"), "eth0 lo");
    let address = cli.exec("web", &[], &["sh", "-c", "ip -o addr show dev eth0 scope global | awk '{print $4}'"]).out();
    let told = cli.inspect("web", "{{.NetworkSettings.Networks.bridge.IPAddress}}");
    notes.want("its address is the one that Docker tells", address.trim() == format!("{told}/24"), true);
    let way_out = cli.exec("web", &[], &["sh", "-c", "ip route | grep ^default | sed 's/ *$//'"]).out();
    notes.want("its way out", way_out.trim(), "default via 172.29.0.1 dev eth0");
    notes.want("the page by the host's port", page("127.0.0.1:18081"), "page");
    notes.want("restarted", cli.on("web", &["restart", "--time", "1"]), "ok");
    notes.want("the page by the host's port then", page("127.0.0.1:18081"), "page");
}

fn joined_and_left(cli: &mut Cli, notes: &mut Notes) {
    let network = cli.id("net");
    notes.want("a network", cli.call(&["network", "create", "--subnet", "172.28.7.0/24", &network]).status, 0);
    cli.detached("c", &BRIDGE, &["sleep", "100000"]);
    notes.want("before", interfaces(cli, "c"), "eth0 lo");
    notes.want("joined", cli.on("c", &["network", "connect", &network]), "ok");
    notes.want("its interfaces then", interfaces_until(cli, "c", "eth0 eth1 lo"), "eth0 eth1 lo");
    let ping = ["sh", "-c", "ping -c 1 -W 20 172.28.7.1 >/dev/null && echo ok"];
    notes.want("its gateway answers", cli.exec("c", &[], &ping).out().trim(), "ok");
    notes.want("left", cli.on("c", &["network", "disconnect", &network]), "ok");
    notes.want("its interfaces after that", interfaces_until(cli, "c", "eth0 lo"), "eth0 lo");
    notes.want("joined again", cli.on("c", &["network", "connect", &network]), "ok");
    notes.want("its interfaces at last", interfaces_until(cli, "c", "eth0 eth1 lo"), "eth0 eth1 lo");
    notes.want("its gateway answers again", cli.exec("c", &[], &ping).out().trim(), "ok");
    notes.want("removed", cli.on("c", &["rm", "--force"]), "ok");
    notes.want("the network too", cli.call(&["network", "rm", &network]).status, 0);
}

fn names(cli: &mut Cli, notes: &mut Notes) {
    let network = cli.id("net");
    notes.want("a network", cli.call(&["network", "create", &network]).status, 0);
    let serve = "mkdir /www; echo page >/www/x; exec httpd -f -p 80 -h /www";
    cli.detached("web", &["--network", &network, "--network-alias", "pages"], &["sh", "-c", serve]);
    cli.detached("c", &["--network", &network], &["sleep", "100000"]);
    let fetch = |name: &str| cli.exec("c", &[], &["timeout", "30", "wget", "-qO-", &format!("http://{name}/x")]);
    notes.want("by its name", fetch(&cli.id("web")).out().trim(), "page");
    notes.want("by its other name", fetch("pages").out().trim(), "page");
    notes.want("by a name that nobody has", fetch("nobody.invalid").status != 0, true);
    let itself = cli.exec("c", &[], &["sh", "-c", &format!("ping -c 1 -W 20 {} >/dev/null && echo ok", cli.id("c"))]);
    notes.want("itself", itself.out().trim(), "ok");
    // Both answers are looked for at once, by many.
    let many =
        "for i in $(seq 20); do timeout 60 wget -qO- http://pages/x & done | sort | uniq -c | awk '{print $1, $2}'";
    notes.want("twenty at once", cli.exec("c", &[], &["sh", "-c", many]).out().trim(), "20 page");
    notes.want("removed", cli.call(&["rm", "--force", &cli.id("web"), &cli.id("c")]).status, 0);
    notes.want("the network too", cli.call(&["network", "rm", &network]).status, 0);
}

/// Two containers that have one network, as `--network container:NAME` and compose's `network_mode: service:NAME` have it.
fn of_another(cli: &mut Cli, notes: &mut Notes) {
    let serve = "mkdir /www; echo page >/www/x; exec httpd -f -p 80 -h /www";
    cli.detached("web", &BRIDGE, &["sh", "-c", serve]);
    let its = format!("container:{}", cli.id("web"));
    cli.detached("beside", &["--network", &its], &["sleep", "100000"]);
    let address = ["sh", "-c", "ip -o addr show dev eth0 scope global | awk '{print $4}'"];
    let of = |name: &str| cli.exec(name, &[], &address).out().trim().to_owned();
    notes.want("they have one address", !of("web").is_empty() && of("web") == of("beside"), true);
    let script = "for i in $(seq 60); do wget -qO- http://127.0.0.1/x 2>/dev/null && break; sleep 0.5; done";
    let fetch = ["sh", "-c", script];
    notes.want("what one serves, the other has by loopback", cli.exec("beside", &[], &fetch).out().trim(), "page");
    let name = ["sh", "-c", "hostname"];
    let same = cli.exec("web", &[], &name).out() == cli.exec("beside", &[], &name).out();
    notes.want("they have one name", same, true);
    let apart = cli.exec("beside", &[], &["sh", "-c", "ls /www 2>&1 | grep -c 'No such'"]).out();
    notes.want("each has its own files", apart.trim(), "1");
    let once = cli.run("once", &["--rm", "--network", &its], &fetch);
    notes.want("one that comes and goes", once.out().trim(), "page");
    notes.want("the second removed", cli.on("beside", &["rm", "--force"]), "ok");
    notes.want("the first goes on", cli.exec("web", &[], &fetch).out().trim(), "page");
    cli.detached("again", &["--network", &its], &["sleep", "100000"]);
    notes.want("the first restarted", cli.on("web", &["restart", "--time", "1"]), "ok");
    notes.want("it serves again", cli.exec("web", &[], &fetch).out().trim(), "page");
    notes.want("the first removed", cli.on("web", &["rm", "--force"]), "ok");
    notes.want("the other goes on", cli.exec("again", &[], &["echo", "here"]).out().trim(), "here");
    notes.want("removed", cli.on("again", &["rm", "--force"]), "ok");
}

fn interfaces(cli: &Cli, name: &str) -> String {
    cli.exec(name, &[], &["sh", "-c", "echo $(ls /sys/class/net | sort)"]).out().trim().to_owned()
}

/// The same, once they are `wanted`, or after a while whatever they are.
fn interfaces_until(cli: &Cli, name: &str, wanted: &str) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let seen = interfaces(cli, name);
        if seen == wanted || Instant::now() > deadline {
            return seen;
        }
        thread::sleep(Duration::from_millis(300));
    }
}
