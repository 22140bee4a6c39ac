//! Pods and their containers, as they come and go.

use std::thread;
use std::time::Duration;

use tatami_tests::compare::{Case, Notes};

use tatami_tests::daemons::kubelet::{HOST, Kubelet, host, told};

pub(crate) const CASES: &[Case<Kubelet>] = &[
    Case::new("two containers of a pod", two),
    Case::new("containers come and go", come_and_go),
    Case::new("a pod is removed while its containers write", writers).long(),
];

/// They share loopback, a name, and a way to the host.
fn two(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("web");
    notes.want("the pod is ready", kubelet.status(&pod).state, 0);
    let server = kubelet.start(
        &pod,
        "server",
        &["sh", "-c", "mkdir /www; echo page >/www/x; exec httpd -f -p 127.0.0.1:80 -h /www"],
    );
    let client = kubelet.start(&pod, "client", &["sh", "-c", "echo started; exec sleep 100000"]);
    notes.want("over loopback", kubelet.shell(&client, "until wget -qO- 127.0.0.1/x; do sleep 0.2; done"), "page");
    notes.want("to the host", kubelet.shell(&client, &format!("ping -c 1 -W 20 {HOST} >/dev/null && echo ok")), "ok");
    notes.want("their name", kubelet.exec(&client, &["hostname"]), "web");
    notes.want("the other's files", kubelet.shell(&client, "ls /www 2>/dev/null | wc -l"), "0");
    notes.want("its log", kubelet.log(&pod, "client"), "started");
    notes.want(
        "from the host",
        host(&["busybox", "ping", "-c", "1", "-W", "20", &kubelet.addresses(&pod).0]).contains("1 packets received"),
        true,
    );
    notes.want("a command that is missing", kubelet.exec(&client, &["no-such"]).contains("no-such"), true);
    notes.want("a command that fails", kubelet.shell(&client, "exit 7"), "[7] ");
    notes.want("both run", format!("{} {}", kubelet.state(&server), kubelet.state(&client)), "running running");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

fn come_and_go(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("pod");
    let first = kubelet.start(&pod, "first", &["sh", "-c", "echo once; exit 3"]);
    notes.want("it ends", kubelet.end_of(&first), "exited 3");
    notes.want("what it said", kubelet.log(&pod, "first"), "once");
    notes.want("its removal", kubelet.remove_container(&first), "ok");
    // The last one has left, and the pod is there as before.
    notes.want("the pod is ready", kubelet.status(&pod).state, 0);
    let mut again = Kubelet::container("first", &["sleep", "100000"]);
    if let Some(metadata) = &mut again.metadata {
        metadata.attempt = 1;
    }
    let second = kubelet.start_described(&pod, again).expect("it starts again");
    notes.want("it runs again", kubelet.state(&second), "running");
    let other = kubelet.start(&pod, "other", &["sleep", "100000"]);
    notes.want("the first ends", kubelet.remove_container(&second), "ok");
    notes.want("the other does not notice", kubelet.exec(&other, &["echo", "here"]), "here");
    notes.want(
        "what is not there",
        told(kubelet.start_described(&pod, Kubelet::container("bad", &["/no/such"])).map(drop))
            .contains("no such file"),
        true,
    );
    notes.want("it costs nobody anything", kubelet.exec(&other, &["echo", "here"]), "here");
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}

fn writers(kubelet: &mut Kubelet, notes: &mut Notes) {
    let pod = kubelet.run("busy");
    for name in ["one", "two"] {
        kubelet.start(
            &pod,
            name,
            &["sh", "-c", "while :; do echo a line of words; dd if=/dev/zero of=/x bs=64k count=16 2>/dev/null; done"],
        );
    }
    thread::sleep(Duration::from_secs(2));
    notes.want("removal", kubelet.remove(&pod.id), "ok");
    notes.want("they had written", kubelet.log(&pod, "one").contains("a line of words"), true);
    notes.want("nothing left", kubelet.containerd().remains().join("\n"), "");
}
