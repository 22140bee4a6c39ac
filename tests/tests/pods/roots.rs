//! Pods whose guest has its root on a disk that its kernel checks (dm-verity), as Kata's configuration names both.

use std::fs;
use std::path::Path;

use tatami_tests::compare::{Case, Notes};
use tatami_tests::daemons::kubelet::Kubelet;
use tatami_tests::guest;

pub(crate) const CASES: &[Case<Kubelet>] =
    &[Case::new("a guest's root that is checked", checked).without_reference("runc reads no configuration of Kata's")];

fn checked(kubelet: &mut Kubelet, notes: &mut Notes) {
    kubelet.by_handler("kata-verity");
    let disk = guest("root.verity.erofs", "make root-disk");
    let whole = fs::read(&disk).expect("the disk");
    let (data, last) = whole.split_at(whole.len() - 4096);
    let last = String::from_utf8_lossy(last);
    let right = last.lines().nth(1).expect("what it is checked by");
    let other = format!("root_hash={}{}", if right[10..].starts_with('0') { '1' } else { '0' }, &right[11..]);

    configure(kubelet, &disk, right);
    let pod = kubelet.run("pod");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    let script = format!("grep -c {} /proc/cmdline", &right[10..74]);
    notes.want("the guest is on the disk", kubelet.shell(&id, &script), "1");
    notes.want("its end", kubelet.remove(&pod.id), "ok");

    let refused = |name: &str, words: &[&str]| {
        let error = kubelet.run_described(kubelet.described(name)).map(|_| ()).unwrap_err();
        if words.iter().all(|word| error.contains(word)) { "so".to_owned() } else { error }
    };
    configure(kubelet, &disk, &other);
    notes.want("another disk than is wanted", refused("wrong", &["another disk", right, &other]), "so");
    // It is the guest's kernel that checks what a disk says of itself.
    let lying = kubelet.scratch().join("lying.erofs");
    fs::write(&lying, [data, last.replace(right, &other).as_bytes()].concat()).expect("a disk");
    configure(kubelet, &lying, &other);
    notes.want("a disk that is not as it says", refused("lying", &["does not match its root hash"]), "so");

    // What a pod may name for itself.
    settings(kubelet, "enable_annotations = [\"image\", \"kernel_verity_params\"]\n");
    let annotated = |name: &str, verity: &str| {
        let mut described = kubelet.described(name);
        for (setting, value) in [("image", &*disk.to_string_lossy()), ("kernel_verity_params", verity)] {
            let key = format!("io.katacontainers.config.hypervisor.{setting}");
            described.annotations.insert(key, value.to_owned());
        }
        kubelet.run_described(described)
    };
    let error = annotated("annotated wrong", &other).map(|_| ()).unwrap_err();
    notes.want("another disk than the pod wants", error.contains("another disk"), true);
    let pod = annotated("annotated", right).expect("a pod on the disk that it names");
    let id = kubelet.start(&pod, "c", &["sleep", "100000"]);
    notes.want("the guest is on the pod's own disk", kubelet.shell(&id, &script), "1");
}

/// Has the handler's next pods start on `disk`, if it is the one that `verity` says.
fn configure(kubelet: &Kubelet, disk: &Path, verity: &str) {
    settings(kubelet, &format!("image = \"{}\"\nkernel_verity_params = \"{verity}\"\n", disk.display()));
}

/// Has these settings of its hypervisor's and no others.
fn settings(kubelet: &Kubelet, lines: &str) {
    let folder = kubelet.containerd().home().path("kata-verity/config.d");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("50-root.toml"), format!("[hypervisor.tatami]\n{lines}")).expect("a file");
}
