//! `tatami run --net` as its user sees it, in real guests: taps in network namespaces of their own, and passt.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tatami_tests::{Finished, Running, Tatami};

/// The host's end of every tap here, and the guest's.
const NET: &str = "tap:tap0,ip=192.0.2.2/24,ip=2001:db8::2/64,gw=192.0.2.1,gw=2001:db8::1";
const HOST: &str = "192.0.2.1";

/// A network namespace with a tap in it. Removed when dropped, which fails the test if that does not take all there is.
struct Place {
    name: String,
}

impl Place {
    fn new(tap: &[&str]) -> Place {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let place = Place { name: format!("tatami-test-{}-{number}", std::process::id()) };
        must("ip", &["netns", "add", &place.name]);
        place.ip(&["link", "set", "lo", "up"]);
        place.ip(&[&["tuntap", "add", "tap0", "mode", "tap"], tap].concat());
        place.ip(&["addr", "add", "192.0.2.1/24", "dev", "tap0"]);
        place.ip(&["addr", "add", "2001:db8::1/64", "dev", "tap0", "nodad"]);
        place.ip(&["link", "set", "tap0", "up"]);
        place
    }

    fn ip(&self, arguments: &[&str]) {
        must("ip", &[&["-netns", self.name.as_str()], arguments].concat());
    }

    /// The same command in this namespace.
    fn within(&self, command: &Command) -> Command {
        // Not `ip netns exec`, which hides the cgroups that the test counts by.
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/run/netns/{}", self.name)).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            inside.env(name, value.unwrap_or_default());
        }
        inside.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        inside
    }

    fn start(&self, tatami: &Tatami, options: &[&str], command: &[&str]) -> Running {
        Running::start(self.within(&tatami.command(&Tatami::run_arguments(options, command))))
    }

    fn run(&self, tatami: &Tatami, options: &[&str], command: &[&str]) -> Finished {
        self.start(tatami, options, command).finish()
    }

    /// The same command in this namespace, and without what `/dev/vhost-net` opens.
    fn without_vhost(&self, command: &Command) -> Command {
        let mut hidden = Command::new("unshare");
        hidden.args(["--mount", "sh", "-c", "mount --bind /dev/null /dev/vhost-net && exec \"$@\"", "sh"]);
        hidden.arg(command.get_program()).args(command.get_args());
        hidden.envs(command.get_envs().map(|(name, value)| (name, value.unwrap_or_default())));
        self.within(&hidden)
    }

    /// busybox's web server, for the files of a folder, in this namespace.
    fn serve(&self, folder: &Path) -> Server {
        let mut httpd = Command::new("busybox");
        httpd.args(["httpd", "-f", "-p", "8000", "-h"]).arg(folder);
        Server(self.within(&httpd).spawn().expect("busybox httpd"))
    }

    /// What the guest's web server answers.
    fn fetch(&self, url: &str) -> Vec<u8> {
        let mut wget = Command::new("busybox");
        wget.args(["wget", "-q", "-O", "-", url]);
        let output = self.within(&wget).output().expect("busybox wget");
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
            return;
        }
        // Whoever still had the tap open would still be seen here. Some end by themselves.
        wait_for("end of the processes there", || {
            let pids = Command::new("ip").args(["netns", "pids", &self.name]).output().expect("ip netns");
            pids.stdout.is_empty()
        });
        must("ip", &["netns", "del", &self.name]);
    }
}

/// A server that ends when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with a file `noise`, of so many megabytes, that no stream can get right by accident, the file's checksum and its bytes.
fn noise(tatami: &Tatami, megabytes: usize) -> (PathBuf, String, Vec<u8>) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(megabytes << 20);
    while bytes.len() < megabytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    let folder = tatami.scratch().join("web");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("noise");
    fs::write(&file, &bytes).unwrap();
    // Not here: a test is built to be debugged, and an emulated host has one slow CPU.
    let output = Command::new("sha256sum").arg(&file).output().expect("sha256sum");
    let checksum = String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned();
    assert_eq!(checksum.len(), 64);
    (folder, checksum, bytes)
}

