//! `tatami metrics` as whoever watches a host sees it: every sandbox, whatever started it and in whatever state it is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_tests::{Running, Tatami};

/// The value of the one sample whose name and labels these are.
fn value(page: &str, sample: &str) -> Option<f64> {
    let lines: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')).collect();
    assert!(lines.len() < 2, "{sample} stands there twice:\n{page}");
    lines.first().map(|value| value.parse().unwrap())
}

fn page(tatami: &Tatami) -> String {
    tatami.tatami(&["metrics"]).expect_status(0).out()
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_sandbox_is_measured_from_outside_and_from_inside() {
    let tatami = Tatami::new();
    assert_eq!(value(&page(&tatami), "tatami_sandboxes"), Some(0.0));
    let id = tatami.detach(&["--name", "web", "-m", "128m"], &["sh", "-c", "while :; do :; done"]);
    let first = page(&tatami);
    let of = |name: &str, labels: &str| format!("{name}{{sandbox_id=\"{id}\"{labels}}}");
    let is = |name: &str, labels: &str| {
        value(&first, &of(name, labels)).unwrap_or_else(|| panic!("no {name} {labels}:\n{first}"))
    };
    assert_eq!(value(&first, "tatami_sandboxes"), Some(1.0));
    assert_eq!(is("tatami_sandbox_up", ""), 1.0);
    assert_eq!(is("tatami_sandbox_info", &format!(",folder=\"{id}\",namespace=\"\",name=\"web\"")), 1.0);
    for process in ["server", "vmm"] {
        assert!(is("tatami_process_threads", &format!(",process=\"{process}\"")) >= 1.0);
        assert!(is("tatami_process_open_fds", &format!(",process=\"{process}\"")) >= 3.0);
        let resident =
            is("tatami_process_resident_memory_bytes", &format!(",process=\"{process}\",kind=\"anonymous\""));
        assert!(resident > 0.0 && resident < 256e6, "{resident}");
    }
    let memory = is("tatami_guest_memory_total_bytes", "");
    assert!(memory > 64e6 && memory <= 128.0 * 1048576.0, "{memory}");
    assert!(is("tatami_guest_memory_available_bytes", "") < memory);
    assert!(is("tatami_guest_uptime_seconds", "") > 0.0 && is("tatami_guest_threads", "") > 10.0);
    let container = format!(",container_id=\"{id}\"");
    assert_eq!(is("tatami_container_pids", &container), 1.0);
    assert!(is("tatami_container_memory_usage_bytes", &container) > 0.0);
    for family in first.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(first.contains(&format!("# HELP {family} ")), "{family}");
    }
    // Looks twice, two seconds apart.
    let top = tatami.tatami(&["top", "--once", "--format", "json"]).expect_status(0).out();
    let top: serde_json::Value = serde_json::from_str(&top).expect("one sandbox, one line");
    let number = |key: &str| top[key].as_f64().unwrap_or_else(|| panic!("no {key}: {top}"));
    assert_eq!((top["Id"].as_str(), top["Containers"].as_u64()), (Some(&*id), Some(1)), "{top}");
    assert!(number("CpuPercent") > 5.0 && number("HostMemory") > 1e6, "{top}");
    assert!(number("GuestMemoryUsed") > 1e6 && number("GuestMemory") == memory, "{top}");
    // What counts goes on counting.
    let later = page(&tatami);
    for (name, labels) in [
        ("tatami_process_cpu_seconds_total", ",process=\"vmm\",mode=\"user\""),
        ("tatami_vmm_thread_cpu_seconds_total", ",thread=\"vcpu0\""),
        ("tatami_guest_cpu_seconds_total", ",mode=\"user\""),
        ("tatami_container_cpu_usage_seconds_total", &container),
    ] {
        let now = value(&later, &of(name, labels)).unwrap();
        assert!(now > is(name, labels), "{name}: {now}");
    }
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
    assert_eq!(value(&page(&tatami), "tatami_sandboxes"), Some(0.0));
}

#[test]
#[ignore = "boots a guest: make test"]
fn one_that_does_not_answer_is_down_and_holds_up_nobody() {
    let tatami = Tatami::new();
    let still = tatami.detach(&["--name", "still"], &["sleep", "1000"]);
    let vmm = tatami.processes().into_iter().find(|process| process.command.starts_with("tatami-vmm")).unwrap();
    let fine = tatami.detach(&["--name", "fine"], &["sleep", "1000"]);
    // The first process of a container hears of no signal that it has not asked for.
    let foreground = tatami.start(&[], &["sh", "-c", "trap 'exit 0' TERM; echo up; sleep 1000 & wait"]);
    foreground.wait_for("up");
    let up = |page: &str, id: &str| value(page, &format!("tatami_sandbox_up{{sandbox_id=\"{id}\"}}"));
    kill(Pid::from_raw(vmm.pid), Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    let stopped = page(&tatami);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    kill(Pid::from_raw(vmm.pid), Signal::SIGCONT).unwrap();
    assert_eq!((up(&stopped, &still), up(&stopped, &fine)), (Some(0.0), Some(1.0)), "{stopped}");
    // What needs nobody's answer is there.
    assert!(stopped.contains(&format!("tatami_process_threads{{sandbox_id=\"{still}\",process=\"vmm\"}}")));
    assert!(!stopped.contains(&format!("tatami_guest_threads{{sandbox_id=\"{still}\"}}")));
    let page = page(&tatami);
    assert_eq!((up(&page, &still), value(&page, "tatami_sandboxes")), (Some(1.0), Some(3.0)), "{page}");
    assert_eq!(page.lines().filter(|line| line.starts_with("tatami_sandbox_up") && line.ends_with(" 1")).count(), 3);
    foreground.signal(Signal::SIGTERM);
    foreground.finish();
    tatami.tatami(&["rm", "-f", "still", "fine"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn they_are_served_over_http_while_sandboxes_come_and_go() {
    let tatami = Tatami::new();
    let server = Running::start(tatami.command(&["metrics", "--listen", "127.0.0.1:0"]));
    server.wait_for("/metrics\n");
    let said = server.out_so_far();
    let address = said.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    assert!(ask("/").starts_with("HTTP/1.1 404 "));
    assert!(ask("/metrics").contains("\ntatami_sandboxes 0\n"));
    let starting = Running::start(tatami.command(&{
        let mut words = Tatami::run_arguments(&["--name", "web"], &["sleep", "1000"]);
        words[1] = "-d".to_owned();
        words
    }));
    let deadline = Instant::now() + tatami_tests::PATIENCE;
    while !ask("/metrics").lines().any(|line| line.starts_with("tatami_sandbox_up{") && line.ends_with(" 1")) {
        assert!(Instant::now() < deadline, "{}", ask("/metrics"));
    }
    starting.finish().expect_status(0);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
    let reply = ask("/metrics");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.contains("\ntatami_sandboxes 0\n"), "{reply}");
    server.signal(Signal::SIGTERM);
    server.finish().expect_status(0);
}
