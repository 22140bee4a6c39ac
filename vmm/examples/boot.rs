//! Boots a kernel in this very process, unjailed, with its serial line on stdout: for debugging and for measuring.
//!
//! `boot --kernel K [--initrd I] [--cmdline PARAMETERS] [--memory MIB] [--cpus N] [--quiet]`; ends when the guest resets, with
//! the time it took and the exits it needed on stderr.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use tatami_vmm::boot::{BuiltVm, Parts};
use tatami_vmm::{StopReason, VmConfig};
use vmm_sys_util::poll::PollContext;

struct Arguments {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    config: VmConfig,
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let started = Instant::now();
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let parts = Parts {
        kvm: File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?.into(),
        kernel: open(&arguments.kernel)?,
        initrd: arguments.initrd.as_ref().map(open).transpose()?,
        devices: Vec::new(),
        serial: Box::new(Console),
    };
    let vm = BuiltVm::new(&arguments.config, parts)?;
    let built = started.elapsed();
    let vm = vm.start()?;
    let poll = PollContext::<u32>::new()?;
    poll.add(vm.stopped(), 0)?;
    poll.wait()?;
    let reason = vm.stop_reason();
    let counts = vm.stop();
    eprintln!(
        "boot: built in {} ms, ran {} ms; exits: {} memory, {} ports, {} interrupted",
        built.as_millis(),
        (started.elapsed() - built).as_millis(),
        counts.memory,
        counts.ports,
        counts.interrupted
    );
    match reason {
        Some(StopReason::Error(reason)) => bail!(reason),
        _ => Ok(()),
    }
}

/// Standard output without a buffer, so that nothing is lost when a guest hangs.
struct Console;

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut config = VmConfig { console: true, ..VmConfig::default() };
    let (mut kernel, mut initrd) = (None, None);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} wants a value"));
        match name.as_str() {
            "--kernel" => kernel = Some(value()?.into()),
            "--initrd" => initrd = Some(value()?.into()),
            "--cmdline" => config.command_line_extra = value()?,
            "--memory" => config.memory_mib = value()?.parse()?,
            "--cpus" => config.vcpus = value()?.parse()?,
            "--quiet" => config.console = false,
            _ => bail!("unknown argument {name}"),
        }
    }
    config.max_vcpus = config.vcpus;
    Ok(Arguments { kernel: kernel.context("--kernel is missing")?, initrd, config })
}
