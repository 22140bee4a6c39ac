//! The jail, looked at from the host while a sandbox runs: what the VMM has left to reach. `--nocapture` prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tatami_tests::Tatami;

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
const CAPABILITIES: &str = "00000000880000df";

/// A process of the host.
struct Seen(PathBuf);

impl Seen {
    fn new(pid: i32) -> Seen {
        Seen(PathBuf::from(format!("/proc/{pid}")))
    }

    fn read(&self, file: &str) -> String {
        let path = self.0.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn link(&self, file: &str) -> String {
        fs::read_link(self.0.join(file)).unwrap().display().to_string()
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.0.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The fields of a `status` file.
fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
}

/// What a descriptor's link names, without what differs from one to the next.
fn kind(seen: &Seen, link: &str) -> &'static str {
    const ANONYMOUS: [&str; 7] = [
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu",
        "anon_inode:kvm-arm-vgic",
        "anon_inode:kvm-xics",
        "anon_inode:[eventpoll]",
        "anon_inode:[eventfd]",
        "anon_inode:[timerfd]",
    ];
    match link {
        "/dev/null" => "nowhere",
        _ if link.starts_with("socket:") => "socket",
        _ if link.starts_with('/') && seen.0.join("root").join(&link[1..]).symlink_metadata().is_ok() => {
            "below its root"
        }
        _ => ANONYMOUS.into_iter().find(|name| link.starts_with(name)).unwrap_or("UNEXPECTED"),
    }
}

fn check_namespaces(vmm: &Seen, server: &Seen) {
    for name in ["mnt", "pid", "net", "ipc", "uts"] {
        let [inside, servers, hosts] =
            [vmm, server, &Seen::new(std::process::id() as i32)].map(|s| s.link(&format!("ns/{name}")));
        println!("namespace    {inside:<20} (server {servers}, host {hosts})");
        assert!(inside != servers && inside != hosts, "the {name} namespace is not its own");
    }
}

fn check_threads(vmm: &Seen) {
    let mut names = BTreeSet::new();
    for thread in vmm.names("task") {
        let text = vmm.read(&format!("task/{thread}/status"));
        let fields = status(&text);
        println!(
            "thread       {:<15} seccomp {} ({} filters), no_new_privs {}, capabilities {}",
            fields["Name"], fields["Seccomp"], fields["Seccomp_filters"], fields["NoNewPrivs"], fields["CapEff"]
        );
        assert_eq!((fields["Seccomp"], fields["NoNewPrivs"]), ("2", "1"), "{text}");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(fields[set], CAPABILITIES, "{set} of {}", fields["Name"]);
        }
        assert_eq!((fields["CapInh"], fields["CapAmb"]), ("0000000000000000", "0000000000000000"), "{text}");
        names.insert(fields["Name"].to_owned());
    }
    for name in ["tatami-vmm", "spawner", "vcpu0", "virtio-fs", "virtio-rng", "vsock"] {
        assert!(names.contains(name), "no thread is called {name}: {names:?}");
    }
}

fn check_files(vmm: &Seen) {
    let root = vmm.names("root");
    println!("root         {root:?}");
    for name in ["bin", "boot", "dev", "etc", "home", "lib", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        assert!(!root.contains(name), "its root has {name}: {root:?}");
    }
    for mount in vmm.read("mountinfo").lines() {
        println!("mount        {mount}");
    }
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for number in vmm.names("fd") {
        let Ok(link) = fs::read_link(vmm.0.join("fd").join(&number)) else { continue };
        let link = link.display().to_string();
        kinds.entry(kind(vmm, &link)).or_default().push(link);
        // Whoever goes up from a folder that the VMM has open comes to its root, or nowhere.
        let above = vmm.0.join("fd").join(&number).join("../../../../../..");
        for entry in fs::read_dir(above).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            // In its list of descriptors each is a link; in the host's list of processes each would be a folder.
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let harmless = root.contains(&name) || name.bytes().all(|byte| byte.is_ascii_digit()) && is_link;
            assert!(harmless || vmm.0.join("root").join(&name).exists(), "descriptor {number} leads to {name}");
        }
    }
    for (kind, links) in &kinds {
        println!(
            "descriptors  {:>3} {kind}: {}",
            links.len(),
            links.iter().collect::<BTreeSet<_>>().iter().take(4).map(|l| l.as_str()).collect::<Vec<_>>().join(", ")
        );
    }
    assert!(!kinds.contains_key("UNEXPECTED"), "{kinds:?}");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_that_takes_over_the_vmm_finds_an_empty_house() {
    let tatami = Tatami::new();
    let running = tatami.start(&[], &["sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up");
    let vmm = tatami.processes().into_iter().find(|process| process.command.starts_with("tatami-vmm"));
    let (vmm, server) = (Seen::new(vmm.expect("a VMM runs").pid), Seen::new(running.pid()));

    check_namespaces(&vmm, &server);
    check_threads(&vmm);
    check_files(&vmm);
    assert_eq!((vmm.read("environ"), vmm.read("cmdline")), (String::new(), "tatami-vmm\0".to_owned()));
    let limits = vmm.read("limits");
    println!("{limits}");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    let cgroup = |seen: &Seen| seen.read("cgroup").trim().strip_prefix("0::/").unwrap().to_owned();
    let (own, servers) = (cgroup(&vmm), cgroup(&server));
    assert_ne!(own, servers);
    assert_eq!(Path::new(&own).parent(), Path::new(&servers).parent());
    let value = |file: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(&own).join(file)).unwrap();
    println!("cgroup       /{own}: pids {} of {}", value("pids.current").trim(), value("pids.max").trim());
    assert!(value("pids.max").trim().parse::<u32>().unwrap() < 1000);
    assert!(value("memory.current").trim().parse::<u64>().unwrap() > 0);

    running.signal(Signal::SIGKILL);
    running.finish();
}
