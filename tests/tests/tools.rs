//! `tatami env` as its user sees it.

use tatami_tests::Tatami;

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
