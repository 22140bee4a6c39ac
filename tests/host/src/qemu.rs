//! One emulated machine: its command line, its process, and how to save and restore it.
//!
//! The same machine in three lives: booted afresh, booted to be saved, restored. It does not know who runs what in it.
#![allow(unsafe_code, reason = "pre_exec: QEMU must die with the process that keeps it")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tatami_testhost::wire::{PORT, Share};

use crate::arch::Arch;
use crate::initrd;
use crate::qmp::Qmp;

/// The longest that a boot may take; it takes 10 s on an idle machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// The line by which the host says that it takes connections.
const READY: &str = "testhost-init: ready";

/// What distinguishes one emulated machine from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// What it is.
    pub(crate) arch: Arch,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory: u32,
    /// Time counts instructions: one CPU, never restored.
    pub(crate) icount: bool,
}

/// How a machine comes to life.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Life<'a> {
    /// From the kernel on; nothing is kept.
    Boot,
    /// From the kernel on, with RAM and disk in this folder, to be saved there.
    BootInto(&'a Path),
    /// As saved in this folder, which stays as it is.
    Restore(&'a Path),
}

/// The files a machine is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// What `build-images` made.
    pub(crate) images: PathBuf,
    /// Our PID 1.
    pub(crate) init: PathBuf,
}

/// A QEMU that runs. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Qemu {
    process: Child,
    folder: PathBuf,
    qmp: Option<Qmp>,
}

impl Qemu {
    /// Starts a machine with its console, logs and control socket in `folder`, and the folders `shares` within its reach.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub(crate) fn start(
        parts: &Parts,
        machine: &Machine,
        life: Life<'_>,
        shares: &[Share],
        folder: &Path,
    ) -> Result<Self> {
        if !matches!(life, Life::Restore(_)) {
            let mut file = File::create(folder.join("initrd")).context("writing the initrd")?;
            file.write_all(&initrd::build(&parts.init, &parts.images.join("modules"))?)?;
        }
        for old in ["qmp", "console.log"] {
            let _ = fs::remove_file(folder.join(old));
        }
        let qemu = parts.images.join("qemu");
        let log = File::create(folder.join("qemu.log"))?;
        // The loader of its own C library, under a name that says in process lists what it is.
        let mut command = Command::new(qemu.join("testhost-qemu"));
        command
            .arg("--library-path")
            .arg(qemu.join("lib"))
            .arg(qemu.join(machine.arch.emulator()))
            .arg("-L")
            .arg(qemu.join("share"))
            .args(arguments(parts, machine, life, shares, folder)?)
            // Its temporary overlays are unlinked at once; they must not land in a small tmpfs.
            .env("TMPDIR", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: prctl is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        let process = command.spawn().context("starting QEMU")?;
        let mut started = Self { process, folder: folder.to_owned(), qmp: None };
        started.connect()?;
        Ok(started)
    }

    /// Waits until a machine that boots takes connections.
    ///
    /// # Errors
    /// It ended, or did not come up in time; with the console's last lines.
    pub(crate) fn wait_booted(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.check()?;
            if console(&self.folder).contains(READY) {
                return Ok(());
            }
            if start.elapsed() > BOOT_DEADLINE {
                bail!("the test host did not boot in {} s\n{}", BOOT_DEADLINE.as_secs(), last_words(&self.folder));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The loopback port of the command server.
    ///
    /// # Errors
    /// QEMU is gone.
    pub(crate) fn port(&mut self) -> Result<u16> {
        self.qmp()?.forwarded_port(PORT)
    }

    /// Stops a machine that was booted with [`Life::BootInto`] and saves its state there.
    ///
    /// # Errors
    /// QEMU refuses.
    pub(crate) fn save(mut self, into: &Path) -> Result<()> {
        let qmp = self.qmp()?;
        qmp.run("stop", json!({}))?;
        // RAM lies in a shared file already: only the devices are written.
        ignore_shared(qmp)?;
        qmp.run("migrate", json!({ "uri": format!("file:{}", into.join("state").display()) }))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = qmp.run("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => bail!("saving the test host: {}", answer["error-desc"]),
                _ if Instant::now() > deadline => bail!("saving the test host: no end after 60 s"),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
        qmp.run("quit", json!({}))?;
        self.process.wait()?;
        Ok(())
    }

    /// Loads the state of a machine that was started with [`Life::Restore`], and lets it run.
    ///
    /// # Errors
    /// QEMU refuses.
    pub(crate) fn resume(&mut self, from: &Path) -> Result<()> {
        let qmp = self.qmp()?;
        ignore_shared(qmp)?;
        qmp.run("migrate-incoming", json!({ "uri": format!("file:{}", from.join("state").display()) }))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while qmp.run("query-status", json!({}))?["status"] == "inmigrate" {
            if Instant::now() > deadline {
                bail!("restoring the test host: no end after 60 s");
            }
            thread::sleep(Duration::from_millis(5));
        }
        qmp.run("cont", json!({}))?;
        Ok(())
    }

    /// An error once QEMU has ended, with the console's last lines.
    ///
    /// # Errors
    /// It has.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the test host ended (QEMU: {status})\n{}", last_words(&self.folder)),
        }
    }

    fn connect(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            self.check()?;
            match Qmp::connect(&self.folder.join("qmp")) {
                Ok(qmp) => self.qmp = Some(qmp),
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
            }
            return Ok(());
        }
    }

    fn qmp(&mut self) -> Result<&mut Qmp> {
        self.qmp.as_mut().context("no control connection to QEMU")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ignore_shared(qmp: &mut Qmp) -> Result<()> {
    qmp.run(
        "migrate-set-capabilities",
        json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] }),
    )?;
    Ok(())
}

