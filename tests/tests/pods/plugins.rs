//! Networks that other CNI plug-ins than bridge lay out, several of them in a pod, and what cannot be one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::kubelet::{Kubelet, Pod, host, in_host_network, with_host_network};
use tatami_tests::page;

use crate::networks::SERVER;

pub(crate) const ON_THE_HOSTS_NETWORK: &str = "a pod on the host's own network";

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("a network by ptp, with large packets", ptp).long(),
    Case::new("a network by macvlan", macvlan).long(),
    Case::new("a network by ipvlan", ipvlan).long(),
    Case::new("a network by ipvlan, routed", routed).long(),
    Case::new("two networks of a pod", two).long(),
    Case::new("a network of IPv6 alone", version_6).long(),
    Case::new("five networks of a pod", five)
        .without_reference("with runc a pod has as many interfaces as it is given")
        .long(),
    Case::new(ON_THE_HOSTS_NETWORK, of_the_host)
        .without_reference("with runc the pod has the host's interfaces")
        .long(),
    Case::new("a network that is held back", slow).without_reference("runc limits no network").long(),
];

/// What gives out addresses of a network, and a route by its first.
fn addresses(kubelet: &Kubelet, network: &str, route: &str) -> String {
    let store = kubelet.containerd().home().path("cni-addresses").display().to_string();
    format!(
        r#""ipam":{{"type":"host-local","dataDir":"{store}","ranges":[[{{"subnet":"{network}"}}]],"routes":[{{"dst":"{route}"}}]}}"#
    )
}

/// The route to everywhere.
const DEFAULT: &str = "0.0.0.0/0";

