//! A thread that starts, serves, is fair, and ends: in order, or by a fault.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::virtio::testing::{PlainThreads, wait_for};

#[derive(Default)]
struct Bell {
    rung: AtomicBool,
}

impl Interrupt for Bell {
    fn queue(&self, _index: u16) {}

    fn queue_event(&self, _index: u16) -> Option<&EventFd> {
        None
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        self.rung.store(true, Ordering::Release);
    }
}

/// Counts what it is called for; behaves as told.
#[derive(Default)]
struct Counts {
    kicks: AtomicUsize,
    extra: AtomicUsize,
}

struct Job {
    counts: Arc<Counts>,
    extra: EventFd,
    /// Never done with its queue.
    greedy: bool,
    fail_at_start: bool,
}

impl Work for Job {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        if self.fail_at_start {
            return Err(Fault::Request("as told".into()));
        }
        ops.add(Events::with_data(&self.extra, 7, EventSet::IN)).map_err(other)?;
        Ok(())
    }

    fn kicked(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        assert_eq!(index, 5);
        self.counts.kicks.fetch_add(1, Ordering::AcqRel);
        Ok(if self.greedy { Progress::More } else { Progress::Idle })
    }

    fn ready(&mut self, token: u32, _set: EventSet, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        assert_eq!((token, self.extra.read().unwrap()), (7, 1));
        match self.counts.extra.fetch_add(1, Ordering::AcqRel) {
            0 => Ok(()),
            _ => Err(Fault::Request("as told".into())),
        }
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

struct Bench {
    worker: Worker<Job>,
    counts: Arc<Counts>,
    bell: Arc<Bell>,
    kick: EventFd,
    extra: EventFd,
}

fn run(greedy: bool, fail_at_start: bool) -> Bench {
    let (kick, extra, counts, bell) = (event(), event(), Arc::new(Counts::default()), Arc::new(Bell::default()));
    let job = Job { counts: Arc::clone(&counts), extra: extra.try_clone().unwrap(), greedy, fail_at_start };
    let kicks = vec![(5, kick.try_clone().unwrap())];
    let worker = Worker::spawn(&PlainThreads, "job", Role::Io, kicks, Arc::clone(&bell) as _, job).unwrap();
    Bench { worker, counts, bell, kick, extra }
}

#[test]
fn a_queue_is_looked_at_once_at_the_start_and_once_a_kick() {
    let bench = run(false, false);
    wait_for("first look", || bench.counts.kicks.load(Ordering::Acquire) == 1);
    bench.kick.write(1).unwrap();
    wait_for("second look", || bench.counts.kicks.load(Ordering::Acquire) == 2);
    let job = bench.worker.stop().expect("the work comes back");
    assert_eq!(job.counts.kicks.load(Ordering::Acquire), 2);
    assert!(!bench.bell.rung.load(Ordering::Acquire));
}

#[test]
fn a_greedy_queue_starves_neither_other_descriptors_nor_the_stop() {
    let bench = run(true, false);
    bench.extra.write(1).unwrap();
    wait_for("other event", || bench.counts.extra.load(Ordering::Acquire) == 1);
    assert!(bench.worker.stop().is_some());
}

#[test]
fn a_fault_ends_the_work_and_tells_the_driver() {
    let bench = run(false, false);
    bench.extra.write(1).unwrap();
    wait_for("first event", || bench.counts.extra.load(Ordering::Acquire) == 1);
    bench.extra.write(1).unwrap();
    wait_for("fault", || bench.bell.rung.load(Ordering::Acquire));
    let kicks = bench.counts.kicks.load(Ordering::Acquire);
    bench.kick.write(1).unwrap();
    let job = bench.worker.stop().expect("the work comes back all the same");
    assert_eq!(job.counts.kicks.load(Ordering::Acquire), kicks);
}

#[test]
fn a_fault_at_the_start_is_a_fault() {
    let bench = run(false, true);
    wait_for("fault", || bench.bell.rung.load(Ordering::Acquire));
    assert!(bench.worker.stop().is_some());
}

#[test]
fn dropping_it_stops_it() {
    let bench = run(true, false);
    let counts = Arc::clone(&bench.counts);
    drop(bench);
    assert_eq!(Arc::strong_count(&counts), 1, "the thread still has its work");
}

/// Hears one kick, and then none until it is told to.
struct Deaf {
    counts: Arc<Counts>,
    kick: RawFd,
    extra: EventFd,
}

impl Work for Deaf {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(ops.add(Events::with_data(&self.extra, 7, EventSet::IN)).map_err(other)?)
    }

    fn kicked(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        heed(ops, (index, self.kick), false)?;
        self.counts.kicks.fetch_add(1, Ordering::AcqRel);
        Ok(Progress::Idle)
    }

    fn ready(&mut self, _token: u32, _set: EventSet, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.extra.read()?;
        self.counts.extra.fetch_add(1, Ordering::AcqRel);
        Ok(heed(ops, (5, self.kick), true)?)
    }
}

#[test]
fn kicks_that_are_not_heeded_come_later() {
    let (kick, extra, counts) = (event(), event(), Arc::new(Counts::default()));
    let watched = kick.try_clone().unwrap();
    let job = Deaf { counts: Arc::clone(&counts), kick: watched.as_raw_fd(), extra: extra.try_clone().unwrap() };
    let kicks = vec![(5, watched)];
    let worker = Worker::spawn(&PlainThreads, "deaf", Role::Io, kicks, Arc::new(Bell::default()), job).unwrap();
    let (heard, told) = (|| counts.kicks.load(Ordering::Acquire), || counts.extra.load(Ordering::Acquire));
    wait_for("first look", || heard() == 1);
    for round in 1..4 {
        kick.write(1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(heard(), round);
        extra.write(1).unwrap();
        wait_for("the kick", || (told(), heard()) == (round, round + 1));
    }
    assert!(worker.stop().is_some());
}
