//! Inputs that make sense, for the fuzzer to begin from: short, made here, and the same each time.

use serde_json::json;
use tatami_vmm::{NicConfig, NicKind, NicLimits, VmConfig};

use crate::devices;
use crate::images::PART;
use crate::loading;

/// Bytes without meaning, for targets that read each byte as a decision: then any bytes make sense.
pub fn noise() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    [40, 80, 160, 320, 640, 1280, 2560, 2560].map(|length: usize| (0..length).map(|_| next()).collect()).to_vec()
}

/// A driver's way through the registers, from reset to a device at work and back, as [`crate::rings::mmio`] reads it.
pub fn registers() -> Vec<Vec<u8>> {
    let write = |register: u8, value: u32| [&[register / 4, 0, 0xff][..], &value.to_le_bytes()].concat();
    let mut steps = vec![write(0x70, 1), write(0x70, 3), write(0x24, 1), write(0x20, 1), write(0x70, 0xb)];
    for queue in 0..3 {
        let at = 0x1_0000 * (queue + 1);
        steps.push(write(0x30, queue));
        steps.push(write(0x38, [256, 1, 1024][queue as usize]));
        steps.extend([0x80, 0x90, 0xa0].into_iter().zip([at, at + 0x8000, at + 0xc000]).map(|(r, a)| write(r, a)));
        steps.push(write(0x44, 1));
    }
    steps.push(write(0x70, 0xf));
    let at_work = steps.concat();
    // Then what no driver may do: change a queue at work, save in the middle, reset.
    let rewritten = [write(0x30, 0), write(0x38, 8), write(0x80, 0xffff_0000), vec![0, 7], write(0x70, 0)].concat();
    vec![at_work.clone(), [at_work, rewritten].concat()]
}

/// The same way over PCI, as [`crate::rings::pci`] reads it.
pub fn functions() -> Vec<Vec<u8>> {
    let write = |structure: u8, register: u8, value: u32, width: u8| {
        [&[structure, register, 0, 0xff][..], &value.to_le_bytes(), &[width]].concat()
    };
    let [byte, half, word] = [0, 1, 2];
    let mut steps = vec![vec![0], write(0, 0x14, 1, byte), write(0, 0x14, 3, byte)];
    steps.extend([write(0, 0x08, 1, word), write(0, 0x0c, 1, word), write(0, 0x14, 0xb, byte)]);
    steps.push(write(0, 0x10, 0, half));
    for queue in 0..3 {
        let at = 0x1_0000 * (queue + 1);
        steps.extend([write(0, 0x16, queue, half), write(0, 0x18, [256, 1, 1024][queue as usize], half)]);
        steps.extend(
            [0x20, 0x28, 0x30].into_iter().zip([at, at + 0x8000, at + 0xc000]).map(|(r, a)| write(0, r, a, word)),
        );
        steps.extend([write(0, 0x1a, queue + 1, half), write(0, 0x1c, 1, half)]);
    }
    steps.push(write(0, 0x14, 0xf, byte));
    // Messages: the capability's control, a vector, and what raises it.
    let on = [&[0, 0, 6, 0x40][..], &[0, 0, 7, 0xff], &0xc000_0011_u32.to_le_bytes(), &[2]].concat();
    let raised = vec![0, 0, 10, 0, 0, 0, 0, 10, 1];
    steps.extend([on, write(4, 0x10, 0xfee0_0000, word), write(4, 0x1c, 0, word), raised, vec![0, 0, 11]]);
    let at_work = steps.concat();
    let rewritten = [write(0, 0x16, 0, half), write(0, 0x18, 8, half), write(0, 0x14, 0, byte)].concat();
    vec![at_work.clone(), [at_work, rewritten].concat()]
}

