//! Processors that a guest was made with come up and go down while it runs, as the server asks its agent.
//!
//! Needs KVM, root, and what `make kernel initrd` built; runs with `--ignored`. A program of its own: it must be able to become
//! the VMM, and to fork while it has one thread.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tatami_shim::guest_files::{ARCHITECTURE, GuestFile};
use tatami_shim::sandbox::folder::Places;
use tatami_shim::sandbox::timings::Timings;
use tatami_shim::sandbox::{Beginning, Ground, Sandbox, Settings};
use tatami_vmm::{VmConfig, process};

const NAME: &str = "processors_come_up_and_go_down";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() == Some(process::NAME) {
        process::main();
    }
    let (flags, filters): (Vec<_>, Vec<_>) = arguments.partition(|argument| argument.starts_with('-'));
    let wanted = filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter.as_str()));
    if flags.iter().any(|flag| flag == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    if !wanted || !flags.iter().any(|flag| flag == "--ignored" || flag == "--include-ignored") {
        println!("\ntest result: ok. 0 passed; 1 ignored, needs KVM: run through tests/host\n");
        return ExitCode::SUCCESS;
    }
    match come_and_go() {
        Ok(()) => {
            println!("test {NAME} ... ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("test {NAME} ... FAILED\n    {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn built(name: &str) -> GuestFile {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest").join(ARCHITECTURE);
    GuestFile::OnDisk(folder.join(name))
}

fn come_and_go() -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let places = Places { root: folder.path().join("root"), state: folder.path().join("state") };
    let ground = Ground::prepare(&places, None, None)?;
    let settings = Settings {
        vm: VmConfig { vcpus: 1, max_vcpus: 3, ..VmConfig::default() },
        beginning: Beginning::Boot { kernel: built("vmlinux"), initrd: built("initrd.img"), templates: None },
        memory_folder: None,
        served: Vec::new(),
        live_console: false,
        debug_console: false,
        boot_limit: Duration::from_secs(120),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut sandbox = Sandbox::start(ground, settings, Timings::starting_at(Instant::now()))?;
        let outcome = async {
            sandbox.ready().await?;
            let guest = sandbox.guest().context("the agent is ready")?;
            for wanted in [1, 3, 2, 3, 1] {
                let running = guest.call(guest.agent().set_processors(wanted)).await?;
                ensure!(running == wanted, "{running} processors run, {wanted} should");
            }
            for impossible in [0, 4] {
                let refusal = guest.call(guest.agent().set_processors(impossible)).await;
                let said = refusal.err().context("an impossible number is refused")?.to_string();
                ensure!(said.contains(&format!("{impossible} processors of a machine that has 3")), "{said}");
            }
            Ok(())
        };
        let outcome = outcome.await;
        sandbox.end().await?;
        outcome
    })
}
