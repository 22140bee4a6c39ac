//! What an operator sets for all sandboxes of a runtime: Kata's configuration.toml.

use std::fs;

use tatami_tests::compare::{Case, Notes};

use crate::stage::Ctr;

pub(crate) const CASES: &[Case<Ctr>] =
    &[Case::new("a configuration of Kata's", configuration).without_reference("runc has no such file")];

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
