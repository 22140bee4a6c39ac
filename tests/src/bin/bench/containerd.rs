//! What `ctr` takes with runc and with Tatami, and what one more idle sandbox costs the host.

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{UsageWho, getrusage};
use tatami_tests::daemons::{Containerd, Event, Home, IMAGE, Release};
use tatami_tests::{Finished, Running};

use crate::contest::{self, Times, median, milliseconds};
use crate::cost::{Memory, available, processor_time};

/// The contestants, ours first: as users name them, and as the tables do.
const RUNTIMES: [(&str, &str); 2] = [("io.containerd.kata.v2", "Tatami"), ("io.containerd.runc.v2", "runc")];
/// Idle sandboxes whose cost is measured; two more come before them.
const IDLE: usize = 5;
/// How long their idleness is watched.
const WATCH: Duration = Duration::from_secs(20);
/// Time for what has ended to be gone.
const REST: Duration = Duration::from_secs(2);

/// All of them, with a containerd 2.1 of their own.
///
/// # Panics
/// When a command fails or something is left behind.
pub(crate) fn tables(rounds: usize) {
    let containerd = Containerd::start(Home::new(Release::Newer));
    // The first of each leaves what the others go on from: an unpacked image, a template, a warm cache.
    for (runtime, name) in RUNTIMES {
        run(&containerd, runtime, &format!("first-{name}"), &["--rm"], &["true"]);
    }
    runs(&containerd, rounds);
    execs(&containerd, rounds);
    lives(&containerd, rounds);
    shim_start(&containerd, rounds);
    idleness(&containerd);
    let left = containerd.remains();
    assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    containerd.stop();
}

/// `ctr run --rm … echo hello`, and where its time goes as containerd's events tell.
fn runs(containerd: &Containerd, rounds: usize) {
    const PHASES: [&str; 4] =
        ["until it is created", "until it is started", "until it has ended", "until ctr has ended"];
    let mut times = RUNTIMES.map(|(_, name)| Times::of(name));
    let mut phases = RUNTIMES.map(|_| PHASES.map(|_| Vec::new()));
    for round in 0..rounds {
        for (index, (runtime, name)) in RUNTIMES.into_iter().enumerate() {
            let id = format!("run-{name}-{round}");
            let begin = time_of_day();
            let finished = run(containerd, runtime, &id, &["--rm"], &["echo", "hello"]);
            assert_eq!(finished.out(), "hello\n", "{}", finished.err());
            times[index].add(finished.took);
            // They come a moment later than the command's end.
            thread::sleep(REST / 4);
            let events = containerd.events();
            let at = |topic: &str| {
                let event = events.iter().find(|event| event.container == id && event.topic == topic);
                event
                    .map(|event: &Event| event.at)
                    .unwrap_or_else(|| panic!("no event tells that {id} had its {topic}"))
            };
            let marks = [begin, at("create"), at("start"), at("exit"), begin + finished.took];
            for (times, between) in phases[index].iter_mut().zip(marks.windows(2)) {
                times.push(milliseconds(between[1].saturating_sub(between[0])));
            }
        }
    }
    contest::print("ctr run --rm IMAGE echo hello, containerd 2.1", &times);
    println!("  {:<24} {:>12} {:>7} {:>12} {:>7}", "of which, medians", "Tatami ms", "share", "runc ms", "share");
    for (index, phase) in PHASES.iter().enumerate() {
        let [ours, theirs] = [0, 1].map(|runtime| median(&phases[runtime][index]));
        let [ours_share, theirs_share] =
            [ours / times[0].median(), theirs / times[1].median()].map(|share| share * 100.0);
        println!("  {phase:<24} {ours:>12.1} {ours_share:>6.0}% {theirs:>12.1} {theirs_share:>6.0}%");
    }
    println!();
}

/// `ctr task exec … true` in containers that run.
fn execs(containerd: &Containerd, rounds: usize) {
    let mut times = RUNTIMES.map(|(_, name)| Times::of(name));
    for (runtime, name) in RUNTIMES {
        run(containerd, runtime, &format!("exec-{name}"), &["-d", "--null-io"], &["sleep", "100000"]);
    }
    // The first round is not counted: it warms.
    for round in 0..=rounds {
        for ((_, name), times) in RUNTIMES.into_iter().zip(&mut times) {
            let exec = format!("x{round}");
            let finished = done(containerd.ctr(&["task", "exec", "--exec-id", &exec, &format!("exec-{name}"), "true"]));
            if round > 0 {
                times.add(finished.took);
            }
        }
    }
    for (_, name) in RUNTIMES {
        remove(containerd, &format!("exec-{name}"));
    }
    contest::print("ctr task exec … true, containerd 2.1", &times);
}

