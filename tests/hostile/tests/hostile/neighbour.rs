//! A guest that does nothing wrong, and must not notice what goes on beside it: it sends back what it is sent on port 700.
//!
//! It has no interrupts, so it never sleeps: between two questions it is stopped, lest it take half of the only CPU from the one whose
//! attacks are to be seen.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tatami_vmm::Event;

use crate::machine::Machine;

/// How much of the only CPU it may have without answering: then something was lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take, whoever has the CPU meanwhile: an emulated host may stand still as a whole for a while.
const PATIENCE_BY_THE_CLOCK: Duration = Duration::from_secs(120);
/// How often is looked how much of both is left.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// The neighbour, and how it fares.
pub(crate) struct Neighbour {
    machine: Machine,
    stream: UnixStream,
    last: Instant,
    /// Questions so far, all of them answered.
    pub(crate) asked: u64,
    /// The longest time that an answer took.
    pub(crate) slowest: Duration,
}

impl Neighbour {
    /// Boots it, and connects.
    pub(crate) fn start() -> Result<Neighbour> {
        let mut machine = Machine::start("attack=polite")?;
        let started = Instant::now();
        while !machine.console().contains("listening") {
            ensure!(started.elapsed() < Duration::from_secs(60), "the neighbour does not start: {}", machine.console());
            if let Some(Event::Stopped(reason)) = machine.event(Duration::from_secs(1))? {
                bail!("the neighbour does not start: {reason}");
            }
        }
        let mut stream = UnixStream::connect(machine.socket())?;
        stream.set_read_timeout(Some(PATIENCE_BY_THE_CLOCK))?;
        stream.write_all(b"CONNECT 700\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("the neighbour does not accept")?;
            answer.push(byte[0]);
        }
        ensure!(answer.starts_with(b"OK "), "the neighbour answers {}", String::from_utf8_lossy(&answer));
        stream.set_read_timeout(Some(LOOK))?;
        let neighbour = Neighbour { machine, stream, last: Instant::now(), asked: 0, slowest: Duration::ZERO };
        neighbour.signal(Signal::SIGSTOP)?;
        Ok(neighbour)
    }

    /// Asks, if it is time to, and checks the answer; says whether it was.
    pub(crate) fn ask(&mut self) -> Result<bool> {
        if self.last.elapsed() < INTERVAL {
            return Ok(false);
        }
        let question = format!("question {:8}", self.asked);
        let started = Instant::now();
        self.signal(Signal::SIGCONT)?;
        self.stream.write_all(question.as_bytes()).context("the neighbour is gone")?;
        let answer = self.read(question.len(), started)?;
        ensure!(answer == question.as_bytes(), "the neighbour answers nonsense: {}", String::from_utf8_lossy(&answer));
        self.slowest = self.slowest.max(started.elapsed());
        (self.asked, self.last) = (self.asked + 1, Instant::now());
        while let Some(event) = self.machine.event(Duration::ZERO)? {
            if let Event::Stopped(reason) = event {
                bail!("the neighbour ended: {reason}");
            }
        }
        self.signal(Signal::SIGSTOP)?;
        Ok(true)
    }

    /// `len` bytes of an answer that is waited for since `started`.
    fn read(&mut self, len: usize, started: Instant) -> Result<Vec<u8>> {
        let before = self.machine.usage()?.cpu;
        let mut answer = vec![0; len];
        let mut got = 0;
        while got < len {
            match self.stream.read(&mut answer[got..]) {
                Ok(0) => bail!("the neighbour has hung up"),
                Ok(count) => got += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    let (cpu, clock) = (self.machine.usage()?.cpu.saturating_sub(before), started.elapsed());
                    ensure!(
                        cpu < PATIENCE && clock < PATIENCE_BY_THE_CLOCK,
                        "the neighbour does not answer: it had the CPU for {cpu:?} of {clock:?}"
                    );
                }
                Err(error) => return Err(error).context("the neighbour cannot be heard"),
            }
        }
        Ok(answer)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_raw(i32::try_from(self.machine.vmm.pid())?);
        kill(process, signal).context("the neighbour's process is gone")
    }
}
