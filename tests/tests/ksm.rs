//! Sandboxes with mergeable memory have equal pages in common while `tatami ksm` runs, and the host has its settings back after it.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tatami_tests::{Running, Tatami};

const FOLDER: &str = "/sys/kernel/mm/ksm";
const SANDBOXES: u64 = 10;
/// Bytes that each but one saves at least. Going on from one template, they have the most in common anyway; these are of what they
/// have changed since.
const SAVED: u64 = 500 * 4096;

fn knob(name: &str) -> String {
    fs::read_to_string(format!("{FOLDER}/{name}")).expect("a kernel with CONFIG_KSM").trim().to_owned()
}

fn number(name: &str) -> u64 {
    knob(name).parse().expect("a number")
}

/// In bytes: a host's pages may be large.
fn saved() -> u64 {
    number("pages_sharing") * rustix::param::page_size() as u64
}

/// A sandbox's, with room for an exec: pages of 64 KiB leave too little of 64 MiB.
fn memory() -> &'static str {
    if rustix::param::page_size() > 4096 { "96m" } else { "64m" }
}

fn set(name: &str, value: &str) {
    fs::write(format!("{FOLDER}/{name}"), value).expect("a knob");
}

/// Merging is turned on, and what was merged is taken apart again at the end.
struct On;

impl On {
    fn new() -> On {
        set("run", "1");
        On
    }
}

impl Drop for On {
    fn drop(&mut self) {
        set("run", "2");
        set("run", "0");
    }
}

fn speed() -> [u64; 2] {
    [number("pages_to_scan"), number("sleep_millisecs")]
}

#[test]
#[ignore = "boots a guest: make test"]
fn equal_sandboxes_have_pages_in_common_and_the_host_has_its_settings_back() {
    let tatami = Tatami::new();
    set("run", "0");
    tatami.tatami(&["ksm"]).expect_error(1, &["/sys/kernel/mm/ksm/run", "0"]);
    let _on = On::new();
    let before = speed();
    let ksm = Running::start(tatami.command(&["ksm"]));
    ksm.wait_for("looking: 0 sandboxes");
    tatami.tatami(&["ksm"]).expect_error(1, &["another"]);
    let names: Vec<String> = (0..SANDBOXES).map(|number| format!("equal{number}")).collect();
    let mut fastest = 0;
    for name in &names {
        tatami.detach(&["-m", memory(), "--memory-backing", "mergeable", "--name", name], &["sleep", "1000"]);
        fastest = fastest.max(speed()[0]);
    }
    ksm.wait_for("fast: ");
    assert!(fastest > before[0], "{fastest} pages at a time");
    let began = Instant::now();
    while saved() < SAVED * (SANDBOXES - 1) {
        assert!(began.elapsed() < Duration::from_secs(240), "{} bytes are saved", saved());
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{} bytes are saved {:?} after the last of {SANDBOXES} has begun", saved(), began.elapsed());
    // None has noticed.
    for name in &names {
        let told = tatami.tatami(&["exec", name, "echo", name]).expect_status(0);
        assert_eq!(told.out().trim(), name);
    }
    ksm.signal(Signal::SIGTERM);
    let told = ksm.finish().expect_status(0).out();
    print!("{told}");
    assert!(told.contains("the host's own settings are back"), "{told}");
    assert_eq!((speed(), knob("run").as_str()), (before, "1"));
    for name in &names {
        tatami.tatami(&["rm", "-f", name]).expect_status(0);
    }
}
