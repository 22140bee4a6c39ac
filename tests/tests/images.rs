//! Images by name, from Debian's docker-registry on loopback: pulled, run in a guest, removed; and what a registry can do wrong.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tatami_tests::registry::{AUTHORIZATION, Gate, Registry, certificates};
use tatami_tests::{PATIENCE, Running, Tatami, Terminal};

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer with the host's busybox and a file that says which image it is.
fn base(tatami: &Tatami, version: &str) -> Vec<u8> {
    let root = tatami.scratch().join(format!("base-{version}"));
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "sha256sum", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("version"), version).unwrap();
    tar(&root)
}

/// A layer with one file that no compression would make smaller.
fn big(tatami: &Tatami, megabytes: usize) -> Vec<u8> {
    let root = tatami.scratch().join("big");
    fs::create_dir_all(&root).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    fs::write(root.join("big"), words.take(megabytes << 17).flatten().collect::<Vec<u8>>()).unwrap();
    tar(&root)
}

fn tar(root: &Path) -> Vec<u8> {
    let packed = Command::new("tar").args(["--owner=0", "--group=0", "-cf", "-", "-C"]).arg(root).arg(".").output();
    packed.unwrap().stdout
}

fn config() -> Value {
    json!({ "Cmd": ["cat", "/version"], "Env": ["PATH=/bin"] })
}

/// Files of the store that lie in `folder`.
fn stored(root: &Path, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("content").join(folder)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn root_of(tatami: &Tatami) -> PathBuf {
    tatami.scratch().with_file_name("lib")
}

#[test]
#[ignore = "boots a guest: make test"]
fn an_image_of_a_registry_runs_by_tag_and_by_digest() {
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), false);
    let layers = [base(&tatami, "1")];
    let own = registry.push_image(("team/app", "own"), architecture(), &config(), &layers);
    let other = registry.push_image(("team/app", "other"), "mips", &config(), &[b"other".to_vec()]);
    let index = registry.push_index(("team/app", "1"), &[other, own.clone()]);
    let name = format!("{}/team/app", registry.host());
    let run = |options: &[&str], word: &str| {
        let options = [&["run", "--rm", "--boot-timeout", "120"], options, &[word]].concat();
        tatami.tatami(&options)
    };
    let tagged = format!("{name}:1");
    run(&["--pull", "never"], &tagged).expect_error(125, &["no such image", &tagged]);
    assert_eq!(run(&[], &tagged).expect_status(0).out(), "1");
    // It is there now, and needs no registry.
    drop(registry);
    for word in [tagged.clone(), format!("{name}@{index}"), format!("{name}@{}", own["digest"].as_str().unwrap())] {
        assert_eq!(run(&[], &word).expect_status(0).out(), "1", "{word}");
    }
    let error = run(&["--pull", "always"], &tagged);
    error.expect_error(125, &["cannot pull", &tagged, "cannot reach"]);

    let listed = tatami.tatami(&["images"]).expect_status(0).out();
    assert!(listed.lines().count() == 2 && listed.contains(&name), "{listed}");
    let inspected = tatami.tatami(&["inspect", &tagged]).expect_status(0).out();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["RepoDigests"][0], format!("{name}@{index}"));

    let arguments = ["run", "-d", "--name", "uses", "--boot-timeout", "120", &tagged, "sleep", "1000"];
    tatami.tatami(&arguments).expect_status(0);
    tatami.tatami(&["rmi", &tagged]).expect_error(1, &["in use", &tagged]);
    tatami.tatami(&["rm", "-f", "uses"]).expect_status(0);
    let saved = tatami.scratch().join("saved.tar");
    tatami.tatami(&["image", "save", "-o", saved.to_str().unwrap(), &tagged]).expect_status(0);
    tatami.tatami(&["rmi", &tagged]).expect_status(0);
    let root = root_of(&tatami);
    assert_eq!((stored(&root, "blobs/sha256").len(), stored(&root, "names").len()), (0, 0));
    tatami.tatami(&["load", "--name", "mine", saved.to_str().unwrap()]).expect_status(0);
    assert_eq!(run(&[], "mine").expect_status(0).out(), "1");
}

