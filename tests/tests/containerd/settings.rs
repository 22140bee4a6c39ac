//! What an operator sets for all sandboxes of a runtime: Kata's configuration.toml.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tatami_tests::compare::{Case, Notes};
use tatami_tests::{Running, Terminal, binary, initrd};

use crate::stage::Ctr;

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("a configuration of Kata's", configuration).without_reference("runc has no such file"),
    Case::new("hooks of the guest's own", hooks).without_reference("runc has no guest"),
    Case::new("a shell in the guest itself", console).without_reference("runc has no guest"),
];

fn configuration(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch().join("configuration");
    fs::create_dir_all(folder.join("config.d")).expect("a folder");
    let file = folder.join("configuration.toml");
    let path = file.to_str().expect("UTF-8").to_owned();
    let set = |text: &str| fs::write(&file, text).expect("a file can be written");
    let script = "cat /proc/cmdline; grep MemTotal /proc/meminfo; grep Seccomp: /proc/self/status";
    let run = |name: &str, notes: &mut Notes, what: &str, wanted: &[&str]| {
        let finished = ctr.run(name, &["--rm", "--seccomp", "--runtime-config-path", &path], &["sh", "-c", script]);
        let said = finished.out() + &finished.err();
        for words in wanted {
            notes.want(format!("{what}: {words}"), said.contains(words), true);
        }
        if !wanted.iter().all(|words| said.contains(words)) {
            notes.see(what, said);
        }
    };
    set(
        "[hypervisor.qemu]\npath = '/usr/bin/qemu-system-x86_64'\nkernel = '/opt/kata/share/kata-containers/vmlinux.container'\n\
         kernel_params = 'set.by=file'\ndefault_memory = 100\n[runtime]\ndisable_guest_seccomp = true\n",
    );
    fs::write(folder.join("config.d/50-memory.toml"), "[hypervisor.qemu]\ndefault_memory = 160\n").expect("a file");
    run("a", notes, "set", &["set.by=file", "MemTotal:         1", "Seccomp:\t0"]);
    // What is dropped in would go before it.
    fs::remove_dir_all(folder.join("config.d")).expect("it was there");
    set("[hypervisor.qemu]\n\ndefault_memory = 'much'\n");
    run("b", notes, "a wrong value", &["configuration.toml:3: default_memory is \"much\": expected a number"]);
    set("[hypervisor.qemu]\nkernel = '/no/such/kernel'\n");
    run("c", notes, "a kernel that is not there", &["configuration.toml:2: kernel is \"/no/such/kernel\""]);
    fs::remove_file(&file).expect("it was there");
    run("d", notes, "no file", &["cannot read the configuration", "configuration.toml"]);
}

/// A disk of the guest's root: the agent, a shell, and what is in the folder `root` below `folder`.
fn with_shell(folder: &Path) -> PathBuf {
    let (root, image) = (folder.join("root"), folder.join("root.ext4"));
    fs::create_dir_all(&root).expect("a folder");
    let mut command = Command::new(binary());
    command.args(["rootfs", "build", "--distro=busybox", "--format=ext4", "--initrd"]).arg(initrd());
    command.arg("--add").arg(root).arg("--output").arg(&image);
    let built = command.output().expect("tatami can be run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    image
}

/// A hook of each kind turns a knob of the guest's kernel.
fn hooks(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch().join("hooks");
    for (kind, value) in [("prestart", 11), ("poststart", 12), ("poststop", 13)] {
        let file = folder.join("root/usr/share/oci/hooks").join(kind).join("10-knob");
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        let script = format!("#!/bin/sh\nread state; test \"$state\" && echo {value} >/proc/sys/vm/swappiness\n");
        fs::write(&file, script).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let image = with_shell(&folder);
    let file = folder.join("configuration.toml");
    let text = "[hypervisor.tatami]\nguest_hook_path = '/usr/share/oci/hooks'\n";
    fs::write(&file, format!("{text}image = '{}'\n", image.display())).expect("a file can be written");
    let path = file.to_str().expect("UTF-8").to_owned();
    let script = "cat /proc/sys/vm/swappiness; until grep -x 12 /proc/sys/vm/swappiness; do sleep 0.1; done";
    let finished = ctr.run("a", &["--rm", "--runtime-config-path", &path], &["sh", "-c", script]);
    // The command may look when it has been started for a while.
    notes.want("before and after the start", finished.out().replace("12\n12\n", "11\n12\n"), "11\n12\n");
    notes.want("what it says", finished.err(), "");
}

fn console(ctr: &mut Ctr, notes: &mut Notes) {
    let folder = ctr.scratch().join("console");
    let image = with_shell(&folder);
    let file = folder.join("configuration.toml");
    let path = file.to_str().expect("UTF-8").to_owned();
    let say = |name: &str, words: &str| {
        let mut command = Command::new(binary());
        command.args(["console", &ctr.id(name)]).env("TATAMI_STATE", ctr.containerd().home().path("run"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let finished = Running::start(command).finish_with_input(words.into());
        finished.out() + &finished.err()
    };
    let allowed = "[agent.kata]\ndebug_console_enabled = true\n";
    let shell = format!("[hypervisor.tatami]\nimage = '{}'\n", image.display());
    fs::write(&file, format!("{allowed}{shell}")).expect("a file can be written");
    ctr.detached("a", &["--runtime-config-path", &path], &["sleep", "1000"]);
    notes.want(
        "a shell beside the agent",
        say("a", "read name </proc/1/comm; echo $((6 * 7)) of $name"),
        "42 of init\n",
    );
    // As somebody at a terminal sees it.
    let mut command = Command::new(binary());
    command.args(["console", &ctr.id("a")]).env("TATAMI_STATE", ctr.containerd().home().path("run"));
    let mut terminal = Terminal::start(command, 33, 77);
    terminal.send("echo $((6 * 7)) times; exit 0\r");
    terminal.wait_for("42 times");
    notes.want("its end on a terminal", terminal.finish(), 0);
    ctr.finish("a");
    fs::write(&file, shell).expect("a file can be written");
    ctr.detached("b", &["--runtime-config-path", &path], &["sleep", "1000"]);
    notes.want("none that is not allowed", say("b", "").contains("debug_console_enabled"), true);
    fs::write(&file, allowed).expect("a file can be written");
    ctr.detached("c", &["--runtime-config-path", &path], &["sleep", "1000"]);
    notes.want("none without a shell", say("c", "").contains("the guest's own root has no shell"), true);
    notes.want("nor of what is not there", say("d", "").contains(" runs here"), true);
    ctr.finish("b");
    ctr.finish("c");
}