/// A bridge as a pod's network.
fn bridge(kubelet: &Kubelet, name: &str, network: &str, route: &str) -> String {
    format!(r#"{{"type":"bridge","bridge":"{name}","isGateway":true,{}}}"#, addresses(kubelet, network, route))
}

/// A container of a pod, whose network is noted as it is seen from within and from the host.
fn look(kubelet: &Kubelet, notes: &mut Notes, pod: &Pod, gateway: &str) -> String {
    let inside = kubelet.start(pod, "server", SERVER);
    let address = kubelet.addresses(pod).0;
    let seen =
        kubelet.shell(&inside, "ip -o addr show dev eth0 scope global | awk '{sub(\"/.*\", \"\", $4); print $4}'");
    notes.want("its address is the one that CRI tells", seen == address, true);
    // Each pod has another address.
    let routes = "ip route | sed 's/src [0-9.]*/src ITS/; s/ *$//' | sort";
    notes.see("its routes", kubelet.shell(&inside, routes));
    notes.want("the host", kubelet.shell(&inside, &ping(gateway)), "ok");
    notes.want("a page, from the host", page(&address), "page");
    inside
}

fn ping(address: &str) -> String {
    format!("ping -c 1 -W 20 {address} >/dev/null && echo ok")
}

fn ptp(kubelet: &mut Kubelet, notes: &mut Notes) {
    // A plug-in of this story's own enters a neighbour, as Calico's does.
    let plugin = kubelet.containerd().home().path("cni-plugins/neighbour");
    let script = "#!/bin/sh\ncase $CNI_COMMAND in\n\
        VERSION) echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}' ;;\n\
        ADD) nsenter --net=\"$CNI_NETNS\" ip neigh add 10.93.0.77 lladdr 02:00:00:00:00:77 dev \"$CNI_IFNAME\" nud permanent\n\
        jq .prevResult ;;\nesac\n";
    fs::write(&plugin, script).expect("a plug-in");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let plugins = format!(
        r#"{{"type":"ptp","mtu":9000,{}}},{{"type":"neighbour"}}"#,
        addresses(kubelet, "10.93.0.0/16", DEFAULT)
    );
    kubelet.on_networks(&[("ptp", plugins)], &[]);
    let pod = kubelet.run("pod");
    let inside = look(kubelet, notes, &pod, "10.93.0.1");
    notes.want("its largest packet", kubelet.shell(&inside, "cat /sys/class/net/eth0/mtu"), "9000");
    notes.want("a large packet", kubelet.shell(&inside, &ping("-s 8000 10.93.0.1")), "ok");
    notes.want("in one piece", kubelet.shell(&inside, "awk '/^Ip: [0-9]/{print $15 + $20}' /proc/net/snmp"), "0");
    let neighbour = "awk '$1 == \"10.93.0.77\" {print $3, $4}' /proc/net/arp";
    notes.want("its permanent neighbour", kubelet.shell(&inside, neighbour), "0x6 02:00:00:00:00:77");
}

/// From here pods are on an interface of the host's by such a plug-in. The interface's other end has the network's first address.
fn upon(kubelet: &mut Kubelet, kind: &str) {
    let (near, far) = (UPLINK, "ttu1");
    host(&["ip", "link", "add", near, "type", "veth", "peer", "name", far]);
    host(&["ip", "addr", "add", "10.91.0.1/16", "dev", far]);
    for link in [near, far] {
        host(&["ip", "link", "set", link, "up"]);
    }
    let plugins = format!(r#"{{{kind},"master":"{near}",{}}}"#, addresses(kubelet, "10.91.0.0/16", DEFAULT));
    kubelet.on_networks(&[("upon", plugins)], &[near]);
}

const UPLINK: &str = "ttu0";

/// Whether an interface of the pod's has the hardware address of the one that it lies on.
fn has_masters_address(kubelet: &Kubelet, container: &str) -> bool {
    let masters = fs::read_to_string(format!("/sys/class/net/{UPLINK}/address")).unwrap_or_default();
    kubelet.shell(container, "cat /sys/class/net/eth0/address") == masters.trim()
}

fn macvlan(kubelet: &mut Kubelet, notes: &mut Notes) {
    upon(kubelet, r#""type":"macvlan","mode":"bridge""#);
    let pod = kubelet.run("pod");
    let inside = look(kubelet, notes, &pod, "10.91.0.1");
    notes.want("it has the hardware address of its master", has_masters_address(kubelet, &inside), false);
}

fn ipvlan(kubelet: &mut Kubelet, notes: &mut Notes) {
    upon(kubelet, r#""type":"ipvlan","mode":"l2""#);
    let pod = kubelet.run("pod");
    let inside = look(kubelet, notes, &pod, "10.91.0.1");
    notes.want("it has the hardware address of its master", has_masters_address(kubelet, &inside), true);
}

/// Such an interface asks nobody for hardware addresses, and answers nobody: the host alone knows who is where.
fn routed(kubelet: &mut Kubelet, notes: &mut Notes) {
    upon(kubelet, r#""type":"ipvlan","mode":"l3""#);
    let (one, other) = (kubelet.run("one"), kubelet.run("other"));
    kubelet.start(&one, "server", SERVER);
    let client = kubelet.start(&other, "client", &["sleep", "100000"]);
    notes.want("it asks nobody", kubelet.shell(&client, "ip link show eth0 | grep -c NOARP"), "1");
    let address = kubelet.addresses(&one).0;
    let get = format!("until wget -qO- http://{address}/x; do sleep 0.5; done");
    notes.want("a page from pod to pod", kubelet.shell(&client, &get), "page");
}

fn two(kubelet: &mut Kubelet, notes: &mut Notes) {
    let networks = [
        ("one", bridge(kubelet, "ttone", "10.94.0.0/16", DEFAULT)),
        ("other", bridge(kubelet, "ttother", "10.95.0.0/16", "10.98.0.0/16")),
    ];
    kubelet.on_networks(&networks, &["ttone", "ttother"]);
    let pod = kubelet.run("pod");
    let inside = look(kubelet, notes, &pod, "10.94.0.1");
    notes.want("its interfaces", kubelet.shell(&inside, "ls /sys/class/net | sort | tr '\\n' ' '"), "eth0 eth1 lo");
    let second = "ip -o addr show dev eth1 scope global | grep -c ' 10.95.0.[0-9]*/16'";
    notes.want("the second's address", kubelet.shell(&inside, second), "1");
    notes.want("the host by the second", kubelet.shell(&inside, &ping("10.95.0.1")), "ok");
}

fn version_6(kubelet: &mut Kubelet, notes: &mut Notes) {
    let network = bridge(kubelet, "ttsix", "fd00:96::/64", "::/0");
    kubelet.on_networks(&[("six", network)], &["ttsix"]);
    let pod = kubelet.run("pod");
    let inside = kubelet.start(&pod, "c", &["sleep", "100000"]);
    let address = kubelet.addresses(&pod).0;
    let seen = kubelet.shell(&inside, "ip -o addr show dev eth0 scope global | awk '{print $4}'");
    notes.want("its address is the one that CRI tells", seen == format!("{address}/64"), true);
    notes.want("the host", kubelet.shell(&inside, &ping("-6 fd00:96::1")), "ok");
    notes.want("of the default route", kubelet.shell(&inside, "ip -6 route | grep -c '^default via fd00:96::1'"), "1");
    let from_host = host(&["busybox", "ping", "-6", "-c", "1", "-W", "20", &address]);
    notes.want("from the host", from_host.contains("1 packets received"), true);
}

fn five(kubelet: &mut Kubelet, notes: &mut Notes) {
    let names = ["a", "b", "c", "d", "e"];
    let links = names.map(|name| format!("ttfive{name}"));
    let network = |number: usize| bridge(kubelet, &links[number], &format!("10.{}.0.0/16", 100 + number), DEFAULT);
    let networks: Vec<_> = (0..names.len()).map(|number| (names[number], network(number))).collect();
    kubelet.on_networks(&networks, &links.each_ref().map(String::as_str));
    let error = kubelet.run_described(kubelet.described("pod")).map(|_| ()).unwrap_err();
    // Containerd has all made at once, so that any may be the last.
    let told =
        error.contains("the network interface eth") && error.contains(" is one too many: this guest has room for 4");
    notes.want("the error names interface and limit", if told { "so".to_owned() } else { error }, "so");
}

fn of_the_host(kubelet: &mut Kubelet, notes: &mut Notes) {
    let mut config = kubelet.described("pod");
    with_host_network(&mut config);
    let pod = kubelet.run_described(config).expect("a pod");
    let mut container = Kubelet::container("c", SERVER);
    in_host_network(&mut container);
    let inside = kubelet.start_described(&pod, container).expect("a container");
    notes.want("its interfaces", kubelet.shell(&inside, "ls /sys/class/net"), "lo");
    let own = "until wget -qO- http://127.0.0.1/x; do sleep 0.2; done";
    notes.want("its own page", kubelet.shell(&inside, own), "page");
}

/// At 100 kB a second to the pod, as the configuration says, and 25 kB from it, as the pod asks, which is less.
fn slow(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-slow");
    let mut config = kubelet.described("pod");
    let slower = ("io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate".to_owned(), "200000".to_owned());
    config.annotations.extend([slower]);
    let pod = kubelet.run_described(config).expect("a pod");
    kubelet.start(&pod, "giver", &["nc", "-l", "-p", "8", "-e", "head", "-c", "300000", "/dev/zero"]);
    // Nc would say that it has nothing to send if it had no input, and the other would end.
    kubelet.start(&pod, "taker", &["sh", "-c", "sleep 100000 | nc -l -p 7 | wc -c"]);
    let address = kubelet.addresses(&pod).0;
    // Each pair of queues is a descriptor of the tap. Without the configuration there were as many as vCPUs: one.
    let open = fs::read_dir(format!("/proc/{}/fd", kubelet.ground())).expect("the VMM's descriptors").flatten();
    let taps = open.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|file| file.ends_with("net/tun"));
    notes.want("its queues", taps.count(), 2);
    // Up to 64 KiB come at once.
    let within = |least: f32, script: &str| {
        let start = Instant::now();
        let seen = host(&["sh", "-c", script]);
        let took = start.elapsed().as_secs_f32();
        if (least..8.0 * least).contains(&took) { "as slow".to_owned() } else { format!("{took} s: {seen}") }
    };
    let to = format!("until head -c 600000 /dev/zero | busybox nc {address} 7; do sleep 0.2; done");
    notes.want("600 kB to it", within(5.0, &to), "as slow");
    let from = format!("busybox nc {address} 8 </dev/null | wc -c | grep 300000");
    notes.want("300 kB from it", within(9.0, &from), "as slow");
    notes.want("what has come to it", kubelet.log(&pod, "taker"), "600000");
}