#[test]
#[ignore = "looks at a host with KVM: make test"]
fn a_load_that_takes_long_tells_how_far_it_is() {
    let tatami = Tatami::new();
    let fifo = tatami.scratch().join("image");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let load = tatami.command(&["load"]);
    // What comes through the fifo comes on its standard input.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec \"$@\" <\"$0\""]).arg(&fifo).arg(load.get_program()).args(load.get_args());
    command.envs(load.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let terminal = Terminal::start(command, 24, 80);
    let mut image = fs::File::options().write(true).open(&fifo).unwrap();
    let whole = fs::read(tatami_tests::image()).unwrap();
    let (first, rest) = whole.split_at(whole.len() / 2);
    image.write_all(first).unwrap();
    terminal.wait_for(&format!("reading standard input: {:.1} MB", first.len() as f64 / 1e6));
    image.write_all(rest).unwrap();
    drop(image);
    terminal.wait_for("localhost/tatami-sample:latest sha256:");
    assert_eq!(terminal.finish(), 0);
    // Where nobody looks on, what is quick is not told.
    let quiet = tatami.tatami(&["load", "--quiet", tatami_tests::image().to_str().unwrap()]).expect_status(0);
    assert!(quiet.out().starts_with("sha256:") && quiet.out().lines().count() == 1, "{}", quiet.out());
    // It is called what its user knows it by.
    tatami.tatami(&["load"]).expect_error(1, &["standard input is not an image"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn what_images_have_in_common_is_unpacked_once() {
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), false);
    let base = base(&tatami, "base");
    // Over the base's files: one is changed, one is gone, a folder is another one.
    let change = |version: &str| {
        let root = tatami.scratch().join(format!("change-{version}"));
        fs::create_dir_all(root.join("tmp")).unwrap();
        fs::write(root.join("version"), version).unwrap();
        fs::write(root.join(".wh.etc"), "").unwrap();
        fs::write(root.join("tmp").join(version), "").unwrap();
        tar(&root)
    };
    let name = |tag: &str| format!("{}/app:{tag}", registry.host());
    for version in ["one", "two"] {
        registry.push_image(("app", version), architecture(), &config(), &[base.clone(), change(version)]);
    }
    let layers = || {
        let entries = fs::read_dir(root_of(&tatami).join("layers")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_none()).count()
    };
    let script = "cat /version; echo /tmp/* /e*; echo x >/tmp/x; sleep 1000";
    for version in ["one", "two"] {
        let options = ["run", "-d", "--name", version, "--boot-timeout", "120", &name(version), "sh", "-c", script];
        tatami.tatami(&options).expect_status(0);
        let log = Running::start(tatami.command(&["logs", "-f", version]));
        log.wait_for(&format!("{version}/tmp/{version} /e*\n"));
        log.signal(Signal::SIGKILL);
    }
    assert_eq!(layers(), 3);

    // One that goes on elsewhere has them as well.
    let saved = tatami.scratch().join("saved");
    tatami.tatami(&["save", "two", saved.to_str().unwrap()]).expect_status(0);
    tatami.tatami(&["rm", "-f", "two"]).expect_status(0);
    tatami.tatami(&["restore", "--name", "again", saved.to_str().unwrap()]).expect_status(0);
    tatami.tatami(&["rmi", &name("two")]).expect_error(1, &["in use"]);
    let seen = tatami.tatami(&["exec", "again", "sh", "-c", "cat /version /bin/sh | sha256sum; echo /tmp/*"]);
    assert!(seen.expect_status(0).out().ends_with("-\n/tmp/two /tmp/x\n"));
    tatami.tatami(&["rm", "-f", "again"]).expect_status(0);
    tatami.tatami(&["rmi", &name("two")]).expect_status(0);
    assert_eq!(layers(), 2);
    assert_eq!(tatami.tatami(&["exec", "one", "cat", "/version"]).expect_status(0).out(), "one");
    tatami.tatami(&["rm", "-f", "one"]).expect_status(0);
    tatami.tatami(&["rmi", &name("one")]).expect_status(0);
    assert_eq!(layers(), 0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_registry_that_wants_a_password_is_told_one() {
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), true);
    registry.push_image(("private", "1"), architecture(), &config(), &[b"layer".to_vec()]);
    let name = format!("{}/private:1", registry.host());
    let pull = |file: &str, secret: &str| {
        let path = tatami.scratch().join(file);
        let auths = json!({ "auths": { registry.host(): { "auth": secret } } });
        fs::write(&path, auths.to_string()).unwrap();
        let mut command = tatami.command(&["pull", &name]);
        command.env("REGISTRY_AUTH_FILE", path);
        Running::start(command).finish()
    };
    // guest:wrong
    pull("wrong.json", "Z3Vlc3Q6d3Jvbmc=").expect_error(1, &["cannot pull", &name, "guest", "log in"]);
    pull("right.json", AUTHORIZATION).expect_status(0);
    let mut nobody = tatami.command(&["pull", &name]);
    nobody.env("HOME", tatami.scratch()).env_remove("REGISTRY_AUTH_FILE");
    Running::start(nobody).finish().expect_error(1, &["not logged in", "podman login"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_registry_is_spoken_to_securely_if_it_is_trusted() {
    let tatami = Tatami::new();
    let plain = Registry::start(&tatami.scratch().join("plain"), false);
    plain.push_image(("app", "1"), architecture(), &config(), &[b"layer".to_vec()]);
    let secure = Registry::start_secure(&tatami.scratch().join("secure"), &plain);
    // By a name, which is looked for.
    let port = secure.host().rsplit(':').next().unwrap();
    let name = format!("localhost:{port}/app:1");
    let pull = |options: &[&str]| tatami.tatami(&[&["pull"], options, &[&name]].concat());
    let known = certificates();
    pull(&["--cert-dir", known.to_str().unwrap()]).expect_status(0);
    pull(&["--cert-dir", "/nowhere"]).expect_error(1, &["cannot pull", &name, "cannot be trusted"]);
    pull(&["--plain-http"]).expect_error(1, &["cannot pull", &name]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_killed_pull_from_a_registry_is_gone_on_with() {
    const MEGABYTES: usize = 12;
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), false);
    let layers = [base(&tatami, "big"), big(&tatami, MEGABYTES)];
    registry.push_image(("big", "1"), architecture(), &config(), &layers);
    let gate = Gate::before(registry.host(), 4 << 20);
    let running = Running::start(tatami.command(&["pull", &format!("{}/big:1", gate.host())]));
    let root = root_of(&tatami);
    let partial =
        || stored(&root, "ingest").into_iter().find(|path| path.metadata().is_ok_and(|file| file.len() > 2 << 20));
    let deadline = Instant::now() + PATIENCE;
    while partial().is_none() {
        assert!(Instant::now() < deadline, "nothing comes through the gate");
        std::thread::sleep(Duration::from_millis(50));
    }
    running.signal(Signal::SIGKILL);
    running.finish().expect_status(128 + 9);
    assert!(partial().is_some() && stored(&root, "names").is_empty());
    gate.open();
    // By another name: the blobs are the same.
    let name = format!("{}/big:1", registry.host());
    tatami.tatami(&["pull", &name]).expect_status(0);
    assert_eq!(stored(&root, "ingest"), [] as [PathBuf; 0]);
    let ran = tatami.tatami(&["run", "--rm", "--boot-timeout", "120", &name, "sha256sum", "/big"]).expect_status(0);
    let expected = Command::new("sha256sum").arg(tatami.scratch().join("big/big")).output().unwrap();
    let hash = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    assert_eq!(hash(&ran.out()), hash(&String::from_utf8_lossy(&expected.stdout)));
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_broken_registry_leaves_nothing_behind() {
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), false);
    let layer = registry.push_blob("broken", "application/vnd.oci.image.layer.v1.tar", b"a layer of the registry's");
    registry.push_image(("broken", "1"), architecture(), &config(), &[b"a layer of the registry's".to_vec()]);
    let file = registry.blob_file(layer["digest"].as_str().unwrap());
    let name = format!("{}/broken:1", registry.host());
    let digest = layer["digest"].as_str().unwrap();
    for content in [b"a LAYER of the registry's".as_slice(), b"shorter", b"a layer of the registry's, and more"] {
        fs::write(&file, content).unwrap();
        tatami.tatami(&["pull", &name]).expect_error(1, &["cannot pull", &name, digest]);
    }
    fs::remove_file(&file).unwrap();
    tatami.tatami(&["pull", &name]).expect_error(1, &["cannot pull", &name, digest]);
    let root = root_of(&tatami);
    assert_eq!((stored(&root, "names").len(), stored(&root, "ingest").len()), (0, 0));
    tatami.tatami(&["pull", &format!("{}/nothing:1", registry.host())]).expect_error(1, &["nothing", "check name"]);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_full_disk_ends_a_pull_from_a_registry() {
    let tatami = Tatami::new();
    let registry = Registry::start(&tatami.scratch().join("registry"), false);
    registry.push_image(("big", "1"), architecture(), &config(), &[big(&tatami, 12)]);
    let disk = tatami.scratch().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=40m", "tmpfs"]).arg(&disk).status().unwrap();
    assert!(mount.success());
    let name = format!("{}/big:1", registry.host());
    let mut command = tatami.command(&["pull", &name]);
    command.env("TATAMI_ROOT", &disk);
    let finished = Running::start(command).finish();
    let left = (stored(&disk, "names").len(), stored(&disk, "ingest").len());
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    finished.expect_error(1, &["cannot pull", &name, "needs 13 MB", "make room"]);
    assert_eq!(left, (0, 0));
}
