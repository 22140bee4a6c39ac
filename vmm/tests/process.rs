//! The VMM as a process: what a server sees of a guest's life, and what the process has left of the host.
//!
//! Needs KVM, root and the guest kernel (`TATAMI_KERNEL`, or where `make kernel` puts it); runs with `--ignored` or
//! `--include-ignored`, and names its cases like any test.

use std::env::consts::ARCH;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tatami_vmm::boot::Origin;
use tatami_vmm::{DiskPart, Event, MemoryKind, Resources, StopReason, VmConfig, VmmProcess, probe, process};

type Case = (&'static str, fn() -> Result<()>);

const CASES: [Case; 17] = [
    ("a_guest_without_a_root_panics_and_its_last_words_arrive", panics),
    ("four_vcpus_come_up", four_vcpus),
    ("thirty_two_vcpus_come_up", many_vcpus),
    ("vcpus_beyond_the_first_stay_offline", spare_vcpus),
    ("memory_on_both_sides_of_the_hole_is_used", much_memory),
    ("what_is_no_kernel_is_named", not_a_kernel),
    ("an_initrd_larger_than_memory_is_named", large_initrd),
    ("a_killed_vmm_is_noticed", killed),
    ("the_jail_holds", jail),
    ("disks_come_and_go", disks),
    ("memory_comes_and_goes", memory),
    ("orders_for_memory_that_cannot_be_are_refused", impossible_memory),
    ("a_guest_in_shared_memory_runs", shared_memory),
    ("huge_pages_are_used_where_set_aside_and_missed_in_words", huge_pages),
    ("a_virtio_console_says_all_that_a_serial_line_does", virtio_console),
    ("a_paused_guest_stands_still_and_goes_on", paused),
    ("where_a_guest_stands_is_told", whereabouts),
];

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(process::NAME) {
        process::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let cases = CASES.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    if arguments.iter().any(|argument| argument == "--list") {
        cases.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--ignored" || argument == "--include-ignored") {
        println!("\ntest result: ok. 0 passed; {} ignored, need KVM: run through tests/host\n", cases.count());
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, case) in cases {
        let started = Instant::now();
        match case() {
            Ok(()) => println!("test {name} ... ok ({} ms)", started.elapsed().as_millis()),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED\n    {error:#}");
            }
        }
    }
    println!("\ntest result: {failed} failed\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A sandbox's folder with its mount, as the server makes them.
struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Result<Sandbox> {
        let folder = tempfile::tempdir()?;
        let shared = folder.path().join("shared");
        fs::create_dir(&shared)?;
        mount(Some(&shared), &shared, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("binding needs root")?;
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        Ok(Sandbox { folder })
    }

    fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    fn start(&self, config: &VmConfig, kernel: &Path, initrd: Option<&Path>) -> Result<VmmProcess> {
        let socket = self.folder.path().join("vsock");
        let _ = fs::remove_file(&socket);
        let resources = Resources {
            kvm: probe::open()?,
            origin: Origin::Kernel {
                kernel: File::open(kernel).with_context(|| format!("cannot open {}", kernel.display()))?,
                user_space: initrd.map(File::open).transpose()?,
            },
            memory: None,
            shared_dir: self.shared(),
            vsock_listener: UnixListener::bind(socket)?,
            vhost_user: Vec::new(),
            cgroup: None,
        };
        Ok(VmmProcess::spawn(config, resources)?)
    }

    /// Runs a guest to its end: its console, and how it ended.
    fn run(&self, config: &VmConfig, kernel: &Path, initrd: Option<&Path>) -> Result<(String, StopReason)> {
        let mut vmm = self.start(config, kernel, initrd)?;
        let mut console = Vec::new();
        loop {
            match next(&mut vmm)? {
                Event::Console(bytes) => console.extend(bytes),
                Event::Stopped(reason) => return Ok((String::from_utf8_lossy(&console).into_owned(), reason)),
                _ => {}
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(errno) = nix::mount::umount2(&self.shared(), nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.shared().display());
        }
    }
}

/// The next event, within the time that a guest may need on an emulated host.
fn next(vmm: &mut VmmProcess) -> Result<Event> {
    loop {
        if let Some(event) = vmm.next_event()? {
            return Ok(event);
        }
        let timeout = PollTimeout::try_from(Duration::from_secs(180))?;
        if poll(&mut [PollFd::new(vmm.control_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            bail!("the VMM said nothing for three minutes");
        }
    }
}

fn kernel() -> PathBuf {
    // Rust has one name for both byte orders of one of them.
    let architecture = ARCH.replace("powerpc64", "ppc64le");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/guest/{architecture}/vmlinux"));
    std::env::var_os("TATAMI_KERNEL").map_or(built, PathBuf::from)
}

fn talkative() -> VmConfig {
    VmConfig { console: true, ..VmConfig::default() }
}

fn panics() -> Result<()> {
    let (console, reason) = Sandbox::new()?.run(&VmConfig::default(), &kernel(), None)?;
    ensure!(reason == StopReason::GuestReset, "{reason:?}\n{console}");
    ensure!(console.contains("Kernel panic - not syncing: "), "{console}");
    ensure!(!console.contains("Linux version"), "a quiet guest says nothing else: {console}");
    Ok(())
}

fn four_vcpus() -> Result<()> {
    let config = VmConfig { vcpus: 4, max_vcpus: 4, ..talkative() };
    let (console, _) = Sandbox::new()?.run(&config, &kernel(), None)?;
    ensure!(console.contains("Brought up 1 node, 4 CPUs"), "{console}");
    // Where there are tables of which belongs to which.
    ensure!(ARCH != "x86_64" || console.contains("Num. cores per package:     4"), "{console}");
    Ok(())
}

fn many_vcpus() -> Result<()> {
    let config = VmConfig { vcpus: 32, max_vcpus: 32, ..talkative() };
    let (console, _) = Sandbox::new()?.run(&config, &kernel(), None)?;
    ensure!(console.contains("Brought up 1 node, 32 CPUs"), "{console}");
    Ok(())
}

fn spare_vcpus() -> Result<()> {
    let config = VmConfig { vcpus: 1, max_vcpus: 3, ..talkative() };
    let (console, _) = Sandbox::new()?.run(&config, &kernel(), None)?;
    ensure!(console.contains("Brought up 1 node, 1 CPU"), "{console}");
    ensure!(console.contains(", CPUs=3, Nodes=1"), "{console}");
    // A PC's kernel tells those that are there from those that may come.
    ensure!(ARCH != "x86_64" || console.contains("Allowing 3 present CPUs"), "{console}");
    Ok(())
}

fn much_memory() -> Result<()> {
    let config = VmConfig { memory_mib: 3200, ..talkative() };
    let (console, _) = Sandbox::new()?.run(&config, &kernel(), None)?;
    // Only a PC has a hole in it.
    let (above_the_hole, all) = ("[mem 0x0000000100000000-0x0000000107ffffff] usable", "K/3276800K available");
    ensure!(console.contains(if ARCH == "x86_64" { above_the_hole } else { all }), "{console}");
    ensure!(console.contains("Kernel panic"), "it comes as far as looking for its root: {console}");
    Ok(())
}

fn expect_error(outcome: (String, StopReason), words: &str) -> Result<()> {
    match outcome.1 {
        StopReason::Error(message) | StopReason::NoMemory(message)
            if message.contains(words) && !message.contains('\n') =>
        {
            Ok(())
        }
        other => bail!("expected an error with {words:?}, got {other:?}"),
    }
}

fn not_a_kernel() -> Result<()> {
    let sandbox = Sandbox::new()?;
    expect_error(
        sandbox.run(&VmConfig::default(), Path::new("/proc/version"), None)?,
        "the kernel is not an ELF file",
    )?;
    let cut = sandbox.folder.path().join("cut");
    fs::write(&cut, &fs::read(kernel())?[..1 << 20])?;
    expect_error(sandbox.run(&VmConfig::default(), &cut, None)?, "the kernel cannot be loaded")
}

fn large_initrd() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let initrd = sandbox.folder.path().join("initrd");
    File::create(&initrd)?.set_len(200 << 20)?;
    expect_error(sandbox.run(&VmConfig::default(), &kernel(), Some(&initrd))?, "the initrd of 200 MiB does not fit")
}

fn killed() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut vmm = sandbox.start(&talkative(), &kernel(), None)?;
    while !matches!(next(&mut vmm)?, Event::Console(_)) {}
    let started = Instant::now();
    vmm.kill();
    loop {
        if let Event::Stopped(reason) = next(&mut vmm)? {
            ensure!(reason.to_string().contains("signal: 9"), "{reason}");
            ensure!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            return Ok(());
        }
    }
}

fn jail() -> Result<()> {
    let sandbox = Sandbox::new()?;
    fs::write(sandbox.shared().join("inside"), "")?;
    let mut vmm = sandbox.start(&talkative(), &kernel(), None)?;
    while !matches!(next(&mut vmm)?, Event::Booting { .. }) {}
    let proc = PathBuf::from(format!("/proc/{}", vmm.pid()));

    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let theirs = fs::read_link(proc.join("ns").join(namespace))?;
        let ours = fs::read_link(Path::new("/proc/self/ns").join(namespace))?;
        ensure!(theirs != ours, "the {namespace} namespace is the host's");
    }
    let root: Vec<_> = fs::read_dir(proc.join("root"))?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(root == ["inside"], "its root holds {root:?}");
    let mounts = fs::read_to_string(proc.join("mountinfo"))?;
    ensure!(mounts.lines().count() == 1, "it sees mounts beside its root:\n{mounts}");
    ensure!(mounts.contains(" master:"), "its root is no slave of the server's:\n{mounts}");

    let status = fs::read_to_string(proc.join("status"))?;
    ensure!(status.starts_with("Name:\ttatami-vmm\n"), "{status}");
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
    let capabilities = "00000000880000df";
    for line in ["CapPrm", "CapEff", "CapBnd"].map(|set| format!("{set}:\t{capabilities}")) {
        ensure!(status.contains(&line), "not {line}:\n{status}");
    }
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    let environment = fs::read(proc.join("environ"))?;
    ensure!(environment.is_empty(), "its environment: {}", String::from_utf8_lossy(&environment));

    // What is mounted into the shared folder from now on arrives.
    let later = sandbox.shared().join("later");
    fs::create_dir(&later)?;
    mount(Some("/proc"), &later, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let arrived = fs::read_to_string(proc.join("mountinfo"))?;
    nix::mount::umount2(&later, nix::mount::MntFlags::MNT_DETACH)?;
    ensure!(arrived.lines().count() == 2, "a later mount did not arrive:\n{arrived}");
    Ok(())
}

fn disks() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut vmm = sandbox.start(&VmConfig { disk_slots: 2, ..talkative() }, &kernel(), None)?;
    let part = |start: u64, length: u64| -> Result<DiskPart> {
        let image = tempfile::tempfile()?;
        image.set_len(length)?;
        Ok(DiskPart { image, start, length, read_only: false })
    };
    // One after the other: the second finds the first's disk.
    let orders = [
        (vmm.attach_disk(1, &[part(0, 4096)?, part(4096, 512)?])?, ""),
        (vmm.attach_disk(1, &[part(0, 512)?])?, "there is a disk in slot 1 already"),
        (vmm.detach_disk(1)?, ""),
        (vmm.attach_disk(1, &[part(0, 1000)?])?, "image 0: 1000 is not a multiple of 512 bytes"),
        (vmm.attach_disk(1, &[part(0, 512)?])?, ""),
        (vmm.attach_disk(2, &[part(0, 512)?])?, "no disk slot 2"),
    ];
    let mut answers = Vec::new();
    let mut console = Vec::new();
    loop {
        match next(&mut vmm)? {
            Event::Answer { order, result } => answers.push((order, result)),
            Event::Console(bytes) => console.extend(bytes),
            Event::Stopped(_) => break,
            _ => {}
        }
    }
    ensure!(answers.len() == orders.len(), "{answers:?}");
    for ((order, expected), (answered, result)) in orders.iter().zip(&answers) {
        let said = result.as_ref().err().map_or("", String::as_str);
        ensure!(order == answered && said.is_empty() == expected.is_empty() && said.contains(expected), "{answers:?}");
    }
    // What was in the slots when the guest found them.
    let console = String::from_utf8_lossy(&console);
    ensure!(console.contains("[vda] 0 512-byte logical blocks"), "{console}");
    ensure!(console.contains("[vdb] 1 512-byte logical blocks"), "{console}");
    Ok(())
}

fn initrd() -> PathBuf {
    kernel().with_file_name("initrd.img")
}

/// A guest whose agent waits to be called.
fn waiting(sandbox: &Sandbox, config: &VmConfig) -> Result<VmmProcess> {
    let mut vmm = sandbox.start(config, &kernel(), Some(&initrd()))?;
    let mut console = Vec::new();
    loop {
        match next(&mut vmm)? {
            Event::GuestConnected { .. } => return Ok(vmm),
            Event::Console(bytes) => console.extend(bytes),
            Event::Stopped(reason) => bail!("{reason}\n{}", String::from_utf8_lossy(&console)),
            _ => {}
        }
    }
}

/// The answer to an order.
fn answer(vmm: &mut VmmProcess, order: u64) -> Result<std::result::Result<String, String>> {
    loop {
        match next(vmm)? {
            Event::Answer { order: answered, result } if answered == order => return Ok(result),
            Event::Stopped(reason) => bail!("{reason}"),
            _ => {}
        }
    }
}

/// MiB of guest memory that nobody may touch: what the process has mapped without any right, in large pieces.
fn closed_mib(vmm: &VmmProcess) -> Result<u64> {
    let mut bytes = 0;
    for line in fs::read_to_string(format!("/proc/{}/maps", vmm.pid()))?.lines() {
        let (range, rest) = line.split_once(' ').context("a mapping")?;
        let (start, end) = range.split_once('-').context("a range")?;
        let size = u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
        // malloc's arenas are reserved in the same way, at most 64 MiB a time and never a whole number of blocks.
        if rest.starts_with("---") && size.is_multiple_of(2 << 20) {
            bytes += size;
        }
    }
    Ok(bytes >> 20)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < Duration::from_secs(60), "a minute later not yet: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn memory() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let config = VmConfig { memory_mib: 128, spare_memory_mib: 256, ..VmConfig::default() };
    let mut vmm = waiting(&sandbox, &config)?;
    ensure!(closed_mib(&vmm)? == 256, "{} MiB", closed_mib(&vmm)?);
    for (mib, closed) in [(256, 128), (384, 0), (160, 224), (128, 256), (200, 184)] {
        let order = vmm.resize_memory(mib)?;
        ensure!(answer(&mut vmm, order)?.is_ok());
        wait_until(&format!("{mib} MiB"), || Ok(closed_mib(&vmm)? == closed))?;
    }
    let order = vmm.inflate_balloon(16)?;
    ensure!(answer(&mut vmm, order)?.is_ok());
    let order = vmm.pause()?;
    ensure!(answer(&mut vmm, order)?.is_ok());
    ensure!(closed_mib(&vmm)? == 184, "standing still changes nothing");
    Ok(())
}

fn impossible_memory() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut vmm = waiting(&sandbox, &VmConfig { memory_mib: 128, spare_memory_mib: 128, ..VmConfig::default() })?;
    let orders = [
        (vmm.resize_memory(257)?, "between 128 and 256 MiB of memory, not 257"),
        (vmm.resize_memory(64)?, "between 128 and 256 MiB of memory, not 64"),
        (vmm.inflate_balloon(128)?, "cannot do without 128 MiB"),
    ];
    for (order, words) in orders {
        let said = answer(&mut vmm, order)?;
        ensure!(said.as_ref().is_err_and(|said| said.contains(words)), "{said:?}");
    }
    drop(vmm);
    let config = VmConfig { spare_memory_mib: 1 << 30, ..VmConfig::default() };
    expect_error(Sandbox::new()?.run(&config, &kernel(), None)?, "MiB of memory were asked for, this host has")
}

fn shared_memory() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let config = VmConfig { memory_kind: MemoryKind::Shared, spare_memory_mib: 128, ..VmConfig::default() };
    let mut vmm = waiting(&sandbox, &config)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", vmm.pid()))?;
    ensure!(maps.contains("rw-s 00000000 00:01") && maps.contains("memfd:guest memory"), "{maps}");
    let order = vmm.resize_memory(192)?;
    ensure!(answer(&mut vmm, order)?.is_ok());
    wait_until("64 MiB more", || Ok(closed_mib(&vmm)? == 64))
}

fn huge_pages() -> Result<()> {
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";
    let config = VmConfig { memory_kind: MemoryKind::HugePages, memory_mib: 128, ..VmConfig::default() };
    let before = fs::read_to_string(PAGES).context("the host's kernel has no huge pages")?;
    fs::write(PAGES, "0")?;
    let refused = Sandbox::new()?.run(&config, &kernel(), None);
    fs::write(PAGES, "72")?;
    let sandbox = Sandbox::new()?;
    let ran = waiting(&sandbox, &config).and_then(|vmm| {
        let free = fs::read_to_string("/proc/meminfo")?;
        let line = free.lines().find(|line| line.starts_with("HugePages_Total")).unwrap_or_default().to_owned();
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid()))?;
        ensure!(smaps.contains("KernelPageSize:     2048 kB"), "{line}");
        Ok(())
    });
    fs::write(PAGES, before)?;
    expect_error(refused?, "it takes 64 free pages of 2 MiB; set more aside with `sysctl vm.nr_hugepages=")?;
    ran
}

