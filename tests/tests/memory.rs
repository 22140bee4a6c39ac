//! Memory that a guest does not use any more is the host's again, within half a minute and without being asked for.

use std::fs;
use std::time::{Duration, Instant};

use tatami_tests::Tatami;

/// What `/proc` has in the file `name` about the VMM of an installation.
fn of_vmm(tatami: &Tatami, name: &str) -> String {
    let vmm =
        tatami.processes().into_iter().find(|process| process.command.starts_with("tatami-vmm")).expect("a VMM runs");
    fs::read_to_string(format!("/proc/{}/{name}", vmm.pid)).expect("it has not ended")
}

/// The memory that it holds, in MiB.
fn held(tatami: &Tatami) -> u64 {
    let status = of_vmm(tatami, "smaps_rollup");
    let line = status.lines().find(|line| line.starts_with("Private_Dirty:")).expect("proc(5)");
    line.split_ascii_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("kilobytes") >> 10
}

/// Uses 300 MB in a container, frees them, waits until they are back, and says how much is held before and meanwhile.
fn use_and_free(templates: &str) -> [u64; 2] {
    let tatami = Tatami::new();
    // dd reads all of its block before it writes any: once a byte is there, it holds 300 MB.
    let script = "mkfifo /dev/shm/f; echo before; read x; dd if=/dev/zero of=/dev/shm/f bs=300M count=1 2>/dev/null & \
                  exec 3</dev/shm/f; head -c 1 <&3 >/dev/null; echo full; read x; \
                  kill $!; exec 3<&-; wait; echo freed; read x; true";
    let mut command = tatami.command(&Tatami::run_arguments(&["-i", "-m", "512m"], &["sh", "-c", script]));
    command.env("TATAMI_TEMPLATES", templates).stdin(std::process::Stdio::piped());
    let mut running = tatami_tests::Running::start(command);
    let mut stdin = running.take_stdin();
    let mut go = || std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    running.wait_for("before");
    let before = held(&tatami);
    go();
    running.wait_for("full");
    let full = held(&tatami);
    go();
    running.wait_for("freed");
    let freed = Instant::now();
    // Its kernel reports a sixteenth of what is free every two seconds.
    while held(&tatami) > before + 60 {
        assert!(freed.elapsed() < Duration::from_secs(90), "{full} MiB were held, {} MiB are still", held(&tatami));
        std::thread::sleep(Duration::from_millis(500));
    }
    let after = held(&tatami);
    println!(
        "templates {templates}: {before} MiB, {full} MiB full, {after} MiB {:?} after they were freed",
        freed.elapsed()
    );
    go();
    running.finish().expect_status(0);
    [before, full]
}

#[test]
#[ignore = "boots a guest: make test"]
fn memory_lies_in_a_file_where_that_is_asked_for() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("memory");
    fs::create_dir(&folder).unwrap();
    let backing = format!("file:{}", folder.display());
    let script = "echo up; read x; dd if=/dev/zero of=/dev/shm/f bs=1M count=20 2>/dev/null; echo full; read x; exit 3";
    let mut command = tatami
        .command(&Tatami::run_arguments(&["-i", "-m", "128m", "--memory-backing", &backing], &["sh", "-c", script]));
    command.stdin(std::process::Stdio::piped());
    let mut running = tatami_tests::Running::start(command);
    let mut stdin = running.take_stdin();
    running.wait_for("up");
    let mapped = || {
        let maps = of_vmm(&tatami, "maps");
        maps.lines().filter(|line| line.contains("rw-s") && line.contains("memory/#")).count()
    };
    assert_eq!(mapped(), 1, "one region below the hole");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "it has a name");
    for said in ["full", ""] {
        std::io::Write::write_all(&mut stdin, b"\n").unwrap();
        running.wait_for(said);
    }
    running.finish().expect_status(3);
    let nowhere = ["--memory-backing", "file:/proc", "-m", "64m"];
    tatami.run_with(&nowhere, &["true"]).expect_error(125, &["guest memory in a file in /proc"]);
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn freed_memory_is_the_hosts_again() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    // One that boots, one that leaves a template, and one that goes on from it.
    for templates in ["off", folder.path().to_str().unwrap(), folder.path().to_str().unwrap()] {
        let [before, full] = use_and_free(templates);
        assert!(full - before > 250, "{before} and {full} MiB");
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_machine_does_without_memory_that_its_balloon_takes_and_has_it_back() {
    let tatami = Tatami::new();
    tatami.detach(&["-m", "512m", "--name", "web"], &["sleep", "1000"]);
    let available = || {
        let text = tatami.tatami(&["exec", "web", "cat", "/proc/meminfo"]).expect_status(0).out();
        let line = text.lines().find(|line| line.starts_with("MemAvailable:")).expect("proc(5)");
        line.split_ascii_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("kilobytes") >> 10
    };
    let wait = |what: &str, done: &dyn Fn(u64) -> bool| {
        let began = Instant::now();
        loop {
            let now = available();
            if done(now) {
                println!("{what}: {now} MiB are available after {:?}", began.elapsed());
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(240), "{what}: {now} MiB are available");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let before = available();
    assert!(before > 300, "{before} MiB");
    tatami.tatami(&["balloon", "web", "256m"]).expect_status(0);
    wait("256 MiB taken", &|now| now + 240 < before);
    tatami.tatami(&["balloon", "web", "64m"]).expect_status(0);
    wait("64 MiB taken", &|now| now + 90 > before && now + 40 < before);
    for (size, words) in [("465m", "464 MiB at most, not 465"), ("512g", "512 MiB of memory")] {
        tatami.tatami(&["balloon", "web", size]).expect_error(1, &["web", words]);
    }
    tatami.tatami(&["balloon", "web", "much"]).expect_error(125, &["much", "512m"]);
    tatami.tatami(&["balloon", "nobody", "64m"]).expect_error(1, &["no such container"]);
    tatami.tatami(&["balloon", "web", "0"]).expect_status(0);
    wait("none taken", &|now| now + 30 > before);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}
