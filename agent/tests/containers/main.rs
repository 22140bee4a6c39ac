//! The agent's service, whole, without a VM: PID 1 of namespaces of its own, reached over unix sockets, on a busybox root.
//!
//! One binary plays two parts: the test run, and the agent. Needs root and a static busybox; where
//! they are missing it fails, because a test that did not run has not passed.

mod cases;
mod limits;
mod rig;
mod specification;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    arguments.next();
    let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    if let [word, folder] = words.as_slice()
        && word == rig::SERVE
    {
        rig::serve(folder.as_ref());
        return ExitCode::FAILURE;
    }
    let all: Vec<_> = cases::ALL.iter().chain(limits::ALL).chain(specification::ALL).collect();
    if words.iter().any(|word| word == "--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // Like libtest: of tests that are usually left out, there is none.
    if words.iter().any(|word| word == "--ignored") {
        println!("\ntest result: ok. 0 passed; 0 failed; none is usually ignored\n");
        return ExitCode::SUCCESS;
    }
    // Like libtest: words that are not options choose tests by part of their names.
    let wanted: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    run(all.into_iter().filter(|(name, _)| chosen(name)))
}

fn run<'a>(cases: impl Iterator<Item = &'a (&'a str, cases::Case)>) -> ExitCode {
    let rig = rig::Rig::new();
    let (mut passed_count, mut failed, mut ignored) = (0, 0, 0);
    for (name, case) in cases {
        if let Some(controller) = limits::needs(name).filter(|controller| !rig.has(controller)) {
            println!("test {name} ... ignored: no {controller} controller here (`tests/host/run` has one)");
            ignored += 1;
            continue;
        }
        let start = Instant::now();
        // A panic is a failed test; the rig stays usable, because each case has containers of its own.
        let passed = std::panic::catch_unwind(AssertUnwindSafe(|| case(&rig))).is_ok();
        passed_count += usize::from(passed);
        failed += usize::from(!passed);
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, start.elapsed().as_millis());
    }
    println!("test result: {passed_count} passed; {failed} failed; {ignored} ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
