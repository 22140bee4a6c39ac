//! What the specification asks for is done, for the first process and for those that join, or refused with a reason.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tatami_protocol::agent::Stdio;
use ttrpc::Code;

use crate::cases::{Case, code, ended};
use crate::rig::{Container, Rig};

pub(crate) const ALL: &[(&str, Case)] = &[
    ("a_process_that_joins_is_what_it_is_described_as", a_process_that_joins),
    ("a_process_that_joins_is_as_confined_as_the_first", as_confined_as_the_first),
    ("user_namespaces_hold_all_processes", user_namespaces_hold_all_processes),
    ("devices_are_governed", devices_are_governed),
    ("what_the_guest_does_not_have_is_refused", what_the_guest_does_not_have_is_refused),
    ("hooks_of_the_container_run", hooks_of_the_container_run),
    ("hooks_of_the_guest_run", hooks_of_the_guest_run),
    ("time_namespaces_hold_all_processes", time_namespaces_hold_all_processes),
];

fn running(mut container: Container<'_>, change: impl FnOnce(&mut serde_json::Value)) -> Container<'_> {
    change(&mut container.spec);
    container.create(Stdio::default()).unwrap();
    container.start("").unwrap();
    container
}

fn a_process_that_joins(rig: &Rig) {
    let container = running(rig.container(&["sleep", "1000"]), |_| {});
    let script = "echo $(id -u):$(id -g):$(id -G) $GREETING $HOME; cd . && pwd; umask; ulimit -n; cat /proc/self/oom_score_adj; \
        grep -E 'CapEff|CapBnd|CapPrm|NoNewPrivs' /proc/self/status; touch /tmp/x 2>/dev/null; grep ^0: /proc/self/cgroup";
    let changes = json!({
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [7, 1002], "umask": 0o27 },
        "cwd": "/tmp",
        "env": ["PATH=/bin", "GREETING=hi there"],
        "capabilities": { "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_KILL"] },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 55, "hard": 66 }],
        "oomScoreAdj": 321,
        "noNewPrivileges": true,
    });
    let result = container.exec_with(&["sh", "-c", script], changes);
    let expected = "1000:1001:1001 7 1002 hi there /\n/tmp\n0027\n55\n321\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000021\nNoNewPrivs:\t1\n0::/\n";
    assert_eq!(result, ended(0, expected, ""));
    // Root has the home that the container's file of users says, and the capabilities it was given.
    let changes = json!({
        "capabilities": {
            "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        },
        "user": { "uid": 5, "gid": 5 },
    });
    let result = container.exec_with(&["grep", "-E", "Cap(Eff|Amb)", "/proc/self/status"], changes);
    assert_eq!(result, ended(0, "CapEff:\t0000000000000020\nCapAmb:\t0000000000000020\n", ""));
    // Nothing of the agent's is open in it, and its streams are its user's.
    let user = json!({ "user": { "uid": 1000, "gid": 1000 } });
    let result = container.exec_with(&["sh", "-c", "ls /proc/self/fd; echo again > /dev/stdout"], user);
    assert_eq!(result, ended(0, "0\n1\n2\n3\nagain\n", ""));
    assert_eq!(container.exec_with(&["pwd"], json!({ "cwd": "/bin" })), ended(0, "/bin\n", ""));
    container.create_exec_with("bad", &["true"], Stdio::default(), json!({ "cwd": "/no/such" })).unwrap();
    let (_, message) = code(container.start("bad"));
    assert!(message.contains("/no/such"), "{message}");
    container.delete().unwrap();
}

fn as_confined_as_the_first(rig: &Rig) {
    for protected in [false, true] {
        let container = running(rig.container(&["sleep", "1000"]), |spec| {
            spec["process"]["noNewPrivileges"] = json!(protected);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
            });
        });
        let result = container.exec(&["sh", "-c", "mkdir /tmp/x; grep ^Seccomp: /proc/self/status"]);
        assert_eq!((result.status, result.stdout.as_str()), (0, "Seccomp:\t2\n"));
        assert!(result.stderr.contains("not permitted"), "{}", result.stderr);
        container.delete().unwrap();
    }
}

fn user_namespaces_hold_all_processes(rig: &Rig) {
    let container = running(rig.container(&["sleep", "1000"]), |spec| {
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    });
    let show = ["sh", "-c", "id -u; cat /proc/1/uid_map /proc/self/uid_map | tr -s ' '"];
    assert_eq!(container.exec(&show), ended(0, "0\n 0 100000 65536\n 0 100000 65536\n", ""));
    let changes = json!({ "user": { "uid": 1000, "gid": 1000, "additionalGids": [5] } });
    assert_eq!(container.exec_with(&["id", "-u"], changes), ended(0, "1000\n", ""));
    container.delete().unwrap();
}

fn time_namespaces_hold_all_processes(rig: &Rig) {
    let container = running(rig.container(&["sleep", "1000"]), |spec| {
        spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 } });
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
    });
    let result = container.exec(&["sh", "-c", "read up rest < /proc/uptime; test ${up%.*} -gt 1000000"]);
    assert_eq!(result, ended(0, "", ""));
    container.delete().unwrap();
}