/// A detached container from its start to its removal.
fn lives(containerd: &Containerd, rounds: usize) {
    let mut times = RUNTIMES.map(|(_, name)| Times::of(name));
    for round in 0..rounds {
        for ((runtime, name), times) in RUNTIMES.into_iter().zip(&mut times) {
            let id = format!("life-{name}-{round}");
            let started = Instant::now();
            run(containerd, runtime, &id, &["-d", "--null-io"], &["sleep", "100000"]);
            done(containerd.ctr(&["task", "kill", "-s", "SIGKILL", &id]));
            remove(containerd, &id);
            times.add(started.elapsed());
        }
    }
    contest::print("ctr run -d, task kill, task rm, container rm, containerd 2.1", &times);
}

/// The shim's `start` as containerd calls it: until it has told its address and ended, and the processor time it had for that.
fn shim_start(containerd: &Containerd, rounds: usize) {
    const SPECIFICATION: &str =
        r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"network"}]}}"#;
    let bundle = containerd.home().path("bundle");
    let (mut wall, mut own) = (Times::of("by the clock"), Times::of("its own time"));
    for round in 0..rounds {
        fs::create_dir(&bundle).expect("a folder");
        fs::write(bundle.join("config.json"), SPECIFICATION).expect("a file");
        let id = format!("shim-{round}");
        let call = |what: &str| done(Running::start(containerd.shim(RUNTIMES[0].0, &id, &bundle, what)).finish());
        let before = childrens_time();
        wall.add(call("start").took);
        own.add(childrens_time() - before);
        call("delete");
        fs::remove_dir_all(&bundle).expect("a folder of ours");
    }
    contest::print("containerd-shim-kata-v2 start", &[wall, own]);
}

/// One more sandbox that does nothing, and one more.
fn idleness(containerd: &Containerd) {
    let mut ids: Vec<String> = Vec::new();
    let one_more = |ids: &mut Vec<String>| {
        let id = format!("idle-{}", ids.len());
        run(containerd, RUNTIMES[0].0, &id, &["-d", "--null-io"], &["sleep", "100000"]);
        ids.push(id);
        thread::sleep(REST);
    };
    (0..2).for_each(|_| one_more(&mut ids));
    let (mut taken, mut private) = (Vec::new(), Memory::default());
    let mut pids = Vec::new();
    for _ in 0..IDLE {
        let (before, known) = (available(), pids_of(containerd));
        one_more(&mut ids);
        taken.push(before as f64 - available() as f64);
        pids.extend(pids_of(containerd).into_iter().filter(|pid| !known.contains(pid)));
    }
    pids.iter().for_each(|pid| private += Memory::private(*pid));
    let busy = || pids.iter().map(|pid| processor_time(*pid)).sum::<Duration>();
    let before = busy();
    thread::sleep(WATCH);
    let share = (busy() - before).as_secs_f64() / WATCH.as_secs_f64() / IDLE as f64;
    ids.iter().for_each(|id| remove(containerd, id));

    let each = |kib: u64| kib as f64 / 1024.0 / IDLE as f64;
    println!("one more idle sandbox of 256 MiB in containerd 2.1, mean of {IDLE}");
    println!("  {:<40} {:>7.1} MB", "available memory of the host", taken.iter().sum::<f64>() / 1024.0 / IDLE as f64);
    println!("  {:<40} {:>7.1} MB", "private to its processes, guest apart", each(private.own));
    println!("  {:<40} {:>7.1} MB", "private in the guest's memory", each(private.guest));
    println!(
        "  {:<40} {:>7.2} % of a CPU, over {} s",
        "processor time, guest included",
        share * 100.0,
        WATCH.as_secs()
    );
    println!();
}

/// `ctr run OPTIONS… IMAGE ID COMMAND…`, to an end without error.
fn run(containerd: &Containerd, runtime: &str, id: &str, options: &[&str], command: &[&str]) -> Finished {
    let words = ["run", "--runtime", runtime].into_iter().chain(options.iter().copied());
    let words: Vec<&str> = words.chain([IMAGE, id]).chain(command.iter().copied()).collect();
    done(containerd.ctr(&words))
}

fn remove(containerd: &Containerd, id: &str) {
    done(containerd.ctr(&["task", "rm", "-f", id]));
    done(containerd.ctr(&["container", "rm", id]));
}

fn done(finished: Finished) -> Finished {
    assert_eq!(finished.status, 0, "{}", finished.err());
    finished
}

fn pids_of(containerd: &Containerd) -> Vec<i32> {
    containerd.home().processes().iter().map(|process| process.pid).collect()
}

/// Since midnight, UTC.
fn time_of_day() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock that is set");
    Duration::new(now.as_secs() % 86_400, now.subsec_nanos())
}

/// The processor time of all children that have ended and were waited for.
fn childrens_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it cannot fail");
    let of = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec().cast_unsigned(), time.tv_usec() as u32 * 1000);
    of(usage.user_time()) + of(usage.system_time())
}