/// A small kernel that could be loaded.
pub fn kernels() -> Vec<Vec<u8>> {
    let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let mut elf = vec![0; 0x300];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    // ELF-64: executable, x86-64, version; entry; program headers at 64, two of 56 bytes.
    put(&mut elf, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut elf, 24, &0x100_0000_u64.to_le_bytes());
    put(&mut elf, 32, &64_u64.to_le_bytes());
    put(&mut elf, 52, &[64, 0, 56, 0, 2, 0]);
    let segment = |kind: u32, offset: u64, address: u64, size: u64| {
        let mut header = [kind.to_le_bytes(), 5_u32.to_le_bytes()].as_flattened().to_vec();
        header.extend([offset, address, address, size, size * 2, 0x1000].map(u64::to_le_bytes).as_flattened());
        header
    };
    put(&mut elf, 64, &segment(1, 0x200, 0x100_0000, 0x80));
    put(&mut elf, 120, &segment(4, 0x280, 0, 0x20));
    // The note that says where PVH begins (Xen's type 18).
    put(&mut elf, 0x280, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01");
    let mut bzimage = vec![0; 0x300];
    put(&mut bzimage, 0x202, b"HdrS");
    vec![elf, bzimage]
}

/// What a saved sandbox's folder says: of one on a disk with a tap, and of one of an older version.
///
/// # Panics
/// When the first is not understood any more.
pub fn headers() -> Vec<Vec<u8>> {
    let vm = serde_json::to_value(tatami_vmm::VmConfig::default()).expect("numbers and names");
    let time = json!({ "secs_since_epoch": 1_700_000_000, "nanos_since_epoch": 5 });
    let record = json!({
        "id": "0123456789ab", "container": "main", "name": "web", "image": "image.tar", "command": ["sleep", "9"],
        "created": time, "started": time, "ended": null, "auto_remove": false, "foreground": false, "tty": false,
        "interactive": true, "stop_signal": "SIGTERM", "stop_timeout": 10, "memory_mib": 128, "cpus": 1,
        "host_root": "/run/x", "spec": { "process": { "args": ["sleep", "9"] } },
    });
    let tap = json!({ "name": "tap0", "addresses": ["192.0.2.2/24"], "gateways": ["192.0.2.1"],
        "hardware_address": [2, 0, 0, 0, 0, 1], "mtu": 1500, "vhost": "auto" });
    let whole = json!({
        "format": 3, "record": record, "vm": vm, "boot_limit": { "secs": 30, "nanos": 0 }, "place": "1", "image": "/",
        "layers": 2, "volumes": [{ "source": "/etc/hosts", "read_only": true, "recursive": false }], "watched": 0,
        "own_volume": ["/run/resolv.conf", "nameserver 192.0.2.1"], "network": { "net": { "tap": tap }, "published": [] },
        "root_disk": null, "open": ["etc/passwd"], "processor": { "vendor": "", "model": "", "features": [] },
    });
    let mut older = whole.clone();
    older["format"] = 2.into();
    let text = |value: &serde_json::Value| value.to_string().into_bytes();
    let read = crate::headers::read(&crate::scratch::Scratch::new().inside, &text(&whole));
    use tatami_shim::sandbox::saving::RestoreError;
    assert!(matches!(read, Ok(_) | Err(RestoreError::Processor { .. })), "the seed is out of date: {read:?}");
    let mut endless = whole.clone();
    (endless["layers"], endless["place"]) = (u64::MAX.into(), "../1".into());
    vec![text(&whole), text(&older), text(&endless)]
}

/// A saved machine.
pub fn snapshots() -> Vec<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    use tatami_devices::virtio::{MmioTransport, QueueState};
    let state = devices::file(0);
    let files = tatami_vmm::snapshot::Snapshot { memory: devices::file(0), state: state.try_clone().expect("a file") };
    let saved = loading::machine_devices().into_iter().map(|device| {
        let queues = device.queue_sizes().len() as u64;
        let transport = MmioTransport::new(device, crate::driver::memory()).expect("event descriptors");
        let queue = |number: u64| {
            let at = 0x1_0000 * (number + 1);
            let areas = [at, at + 0x4000, at + 0x8000];
            QueueState { size: 16, ready: true, areas, position: Some((3, 3)) }
        };
        let queues = (0..queues).map(queue).collect();
        tatami_devices::virtio::TransportState {
            status: 15,
            driver_features: 1 << 32,
            queues,
            ..transport.save().expect("a device that remembers nothing")
        }
    });
    tatami_vmm::fuzzing::save(&loading::machine(), &files, saved.collect());
    let mut text = vec![0; state.metadata().expect("a file").len() as usize];
    state.read_exact_at(&mut text, 0).expect("a file");
    vec![text]
}