fn devices_are_governed(rig: &Rig) {
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "r" },
    ]);
    let mut container = rig.container(&["sleep", "1000"]);
    container.spec["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
    for set in ["permitted", "effective"] {
        container.spec["process"]["capabilities"][set] = container.spec["process"]["capabilities"]["bounding"].clone();
    }
    container.spec["linux"]["devices"] = json!([{ "path": "/dev/full2", "type": "c", "major": 1, "minor": 7 }]);
    let container = running(container, |spec| spec["linux"]["resources"] = json!({ "devices": rules }));
    // Whether these exist or not, what they say is not what a refusal says.
    let script = "mknod /dev/k c 10 229 && cat /dev/k; echo x > /dev/null; mknod /dev/p c 10 200 && head -c 0 /dev/p; echo y > /dev/full2";
    let result = container.exec(&["sh", "-c", script]);
    let refused: Vec<&str> = result.stderr.lines().filter(|line| line.contains("not permitted")).collect();
    assert!(matches!(refused.as_slice(), [line] if line.contains("/dev/k")), "{}", result.stderr);
    assert!(result.stderr.contains("No space left"), "{}", result.stderr);
    // Changed while it runs: the last word is the new list's.
    let all = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "access": "rwm" }]);
    container.update(json!({ "devices": all })).unwrap();
    let result = container.exec(&["sh", "-c", "head -c 0 /dev/k; : < /dev/k"]);
    assert!(!result.stderr.contains("not permitted"), "{}", result.stderr);
    container.update(json!({ "devices": rules })).unwrap();
    assert!(container.exec(&["sh", "-c", ": < /dev/k"]).stderr.contains("not permitted"));
    container.delete().unwrap();
}

fn what_the_guest_does_not_have_is_refused(rig: &Rig) {
    let before = rig.left_over();
    let refused = |change: &dyn Fn(&mut serde_json::Value), part: &str| {
        let mut container = rig.container(&["true"]);
        change(&mut container.spec);
        let (kind, message) = code(container.create(Stdio::default()));
        assert!(kind == Code::INVALID_ARGUMENT && message.contains(part), "{part}: {message}");
    };
    refused(&|spec| spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0"), "selinuxLabel");
    refused(&|spec| spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0"), "mountLabel");
    refused(&|spec| spec["linux"]["intelRdt"] = json!({ "closID": "x" }), "intelRdt");
    refused(&|spec| spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "z" }] }), "devices");
    refused(
        &|spec| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": "/run/listener",
                "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }],
            });
        },
        "seccomp",
    );
    refused(
        &|spec| {
            let range = |id: u32| json!({ "containerID": id, "hostID": 100_000 + id, "size": 1 });
            spec["linux"]["uidMappings"] = json!([range(0), range(1)]);
            spec["linux"]["gidMappings"] = json!([range(0)]);
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        },
        "uidMappings",
    );
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        refused(&|spec| spec["process"]["apparmorProfile"] = json!("docker-default"), "apparmorProfile");
    }
    assert_eq!(rig.left_over(), before);
}

fn hooks_of_the_guest_run(rig: &Rig) {
    let folder = rig.root.join("hooks");
    let script = |kind: &str, words: &str| {
        let file = folder.join(kind).join("10-note");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, format!("#!/bin/sh\nread state; test \"$state\" || exit 1\n{words}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let notes = rig.root.join("tmp/of-the-guest");
    for kind in ["prestart", "poststart", "poststop"] {
        script(kind, &format!("echo ${{0##*/}} $1 >> {}", notes.display()));
    }
    let mut container = rig.container(&["cat", "/tmp/of-the-guest"]);
    container.guest_hooks = folder.display().to_string();
    let result = container.run();
    assert!(result.status == 0 && result.stdout.starts_with("10-note prestart\n"), "{result:?}");
    let all = "10-note prestart\n10-note poststart\n10-note poststop\n";
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), all);
    // A container that cannot be prepared is none; one that is gone is gone.
    script("poststop", "exit 3");
    assert_eq!(container.run().status, 0);
    script("prestart", "exit 3");
    assert!(container.create(Stdio::default()).is_err());
    let mut other = rig.container(&["true"]);
    other.guest_hooks = "/no/such/folder".to_owned();
    assert_eq!(other.run(), ended(0, "", ""));
    std::fs::remove_dir_all(&folder).unwrap();
}

fn hooks_of_the_container_run(rig: &Rig) {
    let mut container = rig.container(&["sh", "-c", "cat /tmp/hooks; rm /tmp/hooks"]);
    let root = rig.root.display().to_string();
    let hook = |path: &str, words: &str| json!([{ "path": path, "args": ["sh", "-c", words] }]);
    container.spec["hooks"] = json!({
        // Before the root is entered: the path is the guest's, and so is what it writes.
        "createContainer": hook("/bin/sh", &format!("read state; test \"$state\" && echo create > {root}/tmp/hooks")),
        // After: the container's.
        "startContainer": hook("/bin/sh", "echo start >> /tmp/hooks"),
    });
    assert_eq!(container.run(), ended(0, "create\nstart\n", ""));
    // Outside the container, once it runs and once it is gone.
    let mut container = rig.container(&["true"]);
    let late = |word: &str| hook("/bin/sh", &format!("echo {word} >> {root}/tmp/late"));
    container.spec["hooks"] = json!({ "poststart": late("started"), "poststop": late("stopped") });
    assert_eq!(container.run(), ended(0, "", ""));
    assert_eq!(std::fs::read_to_string(rig.root.join("tmp/late")).unwrap(), "started\nstopped\n");
    let mut container = rig.container(&["true"]);
    container.spec["hooks"] = json!({ "createContainer": hook("/bin/sh", "exit 3") });
    let (_, message) = code(container.create(Stdio::default()));
    assert!(message.contains("create container hooks") || message.contains("run hooks"), "{message}");
}
