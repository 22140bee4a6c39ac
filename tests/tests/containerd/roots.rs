//! Root file systems that are not folders of the host: a file with ext4, a thin disk with ext4, layers of erofs. A user sees the
//! same, each container has its own, and what a container wrote is in its snapshot afterwards.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tatami_tests::compare::{Case, Notes};

use crate::stage::{Ctr, SOON, error_or_ok};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("a root on a blockfile", |ctr, notes| rooted(ctr, notes, "blockfile", "ext4")).long(),
    Case::new("a root on a thin disk", |ctr, notes| rooted(ctr, notes, "devmapper", "ext4")).long(),
    Case::new("a root of erofs layers", |ctr, notes| rooted(ctr, notes, "erofs", "overlay")).long(),
];

fn rooted(ctr: &mut Ctr, notes: &mut Notes, snapshotter: &str, kind: &str) {
    let plugins = ctr.ctr(&["plugins", "ls"]).out();
    let mut words = plugins.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let has = words.any(|words| words.get(1) == Some(&snapshotter) && words.last() == Some(&"ok"));
    // containerd 1.7 has no erofs.
    notes.see("this containerd has it", has);
    if !has {
        return;
    }
    let image = tatami_tests::image().display().to_string();
    let imported = ctr.ctr(&["image", "import", "--local", "--snapshotter", snapshotter, &image]);
    notes.want("import", error_or_ok(&imported), "ok");

    let script = "mount | grep ' / ' | cut -d' ' -f5; ls /new; echo x > /new; rm -rf /etc; mkdir /etc; ls /etc | wc -l";
    for round in 0..2 {
        let finished = ctr.run(&format!("a{round}"), &["--rm", "--snapshotter", snapshotter], &["sh", "-c", script]);
        notes.want("status", finished.status, 0);
        notes.want("what it sees", finished.out(), format!("{kind}\n0\n"));
    }

    let script = "echo x > /new; ls /new; touch /dev/shm/x && mount | grep ' / ' | grep -c '[(,]ro[,)]'";
    let finished = ctr.run("r", &["--rm", "--read-only", "--snapshotter", snapshotter], &["sh", "-c", script]);
    notes.want("read-only", finished.out(), "1\n");
    notes.want("and says so", finished.err().contains("Read-only file system"), true);

    side_by_side(ctr, notes, snapshotter);

    let script = "rm -rf /etc; mkdir /etc; echo only > /etc/only";
    let finished = ctr.run("k", &["--snapshotter", snapshotter], &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    notes.want("what is in the snapshot", in_snapshot(ctr, snapshotter), "only\n");
    notes.want("removal", error_or_ok(&ctr.ctr(&["container", "rm", &ctr.id("k")])), "ok");
    forget(ctr, snapshotter);
    notes.want("disks left", ctr.containerd().thin_disks().join(" "), "");
}

/// Two containers of one image at once, each with a root of its own.
fn side_by_side(ctr: &mut Ctr, notes: &mut Notes, snapshotter: &str) {
    let names = ["b0", "b1"];
    for name in names {
        let script = format!("echo {name} > /new; sync; exec sleep 1000");
        ctr.detached(name, &["--snapshotter", snapshotter], &["sh", "-c", &script]);
    }
    for name in names {
        let read = ctr.exec(name, "e", &[], &["sh", "-c", "until [ -s /new ]; do sleep 0.1; done; cat /new"]);
        notes.want("its own", read.out(), format!("{name}\n"));
    }
    if snapshotter == "devmapper" {
        // containerd takes a disk that is not used any more away when it comes to it.
        let deadline = Instant::now() + SOON;
        while ctr.containerd().thin_disks().len() > names.len() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
        }
        notes.want("disks in use", ctr.containerd().thin_disks().len(), names.len());
    }
    for name in names {
        notes.want("end", ctr.finish(name), "kill 0, STOPPED, rm 137, ok");
    }
}

/// The files in /etc of container `k`, whose snapshot is mounted on the host for the look.
fn in_snapshot(ctr: &Ctr, snapshotter: &str) -> String {
    let target = ctr.scratch().join("snapshot");
    std::fs::create_dir_all(&target).expect("a folder");
    let target = target.display().to_string();
    let mount = ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", &target, &ctr.id("k")]).out();
    // It ends in `-o` and nothing where there are no options.
    let mount = mount.trim_end().trim_end_matches(" -o");
    let script = format!("{mount}\nls {target}/etc; umount {target}");
    let output = Command::new("/bin/sh").args(["-c", &script]).output().expect("a shell");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Removes the image's layers, which containerd's erofs keeps mounted, and waits until containerd has done so.
fn forget(ctr: &Ctr, snapshotter: &str) {
    let listed = ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]).out();
    for key in listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "rm", key]);
    }
    // What is removed goes when containerd collects its garbage, which the end of a lease may wait for.
    let lease = ctr.id("lease");
    ctr.ctr(&["leases", "create", "--id", &lease]);
    ctr.ctr(&["leases", "delete", "--sync", &lease]);
}