/// Messages on the control socket.
pub fn messages() -> Vec<Vec<u8>> {
    let nic = NicConfig { kind: NicKind::Stream, queue_pairs: 1, mtu: None, limits: NicLimits::default() };
    let config = VmConfig { disk_slots: 1, nics: vec![nic], ..VmConfig::default() };
    let start = serde_json::json!({ "config": config, "shared_dir": "/x", "origin": "Kernel" });
    let json = [
        r#"{"number":1,"what":{"AttachDisk":[0,[{"start":0,"length":4096,"read_only":false}]]}}"#,
        r#"{"number":2,"what":{"DetachDisk":0}}"#,
        r#"{"number":3,"what":{"GrowDisk":[0,4096]}}"#,
        r#"{"number":3,"what":{"PlugNic":0}}"#,
        r#"{"number":4,"what":{"PullNic":0}}"#,
        r#"{"number":5,"what":"Save"}"#,
        r#"{"Answer":[1,{"Err":"no"}]}"#,
        r#"{"Log":["Warn","text"]}"#,
        r#"{"GuestConnected":1024}"#,
        r#"{"Stopped":"GuestReset"}"#,
    ];
    let others = json.map(|text| text.as_bytes().to_vec());
    others.into_iter().chain([start.to_string().into_bytes(), b"Cconsole\n".to_vec()]).collect()
}

/// One entry of a tar archive (POSIX ustar), its content padded.
pub fn tar_entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000755\x000000000\x000000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"07346545000\0");
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, b"0000001\x000000003\0");
    put(148, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header[..], content, &vec![0; padding]].concat()
}

/// Layers: one for each trick that is known.
pub fn layers() -> Vec<Vec<u8>> {
    let pax = |records: &[u8]| tar_entry("pax", b'x', "", records);
    let tricks = [
        [tar_entry("a/b/file", b'0', "", b"text"), tar_entry("a", b'5', "", b"")].concat(),
        [tar_entry("up/outside", b'0', "", b"x"), tar_entry("../outside", b'0', "", b"x")].concat(),
        [tar_entry("s", b'2', "/", b""), tar_entry("s/outside", b'0', "", b"x")].concat(),
        [tar_entry("h", b'1', "out", b""), tar_entry("h", b'0', "", b"x"), tar_entry("i", b'1', "up/outside", b"")]
            .concat(),
        [tar_entry("folder/.wh.old", b'0', "", b""), tar_entry("folder/.wh..wh..opq", b'0', "", b"")].concat(),
        [tar_entry("up/.wh.outside", b'0', "", b""), tar_entry("root/.wh..wh..opq", b'0', "", b"")].concat(),
        [tar_entry("null", b'3', "", b""), tar_entry("fifo", b'6', "", b""), tar_entry("disk", b'4', "", b"")].concat(),
        [pax(b"18 path=../outside\n"), tar_entry("x", b'0', "", b"x")].concat(),
        [pax(b"30 SCHILY.xattr.user.x=\x01\0\xff\n\n\n12 mtime=-1\n"), tar_entry("x", b'0', "", b"x")].concat(),
        [pax(b"22 size=9999999999999\n"), tar_entry("x", b'0', "", b"x")].concat(),
        [tar_entry("././@LongLink", b'L', "", &[b'n'; 300]), tar_entry("x", b'0', "", b"x")].concat(),
        [tar_entry("loop/x", b'0', "", b""), tar_entry("down/x", b'0', "", b""), tar_entry("down", b'0', "", b"")]
            .concat(),
    ];
    tricks.to_vec()
}

/// Image archives: an OCI layout, what docker saves, and a layer that is no image.
pub fn images() -> Vec<Vec<u8>> {
    let layer = tar_entry("file", b'0', "", b"text");
    let config =
        r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/x"]},"rootfs":{"type":"layers","diff_ids":["@0"]}}"#;
    let manifest = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@1","size":#1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@0","size":#0}]}"#;
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@2","size":#2}]}"#;
    let docker = r#"[{"Config":"1.json","RepoTags":["a:b"],"Layers":["0.json"]}]"#;
    let oci = [&layer[..], config.as_bytes(), manifest.as_bytes(), index.as_bytes()];
    let saved = [&layer[..], config.as_bytes(), docker.as_bytes()];
    vec![oci.join(PART), saved.join(PART), layer]
}

/// Specifications, and a message that holds one.
pub fn specifications() -> Vec<Vec<u8>> {
    use tatami_protocol::agent::{CreateContainerRequest, StreamHeader};
    let spec = br#"{"ociVersion":"1.1.0","root":{"path":"/"},"process":{"cwd":"/","args":["a"],"user":{"uid":0,"gid":0},"apparmorProfile":"x"},"linux":{"resources":{"memory":{"limit":1048576,"swap":-1},"cpu":{"shares":2,"quota":1000,"period":100000,"cpus":"0-1"},"pids":{"limit":5},"blockIO":{"weight":10},"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}],"hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"max"}},"namespaces":[{"type":"pid"}]}}"#;
    let request = CreateContainerRequest { container_id: "c".into(), spec_json: spec.to_vec(), ..Default::default() };
    let header = StreamHeader { container_id: "c".into(), ..Default::default() };
    let report = br#"{"CommandFailed":{"failure":"NotFound","message":"no"}}"#;
    let call = br#"{"state":"/s","id":"c","action":{"Create":{"bundle":"/b","terminal":{"socket":"/t","size":{"rows":1,"columns":2}}}}}"#;
    let message = protobuf::Message::write_to_bytes(&request).expect("a message");
    let header = tatami_protocol::stream::encode(&header).expect("a message");
    vec![spec.to_vec(), message, header, report.to_vec(), call.to_vec()]
}

