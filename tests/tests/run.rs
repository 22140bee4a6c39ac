//! `tatami run` as its user sees it: greeting, exit status, streams, options, terminal and signals, in a real guest.

use std::fs;

use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use tatami_tests::{Tatami, image};

fn host_kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned()
}

/// Bytes that no stream can get right by accident: no two of its 4 KiB blocks are equal.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_sample_image_greets_from_a_kernel_that_is_not_the_hosts() {
    let tatami = Tatami::new();
    let greeting = tatami.run(&[]).expect_status(0).out();
    assert!(greeting.starts_with("Hello from"), "{greeting}");
    let guest = tatami.run(&["uname", "-r"]).expect_status(0).out();
    assert!(greeting.contains(guest.trim()), "{greeting}");
    assert_ne!(guest.trim(), host_kernel());
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_exit_status_is_the_commands() {
    let tatami = Tatami::new();
    tatami.run(&["sh", "-c", "exit 42"]).expect_status(42);
    tatami.run(&["true"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_missing_command_is_127_and_one_that_cannot_run_126() {
    let tatami = Tatami::new();
    tatami.run(&["no-such-command"]).expect_error(127, &["no-such-command", "not found"]);
    tatami.run(&["/no/such/path"]).expect_error(127, &["/no/such/path"]);
    tatami.run(&["/etc/passwd"]).expect_error(126, &["/etc/passwd", "permission denied"]);
    tatami.run(&["/etc"]).expect_error(126, &["/etc"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn fifty_megabytes_of_input_come_back_unchanged() {
    let tatami = Tatami::new();
    let input = noise(50 << 20);
    let image = image().display().to_string();
    let mut command = tatami.command(&["run", "--rm", "-i", &image, "cat"]);
    command.stdin(std::process::Stdio::piped());
    let finished = tatami_tests::Running::start(command).finish_with_input(input.clone()).expect_status(0);
    assert_eq!(finished.stdout.len(), input.len());
    assert_eq!(Sha256::digest(&finished.stdout), Sha256::digest(&input));
}

#[test]
#[ignore = "boots a guest: make test"]
fn input_from_a_file_ends_where_the_file_ends() {
    let tatami = Tatami::new();
    let path = tatami.scratch().join("input");
    fs::write(&path, noise(1 << 20)).unwrap();
    let image = image().display().to_string();
    let mut command = tatami.command(&["run", "--rm", "-i", &image, "wc", "-c"]);
    command.stdin(fs::File::open(&path).unwrap());
    assert_eq!(tatami_tests::Running::start(command).finish().expect_status(0).out().trim(), "1048576");
}

#[test]
#[ignore = "boots a guest: make test"]
fn without_i_the_command_reads_nothing() {
    let tatami = Tatami::new();
    assert_eq!(tatami.run(&["wc", "-c"]).expect_status(0).out().trim(), "0");
}

#[test]
#[ignore = "boots a guest: make test"]
fn output_is_whole_however_fast_the_command_ends() {
    let tatami = Tatami::new();
    let finished = tatami.run(&["sh", "-c", "head -c 20000000 /dev/zero; echo end; echo apart >&2"]).expect_status(0);
    assert_eq!(finished.stdout.len(), 20_000_004);
    assert!(finished.stdout.ends_with(b"end\n"));
    assert_eq!(finished.err(), "apart\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_reader_that_goes_away_ends_the_command() {
    let tatami = Tatami::new();
    let mut shell = std::process::Command::new("/bin/sh");
    let run = tatami.command(&["run", "--rm", &image().display().to_string(), "yes"]);
    let words: Vec<_> = run.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
    shell.args(["-c", &format!("/bin/sh {} | head -n 2", words.join(" "))]);
    for (key, value) in run.get_envs() {
        shell.env(key, value.unwrap());
    }
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).stdin(std::process::Stdio::null());
    assert_eq!(tatami_tests::Running::start(shell).finish().out(), "y\ny\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn environment_folder_user_and_entrypoint_are_as_asked() {
    let tatami = Tatami::new();
    let options = ["-e", "COLOUR=green", "-w", "/var", "-u", "1000", "--entrypoint", "/bin/sh"];
    let out = tatami.run_with(&options, &["-c", "echo $COLOUR; pwd; id -u"]).expect_status(0).out();
    assert_eq!(out, "green\n/var\n1000\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn volumes_carry_files_both_ways_and_read_only_ones_do_not() {
    let tatami = Tatami::new();
    let folder = tatami.scratch();
    fs::write(folder.join("in"), "from the host\n").unwrap();
    let (host, again) = (format!("{}:/data", folder.display()), format!("{}:/locked:ro", folder.display()));
    let script = "cat /data/in; echo from the guest > /data/out; echo no > /locked/never";
    let finished = tatami.run_with(&["-v", &host, "-v", &again], &["sh", "-c", script]);
    assert_eq!(finished.out(), "from the host\n");
    assert!(finished.err().contains("Read-only file system"), "{}", finished.err());
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "from the guest\n");
    assert!(!folder.join("never").exists());
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_single_file_can_be_a_volume() {
    let tatami = Tatami::new();
    let file = tatami.scratch().join("one");
    fs::write(&file, "one file\n").unwrap();
    let volume = format!("{}:/etc/one", file.display());
    assert_eq!(tatami.run_with(&["-v", &volume], &["cat", "/etc/one"]).expect_status(0).out(), "one file\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn memory_and_processors_are_the_sandboxs() {
    let tatami = Tatami::new();
    let script = "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let out = tatami.run_with(&["--memory", "300m", "--cpus", "3"], &["sh", "-c", script]).expect_status(0).out();
    let numbers: Vec<u32> = out.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[0], 3);
    assert!((230..=300).contains(&numbers[1]), "{} MiB", numbers[1]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_plain_folder_can_be_the_root() {
    let tatami = Tatami::new();
    let root = tatami.scratch().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let rootfs = root.display().to_string();
    let words = ["run", "--rm", "--rootfs", &rootfs, "/bin/busybox", "echo", "no image at all"];
    assert_eq!(tatami.tatami(&words).expect_status(0).out(), "no image at all\n");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_container_starts_from_the_image_each_time() {
    let tatami = Tatami::new();
    tatami.run(&["sh", "-c", "echo changed > /etc/passwd; rm /bin/cat"]).expect_status(0);
    assert!(tatami.run(&["cat", "/etc/passwd"]).expect_status(0).out().starts_with("root:"));
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_command_is_process_one_of_a_clean_house() {
    let tatami = Tatami::new();
    let script = "echo $$; ls /proc | grep -c '^[0-9]'; ls /run; cat /proc/mounts; env; cat /proc/cmdline";
    let out = tatami.run(&["sh", "-c", script]).expect_status(0).out();
    assert!(out.starts_with("1\n"), "{out}");
    // No host path is to be seen that the user did not name.
    assert!(!out.contains("/var/tmp") && !out.contains("sandboxes"), "{out}");
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_terminal_has_the_windows_size_and_follows_it() {
    let tatami = Tatami::new();
    let script = "stty size; read line; stty size; echo got $line";
    let mut terminal = tatami.start_on_terminal(31, 97, &["-i", "-t"], &["sh", "-c", script]);
    terminal.wait_for("31 97");
    terminal.resize(44, 120);
    std::thread::sleep(std::time::Duration::from_millis(500));
    terminal.send("keys\n");
    terminal.wait_for("44 120");
    terminal.wait_for("got keys");
    assert_eq!(terminal.finish(), 0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn control_c_on_a_terminal_interrupts_the_command() {
    let tatami = Tatami::new();
    let script = "trap 'echo caught; exit 3' INT; echo waiting; while :; do sleep 0.1; done";
    let mut terminal = tatami.start_on_terminal(24, 80, &["-i", "-t"], &["sh", "-c", script]);
    terminal.wait_for("waiting");
    terminal.send("\x03");
    terminal.wait_for("caught");
    assert_eq!(terminal.finish(), 3);
}

#[test]
#[ignore = "boots a guest: make test"]
fn control_c_without_a_terminal_reaches_the_command_too() {
    let tatami = Tatami::new();
    let script = "trap 'exit 9' INT; echo waiting; while :; do sleep 0.1; done";
    let mut terminal = tatami.start_on_terminal(24, 80, &[], &["sh", "-c", script]);
    terminal.wait_for("waiting");
    terminal.send("\x03");
    assert_eq!(terminal.finish(), 9);
}

#[test]
#[ignore = "boots a guest: make test"]
fn signals_are_passed_on() {
    let tatami = Tatami::new();
    let script = "trap 'exit 7' TERM; trap 'echo usr1' USR1; echo waiting; while :; do sleep 0.1; done";
    let running = tatami.start(&[], &["sh", "-c", script]);
    running.wait_for("waiting");
    running.signal(Signal::SIGUSR1);
    running.wait_for("usr1");
    running.signal(Signal::SIGTERM);
    running.finish().expect_status(7);
}

#[test]
#[ignore = "boots a guest: make test"]
fn orphans_are_reaped_and_end_with_the_container() {
    let tatami = Tatami::new();
    let script = "(sleep 1000 & ) ; (true & ); sleep 0.3; ps | grep -c -i '[z]ombie\\| Z ' || true; echo done";
    let finished = tatami.run(&["sh", "-c", script]).expect_status(0);
    assert!(finished.out().ends_with("done\n"), "{}", finished.out());
}

#[test]
#[ignore = "boots a guest: make test"]
fn timings_name_every_phase() {
    let tatami = Tatami::new();
    let finished = tatami.run_with(&["--timings"], &["true"]).expect_status(0);
    for phase in ["server", "VM create", "boot", "agent ready", "container start"] {
        assert!(finished.err().contains(phase), "{phase} is not in: {}", finished.err());
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_name_is_taken_while_its_sandbox_runs_and_free_afterwards() {
    let tatami = Tatami::new();
    let first = tatami.start(&["--name", "solo"], &["sh", "-c", "echo up; sleep 1000"]);
    first.wait_for("up");
    tatami.run_with(&["--name", "solo"], &["true"]).expect_error(125, &["solo"]);
    first.signal(Signal::SIGKILL);
    first.finish().expect_status(137);
    tatami.assert_nothing_left();
    tatami.run_with(&["--name", "solo"], &["true"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn walls_are_moved_as_asked() {
    let tatami = Tatami::new();
    let options = "--tmpfs /scratch:size=1m --cap-drop ALL --cap-add CHOWN --ulimit nofile=99:100 --dns 192.0.2.53";
    let options: Vec<&str> = options.split(' ').collect();
    let script = "grep -c '^tmpfs /scratch tmpfs .*size=1024k' /proc/mounts; grep CapBnd /proc/self/status; \
                  ulimit -n; ulimit -Hn; cat /etc/resolv.conf";
    let out = tatami.run_with(&options, &["sh", "-c", script]).expect_status(0).out();
    assert_eq!(out, "1\nCapBnd:\t0000000000000001\n99\n100\nnameserver 192.0.2.53\n");
    tatami.run_with(&["--cap-add", "FLY"], &["true"]).expect_error(125, &["FLY"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_profile_takes_system_calls_away() {
    let tatami = Tatami::new();
    let profile = tatami.scratch().join("profile.json");
    let rule = r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}"#;
    fs::write(&profile, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#)).unwrap();
    let options = ["--seccomp", profile.to_str().unwrap()];
    let refused = tatami.run_with(&options, &["mkdir", "/x"]).expect_status(1).err();
    assert!(refused.contains("not permitted"), "{refused}");
    fs::write(&profile, "{}").unwrap();
    tatami.run_with(&options, &["true"]).expect_error(125, &["profile.json", "defaultAction"]);
}
