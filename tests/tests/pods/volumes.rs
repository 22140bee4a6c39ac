//! What the kubelet mounts into a pod's containers.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use tatami_tests::compare::{Case, Notes, Stage};
use tatami_tests::daemons::kubelet::{Kubelet, Pod, host, mount, told};
use tatami_tests::daemons::{IMAGE, Release, api};
use tatami_tests::{LoopDisk, binary};

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("folders and files of the host", of_the_host),
    Case::new("a configuration that is replaced as a whole", replaced).long(),
    Case::new("a volume that two containers share", shared),
    Case::new("a volume in memory", in_memory).long(),
    Case::new("a raw block volume", block),
    Case::new("a raw block volume of several containers", shared_block).long(),
    Case::new("a raw block volume without the host's page cache", uncached)
        .without_reference("runc reads no configuration of Kata's")
        .long(),
    Case::new("raw block volumes that cannot be", bad_blocks)
        .without_reference("runc hands out a device whatever is on it, and whoever has it")
        .long(),
    Case::new("a direct volume", direct).without_reference("runc mounts the folder instead"),
    Case::new("direct volumes that cannot be", bad_direct).without_reference("runc mounts the folder instead").long(),
    Case::new("a volume that vanishes", vanishing).long(),
    Case::new("an image as a volume", of_an_image).long(),
];

fn with(name: &str, command: &[&str], mounts: Vec<api::Mount>) -> api::ContainerConfig {
    api::ContainerConfig { mounts, ..Kubelet::container(name, command) }
}

/// A container that waits, and has this.
fn waiting(kubelet: &Kubelet, pod: &Pod, name: &str, mount: api::Mount) -> String {
    kubelet.start_described(pod, with(name, &["sleep", "100000"], vec![mount])).expect("it starts")
}

/// How a container fares that writes to a folder: `1` and `none` if that may only be read.
fn written(kubelet: &Kubelet, container: &str, folder: &str) -> String {
    let script = format!("touch {folder}/x 2>&1 | grep -c 'Read-only'; test -e {folder}/x || echo none");
    kubelet.shell(container, &script)
}

