//! Block devices that a container is given: what it reads, what it writes, and what it may not.

use tatami_tests::LoopDisk;
use tatami_tests::compare::{Case, Notes};

use crate::stage::Ctr;

pub(crate) const CASES: &[Case<Ctr>] = &[Case::new("a block device", block_device).long()];

fn block_device(ctr: &mut Ctr, notes: &mut Notes) {
    let disk = LoopDisk::new(&ctr.scratch(), 1 << 20);
    let options = ["--rm", "--device", disk.path()];
    let script =
        format!("wc -c <{0}; printf 'of the container' >{0}; head -c 16 {0}; ls -l {0} | cut -c1-10", disk.path());
    for name in ["a", "b"] {
        let finished = ctr.run(name, &options, &["sh", "-c", &script]);
        notes.want("status", finished.status, 0);
        notes.see("output", finished.out());
        notes.want("on the host", disk.head(16), "of the container");
    }
    let other = "mknod /other b 7 200 && cat /other";
    let finished = ctr.run("c", &options, &["sh", "-c", other]);
    notes.want("another device", finished.status != 0, true);
}
