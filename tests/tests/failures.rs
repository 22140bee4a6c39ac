//! What goes wrong, and what the caller sees of it: one line that names the trouble, the conventional exit status, within
//! seconds, and nothing left behind (every [`Tatami`] checks that when it is dropped).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::{Finished, Process, Running, Tatami, image, kernel};

/// How soon an error must come once its cause is there, on an emulated host.
const SECONDS: Duration = Duration::from_secs(15);

/// An initrd whose /init is the distribution's static busybox running `script`.
fn initrd(folder: &Path, script: &str) -> PathBuf {
    let root = folder.join("initrd");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("dev")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), format!("#!/bin/busybox sh\n{script}\n")).unwrap();
    let pack = "chmod 755 init && find . | busybox cpio -o -H newc >../initrd.img";
    let status = Command::new("sh").args(["-c", pack]).current_dir(&root).status().unwrap();
    assert!(status.success());
    folder.join("initrd.img")
}

fn vmm(tatami: &Tatami) -> Process {
    tatami.processes().into_iter().find(|process| process.command.starts_with("tatami-vmm")).expect("a VMM runs")
}

fn soon(finished: Finished) -> Finished {
    assert!(finished.took < SECONDS, "took {:?}: {}", finished.took, finished.err());
    finished
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_that_panics_is_told_with_its_last_words() {
    let tatami = Tatami::new();
    let image_with_bad_init = initrd(&tatami.scratch(), "exit 5");
    let options = ["--initrd", image_with_bad_init.to_str().unwrap()];
    soon(tatami.run_with(&options, &["true"]).expect_error(125, &["panic"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_agent_that_never_answers_is_a_time_out() {
    let tatami = Tatami::new();
    let mute = initrd(&tatami.scratch(), "while :; do busybox sleep 1000; done");
    let options = ["--initrd", mute.to_str().unwrap(), "--boot-timeout", "5"];
    soon(tatami.run_with(&options, &["true"]).expect_error(125, &["agent"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_killed_vmm_ends_the_run_with_an_error() {
    let tatami = Tatami::new();
    let running = tatami.start(&[], &["sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up");
    kill(Pid::from_raw(vmm(&tatami).pid), Signal::SIGKILL).unwrap();
    running.finish().expect_error(125, &["VMM", "SIGKILL"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_vmm_killed_while_it_boots_ends_the_run_with_an_error() {
    let tatami = Tatami::new();
    let running = tatami.start(&[], &["true"]);
    while !tatami.processes().iter().any(|process| process.command.starts_with("tatami-vmm")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(vmm(&tatami).pid), Signal::SIGKILL).unwrap();
    soon(running.finish().expect_error(125, &["VMM"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_killed_server_leaves_nothing() {
    for delay in [50, 300, 900, 2000] {
        let tatami = Tatami::new();
        let running = tatami.start(&[], &["sh", "-c", "sleep 1000"]);
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::SIGKILL);
        running.finish().expect_status(137);
        tatami.assert_nothing_left();
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn everything_killed_at_once_leaves_nothing_after_the_next_run() {
    let tatami = Tatami::new();
    let running = tatami.start(&[], &["sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up");
    for process in tatami.processes() {
        // One may have ended with another.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    running.finish().expect_status(137);
    tatami.run(&["true"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_kernel_that_is_none_is_named() {
    let tatami = Tatami::new();
    let text = tatami.scratch().join("kernel.txt");
    fs::write(&text, "not an ELF file, whatever its name says\n".repeat(100)).unwrap();
    let kind = if std::env::consts::ARCH == "aarch64" { "Image" } else { "ELF" };
    soon(tatami.run_with(&["--kernel", text.to_str().unwrap()], &["true"]).expect_error(125, &["kernel.txt", kind]));
    let empty = tatami.scratch().join("empty");
    fs::write(&empty, "").unwrap();
    soon(tatami.run_with(&["--kernel", empty.to_str().unwrap()], &["true"]).expect_error(125, &["empty"]));
    soon(tatami.run_with(&["--kernel", "/no/such/kernel"], &["true"]).expect_error(125, &["/no/such/kernel"]));
    // Cut short in the middle of its segments.
    let cut = tatami.scratch().join("cut");
    fs::write(&cut, &fs::read(kernel()).unwrap()[..1 << 20]).unwrap();
    soon(tatami.run_with(&["--kernel", cut.to_str().unwrap()], &["true"]).expect_error(125, &["cut"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_initrd_larger_than_memory_is_refused() {
    let tatami = Tatami::new();
    let large = tatami.scratch().join("large");
    fs::File::create(&large).unwrap().set_len(200 << 20).unwrap();
    let options = ["--memory", "128m", "--initrd", large.to_str().unwrap()];
    soon(tatami.run_with(&options, &["true"]).expect_error(125, &["initrd", "memory"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn impossible_sizes_are_refused() {
    let tatami = Tatami::new();
    soon(tatami.run_with(&["--memory", "8t"], &["true"]).expect_error(125, &["memory"]));
    soon(tatami.run_with(&["--memory", "1m"], &["true"]).expect_error(125, &["memory"]));
    soon(tatami.run_with(&["--memory", "lots"], &["true"]).expect_status(125));
    soon(tatami.run_with(&["--cpus", "0"], &["true"]).expect_status(125));
    soon(tatami.run_with(&["--cpus", "9999"], &["true"]).expect_status(125));
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_missing_volume_image_or_flag_is_named() {
    let tatami = Tatami::new();
    soon(tatami.run_with(&["-v", "/no/such/folder:/data"], &["true"]).expect_error(125, &["/no/such/folder"]));
    soon(tatami.tatami(&["run", "/no/such/image.tar"]).expect_error(125, &["/no/such/image.tar"]));
    let finished = tatami.tatami(&["run", "--no-such-flag"]).expect_status(125);
    assert!(finished.err().contains("--no-such-flag"), "{}", finished.err());
    soon(tatami.run_with(&["-u", "nobody-here"], &["true"]).expect_error(125, &["nobody-here"]));
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_damaged_image_is_named_with_its_digest() {
    let tatami = Tatami::new();
    let mut bytes = fs::read(image()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    let damaged = tatami.scratch().join("damaged.tar");
    fs::write(&damaged, bytes).unwrap();
    let words = ["run", "--rm", damaged.to_str().unwrap(), "true"];
    soon(tatami.tatami(&words).expect_error(125, &["sha256:"]));
}

#[test]
#[ignore = "boots guests: make test"]
fn thirty_runs_five_at_once_leave_the_tables_as_they_were() {
    let tatami = Tatami::new();
    for round in 0..6 {
        let started: Vec<Running> = (0..5)
            .map(|number| {
                tatami.start(&["--memory", "128m"], &["sh", "-c", &format!("echo {round}.{number}; exit {number}")])
            })
            .collect();
        for (number, running) in started.into_iter().enumerate() {
            let finished = running.finish().expect_status(i32::try_from(number).unwrap());
            assert_eq!(finished.out(), format!("{round}.{number}\n"));
        }
    }
    tatami.assert_nothing_left();
}
