//! Sandboxes that go on from a machine that booted earlier: nothing of it shows, and a template that is damaged does no lasting harm.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use tatami_tests::{Finished, Tatami};

/// An installation with templates of its own, and where it keeps them.
fn installation() -> (Tatami, PathBuf) {
    let tatami = Tatami::new();
    let templates = tatami.scratch().join("templates");
    (tatami, templates)
}

fn run(tatami: &Tatami, templates: &PathBuf, command: &[&str]) -> Finished {
    let mut all = tatami.command(&Tatami::run_arguments(&["--timings"], command));
    all.env("TATAMI_TEMPLATES", templates);
    tatami_tests::Running::start(all).finish()
}

/// Whether the guest booted, as the timings tell.
fn booted(finished: &Finished) -> bool {
    let said = finished.err();
    let line = said.lines().find(|line| line.starts_with("boot ")).unwrap_or_else(|| panic!("no boot phase: {said}"));
    !line.contains(" 0.0 ms")
}

fn kept(templates: &PathBuf) -> Vec<PathBuf> {
    fs::read_dir(templates).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_second_sandbox_does_not_boot_and_shares_no_secrets_with_the_first() {
    let (tatami, templates) = installation();
    let command = ["sh", "-c", "cat /proc/sys/kernel/random/uuid; date +%s; head -c 16 /dev/urandom | md5sum"];
    let runs: Vec<_> = (0..3).map(|_| run(&tatami, &templates, &command).expect_status(0)).collect();
    assert!(booted(&runs[0]) && !booted(&runs[1]) && !booted(&runs[2]));
    assert_eq!(kept(&templates).len(), 1);
    let said: Vec<Vec<String>> = runs.iter().map(|run| run.out().lines().map(str::to_owned).collect()).collect();
    for line in [0, 2] {
        assert!(said[0][line] != said[1][line] && said[1][line] != said[2][line], "{said:?}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let clock: u64 = said[2][1].parse().unwrap();
    assert!(now.abs_diff(clock) < 30, "the guest's clock says {clock}, the host's {now}");
}

#[test]
#[ignore = "boots a guest: make test"]
fn five_at_once_go_on_from_one_template() {
    let (tatami, templates) = installation();
    run(&tatami, &templates, &["true"]).expect_status(0);
    let start = |number: usize| {
        let script = format!("dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; echo {number}");
        let mut command = tatami.command(&Tatami::run_arguments(&["--timings"], &["sh", "-c", &script]));
        command.env("TATAMI_TEMPLATES", &templates);
        tatami_tests::Running::start(command)
    };
    let started: Vec<_> = (0..5).map(start).collect();
    for (number, running) in started.into_iter().enumerate() {
        let finished = running.finish().expect_status(0);
        assert_eq!(finished.out().trim(), number.to_string());
        assert!(!booted(&finished));
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn another_size_of_machine_is_another_template() {
    let (tatami, templates) = installation();
    run(&tatami, &templates, &["true"]).expect_status(0);
    let mut larger = tatami.command(&Tatami::run_arguments(&["--timings", "--memory", "192m"], &["true"]));
    larger.env("TATAMI_TEMPLATES", &templates);
    assert!(booted(&tatami_tests::Running::start(larger).finish().expect_status(0)));
    assert_eq!(kept(&templates).len(), 2);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_damaged_template_fails_once_and_is_gone() {
    let (tatami, templates) = installation();
    run(&tatami, &templates, &["true"]).expect_status(0);
    let template = kept(&templates).remove(0);
    for (file, damage) in [("state", &b"{}"[..]), ("memory", &b"short"[..])] {
        fs::write(template.join(file), damage).unwrap();
        run(&tatami, &templates, &["true"]).expect_error(125, &["saved machine"]);
        assert_eq!(kept(&templates).len(), 0, "after damaging {file}");
        assert!(booted(&run(&tatami, &templates, &["true"]).expect_status(0)));
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_host_without_the_memory_for_a_machine_keeps_its_template() {
    let (tatami, templates) = installation();
    run(&tatami, &templates, &["true"]).expect_status(0);
    // Enough for server and VMM, and not for the 512 MiB of a guest.
    let mut limited = std::process::Command::new("/bin/sh");
    let command = tatami.command(&Tatami::run_arguments(&["--timings"], &["true"]));
    limited.args(["-c", "ulimit -v 400000 && exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().map(|(name, value)| (name, value.unwrap_or_default())));
    limited.env("TATAMI_TEMPLATES", &templates);
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tatami_tests::Running::start(limited).finish().expect_error(125, &["guest memory", "512 MiB"]);
    assert_eq!(kept(&templates).len(), 1);
    assert!(!booted(&run(&tatami, &templates, &["true"]).expect_status(0)));
}

#[test]
#[ignore = "boots a guest: make test"]
fn without_templates_every_sandbox_boots() {
    let tatami = Tatami::new();
    for _ in 0..2 {
        let mut command = tatami.command(&Tatami::run_arguments(&["--timings"], &["true"]));
        command.env("TATAMI_TEMPLATES", "off");
        assert!(booted(&tatami_tests::Running::start(command).finish().expect_status(0)));
    }
}