/// How many of vhost's threads serve what this installation has started: they are the VMM's (Linux 6.4), or the kernel's, with one
/// of the VMM's in their names.
fn vhosts(tatami: &Tatami) -> usize {
    let folders = |path: &str| fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let name = |folder: &PathBuf| fs::read_to_string(folder.join("comm")).unwrap_or_default().trim().to_owned();
    let threads: Vec<_> =
        tatami.processes().iter().flat_map(|process| folders(&format!("/proc/{}/task", process.pid))).collect();
    let own = threads.iter().filter(|thread| name(thread).starts_with("vhost-")).cloned();
    let names: Vec<_> =
        threads.iter().filter_map(|thread| Some(format!("vhost-{}", thread.file_name()?.display()))).collect();
    // The kernel's may be among what this installation has started, too: they are in its cgroups.
    let all = own.chain(folders("/proc").filter(|process| names.contains(&name(process))));
    all.filter_map(|thread| Some(thread.file_name()?.to_owned())).collect::<BTreeSet<_>>().len()
}

/// Waits for what another process does. Panics after two minutes.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "no {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_tap_carries_both_versions_of_ip_whether_the_machine_boots_or_goes_on_from_a_template() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let script = "cat /sys/class/net/eth0/address; cat /sys/class/net/eth0/mtu; ip -o addr show dev eth0; ip route; ip -6 route; \
                  ping -q -c 2 192.0.2.1 && ping -q -c 2 2001:db8::1 && echo both";
    let templates = tatami.scratch().join("templates");
    for number in 1..3 {
        let net = format!("{NET},mac=02:00:00:00:00:0{number}");
        let mut command = tatami.command(&Tatami::run_arguments(&["--net", &net], &["sh", "-c", script]));
        command.env("TATAMI_TEMPLATES", &templates);
        let out = Running::start(place.within(&command)).finish().expect_status(0).out();
        let expected = [
            &format!("02:00:00:00:00:0{number}\n1500\n"),
            "inet 192.0.2.2/24 brd 192.0.2.255",
            "inet6 2001:db8::2/64",
            "default via 192.0.2.1 dev eth0",
            "default via 2001:db8::1 dev eth0",
            "both\n",
        ];
        for part in expected {
            assert!(out.contains(part), "{part:?} is missing:\n{out}");
        }
    }
    assert_eq!(fs::read_dir(templates).unwrap().count(), 1);
}

