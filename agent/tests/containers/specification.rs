//! What the specification asks for is done, for the first process and for those that join, or refused with a reason.

use serde_json::json;
use tatami_protocol::agent::Stdio;

use crate::cases::{Case, ended};
use crate::rig::{Container, Rig};

pub(crate) const ALL: &[(&str, Case)] = &[
    ("a_process_that_joins_is_what_it_is_described_as", a_process_that_joins),
    ("a_process_that_joins_is_as_confined_as_the_first", as_confined_as_the_first),
    ("user_namespaces_hold_all_processes", user_namespaces_hold_all_processes),
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
    let (_, message) = crate::cases::code(container.start("bad"));
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
