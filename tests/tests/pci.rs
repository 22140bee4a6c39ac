//! What a guest whose devices are behind PCI does as any other: files, streams, disks, several queues; and that it can be saved.

use std::path::Path;

use tatami_tests::Tatami;

const PCI: [&str; 2] = ["--transport", "pci"];

#[test]
#[ignore = "boots a guest: make test"]
fn a_container_finds_its_devices_behind_pci() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let volume = format!("{}:/shared", folder.display());
    let options = [&PCI[..], &["--cpus", "2", "-v", &volume]].concat();
    let script = "head -c 3000000 /dev/zero | tee /shared/out | wc -c; \
        ls -l /sys/bus/virtio/devices/ | grep -c /pci0000:00/; ls -l /sys/bus/virtio/devices/ | grep -c virtio-mmio";
    let out = tatami.run_with(&options, &["sh", "-c", &format!("{script}; true")]).expect_status(0).out();
    assert_eq!(out, "3000000\n4\n0\n");
    assert_eq!(Path::new(&folder).join("out").metadata().unwrap().len(), 3_000_000);
}

#[test]
#[ignore = "boots a guest: make test"]
fn a_guest_behind_pci_goes_on_where_it_was_saved() {
    let tatami = Tatami::new();
    let folder = tatami.scratch().join("saved").display().to_string();
    let count = "while :; do echo again >>/count; sleep 0.2; done";
    let options = [&["--name", "first"], &PCI[..]].concat();
    tatami.detach(&options, &["sh", "-c", count]);
    tatami.tatami(&["save", "first", &folder]).expect_status(0);
    tatami.tatami(&["rm", "-f", "first"]).expect_status(0);
    tatami.tatami(&["restore", "--name", "second", &folder]).expect_status(0);
    let counts = "a=$(wc -l </count); sleep 2; test $(wc -l </count) -gt $a && echo counts";
    let out = tatami.tatami(&["exec", "second", "sh", "-c", counts]).expect_status(0).out();
    assert_eq!(out, "counts\n");
    tatami.tatami(&["rm", "-f", "second"]).expect_status(0);
}

#[test]
#[ignore = "boots a guest: make test"]
fn the_kernel_looks_for_no_pci_unless_told() {
    let out = Tatami::new().run(&["sh", "-c", "ls /sys/bus/pci/devices | wc -l"]).expect_status(0).out();
    assert_eq!(out, "0\n");
}