/// All that the console of the host in `folder` showed.
fn console(folder: &Path) -> String {
    String::from_utf8_lossy(&fs::read(folder.join("console.log")).unwrap_or_default()).into_owned()
}

/// The last lines of console and QEMU, and where the rest lies.
#[must_use]
pub(crate) fn last_words(folder: &Path) -> String {
    let log = String::from_utf8_lossy(&fs::read(folder.join("qemu.log")).unwrap_or_default()).into_owned();
    // TCG names, at each start, features of the CPU model that it lacks; harmless, and not why anything ended.
    let log = log.lines().filter(|l| !l.contains("TCG doesn't support requested feature")).collect::<Vec<_>>();
    let console = console(folder);
    let console = console.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect::<Vec<_>>();
    let mut text = String::new();
    // A panic's last lines are registers; what it is about stands further up.
    let why =
        console.iter().filter(|l| ["Kernel panic", "BUG:", "Oops", "Out of memory"].iter().any(|w| l.contains(w)));
    for line in why.take(5) {
        text += &format!("  | {line}\n");
    }
    for (name, lines, most) in [("qemu.log", log, 5), ("console.log", console, 20)] {
        for line in lines.iter().skip(lines.len().saturating_sub(most)) {
            text += &format!("  | {line}\n");
        }
        text += &format!("  (all of it: {})\n", folder.join(name).display());
    }
    text.trim_end().to_owned()
}

fn arguments(parts: &Parts, machine: &Machine, life: Life<'_>, shares: &[Share], folder: &Path) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_str().map(|p| p.replace(',', ",,")).context("a path that is not UTF-8");
    let (disk, keep, ram) = match life {
        Life::Boot => (parts.images.join("root.ext4"), false, None),
        Life::BootInto(into) => (into.join("disk"), true, Some((into.join("ram"), "on"))),
        Life::Restore(from) => (from.join("disk"), false, Some((from.join("ram"), "off"))),
    };
    // A restored machine does not read it again, but QEMU wants the file that was there.
    let initrd = if let Life::Restore(from) = life { from } else { folder }.join("initrd");
    let memory = match ram {
        None => format!("memory-backend-ram,id=ram,size={}M", machine.memory),
        Some((path, share)) => {
            format!("memory-backend-file,id=ram,size={}M,mem-path={},share={share}", machine.memory, text(&path)?)
        }
    };
    let mut a: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| a.extend([format!("-{option}"), value]);
    // Restoring needs the machine that was saved: from here on everything but paths is the same in all three lives.
    add("machine", format!("{},memory-backend=ram", machine.arch.machine()));
    add("object", memory);
    add("accel", if machine.icount { "tcg,thread=single" } else { "tcg,thread=multi" }.into());
    if machine.icount {
        add("icount", "shift=1,sleep=off".into());
    }
    add("cpu", machine.arch.cpu().into());
    add("smp", machine.cpus.to_string());
    add("m", machine.memory.to_string());
    add("kernel", text(&parts.images.join("vmlinuz"))?);
    add("initrd", text(&initrd)?);
    add("append", machine.arch.command_line().into());
    add("serial", format!("file:{}", text(&folder.join("console.log"))?));
    add("qmp", "unix:qmp,server=on,wait=off".into());
    let snapshot = if keep { "off" } else { "on" };
    let drive =
        format!("file={},format=raw,if=none,id=disk,cache=unsafe,discard=unmap,snapshot={snapshot}", text(&disk)?);
    add("drive", drive);
    add("device", "virtio-blk-pci,drive=disk".into());
    add("netdev", format!("user,id=net,hostfwd=tcp:127.0.0.1:0-:{PORT}"));
    add("device", "virtio-net-pci,netdev=net,romfile=".into());
    add("device", "virtio-rng-pci".into());
    for share in shares {
        let path = String::from_utf8(share.path.clone()).context("a path that is not UTF-8")?;
        let readonly = if share.writable { "off" } else { "on" };
        add(
            "virtfs",
            format!(
                "local,path={},mount_tag={tag},id={tag},security_model=none,multidevs=remap,readonly={readonly}",
                path.replace(',', ",,"),
                tag = share.tag
            ),
        );
    }
    if matches!(life, Life::Restore(_)) {
        add("incoming", "defer".into());
    }
    a.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(String::from));
    Ok(a)
}
