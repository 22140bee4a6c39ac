//! What the kubelet mounts into a pod's containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::api;

use crate::stage::{Kubelet, told};

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("folders and files of the host", of_the_host),
    Case::new("a configuration that is replaced as a whole", replaced),
    Case::new("a volume that two containers share", shared),
];

fn mount(host: &Path, container: &str, readonly: bool) -> api::Mount {
    api::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    }
}

fn with(name: &str, command: &[&str], mounts: Vec<api::Mount>) -> api::ContainerConfig {
    api::ContainerConfig { mounts, ..Kubelet::container(name, command) }
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
    notes.want(
        "what may only be read",
        kubelet.shell(&id, "touch /look/x 2>&1 | grep -c 'Read-only'; test -e /look/x || echo none"),
        "1\nnone",
    );
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
    let config = with("c", &["sleep", "100000"], vec![mount(&volume, "/config", true)]);
    let id = kubelet.start_described(&pod, config).expect("it starts");
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
    let start = |name: &str| {
        let config = with(name, &["sleep", "100000"], vec![mount(&folder, "/shared", false)]);
        kubelet.start_described(&pod, config).expect("it starts")
    };
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
