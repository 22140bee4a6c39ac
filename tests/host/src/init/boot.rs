//! From the kernel's first user-space instruction to a host that can run commands: root file system, mounts, modules, network.
//!
//! Everything that a snapshot can hold belongs here; what must happen anew at each restore (clock, shared folders) is in
//! `serve.rs`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, sethostname};

/// What every process here gets, before the client adds to it.
pub(crate) const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// Commands run in a control group of their own below this one.
pub(crate) const COMMAND_CGROUPS: &str = "/sys/fs/cgroup/testhost";

/// Loaded once, before any snapshot. Those that the kernel lacks or refuses are named on the console, except KVM's, without
/// which there is no test host: an architecture has one of them, or KVM in its kernel.
const MODULES: &[&str] = &[
    "kvm_amd",
    "kvm_hv",
    "virtio_net",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    // containerd asks whether these are there; it does not load them.
    "erofs",
    "dm_thin_pool",
    "loop",
    "tun",
    "veth",
    "bridge",
    "macvtap",
    "vhost_net",
    "vhost_vsock",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
];

/// Leaves the initrd: loads the modules it carries, mounts the disk and makes it the root.
///
/// # Errors
/// The step that failed.
pub(crate) fn enter_root() -> Result<()> {
    make_dirs(&["/dev", "/sysroot"])?;
    mount_at("devtmpfs", "/dev", MsFlags::empty(), "mode=755")?;
    let order = fs::read_to_string("/modules/order").context("/modules/order in the initrd")?;
    for name in order.lines() {
        let path = format!("/modules/{name}");
        let file = File::open(&path).with_context(|| path.clone())?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("loading {path}"))?;
    }
    let disk = Path::new("/dev/vda");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !disk.exists() {
        if Instant::now() > deadline {
            bail!("the disk /dev/vda did not appear");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    mount(Some(disk), "/sysroot", Some("ext4"), MsFlags::MS_NOATIME, None::<&str>).context("mounting /dev/vda")?;
    mount(Some("/dev"), "/sysroot/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving /dev")?;
    chdir("/sysroot")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// Makes the host what tests expect: the usual mounts, KVM, a network.
///
/// # Errors
/// The step that failed.
pub(crate) fn bring_up() -> Result<()> {
    mounts()?;
    sethostname("testhost")?;
    load_modules()?;
    network()?;
    fs::create_dir(COMMAND_CGROUPS).context(COMMAND_CGROUPS)?;
    Ok(())
}

fn mounts() -> Result<()> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at("proc", "/proc", hardened, "")?;
    mount_at("sysfs", "/sys", hardened, "")?;
    make_dirs(&["/dev/pts", "/dev/shm", "/dev/mqueue"])?;
    mount_at("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666")?;
    mount_at("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", hardened, "")?;
    mount_at("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    mount_at("tmpfs", "/tmp", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    make_dirs(&["/run/lock"])?;
    mount_at("cgroup2", "/sys/fs/cgroup", hardened, "nsdelegate,memory_recursiveprot")?;
    for kind in ["bpf", "tracefs", "debugfs"] {
        let at = match kind {
            "bpf" => "/sys/fs/bpf",
            "tracefs" => "/sys/kernel/tracing",
            _ => "/sys/kernel/debug",
        };
        // Conveniences: a kernel without them runs every test.
        if let Err(e) = mount_at(kind, at, hardened, "") {
            eprintln!("testhost-init: {e:#}");
        }
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        match symlink(target, format!("/dev/{link}")) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).context("links in /dev"),
            _ => {}
        }
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("making / shared")?;
    // As systemd would have it: the controllers are there for whoever makes a group below the root.
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +cpuset +io +memory +pids")
        .context("enabling cgroup controllers")
}

fn load_modules() -> Result<()> {
    // One modprobe, for each costs a process; -a goes on after a failure and names it on stderr, our console.
    run("modprobe", &[&["-a"], MODULES].concat()).ok();
    if !Path::new("/dev/kvm").exists() {
        bail!("no /dev/kvm after loading KVM's module");
    }
    Ok(())
}

fn network() -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let names = fs::read_dir("/sys/class/net")?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let card = names.into_iter().find(|n| n.starts_with('e')).context("no network card (virtio_net)")?;
    // The addresses of QEMU's user network, which never change.
    for step in [
        "link set lo up".to_owned(),
        format!("link set {card} up"),
        format!("addr add 10.0.2.15/24 dev {card}"),
        "route add default via 10.0.2.2".to_owned(),
    ] {
        run("ip", &step.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status =
        Command::new(program).args(arguments).envs(ENVIRONMENT).status().with_context(|| program.to_owned())?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}

fn mount_at(kind: &str, at: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, Some(data)).with_context(|| format!("mounting {kind} at {at}"))
}

fn make_dirs(paths: &[&str]) -> Result<()> {
    paths.iter().try_for_each(|path| fs::create_dir_all(path).with_context(|| (*path).to_owned()))
}