/// An agent's half of a conversation: the greeting, and two answers, as [`crate::agents::answers`] cuts them.
pub fn answers() -> Vec<Vec<u8>> {
    use tatami_protocol::agent::HelloResponse;
    let hello = HelloResponse { agent_version: "1".into(), kernel_release: "6".into(), ..Default::default() };
    let hello = protobuf::Message::write_to_bytes(&hello).expect("a message");
    // A ttrpc response: status in field 1, payload in field 2.
    let response = [&[0x12, hello.len() as u8][..], &hello].concat();
    let refusal = b"\x0a\x06\x08\x05\x12\x02no".to_vec();
    let frame =
        |stream: u8, body: &[u8]| [&[0][..], &(body.len() as u16).to_le_bytes(), body, &[stream, 2, 0]].concat();
    vec![
        [vec![0], frame(1, &response), frame(3, &refusal)].concat(),
        [vec![0], frame(1, &refusal), frame(2, b""), frame(4, &response)].concat(),
    ]
}

/// Streams of files: a tree, a file, and one that would lead astray.
pub fn copies() -> Vec<Vec<u8>> {
    use tatami_files::stream::{Entry, Kind, end};
    let entry =
        |kind, name: &str, link: &str| Entry { mode: 0o4755, link: link.into(), ..Entry::new(kind, name.into()) };
    let file = |name: &str| Entry { size: 3, ..entry(Kind::File, name, "") };
    let stream = |choice: u8, entries: &[Entry]| {
        let mut bytes = vec![choice];
        for entry in entries {
            entry.write(&mut bytes).expect("memory takes everything");
            bytes.extend(&b"abc"[..entry.size as usize]);
        }
        end(&mut bytes).expect("memory takes everything");
        bytes
    };
    let root = entry(Kind::Folder, "", "");
    let tree = [root.clone(), file("a"), entry(Kind::Folder, "b", ""), file("b/c"), entry(Kind::HardLink, "d", "b/c")];
    let astray = [root, entry(Kind::Link, "l", "../outside"), file("out"), entry(Kind::Fifo, "f", ""), file("l/x")];
    vec![stream(0, &tree), stream(0xc1, &tree), stream(0xc1, &[file("")]), stream(2, &astray)]
}

/// A shim's calls.
pub fn options() -> Vec<Vec<u8>> {
    let words = b"-namespace default -address /run/c.sock -id c1 -bundle /b start";
    let call = [&[0][..], &(words.len() as u16).to_le_bytes(), words, b"\x0a\x02c1\x12\x07default"].concat();
    let config = br#"{"ociVersion":"1.1.0","process":{"cwd":"/","args":["a"],"user":{"uid":0,"gid":0}},"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s"},"mounts":[{"destination":"/x","type":"bind","source":"/y","options":["rbind","ro"]},{"destination":"/dev/shm","type":"tmpfs"}],"linux":{"resources":{"memory":{"limit":9223372036854775807},"cpu":{"quota":-1,"period":1}},"namespaces":[{"type":"network","path":"/proc/1/ns/net"}]}}"#;
    let overlay = b"\x02erofs /a ro device=/b\nformat/mkdir/overlay overlay lowerdir={{ mount 0 }} upperdir=/u workdir=/w X-containerd.mkdir.path=/u";
    vec![call, [&[1][..], config].concat(), overlay.to_vec(), b"\x02ext4 /dev/vda rw".to_vec()]
}

/// What registries ask, and names of images.
pub fn challenges() -> Vec<Vec<u8>> {
    let bearer = br#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
    let both = b"Basic realm=\"a \\\" b\"\nBearer realm=https://a/b , error=\"x\"";
    let name = b"localhost:5000/team/app:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    vec![bearer.to_vec(), both.to_vec(), name.to_vec(), b"debian".to_vec()]
}
