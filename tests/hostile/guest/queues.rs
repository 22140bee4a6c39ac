//! Every rule of the split queue broken (virtio 1.2, 2.7), on each device: set-up, chains, and resets at the wrong moment.

use crate::serial::{count, tell};
use crate::virtio::{
    BUFFERS, DISK, Descriptor, Device, ENTROPY, FILES, INDIRECT, NETWORK, NEXT, Queue, RAM_END, SOCKET, STATUS, WRITE,
    into, out,
};

pub fn run() {
    for (kind, queue) in [(ENTROPY, 0), (SOCKET, 1), (FILES, 1), (DISK, 0), (NETWORK, 1)] {
        let Some(device) = Device::find(kind) else {
            tell("a device", "MISSING");
            continue;
        };
        // The transport judges this, which is the same before every device.
        if kind == ENTROPY || kind == DISK {
            set_up(&device, queue);
        }
        for (name, attack) in CHAINS {
            let mut queue = device.bring_up_queue(queue);
            attack(&mut queue);
            tell(name, queue.outcome());
            // Posted once more to a device that has stopped: nothing may come of it.
            if device.needs_reset() {
                let before = queue.used();
                queue.post(&[into(BUFFERS, 64)]);
                if queue.used() != before {
                    tell(name, "SERVED AFTER IT STOPPED");
                }
            }
            device.reset();
        }
        rewritten(&device, queue);
        resets(&device, queue);
    }
    let works = Device::find(ENTROPY).is_some_and(|device| device.works());
    tell("a device after all that", if works { "works" } else { "DEAD" });
}

/// Queues that cannot be.
fn set_up(device: &Device, queue: u32) {
    let [table, available, used] = device.areas(queue);
    let max = u32::from(device.size_max(queue));
    let good = [table, available, used];
    let cases: [(&str, u32, [u64; 3]); 13] = [
        ("size 0", 0, good),
        ("size 3", 3, good),
        ("size beyond the maximum", max * 2, good),
        ("size 65536", 0x1_0000, good),
        ("table misaligned", max, [table + 8, available, used]),
        ("available ring misaligned", max, [table, available + 1, used]),
        ("used ring misaligned", max, [table, available, used + 2]),
        ("table beyond RAM", max, [RAM_END, available, used]),
        ("table across the end of RAM", max, [RAM_END - 16, available, used]),
        ("used ring in a device", max, [table, available, 0xd000_0000]),
        ("available ring in the hole", max, [table, 0xc000_0000, used]),
        ("table wraps", max, [0xffff_ffff_ffff_fff0, available, used]),
        ("used ring wraps", max, [table, available, 0xffff_ffff_ffff_fffc]),
    ];
    for (name, size, areas) in cases {
        device.bring_up();
        device.negotiate();
        for other in 0..4 {
            let max = device.size_max(other);
            if max > 0 && other != queue {
                device.set_up(other, max.into(), device.areas(other));
            }
        }
        device.set_up(queue, size, areas);
        device.set(STATUS, 0xf);
        tell(name, if device.needs_reset() { "device stopped" } else { "TAKEN" });
        device.reset();
    }
}

type Attack = fn(&mut Queue);

