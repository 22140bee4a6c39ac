//! Roots on disk images as the user of `tatami run --rootfs DISK` sees them, in a real guest: what is on them, what is written
//! to them, and what cannot be a disk.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use tatami_tests::{Finished, LoopDisk, Tatami};

const COMMANDS: [&str; 12] = ["cat", "cp", "dd", "echo", "id", "ls", "md5sum", "mount", "sh", "sleep", "sync", "true"];

/// A busybox and a greeting.
fn tree(tatami: &Tatami) -> PathBuf {
    let root = tatami.scratch().join("tree");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for command in COMMANDS {
        symlink("busybox", root.join("bin").join(command)).unwrap();
    }
    fs::write(root.join("etc/greeting"), "from the disk\n").unwrap();
    root
}

fn make(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ext4(tatami: &Tatami) -> PathBuf {
    let image = tatami.scratch().join("disk.ext4");
    let tree = tree(tatami);
    make("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap(), image.to_str().unwrap(), "32m"]);
    image
}

fn erofs(tatami: &Tatami) -> PathBuf {
    let image = tatami.scratch().join("disk.erofs");
    make("mkfs.erofs", &["--quiet", image.to_str().unwrap(), tree(tatami).to_str().unwrap()]);
    image
}

fn arguments<'a>(disk: &'a Path, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    let first = ["run", "--rm", "--boot-timeout", "120", "--rootfs", disk.to_str().unwrap()];
    first.iter().chain(options).chain(command).copied().collect()
}

fn run(tatami: &Tatami, disk: &Path, options: &[&str], command: &[&str]) -> Finished {
    tatami.tatami(&arguments(disk, options, command))
}

/// What `debugfs` reads of a file on an ext4 image that nobody has mounted.
fn on_disk(disk: &Path, file: &str) -> String {
    let output = Command::new("debugfs").args(["-R", &format!("cat {file}")]).arg(disk).output().expect("debugfs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_ext4_disk_is_the_root_and_what_is_written_stays_on_it() {
    let tatami = Tatami::new();
    let disk = ext4(&tatami);
    let script = "cat /etc/greeting; mount | grep ' / '; echo written > /etc/new";
    let out = run(&tatami, &disk, &[], &["sh", "-c", script]).expect_status(0).out();
    assert!(out.starts_with("from the disk\n/dev/vda1 on / type ext4 (rw"), "{out}");
    assert_eq!(on_disk(&disk, "/etc/new"), "written\n");
    // It was unmounted in order: nothing is left to be repaired, and the next guest finds it as this one left it.
    make("e2fsck", &["-fn", disk.to_str().unwrap()]);
    let again = run(&tatami, &disk, &["--read-only"], &["sh", "-c", "cat /etc/new; echo changed > /etc/new"]);
    assert_eq!(again.expect_status(1).out(), "written\n");
    assert_eq!(on_disk(&disk, "/etc/new"), "written\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_block_device_is_the_root_too() {
    let tatami = Tatami::new();
    let disk = ext4(&tatami);
    let output = Command::new("losetup").args(["-f", "--show"]).arg(&disk).output().expect("losetup");
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mounted = tatami.scratch().join("mounted");
    fs::create_dir(&mounted).unwrap();
    make("mount", &[&device, mounted.to_str().unwrap()]);
    let refused = run(&tatami, Path::new(&device), &[], &["true"]);
    make("umount", &[mounted.to_str().unwrap()]);
    let finished = run(&tatami, Path::new(&device), &[], &["sh", "-c", "cat /etc/greeting; echo written > /etc/new"]);
    make("losetup", &["-d", &device]);
    refused.expect_error(125, &[&device, "in use"]);
    assert_eq!(finished.expect_status(0).out(), "from the disk\n");
    assert_eq!(on_disk(&disk, "/etc/new"), "written\n");
}

/// Whether this machine lets processes have an io_uring (sysctl kernel.io_uring_disabled); as it was when dropped.
struct UringSetting(String);

impl UringSetting {
    const PATH: &str = "/proc/sys/kernel/io_uring_disabled";

    /// Nobody may.
    fn forbid() -> UringSetting {
        let before = UringSetting(fs::read_to_string(Self::PATH).unwrap());
        fs::write(Self::PATH, "2").unwrap();
        before
    }
}

impl Drop for UringSetting {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.0);
    }
}

/// Four writers and readers at once; what a guest has written is what the next one, with nothing in its cache, reads.
fn write_and_read_at_once(log: impl Fn(&str)) {
    let tatami = Tatami::new();
    let disk = ext4(&tatami);
    let script = "for n in 1 2 3 4; do
            (dd if=/dev/urandom of=/big$n bs=64k count=32; sync; cp /big$n /copy$n; sync) 2>/dev/null &
        done; wait; cd /; md5sum big? copy?";
    let guest = |options: &[&str], script: &str| {
        let mut command = tatami.command(&arguments(&disk, options, &["sh", "-c", script]));
        command.env("TATAMI_LOG", "info");
        let finished = tatami_tests::Running::start(command).finish().expect_status(0);
        log(&finished.err());
        finished.out()
    };
    let written = guest(&[], script);
    let sums: Vec<&str> = written.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(sums.len(), 8, "{written}");
    assert_eq!(sums[..4], sums[4..], "a copy differs: {written}");
    make("e2fsck", &["-fn", disk.to_str().unwrap()]);
    assert_eq!(guest(&["--read-only"], "cd /; md5sum big? copy?"), written);
}

const WITHOUT_URING: &str = "disks go without io_uring";

#[test]
#[ignore = "boots a guest: make test"]
fn many_write_and_read_at_once_with_io_uring_and_without() {
    write_and_read_at_once(|log| assert!(!log.contains(WITHOUT_URING), "{log}"));
    let _forbidden = UringSetting::forbid();
    write_and_read_at_once(|log| assert!(log.contains(WITHOUT_URING), "{log}"));
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_erofs_disk_is_the_root_and_what_is_written_is_gone() {
    let tatami = Tatami::new();
    let disk = erofs(&tatami);
    let before = fs::read(&disk).unwrap();
    for _ in 0..2 {
        let script = "cat /etc/greeting; ls /etc; echo new > /etc/new; cat /etc/new";
        let out = run(&tatami, &disk, &[], &["sh", "-c", script]).expect_status(0).out();
        assert_eq!(out, "from the disk\ngreeting\nnew\n");
    }
    assert!(fs::read(&disk).unwrap() == before, "the image has changed");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_that_is_killed_leaves_its_disk_to_the_next() {
    let tatami = Tatami::new();
    let disk = ext4(&tatami);
    let script = "echo up; while :; do echo x >> /log; done";
    let running = tatami_tests::Running::start(tatami.command(&arguments(&disk, &[], &["sh", "-c", script])));
    running.wait_for("up");
    // While it runs, nobody else may have it.
    run(&tatami, &disk, &[], &["true"]).expect_error(125, &["disk.ext4", "in use"]);
    running.signal(Signal::SIGKILL);
    running.finish().expect_status(137);
    tatami.assert_nothing_left();
    // The journal is replayed.
    run(&tatami, &disk, &[], &["cat", "/etc/greeting"]).expect_status(0);
    make("e2fsck", &["-fn", disk.to_str().unwrap()]);
}

#[test]
#[ignore = "needs root: make test"]
fn what_cannot_be_a_disk_is_named() {
    let tatami = Tatami::new();
    let file = |name: &str, length: u64| {
        let path = tatami.scratch().join(name);
        File::create(&path).unwrap().set_len(length).unwrap();
        path
    };
    let refused = |path: &Path, words: &[&str]| {
        run(&tatami, path, &[], &["true"]).expect_error(125, words);
    };
    refused(&file("empty", 0), &["--rootfs", "empty", "0 bytes"]);
    refused(&file("odd", 1000), &["odd", "1000 bytes", "multiple of 512"]);
    refused(&file("blank", 4096), &["blank", "no file system", "ext4 and erofs"]);
    refused(Path::new("/dev/null"), &["/dev/null", "a file or a block device"]);
    let locked = file("locked", 4096);
    let _lock = Flock::lock(File::open(&locked).unwrap(), FlockArg::LockSharedNonblock).unwrap();
    refused(&locked, &["locked", "in use"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_that_no_kernel_can_mount_is_an_error_that_says_so() {
    let tatami = Tatami::new();
    let disk = tatami.scratch().join("broken");
    let mut bytes = vec![0_u8; 1 << 20];
    bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    fs::write(&disk, bytes).unwrap();
    run(&tatami, &disk, &[], &["true"]).expect_error(125, &["mount ext4", "/dev/vda1"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn users_of_a_disk_are_numbers() {
    let tatami = Tatami::new();
    let disk = erofs(&tatami);
    let out = run(&tatami, &disk, &["--user", "12:34"], &["id"]).expect_status(0).out();
    assert_eq!(out, "uid=12 gid=34 groups=34\n");
    run(&tatami, &disk, &["--user", "somebody"], &["id"]).expect_error(125, &["somebody", "numbers"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_container_may_have_disks_for_devices() {
    let tatami = Tatami::new();
    let image = tatami.scratch().join("data.img");
    fs::write(&image, [b"of the host, ".as_slice(), &[b'.'; 499]].concat()).unwrap();
    let disk = LoopDisk::new(&tatami.scratch(), 1 << 20);
    let [writable, readable] = [format!("{}:/dev/data", image.display()), format!("{}:/dev/disks/loop:r", disk.path())];
    let script = "head -c 11 /dev/data; printf 'of the guest' | dd of=/dev/data conv=notrunc 2>/dev/null; \
        wc -c </dev/disks/loop; cat /dev/data >/dev/disks/loop && echo written";
    let options = ["--device", &writable, "--device", &readable];
    let finished = tatami.run_with(&options, &["sh", "-c", script]);
    assert_eq!((finished.status, finished.out().as_str()), (1, "of the host1048576\n"), "{}", finished.err());
    assert!(finished.err().contains("/dev/disks/loop: Operation not permitted"), "{}", finished.err());
    assert!(fs::read_to_string(&image).unwrap().starts_with("of the guest ."));

    // On the disk that the root is on, too.
    let root = ext4(&tatami);
    let finished = run(&tatami, &root, &["--device", &writable], &["dd", "if=/dev/data", "bs=12", "count=1"]);
    assert_eq!(finished.expect_status(0).out(), "of the guest");

    let refused = |device: &str| tatami.run_with(&["--device", device], &["true"]);
    refused("/no/such/disk:/dev/x").expect_error(125, &["--device", "/no/such/disk"]);
    refused("/dev/null").expect_error(125, &["--device", "/dev/null", "no disk image"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_is_no_faster_than_it_may_be() {
    let tatami = Tatami::new();
    let disk = ext4(&tatami);
    let script = "cat /proc/uptime; dd if=/dev/zero of=/file bs=64k count=16 conv=fsync; cat /proc/uptime";
    let options = ["--disk-rate", "bytes=256k"];
    let out = run(&tatami, &disk, &options, &["sh", "-c", script]).expect_status(0).out();
    let seconds: Vec<f64> = out.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    // Reading the shell has used up what may come at once.
    assert!(seconds[1] - seconds[0] >= 3.0, "{out}");
    let refused = tatami.run_with(&["--disk-rate", "ops=1"], &["true"]);
    refused.expect_error(125, &["--disk-rate", "--rootfs DISK or --device"]);
}