/// hostPath volumes, and subPath, which the kubelet binds itself.
fn of_the_host(kubelet: &mut Kubelet, notes: &mut Notes) {
    let folder = kubelet.scratch().join("data");
    fs::create_dir_all(folder.join("sub")).expect("a folder");
    fs::write(folder.join("file"), "from the host\n").expect("a file");
    fs::set_permissions(folder.join("file"), fs::Permissions::from_mode(0o640)).expect("a mode");
    chown(folder.join("file"), Some(1000), Some(2000)).expect("an owner");
    let pod = kubelet.run("pod");
    let mounts = vec![
        mount(&folder, "/data", false),
        mount(&folder, "/look", true),
        mount(&folder.join("sub"), "/sub", false),
        mount(&folder.join("file"), "/etc/one-file", true),
    ];
    let id = kubelet.start_described(&pod, with("c", &["sleep", "100000"], mounts)).expect("it starts");
    notes.want("what is there", kubelet.shell(&id, "cat /data/file /etc/one-file"), "from the host\nfrom the host");
    notes.want("whose it is", kubelet.shell(&id, "stat -c '%u:%g %a' /data/file"), "1000:2000 640");
    notes.want("what may only be read", written(kubelet, &id, "/look"), "1\nnone");
    notes.want(
        "what is written",
        kubelet.shell(&id, "echo guest >/data/new; chown 1234:5678 /data/new; echo sub >/sub/x; sync; echo ok"),
        "ok",
    );
    let new = fs::metadata(folder.join("new")).map(|of| format!("{}:{}", of.uid(), of.gid()));
    notes.want("is the host's at once", new.unwrap_or_else(|error| error.to_string()), "1234:5678");
    notes.want("also below", fs::read_to_string(folder.join("sub/x")).unwrap_or_default().trim(), "sub");
    fs::write(folder.join("later"), "later\n").expect("a file");
    notes.want("what the host writes", kubelet.shell(&id, "cat /look/later"), "later");
    notes.want(
        "a fifo and a link",
        kubelet.shell(&id, "mkfifo /data/f && ln -s file /data/l && cat /data/l"),
        "from the host",
    );
    let missing = with("bad", &["true"], vec![mount(&folder.join("no-such"), "/x", false)]);
    // containerd makes a folder of what is not there.
    notes.want("what is not there", told(kubelet.start_described(&pod, missing).map(drop)), "ok");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// configMap, secret and projected volumes: a link that is renamed onto the old one.
fn replaced(kubelet: &mut Kubelet, notes: &mut Notes) {
    let volume = kubelet.scratch().join("config");
    let write = |version: &str, text: &str| {
        let data = format!("..{version}");
        fs::create_dir_all(volume.join(&data)).expect("a folder");
        fs::write(volume.join(&data).join("key"), text).expect("a file");
        symlink(&data, volume.join("..data_tmp")).expect("a link");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("a name");
    };
    write("1", "one\n");
    symlink("..data/key", volume.join("key")).expect("a link");
    let pod = kubelet.run("pod");
    let id = waiting(kubelet, &pod, "c", mount(&volume, "/config", true));
    notes.want("at first", kubelet.shell(&id, "cat /config/key"), "one");
    write("2", "two and more\n");
    fs::remove_dir_all(volume.join("..1")).expect("it was there");
    notes.want("replaced", kubelet.shell(&id, "cat /config/key"), "two and more");
    notes.want("the old one is gone", kubelet.shell(&id, "ls -A /config | sort | tr '\\n' ' '"), "..2 ..data key");
    notes.want("it cannot be written", kubelet.shell(&id, "echo x 2>/dev/null >/config/key || echo no"), "no");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// emptyDir: a folder that the kubelet makes, and removes with the pod.
fn shared(kubelet: &mut Kubelet, notes: &mut Notes) {
    let folder = kubelet.scratch().join("empty");
    fs::create_dir_all(&folder).expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("a mode");
    let pod = kubelet.run("pod");
    let start = |name: &str| waiting(kubelet, &pod, name, mount(&folder, "/shared", false));
    let (one, other) = (start("one"), start("other"));
    kubelet.shell(&one, "for i in $(seq 50); do echo $i >/shared/f$i; done");
    notes.want(
        "the other sees all",
        kubelet.shell(&other, "cat /shared/f* | sort -n | tail -1; ls /shared | wc -l"),
        "50\n50",
    );
    notes.want("it renames", kubelet.shell(&other, "mv /shared/f1 /shared/g && echo ok"), "ok");
    notes.want("the first sees it", kubelet.shell(&one, "cat /shared/g; ls /shared/f1 2>/dev/null | wc -l"), "1\n0");
    notes.want(
        "a fifo between the two",
        kubelet.shell(&one, "mkfifo /shared/p && (sh -c 'echo word >/shared/p' >/dev/null 2>&1 &) && echo made"),
        "made",
    );
    notes.want("a word through it", kubelet.shell(&other, "timeout 20 cat /shared/p"), "word");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// A file system mounted on a folder of the host's; unmounted when dropped.
struct OnHost(PathBuf);

impl OnHost {
    /// By the words of mount(8) before the folder.
    fn mount(words: &[&str], folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let said = host(&[&["mount"], words, &[&folder.display().to_string()]].concat());
        assert_eq!(said, "", "mount {words:?}");
        OnHost(folder.to_owned())
    }
}

impl Drop for OnHost {
    fn drop(&mut self) {
        host(&["umount", &self.0.display().to_string()]);
    }
}

/// emptyDir of the medium Memory, with a limit: the kubelet mounts a tmpfs.
fn in_memory(kubelet: &mut Kubelet, notes: &mut Notes) {
    let folder = kubelet.scratch().join("kubernetes.io~empty-dir/cache");
    let mounted = OnHost::mount(&["-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs"], &folder);
    let pod = kubelet.run("pod");
    let start = |name: &str, readonly: bool| waiting(kubelet, &pod, name, mount(&folder, "/cache", readonly));
    let (one, other) = (start("one", false), start("other", true));
    notes.want("what it is", kubelet.shell(&one, "stat -f -c %T /cache; stat -c '%a %u:%g' /cache"), "tmpfs\n777 0:0");
    notes.want("how large", kubelet.shell(&one, "df -k /cache | tail -1 | awk '{print $2}'"), "4096");
    notes.want("what one writes", kubelet.shell(&one, "echo word >/cache/file && mkfifo /cache/p && echo ok"), "ok");
    notes.want("the other reads", kubelet.shell(&other, "cat /cache/file"), "word");
    notes.want("and does not write", written(kubelet, &other, "/cache"), "1\nnone");
    let much =
        "dd if=/dev/zero of=/cache/much bs=1M count=8 2>&1 | grep -c 'No space'; wc -c </cache/much; rm /cache/much";
    let said = kubelet.shell(&one, much);
    notes.want("more than fits", said.starts_with("1\n") && said != "1\n8388608", true);
    // Not even the host sees the guest's memory.
    notes.want("where it is", folder.join("file").exists() != kubelet.is_ours(), true);
    notes.want("one is removed", kubelet.remove_container(&one), "ok");
    notes.want("the other", kubelet.remove_container(&other), "ok");
    let again = start("again", false);
    notes.want("what was written stays", kubelet.shell(&again, "cat /cache/file"), "word");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    drop(mounted);
}

/// A volume by Kata's convention: what the runtime is told of a path. Dropped, it is forgotten.
struct Direct(PathBuf);

impl Direct {
    /// As a driver writes it, whatever it says.
    fn add(volume: &Path, info: &str) -> Self {
        let told = Direct::of(volume);
        fs::create_dir_all(&told.0).expect("a folder");
        fs::write(told.file(), info).expect("a file");
        told
    }

    fn of(volume: &Path) -> Self {
        let name = host(&["sh", "-c", &format!("printf %s '{}' | base64 -w0 | tr +/ -_", volume.display())]);
        Direct(Path::new("/run/kata-containers/shared/direct-volumes").join(name))
    }

    /// What `tatami direct-volume` has to say where this cluster's sandboxes are.
    fn command(kubelet: &Kubelet, words: &[&str]) -> String {
        let (binary, state) = (binary(), kubelet.containerd().home().path("run"));
        let (binary, state) = (binary.display().to_string(), format!("TATAMI_STATE={}", state.display()));
        host(&[&["sh", "-c", r#"env "$@" 2>&1"#, "sh", &state, &binary, "direct-volume"], words].concat())
    }

    fn file(&self) -> String {
        self.0.join("mountInfo.json").display().to_string()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The disk becomes larger while a container writes to what is on it.
fn grown(kubelet: &Kubelet, notes: &mut Notes, (disk, path): (&LoopDisk, &str), container: &str) {
    const LARGER: u64 = 96 << 20;
    let resize = |path: &str, size: &str| Direct::command(kubelet, &["resize", path, size]);
    notes.want("it has not become larger yet", resize(path, "96m").contains("fewer than the 100663296"), true);
    notes.want("nobody else has it", resize("/no/such", "96m").contains("no sandbox that runs has mounted"), true);
    disk.grow(LARGER);
    let write =
        "(for n in $(seq 40); do echo $n; sleep 0.1; done >/data/slow; sync; echo all >/data/ended) >/dev/null 2>&1 &";
    kubelet.shell(container, write);
    notes.want("it becomes larger", resize(path, "96m"), "");
    notes.want("once more", resize(path, "100663296"), "");
    notes.want("and not smaller", resize(path, "32m").contains("which can become more, but not 33554432"), true);
    notes.want("nor larger than it is", resize(path, "1g").contains("fewer than the 1073741824"), true);
    let used = Direct::command(kubelet, &["stats", path]);
    notes.want("it has more room", figures(&used).is_some_and(|(total, _)| total > 80 << 20), true);
    let fill = "dd if=/dev/zero of=/data/much bs=1M count=60 2>/dev/null && sync && wc -c </data/much; rm /data/much";
    notes.want("which can be used", kubelet.shell(container, fill), "62914560");
    let wait = "for n in $(seq 100); do test -e /data/ended && break; sleep 0.1; done; wc -l </data/slow; rm /data/slow /data/ended";
    notes.want("what was written meanwhile", kubelet.shell(container, wait), "40");
}

/// Bytes of the volume, and how many of them are taken.
fn figures(told: &str) -> Option<(u64, u64)> {
    let told: serde_json::Value = serde_json::from_str(told).ok()?;
    let bytes = told.pointer("/usage/0")?;
    Some((bytes["total"].as_u64()?, bytes["used"].as_u64()?))
}

fn info(kind: &str, device: &str, fstype: &str, options: &str) -> String {
    format!(r#"{{"volume-type":"{kind}","device":"{device}","fstype":"{fstype}","options":[{options}]}}"#)
}

fn direct(kubelet: &mut Kubelet, notes: &mut Notes) {
    let disk = LoopDisk::new(&kubelet.scratch(), 32 << 20);
    notes.want("a file system", host(&["mke2fs", "-q", "-t", "ext4", disk.path()]), "");
    let volume = kubelet.scratch().join("pvc/mount");
    fs::create_dir_all(&volume).expect("a folder");
    let plain = info("block", disk.path(), "ext4", r#""noatime","errors=remount-ro""#);
    let (told, path) = (Direct::of(&volume), volume.to_str().expect("a path in UTF-8"));
    let full = plain.replace('}', r#","metadata":{"fsGroup":"3000"}}"#);
    let refused = Direct::command(kubelet, &["add", path, &plain.replace("ext4", "ntfs")]);
    notes.want("nonsense is refused", refused.contains("expected ext4, xfs or erofs"), true);
    notes.want("and leaves nothing", told.0.exists(), false);
    notes.want("the runtime is told", Direct::command(kubelet, &["add", path, &full]), "");
    let pod = kubelet.run("pod");
    let start = |name: &str, readonly: bool| waiting(kubelet, &pod, name, mount(&volume, "/data", readonly));
    let one = start("one", false);
    let how = "grep ' /data ' /proc/mounts | cut -d' ' -f3,4 | grep -c '^ext4 rw,noatime.*errors=remount-ro'";
    notes.want("what it is", kubelet.shell(&one, how), "1");
    notes.want(
        "whose it is",
        kubelet.shell(&one, "stat -c '%u:%g %a' /data /data/lost+found"),
        "0:3000 2775\n0:3000 2770",
    );
    notes.want("what is written", kubelet.shell(&one, "echo word >/data/file && chown 7 /data/file && echo ok"), "ok");
    let used = Direct::command(kubelet, &["stats", path]);
    notes.want("how full it is", figures(&used).is_some_and(|(total, used)| used > 0 && used < total), true);
    grown(kubelet, notes, (&disk, path), &one);
    let other = start("other", true);
    notes.want("another container has it too", kubelet.shell(&other, "cat /data/file"), "word");
    notes.want("and does not write", kubelet.shell(&other, "touch /data/x 2>&1 | grep -c 'Read-only'"), "1");
    kubelet.shell(&one, "mkfifo /data/p && (sh -c 'echo word >/data/p' >/dev/null 2>&1 &)");
    notes.want("a word through a fifo", kubelet.shell(&other, "timeout 20 cat /data/p"), "word");
    notes.want("the host has it not", claimed(&disk).is_ok(), false);
    notes.want("the first is removed", kubelet.remove_container(&one), "ok");
    notes.want("the other goes on", kubelet.shell(&other, "cat /data/file"), "word");
    notes.want("and is removed", kubelet.remove_container(&other), "ok");
    notes.want("the host has it again", claimed(&disk).is_ok(), true);
    let checked = host(&["e2fsck", "-fn", disk.path()]);
    notes.want("as a file system in order", checked.contains('[') || checked.contains("recover"), false);
    let folder = kubelet.scratch().join("seen");
    let seen = OnHost::mount(&["-o", "ro", disk.path()], &folder);
    notes.want("with what was written", fs::read_to_string(folder.join("file")).unwrap_or_default(), "word\n");
    notes.want("by whom", fs::metadata(folder.join("file")).map_or(0, |of| of.uid()), 7);
    drop(seen);
    notes.want("nothing is in the folder", fs::read_dir(&volume).map_or(9, Iterator::count), 0);
    let again = start("again", false);
    notes.want("another time", kubelet.shell(&again, "cat /data/file"), "word");
    notes.want("removal with it", kubelet.remove(&pod.id), "ok");
    notes.want("the host has it at last", claimed(&disk).is_ok(), true);
    notes.want("nobody tells of it", Direct::command(kubelet, &["stats", path]).contains("no sandbox that runs"), true);
    let checked = host(&["e2fsck", "-fn", disk.path()]);
    notes.want("in order", checked.contains('[') || checked.contains("recover"), false);
    notes.want("the runtime is told no more", Direct::command(kubelet, &["remove", path]), "");
    notes.want("and nothing is left of it", told.0.exists(), false);
}

fn bad_direct(kubelet: &mut Kubelet, notes: &mut Notes) {
    let disk = LoopDisk::new(&kubelet.scratch(), 1 << 20);
    let volume = kubelet.scratch().join("bad");
    fs::create_dir_all(&volume).expect("a folder");
    let pod = kubelet.run("pod");
    let other = kubelet.start(&pod, "other", &["sleep", "100000"]);
    let mut number = 0;
    let mut words = |text: &str| {
        let told = Direct::add(&volume, text);
        number += 1;
        let config = with(&format!("c{number}"), &["true"], vec![mount(&volume, "/data", false)]);
        let said = kubelet.start_described(&pod, config).map_or_else(|words| words, |_| "it starts".to_owned());
        said.replace(&told.file(), "FILE").replace(disk.path(), "DISK").replace(&volume.display().to_string(), "VOLUME")
    };
    for (text, wanted) in [
        ("{", "FILE: not what a direct volume is said by"),
        (&*"[".repeat(100_000), "FILE: it has more than 65536 bytes"),
        (&*info("spdkvol", "/dev/x", "ext4", ""), "FILE: volume-type is \"spdkvol\": expected \"block\""),
        (&*info("block", "../loop0", "ext4", ""), "FILE: device is \"../loop0\": expected a path from / on"),
        (&*info("block", "/dev/none", "ext4", ""), "FILE: device is \"/dev/none\": No such file"),
        (&*info("block", disk.path(), "vfat", ""), "FILE: fstype is \"vfat\": expected ext4, xfs or erofs"),
        (&*info("block", "/dev/null", "ext4", ""), "the volume VOLUME: /dev/null is no disk image"),
        // It has none.
        (&*info("block", disk.path(), "ext4", ""), "the volume VOLUME: mount ext4 from"),
    ] {
        let said = words(text);
        notes.want(wanted, if said.contains(wanted) { "so" } else { &said }, "so");
    }
    let claim = claimed(&disk).expect("nobody has it");
    let said = words(&info("block", disk.path(), "ext4", ""));
    notes.want("one in use", said.contains("the volume VOLUME: the disk image DISK is in use"), true);
    drop(claim);
    notes.want("nobody has it", claimed(&disk).is_ok(), true);
    notes.want("the pod is as it was", kubelet.exec(&other, &["echo", "here"]), "here");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// A block device of the host's, opened as who mounts it does: nobody else can have it so.
fn claimed(disk: &LoopDisk) -> std::io::Result<File> {
    File::options().read(true).custom_flags(nix::libc::O_EXCL).open(disk.path())
}

fn with_disk(name: &str, disk: &str, permissions: &str) -> api::ContainerConfig {
    let device = api::Device {
        host_path: disk.to_owned(),
        container_path: "/dev/xvda".to_owned(),
        permissions: permissions.to_owned(),
    };
    api::ContainerConfig { devices: vec![device], ..Kubelet::container(name, &["sleep", "100000"]) }
}

/// A PersistentVolume of the mode Block: the kubelet names the device and says what may be done with it.
fn block(kubelet: &mut Kubelet, notes: &mut Notes) {
    let disk = LoopDisk::new(&kubelet.scratch(), 1 << 20);
    let pod = kubelet.run("pod");
    let id = kubelet.start_described(&pod, with_disk("writes", disk.path(), "rwm")).expect("it starts");
    notes.want("what it is", kubelet.shell(&id, "ls -l /dev/xvda | cut -c1; wc -c </dev/xvda"), "b\n1048576");
    let write = "printf 'of the container' >/dev/xvda && head -c 16 /dev/xvda";
    notes.want("what is written", kubelet.shell(&id, write), "of the container");
    disk.grow(2 << 20);
    // The guest has a disk of its own, which is told.
    let told = if kubelet.is_ours() { Direct::command(kubelet, &["resize", disk.path(), "2m"]) } else { String::new() };
    notes.want("it becomes larger", told, "");
    let end =
        "printf end | dd of=/dev/xvda bs=1 seek=2097149 conv=fsync 2>/dev/null; wc -c </dev/xvda; tail -c 3 /dev/xvda";
    notes.want("and is written to its end", kubelet.shell(&id, end), "2097152\nend");
    notes.want("removal of its container", kubelet.remove_container(&id), "ok");
    notes.want("on the host", disk.head(16), "of the container");
    notes.want("it is the host's again", claimed(&disk).is_ok(), true);
    let id = kubelet.start_described(&pod, with_disk("reads", disk.path(), "r")).expect("it starts");
    notes.want("what may only be read", kubelet.shell(&id, "head -c 16 /dev/xvda"), "of the container");
    notes.see("is not written", kubelet.shell(&id, "(echo other >/dev/xvda) 2>&1 | sed 's/.*: //'"));
    notes.want("and is as it was", disk.head(16), "of the container");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// Whoever has it sees what the others write; it stays as long as one has it.
fn shared_block(kubelet: &mut Kubelet, notes: &mut Notes) {
    let disk = LoopDisk::new(&kubelet.scratch(), 1 << 20);
    let pod = kubelet.run("pod");
    let start = |name: &str, permissions| {
        kubelet.start_described(&pod, with_disk(name, disk.path(), permissions)).expect("it starts")
    };
    let (first, second, reader) = (start("first", "rwm"), start("second", "rwm"), start("reader", "r"));
    let write =
        |id: &str, words: &str| kubelet.shell(id, &format!("printf '{words}' >/dev/xvda && sync && echo written"));
    let read = |id: &str| kubelet.shell(id, "head -c 8 /dev/xvda");
    notes.want("the first writes", write(&first, "by first"), "written");
    notes.want("and the second reads", read(&second), "by first");
    notes.want("the second writes", write(&second, "by secnd"), "written");
    notes.want("and the third reads", read(&reader), "by secnd");
    notes.want("who may only read", kubelet.shell(&reader, "(echo x >/dev/xvda) 2>&1 | grep -c 'not permitted'"), "1");
    notes.want("removal of the first", kubelet.remove_container(&first), "ok");
    notes.want("the others have it", write(&second, "by other"), "written");
    notes.want("and see it", read(&reader), "by other");
    // runc's containers have it as the host does.
    notes.want("it is the pod's alone", claimed(&disk).is_err() == kubelet.is_ours(), true);
    for id in [&second, &reader] {
        notes.want("removal of one more", kubelet.remove_container(id), "ok");
    }
    notes.want("on the host", disk.head(8), "by other");
    notes.want("it is the host's again", claimed(&disk).is_ok(), true);
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// As the configuration has it.
fn uncached(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-set");
    let disk = LoopDisk::new(&kubelet.scratch(), 1 << 20);
    let pod = kubelet.run("pod");
    let id = kubelet.start_described(&pod, with_disk("writes", disk.path(), "rwm")).expect("it starts");
    let number = fs::metadata(disk.path()).map_or(0, |of| of.rdev());
    let process = Path::new("/proc").join(kubelet.ground().to_string());
    let open = fs::read_dir(process.join("fd")).expect("the VMM's descriptors").flatten();
    let its = open.filter(|fd| fs::metadata(fd.path()).is_ok_and(|of| of.rdev() == number));
    let flags = its.map(|fd| fs::read_to_string(process.join("fdinfo").join(fd.file_name())).unwrap_or_default());
    let direct = flags.map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default().trim();
        i32::from_str_radix(line, 8).unwrap_or(0) & libc::O_DIRECT != 0
    });
    notes.want("how the VMM has it", format!("{:?}", direct.collect::<Vec<_>>()), "[true]");
    let write = "printf 'of the container' >/dev/xvda && sync && head -c 16 /dev/xvda";
    notes.want("what is written", kubelet.shell(&id, write), "of the container");
    let odd = "dd if=/dev/zero bs=1000 count=100 2>/dev/null | tr '\\0' x | dd of=/dev/xvda bs=777 seek=3 conv=fsync 2>/dev/null; \
               head -c 102331 /dev/xvda | tr -dc x | wc -c";
    notes.want("in odd pieces", kubelet.shell(&id, odd), "100000");
    notes.want("removal of its container", kubelet.remove_container(&id), "ok");
    notes.want("on the host", disk.head(16), "of the container");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// What a container is refused for, without the words before `from`.
fn refused(kubelet: &Kubelet, pod: &Pod, config: api::ContainerConfig, from: &str) -> String {
    match kubelet.start_described(pod, config) {
        Ok(_) => "it starts".to_owned(),
        // containerd 1.7 says behind it that it knows no kind of it.
        Err(words) => words[words.find(from).unwrap_or(0)..].trim_end_matches(": unknown").to_owned(),
    }
}

fn bad_blocks(kubelet: &mut Kubelet, notes: &mut Notes) {
    let folder = kubelet.scratch().join("empty");
    fs::create_dir_all(&folder).expect("a folder");
    let (disk, empty) = (LoopDisk::new(&kubelet.scratch(), 1 << 20), LoopDisk::new(&folder, 0));
    let pod = kubelet.run("pod");
    let other = kubelet.start(&pod, "other", &["sleep", "100000"]);
    let refused = |name: &str, disk: &LoopDisk| {
        let words = refused(kubelet, &pod, with_disk(name, disk.path(), "rwm"), "the disk image");
        words.replace(disk.path(), "DISK")
    };
    let sizes = "the disk image DISK has 0 bytes: a multiple of 512 is expected, and not 0";
    notes.want("an empty one", refused("empty", &empty), sizes);
    let claim = claimed(&disk).expect("nobody has it");
    let in_use = "the disk image DISK is in use: one that is written to can have one user only";
    notes.want("one that the host uses", refused("used", &disk), in_use);
    drop(claim);
    let id = kubelet.start_described(&pod, with_disk("first", disk.path(), "r")).expect("it starts");
    notes.want("one that another container reads", refused("second", &disk), in_use);
    notes.want("removal of that one", kubelet.remove_container(&id), "ok");
    notes.want("it is the host's again", claimed(&disk).is_ok(), true);
    notes.want("the pod is as it was", kubelet.exec(&other, &["echo", "here"]), "here");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// What is there when a container is created, and gone when it is started.
fn vanishing(kubelet: &mut Kubelet, notes: &mut Notes) {
    let folder = kubelet.scratch().join("vanishes");
    fs::create_dir_all(&folder).expect("a folder");
    let disk = LoopDisk::new(&kubelet.scratch(), 1 << 20);
    let pod = kubelet.run("pod");
    let other = kubelet.start(&pod, "other", &["sleep", "100000"]);
    let id = kubelet.create(&pod, with("c", &["true"], vec![mount(&folder, "/data", false)])).expect("it is created");
    fs::remove_dir(&folder).expect("it was there");
    let words = kubelet.start_created(&id).expect_err("there is nothing to mount");
    notes.want("a folder is named", words.contains(&folder.display().to_string()), true);
    notes.want("with the reason", words.to_lowercase().contains("no such file"), true);
    notes.want("removal of its container", kubelet.remove_container(&id), "ok");
    let id = kubelet.create(&pod, with_disk("d", disk.path(), "rwm")).expect("it is created");
    let path = disk.path().to_owned();
    drop(disk);
    let started = told(kubelet.start_created(&id));
    // runc starts the container, and the device says that it has nothing.
    let gone = if kubelet.is_ours() { started.contains(&format!("{path} has 0 bytes")) } else { started == "ok" };
    notes.want("a device", gone, true);
    notes.want("removal of its container too", kubelet.remove_container(&id), "ok");
    notes.want("the pod is as it was", kubelet.exec(&other, &["echo", "here"]), "here");
    let next = kubelet.start(&pod, "next", &["sleep", "100000"]);
    notes.want("another container", kubelet.state(&next), "running");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}

/// An image whose files a container sees, beside those of its own.
fn of_an_image(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let image = api::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    let mounts = vec![api::Mount {
        container_path: "/image".to_owned(),
        readonly: true,
        image: Some(image),
        ..Default::default()
    }];
    let started = kubelet.start_described(&pod, with("c", &["sleep", "100000"], mounts));
    if kubelet.containerd().home().release() == Release::Newer {
        let id = started.expect("it starts");
        notes.want("a program of it", kubelet.shell(&id, "cmp /bin/busybox /image/bin/busybox && echo same"), "same");
        notes.see("what else is there", kubelet.shell(&id, "ls /image | sort | tr '\\n' ' '"));
        notes.want("it cannot be written", kubelet.shell(&id, "touch /image/x 2>&1 | grep -c 'Read-only'"), "1");
    } else {
        // containerd has them from 2.1 on.
        notes.want("it starts", started.is_ok(), false);
    }
    notes.want("removal", kubelet.remove(&pod.id), "ok");
}
