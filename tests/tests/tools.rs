//! `tatami cp`, `tatami events`, `tatami log` and `tatami env` as their user sees them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tatami_tests::{Finished, Running, Tatami};

fn cp(tatami: &Tatami, words: &[&str]) -> Finished {
    tatami.tatami(&[&["cp"], words].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[ignore = "boots a guest: make test"]
fn files_go_in_and_out_and_see_what_the_container_sees() {
    let tatami = Tatami::new();
    let scratch = tatami.scratch();
    let volume = scratch.join("volume");
    fs::create_dir(&volume).unwrap();
    let options = [
        "--name",
        "web",
        "-u",
        "1000:1000",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/fast",
        "-v",
        &format!("{}:/data", text(&volume)),
    ];
    tatami.detach(&options, &["sleep", "1000"]);
    let exec = |script: &str| tatami.tatami(&["exec", "-u", "root", "web", "sh", "-c", script]).expect_status(0).out();

    // A tree goes in, with modes and times, to where only the guest has a file system.
    let site = scratch.join("site");
    fs::create_dir_all(site.join("sub")).unwrap();
    fs::write(site.join("sub/large"), vec![b'x'; 3_000_000]).unwrap();
    fs::write(site.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(site.join("tool"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::File::open(site.join("tool")).unwrap().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(77)).unwrap();
    symlink("sub/large", site.join("link")).unwrap();
    for target in ["web:/fast", "web:/data/", "web:/var/new"] {
        cp(&tatami, &[text(&site), target]).expect_status(0);
    }
    let told = exec("cd /fast/site; stat -c '%a %u %Y' tool; readlink link; wc -c <sub/large; ls /var/new");
    assert_eq!(told, "751 0 77\nsub/large\n3000000\nlink\nsub\ntool\n");
    assert_eq!(fs::read(volume.join("site/sub/large")).unwrap().len(), 3_000_000);

    // And out again, the same, whatever the container has in it.
    exec("echo new >/fast/site/sub/made; chmod 4755 /fast/site/tool; rm -rf /bin /sbin /usr");
    let back = scratch.join("back");
    cp(&tatami, &["web:/fast/site", text(&back)]).expect_status(0);
    assert_eq!(fs::read_to_string(back.join("sub/made")).unwrap(), "new\n");
    assert_eq!(fs::read(back.join("sub/large")).unwrap(), vec![b'x'; 3_000_000]);
    let tool = fs::metadata(back.join("tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.mtime()), (0o755, 77));
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("sub/large"));
    cp(&tatami, &["-L", "web:/fast/site/link", text(&back.join("followed"))]).expect_status(0);
    assert_eq!(fs::metadata(back.join("followed")).unwrap().len(), 3_000_000);

    // As archives, both ways.
    let archive = cp(&tatami, &["web:/fast/site/sub", "-"]).expect_status(0).stdout;
    let mut command = tatami.command(&["cp", "-", "web:/data"]);
    command.stdin(Stdio::piped());
    Running::start(command).finish_with_input(archive).expect_status(0);
    assert_eq!(fs::read_to_string(volume.join("sub/made")).unwrap(), "new\n");

    // What cannot be says why.
    cp(&tatami, &["web:/none", text(&back)]).expect_error(1, &["web", "/none", "No such file"]);
    cp(&tatami, &[text(&site), "web:/none/x"]).expect_error(1, &["web", "/none", "make it first"]);
    cp(&tatami, &["nobody:/etc", text(&back)]).expect_error(1, &["no such container", "nobody"]);
    cp(&tatami, &[text(&site), text(&back)]).expect_error(1, &["CONTAINER:PATH"]);
    cp(&tatami, &["web:/fast/site", text(&back.join("tool"))]).expect_error(1, &["tool", "no folder"]);
    tatami.tatami(&["rm", "-f", "web"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_a_container_makes_of_its_names_stays_in_the_copy() {
    let tatami = Tatami::new();
    let scratch = tatami.scratch();
    let outside = scratch.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    tatami.detach(&["--name", "web"], &["sleep", "1000"]);
    // A link that leads to the host's folder, and then a folder of that name where the link is on the host.
    let script =
        format!("mkdir -p /a /b/there; ln -s {} /a/there; echo bad >/b/there/file; mkfifo /b/fifo", text(&outside));
    tatami.tatami(&["exec", "web", "sh", "-c", &script]).expect_status(0);
    let inside = scratch.join("inside");
    fs::create_dir(&inside).unwrap();
    cp(&tatami, &["web:/a/.", text(&inside)]).expect_status(0);
    assert!(inside.join("there").is_symlink());
    cp(&tatami, &["web:/b/.", text(&inside)]).expect_error(1, &["there", "no folder"]);
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
    // A paused container would not answer, and one that has ended cannot.
    tatami.tatami(&["pause", "web"]).expect_status(0);
    cp(&tatami, &["web:/a", text(&inside)]).expect_error(1, &["paused", "resume"]);
    tatami.tatami(&["resume", "web"]).expect_status(0);
    tatami.tatami(&["kill", "web"]).expect_status(0);
    assert_eq!(tatami.tatami(&["wait", "web"]).out(), "137\n");
    let gone = ["web: it has ended", "gone with its machine", "`tatami logs web`", "`run -v`"];
    cp(&tatami, &["web:/a", text(&inside)]).expect_error(1, &[&["cannot copy from"], &gone[..]].concat());
    cp(&tatami, &[text(&inside), "web:/a"]).expect_error(1, &[&["cannot copy to"], &gone[..]].concat());
    tatami.tatami(&["rm", "web"]).expect_status(0);
}

#[test]
#[ignore = "looks at a host with KVM: make test"]
fn env_tells_what_is_in_use() {
    let tatami = Tatami::new();
    let json = tatami.tatami(&["env", "--format", "json"]).expect_status(0).out();
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["Guest"]["Kernel"]["Path"], tatami_tests::kernel().display().to_string());
    assert!(found["Guest"]["Initrd"]["Bytes"].as_u64().unwrap() > 100_000, "{json}");
    let text = tatami.tatami(&["env"]).expect_status(0).out();
    for name in ["guest kernel", "host kernel", "configuration", "io_uring", "/dev/kvm", "locks and sockets"] {
        assert!(text.contains(name), "{name} in {text}");
    }
}

#[test]
#[ignore = "boots a guest: make test"]
fn events_are_told_to_who_listens() {
    let tatami = Tatami::new();
    let text = Running::start(tatami.command(&["events"]));
    let json = Running::start(tatami.command(&["events", "--format", "json"]));
    let folder = tatami.scratch().parent().unwrap().join("run/events");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_dir(&folder).map_or(0, Iterator::count) < 2 {
        assert!(Instant::now() < deadline, "nobody listens in {}", folder.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = tatami.detach(&["--name", "web"], &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"]);
    tatami.tatami(&["exec", "web", "sh", "-c", "exit 5"]).expect_status(5);
    tatami.tatami(&["pause", "web"]).expect_status(0);
    tatami.tatami(&["resume", "web"]).expect_status(0);
    tatami.tatami(&["stop", "web"]).expect_status(0);
    tatami.tatami(&["rm", "web"]).expect_status(0);
    tatami.run_with(&["--name", "front"], &["sh", "-c", "exit 4"]).expect_status(4);
    text.wait_for("status 4");
    json.wait_for("\"ExitCode\":4");
    text.signal(Signal::SIGINT);
    json.signal(Signal::SIGINT);
    let text = text.finish().expect_status(0).out();
    let told: Vec<&str> = text.lines().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    let first = ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "remove"];
    assert_eq!(told, [&first[..], &["start", "exit"]].concat(), "{text}");
    assert!(text.contains(&format!("web ({id}) status 3")) && text.contains("front"), "{text}");
    let json = json.finish().expect_status(0).out();
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows[4]["ExecID"].is_string() && rows[4]["ExitCode"] == 5, "{json}");
    assert_eq!(
        (&rows[0]["Namespace"], &rows[0]["ID"], &rows[0]["Name"]),
        (&"tatami".into(), &id.into(), &"web".into())
    );
}

#[test]
#[ignore = "boots a guest: make test"]
fn server_and_guest_log_into_one_stream() {
    let tatami = Tatami::new();
    // It asks for more memory than the machine has: the guest's kernel says so.
    let script = "while ! [ -e /go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 1000";
    let id = tatami.detach(&["--name", "web", "-m", "128M"], &["sh", "-c", script]);
    let followed = Running::start(tatami.command(&["log", "-f", "web"]));
    followed.wait_for("Linux version");
    let log = |words: &[&str]| tatami.tatami(&[&["log"], words].concat());
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();

    // Everything by time, each line with who says it.
    let all = lines(&log(&[&id[..6]]).expect_status(0).out());
    let time = |line: &String| line.split(' ').next().unwrap().to_owned();
    assert!(all.is_sorted_by_key(time), "{all:#?}");
    let said = |source: &str, text: &str| {
        let found = all.iter().any(|line| line.split_whitespace().nth(1) == Some(source) && line.contains(text));
        assert!(found, "{source} should have said {text:?}: {all:#?}");
    };
    said("kernel", "Linux version");
    said("server", "the guest ");
    said("server", &format!("container {id}: start"));
    let json = log(&["--format", "json", "-n", "1", "web"]).expect_status(0).out();
    let last: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(all.last().unwrap().starts_with(last["Time"].as_str().unwrap()), "{last} in {all:#?}");
    assert_eq!(log(&["--since", "2099-01-01T00:00:00Z", "web"]).expect_status(0).out(), "");

    // What comes later, to the end, and what is kept of it.
    tatami.tatami(&["exec", "web", "touch", "/go"]).expect_status(0);
    followed.wait_for("not enough memory");
    tatami.tatami(&["kill", "web"]).expect_status(0);
    let followed = followed.finish().expect_status(0).out();
    let end = format!("container {id}: exit status 137");
    assert!(lines(&followed).iter().any(|line| line.ends_with(&end)), "{followed}");
    let kept = log(&["web"]).expect_status(0).out();
    assert!(kept.contains(&end) && !kept.contains("  kernel  "), "{kept}");
    tatami.tatami(&["rm", "web"]).expect_status(0);
    log(&["web"]).expect_error(1, &["no sandbox", "web"]);
}