#[test]
#[ignore = "boots a guest: make test"]
fn without_net_there_is_no_interface_but_loopback() {
    let tatami = Tatami::new();
    assert_eq!(tatami.run(&["ls", "/sys/class/net"]).expect_status(0).out(), "lo\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn fifty_megabytes_go_each_way_unchanged_through_the_kernel() {
    fifty_megabytes("on", 1);
}

#[test]
#[ignore = "boots a guest: make test"]
fn fifty_megabytes_go_each_way_unchanged_through_the_vmm() {
    fifty_megabytes("off", 0);
}

/// Over both versions of IP from the guest, with so many of vhost's threads.
fn fifty_megabytes(vhost: &str, threads: usize) {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let (folder, checksum, bytes) = noise(&tatami, 50);
    let _server = place.serve(&folder);
    let volume = format!("{}:/web:ro", folder.display());
    let script = format!(
        "wget -q -O - http://{HOST}:8000/noise | sha256sum; httpd -p 80 -h /web; echo up; while [ ! -e /tmp/end ]; do sleep 1; done"
    );
    let net = format!("{NET},vhost={vhost}");
    let running = place.start(&tatami, &["--net", &net, "-v", &volume], &["sh", "-c", &script]);
    running.wait_for("up");
    assert_eq!(vhosts(&tatami), threads);
    assert!(place.fetch("http://192.0.2.2/noise") == bytes);
    assert!(place.fetch("http://[2001:db8::2]/noise") == bytes);
    running.signal(Signal::SIGKILL);
    let out = running.finish().out();
    assert!(out.starts_with(&checksum), "{out}");
}

#[test]
#[ignore = "boots a guest: make test"]
fn large_packets_pass_whole() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    place.ip(&["link", "set", "tap0", "mtu", "9000"]);
    let script = format!("cat /sys/class/net/eth0/mtu; ping -q -c 3 -s 8972 {HOST}");
    let out = place.run(&tatami, &["--net", NET], &["sh", "-c", &script]).expect_status(0).out();
    assert!(out.starts_with("9000\n") && out.contains("3 packets received"), "{out}");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_tap_that_is_deleted_takes_the_link_down_and_the_container_goes_on() {
    for vhost in ["on", "off"] {
        let (tatami, place) = (Tatami::new(), Place::new(&[]));
        let script = format!(
            "ping -q -c 1 {HOST} && echo up; while [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do sleep 0.2; done; \
             ping -q -c 1 -W 1 {HOST} || echo gone; exit 7"
        );
        let net = format!("{NET},vhost={vhost}");
        let running = place.start(&tatami, &["--net", &net], &["sh", "-c", &script]);
        running.wait_for("up\n");
        place.ip(&["link", "del", "tap0"]);
        let finished = running.finish().expect_status(7);
        assert!(finished.out().ends_with("gone\n"), "{}", finished.out());
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_tap_of_several_queues_gives_each_vcpu_one() {
    for (vhost, queues, threads) in [("on", "2", 2), ("off", "4", 0)] {
        let (tatami, place) = (Tatami::new(), Place::new(&["multi_queue"]));
        let (folder, checksum, _) = noise(&tatami, 1);
        let _server = place.serve(&folder);
        let script = format!(
            "ls -d /sys/class/net/eth0/queues/rx-* | wc -l; \
             for i in 1 2 3 4 5 6; do wget -q -O - http://{HOST}:8000/noise | sha256sum & done; wait; echo done; sleep 1000"
        );
        let net = format!("{NET},vhost={vhost}");
        let running = place.start(&tatami, &["--net", &net, "--cpus", queues], &["sh", "-c", &script]);
        running.wait_for("done");
        assert_eq!(vhosts(&tatami), threads);
        running.signal(Signal::SIGKILL);
        let out = running.finish().out();
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], queues, "{out}");
        assert_eq!(lines[1..].iter().filter(|line| line.starts_with(&checksum)).count(), 6, "{out}");
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn where_there_is_no_vhost_net_the_vmm_does_its_work_unless_it_was_insisted_on() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let run = |net: &str| {
        let command = tatami.command(&Tatami::run_arguments(&["--net", net], &["ping", "-q", "-c", "1", HOST]));
        Running::start(place.without_vhost(&command)).finish()
    };
    run(&format!("{NET},vhost=on")).expect_error(125, &["/dev/vhost-net", "vhost=on"]);
    run(NET).expect_status(0);
}

#[test]
#[ignore = "needs root: make test"]
fn what_is_no_tap_or_is_in_use_is_named_with_the_remedy() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let refused = |net: &str, words: &[&str]| {
        place.run(&tatami, &["--net", net], &["true"]).expect_error(125, words);
    };
    refused("tap:tap9", &["tap9", "ip tuntap add tap9 mode tap"]);
    refused("tap:lo", &["lo is not a tap"]);
    let running = place.start(&tatami, &["--net", NET], &["sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up");
    refused("tap:tap0", &["tap0 is in use"]);
    running.signal(Signal::SIGKILL);
    running.finish();
    tatami.assert_nothing_left();
    // It is free again at once.
    place.run(&tatami, &["--net", NET], &["ping", "-q", "-c", "1", HOST]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn name_servers_are_the_containers() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let options = ["--net", NET, "--dns", "192.0.2.53", "--dns", "2001:db8::53"];
    let out = place.run(&tatami, &options, &["cat", "/etc/resolv.conf"]).expect_status(0).out();
    assert_eq!(out, "nameserver 192.0.2.53\nnameserver 2001:db8::53\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn passt_publishes_ports_and_leads_out_and_leaves_nothing() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("web");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("index.html"), "from the host\n").unwrap();
    let route = Command::new("ip").args(["-4", "-o", "route", "get", "192.0.2.1"]).output().expect("ip route");
    let route = String::from_utf8_lossy(&route.stdout).into_owned();
    let address = route.split(" src ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address of this host");
    let httpd = Command::new("busybox").args(["httpd", "-f", "-p", "18081", "-h"]).arg(&folder).spawn();
    let _server = Server(httpd.expect("busybox httpd"));
    let script = format!(
        "cat /etc/resolv.conf; wget -q -O - http://{address}:18081/; mkdir /web; echo from the guest > /web/index.html; \
         httpd -p 80 -h /web; echo up; sleep 1000"
    );
    let running = tatami.start(&["--net", "passt", "-p", "127.0.0.1:18080:80"], &["sh", "-c", &script]);
    running.wait_for("up\n");
    let output = Command::new("busybox").args(["wget", "-q", "-O", "-", "http://127.0.0.1:18080/"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from the guest\n");
    // A second one with this port does not start, and says why.
    tatami.run_with(&["--net", "passt", "-p", "127.0.0.1:18080:80"], &["true"]).expect_error(125, &["passt", "18080"]);
    running.signal(Signal::SIGKILL);
    let out = running.finish().out();
    assert!(out.starts_with("nameserver 192.0.0.3\nfrom the host\n"), "{out}");
    wait_for("end of passt", || tatami.processes().is_empty());
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_network_is_no_faster_than_it_may_be() {
    let (tatami, place) = (Tatami::new(), Place::new(&[]));
    let (folder, checksum, bytes) = noise(&tatami, 1);
    let _server = place.serve(&folder);
    let volume = format!("{}:/web:ro", folder.display());
    let script = format!(
        "cut -d. -f1 /proc/uptime; wget -q -O - http://{HOST}:8000/noise | sha256sum; cut -d. -f1 /proc/uptime; \
         httpd -p 80 -h /web; echo up; while [ ! -e /tmp/end ]; do sleep 1; done"
    );
    let options = ["--net", NET, "--net-rate", "rx=200k,tx=250k", "-v", &volume];
    let running = place.start(&tatami, &options, &["sh", "-c", &script]);
    running.wait_for("up");
    let began = Instant::now();
    assert!(place.fetch("http://192.0.2.2/noise") == bytes);
    assert!(began.elapsed() >= Duration::from_millis(3800), "{:?} from the guest", began.elapsed());
    let out = running.out_so_far();
    running.signal(Signal::SIGKILL);
    running.finish();
    let lines: Vec<&str> = out.lines().collect();
    let second = |line: usize| lines[line].parse::<u64>().unwrap();
    assert!(lines[1].starts_with(&checksum), "{out}");
    assert!(second(2) - second(0) >= 4, "to the guest: {out}");
}

/// Waits until the guest's interface has a link, whatever it had before.
const LINK: &str = "until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do sleep 0.1; done";

#[test]
#[ignore = "boots a guest: make test"]
fn what_is_saved_with_passt_goes_on_twice_at_once_each_with_its_own() {
    let tatami = Tatami::new();
    let ports = |host: u16| format!("127.0.0.1:{host}:80");
    let fetch = |port: u16, expected: &str| {
        let mut got = String::new();
        wait_for(&format!("answer on port {port}"), || {
            let url = format!("http://127.0.0.1:{port}/");
            let output = Command::new("busybox").args(["wget", "-q", "-T", "20", "-O", "-", &url]).output().unwrap();
            got = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success()
        });
        assert_eq!(got, expected, "port {port}");
    };
    let script = "mkdir /web; echo first > /web/index.html; httpd -p 80 -h /web; sleep 1000";
    tatami.detach(&["--net", "passt", "-p", &ports(18090), "--name", "first"], &["sh", "-c", script]);
    fetch(18090, "first\n");
    let downs = |name: &str| {
        let script = format!("{LINK}; echo {name} > /web/index.html; cat /sys/class/net/eth0/carrier_down_count");
        let out = tatami.tatami(&["exec", name, "sh", "-c", &script]).expect_status(0).out();
        out.trim().parse::<u32>().unwrap_or_else(|_| panic!("{out:?}"))
    };
    let before = downs("first");
    let folder = tatami.scratch().join("saved").display().to_string();
    tatami.tatami(&["save", "first", &folder]).expect_status(0);
    tatami.tatami(&["restore", &folder]).expect_error(125, &["passt", "18090"]);
    tatami.tatami(&["restore", "--net", "tap:tap9", &folder]).expect_error(125, &["tap9"]);
    tatami.tatami(&["restore", "--net", "none", &folder]).expect_error(125, &["passt", "no network"]);
    for (name, port) in [("left", 18091), ("right", 18092)] {
        tatami.tatami(&["restore", "--name", name, "-p", &ports(port), &folder]).expect_status(0);
        assert_eq!(downs(name), before + 1, "its link was not seen to go down");
    }
    for (port, expected) in [(18090, "first\n"), (18091, "left\n"), (18092, "right\n")] {
        fetch(port, expected);
    }
    tatami.tatami(&["rm", "-f", "first", "left", "right"]).expect_status(0);
    wait_for("end of passt", || tatami.processes().is_empty());
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_is_saved_with_a_tap_goes_on_with_that_or_another() {
    for vhost in ["on", "off"] {
        let (tatami, place) = (Tatami::new(), Place::new(&[]));
        place.ip(&["tuntap", "add", "tap1", "mode", "tap"]);
        place.ip(&["addr", "add", "198.51.100.1/24", "dev", "tap1"]);
        place.ip(&["link", "set", "tap1", "up"]);
        let tell = |words: &[&str]| Running::start(place.within(&tatami.command(words))).finish();
        let ping = |name: &str, address: &str| {
            let script = format!("{LINK}; ping -q -c 2 {address} >/dev/null && ip -o -4 addr show dev eth0");
            tell(&["exec", name, "sh", "-c", &script]).expect_status(0).out()
        };
        let net = format!("{NET},vhost={vhost}");
        let mut words = Tatami::run_arguments(&["--net", &net, "--name", "first"], &["sleep", "1000"]);
        words[1] = "-d".to_owned();
        tell(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect_status(0);
        ping("first", HOST);
        let folder = tatami.scratch().join("saved").display().to_string();
        tell(&["save", "first", &folder]).expect_status(0);
        ping("first", HOST);
        tell(&["restore", &folder]).expect_error(125, &["tap0", "in use"]);
        tell(&["rm", "-f", "first"]).expect_status(0);
        tell(&["restore", "--name", "second", &folder]).expect_status(0);
        let other = format!("tap:tap1,ip=198.51.100.2/24,gw=198.51.100.1,vhost={vhost}");
        tell(&["restore", "--name", "third", "--net", &other, &folder]).expect_status(0);
        assert!(ping("second", HOST).contains("192.0.2.2/24"));
        ping("second", "2001:db8::1");
        let addresses = ping("third", "198.51.100.1");
        assert!(addresses.contains("198.51.100.2/24") && !addresses.contains("192.0.2.2"), "{addresses}");
        assert_eq!(vhosts(&tatami), if vhost == "on" { 2 } else { 0 });
        tell(&["rm", "-f", "second", "third"]).expect_status(0);
    }
}