const CHAINS: &[(&str, Attack)] = &[
    ("available index far ahead", |queue| queue.publish(queue.size + 1)),
    ("available index behind", |queue| queue.publish(0xffff)),
    ("head beyond the table", |queue| queue.offer(queue.size)),
    ("head 65535", |queue| queue.offer(0xffff)),
    ("next beyond the table", |queue| one(queue, Descriptor { flags: NEXT, next: queue.size, ..out(BUFFERS, 64) })),
    ("a loop of one", |queue| one(queue, Descriptor { flags: NEXT, next: 0, ..out(BUFFERS, 64) })),
    ("a loop of all", |queue| {
        for index in 0..queue.size {
            let next = (index + 1) % queue.size;
            queue.describe(queue.table, index, Descriptor { flags: NEXT, next, ..out(BUFFERS, 1) });
        }
        queue.offer(0);
    }),
    ("a buffer beyond RAM", |queue| one(queue, into(RAM_END, 64))),
    ("a buffer across the end of RAM", |queue| one(queue, into(RAM_END - 32, 64))),
    ("a buffer in a device", |queue| one(queue, into(0xd000_0000, 64))),
    ("a buffer that wraps", |queue| one(queue, into(u64::MAX - 15, 64))),
    ("a buffer of 4 GiB", |queue| one(queue, into(BUFFERS, u32::MAX))),
    ("more than 4 GiB in all", |queue| {
        for index in 0..300.min(queue.size - 1) {
            let flags = NEXT | WRITE;
            queue.describe(queue.table, index, Descriptor { flags, next: index + 1, ..into(BUFFERS, 15 << 20) });
        }
        queue.describe(queue.table, 300.min(queue.size - 1), into(0, u32::MAX));
        queue.offer(0);
    }),
    ("readable behind writable", |queue| {
        queue.describe(queue.table, 0, Descriptor { flags: NEXT | WRITE, next: 1, ..into(BUFFERS, 64) });
        queue.describe(queue.table, 1, out(BUFFERS, 64));
        queue.offer(0);
    }),
    ("indirect in indirect", |queue| {
        queue.describe(BUFFERS, 0, Descriptor { flags: INDIRECT, ..out(BUFFERS, 16) });
        one(queue, Descriptor { flags: INDIRECT, ..out(BUFFERS, 16) });
    }),
    ("indirect of no entries", |queue| one(queue, Descriptor { flags: INDIRECT, ..out(BUFFERS, 0) })),
    ("indirect of an odd length", |queue| one(queue, Descriptor { flags: INDIRECT, ..out(BUFFERS, 24) })),
    ("indirect of a huge length", |queue| one(queue, Descriptor { flags: INDIRECT, ..out(BUFFERS, 0xffff_fff0) })),
    ("indirect beyond RAM", |queue| one(queue, Descriptor { flags: INDIRECT, ..out(RAM_END, 16) })),
    ("indirect with a successor", |queue| {
        queue.describe(BUFFERS, 0, into(BUFFERS + 4096, 64));
        one(queue, Descriptor { flags: INDIRECT | NEXT, next: 1, ..out(BUFFERS, 16) });
    }),
    ("a loop in an indirect table", |queue| {
        queue.describe(BUFFERS, 0, Descriptor { flags: NEXT, next: 1, ..out(BUFFERS, 1) });
        queue.describe(BUFFERS, 1, Descriptor { flags: NEXT, next: 0, ..out(BUFFERS, 1) });
        one(queue, Descriptor { flags: INDIRECT, ..out(BUFFERS, 32) });
    }),
    ("one head twice", |queue| {
        queue.describe(queue.table, 0, into(BUFFERS, 64));
        for slot in 0..2 {
            crate::machine::store(queue.available + 4 + 2 * slot, 0_u16);
        }
        queue.publish(2);
    }),
];

fn one(queue: &mut Queue, descriptor: Descriptor) {
    queue.describe(queue.table, 0, descriptor);
    queue.offer(0);
}

/// Queue registers rewritten once the device is at work: it goes on with what it was given.
fn rewritten(device: &Device, number: u32) {
    let mut queue = device.bring_up_queue(number);
    let elsewhere = RAM_END - 0x1000;
    device.set_up(number, 1, [elsewhere, elsewhere, elsewhere]);
    device.set(0x44, 0);
    device.set_up(number, 0xffff_ffff, [u64::MAX, 0xd000_0000, 0]);
    queue.post(&[into(BUFFERS, 64)]);
    let moved: u64 = crate::machine::load(elsewhere);
    queue.outcome();
    tell("queue registers rewritten at work", if moved == 0 { "no effect" } else { "FOLLOWED" });
    device.reset();
}

/// Resets while requests are under way.
fn resets(device: &Device, number: u32) {
    const TIMES: u64 = 8;
    for _ in 0..TIMES {
        let mut queue = device.bring_up_queue(number);
        for _ in 0..16 {
            queue.post(&[out(BUFFERS, 64), into(BUFFERS, 4096)]);
        }
        device.reset();
        let used = queue.used();
        if queue.used() != used {
            tell("reset in the middle of requests", "STILL AT WORK");
        }
    }
    count("reset in the middle of requests", TIMES, "times");
}
