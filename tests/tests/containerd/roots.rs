//! Root file systems that are not folders of the host: a file with ext4, layers of erofs. A user sees the same, and what a
//! container wrote is in its snapshot afterwards.

use std::process::Command;

use tatami_tests::compare::{Case, Notes};

use crate::stage::{Ctr, error_or_ok};

pub(crate) const CASES: &[Case<Ctr>] = &[
    Case::new("a root on a blockfile", |ctr, notes| rooted(ctr, notes, "blockfile", "ext4")).long(),
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

    let script = "rm -rf /etc; mkdir /etc; echo only > /etc/only";
    let finished = ctr.run("k", &["--snapshotter", snapshotter], &["sh", "-c", script]);
    notes.want("status", finished.status, 0);
    notes.want("what is in the snapshot", in_snapshot(ctr, snapshotter), "only\n");
    notes.want("removal", error_or_ok(&ctr.ctr(&["container", "rm", &ctr.id("k")])), "ok");
    forget(ctr, snapshotter);
}

/// The files in /etc of container `k`, whose snapshot is mounted on the host for the look.
fn in_snapshot(ctr: &Ctr, snapshotter: &str) -> String {
    let target = ctr.scratch().join("snapshot");
    std::fs::create_dir_all(&target).expect("a folder");
    let target = target.display().to_string();
    let mount = ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", &target, &ctr.id("k")]).out();
    let script = format!("{mount}\nls {target}/etc; umount {target}");
    let output = Command::new("/bin/sh").args(["-c", &script]).output().expect("a shell");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Removes the image's layers, which containerd's erofs keeps mounted.
fn forget(ctr: &Ctr, snapshotter: &str) {
    let listed = ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]).out();
    for key in listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        ctr.ctr(&["snapshots", "--snapshotter", snapshotter, "rm", key]);
    }
}