fn virtio_console() -> Result<()> {
    let config = VmConfig { virtio_console: true, ..VmConfig::default() };
    let (console, _) = Sandbox::new()?.run(&config, &kernel(), None)?;
    ensure!(console.contains("console [hvc0] enabled"), "{console}");
    ensure!(console.contains("Linux version") && console.contains("Kernel panic"), "{console}");
    Ok(())
}

/// The processor time that the process has had, in clock ticks.
fn ticks(vmm: &VmmProcess) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", vmm.pid()))?;
    let fields = stat.rsplit_once(") ").context("a name in parentheses")?.1;
    Ok(fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn paused() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut vmm = sandbox.start(&VmConfig { vcpus: 2, max_vcpus: 2, ..talkative() }, &kernel(), Some(&initrd()))?;
    while !matches!(next(&mut vmm)?, Event::Console(_)) {}
    for _ in 0..2 {
        // Twice: the second finds it done.
        for order in [vmm.pause()?, vmm.pause()?] {
            ensure!(answer(&mut vmm, order)?.is_ok());
        }
        // In the middle of its boot. A thread that was joined is still listed for a moment.
        let task = format!("/proc/{}/task", vmm.pid());
        wait_until("machine that stands still", || {
            let names =
                fs::read_dir(&task)?.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
            // KVM has a thread of its own there.
            Ok(names.filter(|name| !name.starts_with("kvm-")).eq(["tatami-vmm\n", "spawner\n"]))
        })?;
        let before = ticks(&vmm)?;
        std::thread::sleep(Duration::from_millis(500));
        let used = ticks(&vmm)? - before;
        ensure!(used == 0, "it used {used} ticks while it stood still");
        for order in [vmm.resume()?, vmm.resume()?] {
            ensure!(answer(&mut vmm, order)?.is_ok());
        }
    }
    while !matches!(next(&mut vmm)?, Event::GuestConnected { .. }) {}
    Ok(())
}

fn whereabouts() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut vmm = waiting(&sandbox, &VmConfig { memory_mib: 128, ..VmConfig::default() })?;
    // Once it waits for nothing but its timer. Other architectures do not say that.
    let idle = if ARCH == "x86_64" { "vcpu0 halted at rip 0xffffffff8" } else { "vcpu0" };
    let mut told = String::new();
    wait_until("idle guest", || {
        let order = vmm.describe()?;
        told = answer(&mut vmm, order)?.map_err(anyhow::Error::msg)?;
        Ok(told.starts_with(idle))
    })?;
    // Of the 128 buffers that its driver has given at first, some were filled.
    ensure!(told.contains("; Vsock 0xf [128 given, ") && told.contains(" [8 given, 0 used; "), "{told}");
    let order = vmm.pause()?;
    ensure!(answer(&mut vmm, order)?.is_ok());
    let order = vmm.describe()?;
    let still = answer(&mut vmm, order)?.map_err(anyhow::Error::msg)?;
    ensure!(still.starts_with(idle) && still.contains("; Vsock 0xf ["), "{still}");
    Ok(())
}
