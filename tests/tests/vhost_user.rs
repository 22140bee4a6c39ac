//! Disks and file systems that other processes serve (vhost-user), as the user of `tatami run` sees them, with back ends that others
//! made: what is read and written, how they die, and what cannot be.

use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tatami_tests::{Finished, Tatami};

const PATIENCE: Duration = Duration::from_secs(30);
/// Where Debian has it.
const VIRTIOFSD: &str = "/usr/libexec/virtiofsd";

/// A back end. Dropped, it is killed.
struct BackEnd {
    process: Child,
    socket: PathBuf,
}

impl BackEnd {
    fn start(mut command: Command, socket: PathBuf) -> BackEnd {
        // virtiofsd forks: all of it is killed together.
        let process = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut back_end = BackEnd { process, socket };
        let deadline = Instant::now() + PATIENCE;
        while !back_end.socket.exists() {
            assert!(back_end.process.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        back_end
    }

    /// Of a disk, with further words for the export.
    fn of_disk(image: &Path, more: &str) -> BackEnd {
        let socket = socket_beside(image);
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={}", image.display()));
        let export =
            format!("type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={}", socket.display());
        command.arg("--export").arg(export + more);
        BackEnd::start(command, socket)
    }

    fn of_folder(folder: &Path) -> BackEnd {
        let socket = socket_beside(folder);
        let mut command = Command::new(VIRTIOFSD);
        command.arg("--shared-dir").arg(folder).arg("--socket-path").arg(&socket).args(["--log-level", "error"]);
        BackEnd::start(command, socket)
    }

    fn at(&self, place: &str) -> String {
        format!("{}:{place}", self.socket.display())
    }

    fn kill(&mut self) {
        // It has no last words.
        let _ = killpg(Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A name that no back end has had: the last one's socket may lie there still.
fn socket_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    path.with_extension(format!("{}.sock", COUNT.fetch_add(1, Ordering::Relaxed)))
}

fn image(tatami: &Tatami, name: &str, words: &str) -> PathBuf {
    let path = tatami.scratch().join(name);
    fs::write(&path, words).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(4 << 20).unwrap();
    path
}

fn run(tatami: &Tatami, options: &[&str], script: &str) -> Finished {
    tatami.run_with(options, &["sh", "-c", script])
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_that_another_process_serves_is_read_and_written() {
    let tatami = Tatami::new();
    let served = image(&tatami, "served.img", "of the host, ");
    let plain = image(&tatami, "plain.img", "a plain one");
    let fixed = image(&tatami, "fixed.img", "a fixed one");
    let back_ends =
        [BackEnd::of_disk(&fixed, ""), BackEnd::of_disk(&served, ",writable=on,num-queues=2,logical-block-size=512")];
    let devices =
        [back_ends[0].at("/dev/fixed:r"), format!("{}:/dev/plain", plain.display()), back_ends[1].at("/dev/served")];
    let options: Vec<&str> = devices.iter().flat_map(|device| ["--device", device]).chain(["--cpus", "2"]).collect();
    let script = "for d in fixed plain served; do head -c 11 /dev/$d; echo; done; \
        printf 'of the guest' | dd of=/dev/served conv=notrunc 2>/dev/null; \
        for n in 1 2 3; do dd if=/dev/urandom of=/dev/served bs=64k seek=$((n * 16)) count=16 conv=notrunc,fsync 2>/dev/null & done; \
        wait; wc -c </dev/served; md5sum </dev/served; \
        printf x >/dev/fixed && echo written";
    let finished = run(&tatami, &options, script);
    let (out, err) = (finished.out(), finished.err());
    assert!(out.starts_with("a fixed one\na plain one\nof the host\n4194304\n"), "{out}{err}");
    assert!(err.contains("/dev/fixed: Operation not permitted"), "{out}{err}");
    assert!(fs::read(&served).unwrap().starts_with(b"of the guest "), "it is not on the host");
    let sum = Command::new("md5sum").arg(&served).output().unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap().to_owned();
    assert!(out.contains(&sum), "the host has {sum}, the guest {out}");
    // Whoever serves it is there for the next guest.
    let again = run(&tatami, &["--device", &devices[2]], "head -c 12 /dev/served");
    assert_eq!(again.expect_status(0).out(), "of the guest");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_whose_back_end_is_killed_fails_and_the_sandbox_goes_on() {
    let tatami = Tatami::new();
    let disk = image(&tatami, "disk.img", "");
    let mut back_end = BackEnd::of_disk(&disk, ",writable=on");
    let device = back_end.at("/dev/data");
    let script = "head -c 4 /dev/data >/dev/null; echo up; sleep 5; \
        dd if=/dev/zero of=/dev/data bs=64k count=4 conv=notrunc,fsync 2>/dev/null || echo failed; \
        dd if=/dev/data of=/dev/null bs=64k iflag=direct 2>/dev/null || echo unreadable; uname; exit 7";
    let options = ["--device", &device];
    let running = tatami.start(&options, &["sh", "-c", script]);
    running.wait_for("up");
    back_end.kill();
    let finished = running.finish().expect_status(7);
    assert_eq!(finished.out(), "up\nfailed\nunreadable\nLinux\n");
    assert_eq!(finished.err().matches("vhost-user back end is gone").count(), 1, "{}", finished.err());
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_disk_whose_back_end_is_killed_while_it_writes_keeps_nobody_waiting() {
    let tatami = Tatami::new();
    let disk = image(&tatami, "disk.img", "");
    let script = "head -c 4 /dev/data >/dev/null; echo up; for n in 1 2 3; do \
        while dd if=/dev/zero of=/dev/data bs=64k seek=$((n * 16)) count=16 conv=notrunc,fsync 2>/dev/null; do :; done & \
        done; wait; echo all failed";
    for moment in 0..4 {
        let mut back_end = BackEnd::of_disk(&disk, ",writable=on");
        let device = back_end.at("/dev/data");
        let running = tatami.start(&["--cpus", "2", "--device", &device], &["sh", "-c", script]);
        running.wait_for("up");
        std::thread::sleep(Duration::from_millis(700 + 130 * moment));
        back_end.kill();
        assert_eq!(running.finish().expect_status(0).out(), "up\nall failed\n");
    }
    tatami.assert_nothing_left();
}

#[test]
#[ignore = "boots a guest: make test"]
fn files_that_another_process_serves_are_read_and_written() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("greeting"), "from outside\n").unwrap();
    let script = "cat /data/greeting; echo from within >/data/new && cat /data/new";
    let files = |options: &str| {
        let back_end = BackEnd::of_folder(&folder);
        run(&tatami, &["--vhost-user-fs", &back_end.at(options)], script)
    };
    assert_eq!(files("/data").expect_status(0).out(), "from outside\nfrom within\n");
    assert_eq!(fs::read_to_string(folder.join("new")).unwrap(), "from within\n");
    // A guest of several vCPUs takes as many queues as there are, and what all of them write is there.
    let back_end = BackEnd::of_folder(&folder);
    let script = "for n in 1 2 3 4; do dd if=/dev/zero of=/data/$n bs=64k count=16 2>/dev/null & done; wait; cat /data/[1-4] | wc -c";
    let several = run(&tatami, &["--cpus", "3", "--vhost-user-fs", &back_end.at("/data")], script);
    assert_eq!(several.expect_status(0).out().trim(), "4194304");
    assert_eq!(fs::metadata(folder.join("4")).unwrap().len(), 1 << 20);
    let finished = files("/data:ro").expect_status(1);
    assert_eq!(finished.out(), "from outside\n");
    assert!(finished.err().contains("Read-only file system"), "{}", finished.err());

    let mut back_end = BackEnd::of_folder(&folder);
    let files = back_end.at("/data");
    let options = ["--vhost-user-fs", &files];
    let script = "echo up; while cat /data/greeting >/dev/null 2>&1; do sleep 0.1; done; echo failed";
    let running = tatami.start(&options, &["sh", "-c", script]);
    running.wait_for("up");
    back_end.kill();
    assert_eq!(running.finish().expect_status(0).out(), "up\nfailed\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_cannot_be_served_is_named() {
    let tatami = Tatami::new();
    let disk = image(&tatami, "disk.img", "");
    let back_end = BackEnd::of_disk(&disk, ",writable=on");
    let refused = |options: &[&str], words: &[&str]| {
        run(&tatami, options, "true").expect_error(125, words);
    };
    refused(&["--device", &back_end.at("/dev/x:r")], &["device 0", "read-only"]);
    refused(&["--memory-backing", "anonymous", "--device", &back_end.at("/dev/x")], &["memory", "shared"]);
    let place = tatami.scratch().join("silent.sock");
    let at = format!("{}:/dev/x", place.display());
    let silent = UnixListener::bind(&place).unwrap();
    refused(&["--device", &at], &["did not answer within 5s"]);
    drop(silent);
    refused(&["--device", &at], &["silent.sock", "Connection refused"]);
    refused(&["--vhost-user-fs", "/etc/hostname:/data"], &["--vhost-user-fs", "no unix socket"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_sandbox_that_another_process_takes_part_in_cannot_be_saved() {
    let tatami = Tatami::new();
    let disk = image(&tatami, "disk.img", "");
    let back_end = BackEnd::of_disk(&disk, ",writable=on");
    let device = back_end.at("/dev/data");
    tatami.detach(&["--name", "served", "--device", &device], &["sleep", "600"]);
    let folder = tatami.scratch().join("saved");
    let refused = tatami.tatami(&["save", "served", folder.to_str().unwrap()]);
    assert!(refused.status != 0 && refused.err().contains("cannot be saved"), "{}", refused.err());
    // It goes on, and so does its disk.
    let read = tatami.tatami(&["exec", "served", "dd", "if=/dev/data", "of=/dev/null", "bs=64k", "count=4"]);
    read.expect_status(0);
    tatami.tatami(&["rm", "-f", "served"]).expect_status(0);
}
