//! What a pod's network is like from within and from without.

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::api;

use tatami_tests::daemons::kubelet::{HOST, HOST_6, Kubelet, MTU, Pod, host};
use tatami_tests::page;

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("addresses and routes of a pod", addresses),
    Case::new("pods talk to each other", between),
    Case::new("a port of the host", host_port),
    Case::new("ports and pods by macvtap", by_macvtap).long(),
    Case::new("a port is forwarded", forwarded).long(),
];

/// A container that serves a page.
pub(crate) const SERVER: &[&str] = &["sh", "-c", "mkdir /www; echo page >/www/x; exec httpd -f -p 80 -h /www"];

fn addresses(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let (v4, v6) = kubelet.addresses(&pod);
    let inside = kubelet.start(&pod, "c", &["sleep", "100000"]);
    let text = kubelet.shell(&inside, "ip -o addr show dev eth0 scope global | awk '{print $4}' | sort");
    let mut wanted = [format!("{v4}/16"), format!("{v6}/64")];
    wanted.sort();
    notes.want("its addresses are those that CRI tells", text == wanted.join("\n"), true);
    notes.want("its interfaces", kubelet.shell(&inside, "ls /sys/class/net | sort | tr '\\n' ' '"), "eth0 lo");
    notes.want("its largest packet", kubelet.shell(&inside, "cat /sys/class/net/eth0/mtu"), MTU);
    // The kernel's own routes are written differently by every kernel.
    let routes = "ip route | grep via | sed 's/ *$//; s/ src .*//' | sort";
    notes.want(
        "its routes",
        kubelet.shell(&inside, routes),
        "10.99.0.0/16 via 10.88.0.1 dev eth0\ndefault via 10.88.0.1 dev eth0",
    );
    notes.want("of version 6", kubelet.shell(&inside, "ip -6 route | grep -c '^default via fd00:88::1'"), "1");
    notes.want(
        "the host by version 6",
        kubelet.shell(&inside, &format!("ping -6 -c 1 -W 20 {HOST_6} >/dev/null && echo ok")),
        "ok",
    );
    notes.want(
        "from the host by version 6",
        host(&["busybox", "ping", "-6", "-c", "1", "-W", "20", &v6]).contains("1 packets received"),
        true,
    );
    let whole = format!("ping -c 1 -W 20 -s {} {HOST} >/dev/null && echo ok", MTU - 28);
    notes.want("a whole packet", kubelet.shell(&inside, &whole), "ok");
}

fn between(kubelet: &mut Kubelet, notes: &mut Notes) {
    let (one, other) = (kubelet.run("one"), kubelet.run("other"));
    let server = kubelet.start(&one, "server", &["sh", "-c", "nc -l -p 7 -e cat"]);
    let client = kubelet.start(&other, "client", &["sleep", "100000"]);
    let to = kubelet.addresses(&one).0;
    // More than what fits into any window, there and back.
    let script = format!("head -c 3000000 /dev/urandom >/d; nc {to} 7 </d | head -c 3000000 | cmp - /d && echo same");
    notes.want("three megabytes there and back", kubelet.shell(&client, &script), "same");
    notes.want(
        "the server",
        kubelet.state(&server).starts_with("running") || kubelet.end_of(&server) == "exited 0",
        true,
    );
}

/// A pod whose container serves a page, also by a port of the host's.
fn serving(kubelet: &Kubelet) -> (Pod, String) {
    let mut config = kubelet.described("server");
    config.port_mappings = vec![api::PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
    let pod = kubelet.run_described(config).expect("a pod with a port");
    let container = kubelet.start(&pod, "server", SERVER);
    (pod, container)
}

fn host_port(kubelet: &mut Kubelet, notes: &mut Notes) {
    serving(kubelet);
    notes.want("the page by the host's port", page(&format!("{HOST}:18080")), "page");
}

/// Whoever asks for the pod's hardware address must be answered by the guest, and by nobody else.
fn by_macvtap(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-macvtap");
    let (pod, server) = serving(kubelet);
    notes.want("the page by the host's port", page(&format!("{HOST}:18080")), "page");
    let other = kubelet.run("other");
    let client = kubelet.start(&other, "client", &["sleep", "100000"]);
    let address = kubelet.addresses(&pod).0;
    notes.want("a page from pod to pod", kubelet.shell(&client, &format!("wget -qO- http://{address}/x")), "page");
    let mut pages = Vec::new();
    for _ in 0..3 {
        host(&["ip", "neigh", "flush", "all"]);
        pages.push(page(&address));
    }
    notes.want("pages to who asks for the address", pages.join(" "), "page page page");
    let hardware = kubelet.shell(&server, "cat /sys/class/net/eth0/address");
    notes.want("whose it is", host(&["ip", "neigh", "show", &address]).contains(&hardware), true);
}

/// As `kubectl port-forward` does, to what listens on the pod's loopback only.
fn forwarded(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let serve =
        "mkdir /www; echo page >/www/x; head -c 2000000 /dev/zero >/www/large; exec httpd -f -p 127.0.0.1:80 -h /www";
    let server = kubelet.start(&pod, "server", &["sh", "-c", serve]);
    kubelet.shell(&server, "until wget -qO- 127.0.0.1/x; do sleep 0.2; done");
    let get = |path: &str| kubelet.over_port(&pod, 80, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    notes.want("a page", get("/x").ends_with(b"page\n"), true);
    notes.want("a large one", get("/large").len() > 2_000_000, true);
    notes.want("a port where nobody listens", kubelet.over_port(&pod, 81, b"hello").len(), 0);
    notes.want("the server runs", kubelet.state(&server), "running");
}
