//! The filters at work, in processes of their own: what may be done can be, and what a forbidden call leads to.

#![allow(unsafe_code, reason = "forks, and makes system calls that must not be made")]

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::ioctl::opcode;
use tatami_devices::virtio::Threads;

use super::*;
use crate::control::{Channel, Forbidden, Received};
use crate::threads::VmmThreads;

const EVERYBODY: [Who; 9] = [
    Who::Supervisor,
    Who::Spawner,
    Who::Thread(Role::Vcpu),
    Who::Thread(Role::Io),
    Who::Thread(Role::Frames),
    Who::Thread(Role::Socket),
    Who::Thread(Role::Files),
    Who::Thread(Role::Vhost),
    Who::Thread(Role::Memory),
];

const VHOST: u8 = 0xaf;

/// The number of a request of vhost's that hands over eight bytes.
fn vhost(number: u8) -> u64 {
    opcode::write::<u64>(VHOST, number) as u64
}

#[test]
fn a_program_begins_with_the_architecture() {
    const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
    let architecture = seccompiler::TargetArch::aarch64;
    let (no, yes) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(Rules::from([(0, Vec::new())]), no, yes, architecture).unwrap();
    assert_eq!(BpfProgram::try_from(filter).unwrap()[ARCHITECTURE_AT].k, AUDIT_ARCH_AARCH64);
}

/// Runs `body` in a child that is given the other end of a control socket. What it reported, and how it ended: with 0 if `body`
/// returned.
fn child(body: impl FnOnce(&Channel)) -> (Option<Forbidden>, ExitStatus) {
    let (ours, theirs) = Channel::pair().unwrap();
    // SAFETY: the child does what glibc allows after a fork, allocating included.
    match unsafe { libc::fork() } {
        0 => {
            let channel = Channel::new(theirs);
            report::install(channel.as_fd().as_raw_fd()).unwrap();
            body(&channel);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(theirs);
            let mut status = 0;
            // SAFETY: `pid` is a child that nobody else waits for.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            let said = match ours.receive(false) {
                Ok(Some(Received::Forbidden(forbidden))) => Some(forbidden),
                _ => None,
            };
            (said, ExitStatus::from_raw(status))
        }
    }
}

fn confined(who: Who, body: impl FnOnce()) -> (Option<Forbidden>, ExitStatus) {
    child(|channel| {
        report::name_thread("under test");
        confine(who, Facts::new(channel.as_fd().as_raw_fd())).unwrap();
        body();
    })
}

fn call(number: i64, arguments: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: calls with arguments that do nothing, were they carried out.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

fn forbidden(who: Who, number: i64, arguments: [u64; 5]) {
    let (said, status) = confined(who, || {
        call(number, arguments);
    });
    let expected = Forbidden {
        thread: *b"under test\0\0\0\0\0\0",
        call: number as u32,
        arguments: std::array::from_fn(|at| arguments[at]),
    };
    assert_eq!(said, Some(expected), "{who:?}");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{who:?}");
}

#[test]
fn what_nobody_may_is_reported_and_ends_the_process() {
    let executable = [0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0, 0];
    let harmful = [
        (libc::SYS_execve, [0; 5]),
        (libc::SYS_execveat, [0; 5]),
        (libc::SYS_ptrace, [0, 1, 0, 0, 0]),
        (libc::SYS_process_vm_writev, [0; 5]),
        (libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0]),
        (libc::SYS_connect, [0; 5]),
        (libc::SYS_mount, [0; 5]),
        (libc::SYS_setns, [0; 5]),
        (libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0]),
        (libc::SYS_bpf, [0; 5]),
        (libc::SYS_kill, [1, 0, 0, 0, 0]),
        (libc::SYS_tgkill, [1, 1, 0, 0, 0]),
        (libc::SYS_open_by_handle_at, [0; 5]),
        (libc::SYS_io_uring_setup, [0; 5]),
        (libc::SYS_io_uring_register, [0; 5]),
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]),
        (libc::SYS_clone, [(libc::CLONE_NEWPID | libc::SIGCHLD) as u64, 0, 0, 0, 0]),
        (libc::SYS_mmap, executable),
        (libc::SYS_mprotect, executable),
        (libc::SYS_rt_sigaction, [libc::SIGSYS as u64, 0, 0, 8, 0]),
        (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0]),
        (libc::SYS_prlimit64, [0, 0, 1 << 40, 0, 0]),
    ];
    for who in EVERYBODY {
        for (number, arguments) in harmful {
            forbidden(who, number, arguments);
        }
    }
}

#[test]
fn roles_may_not_do_each_others_work() {
    let path = c"/".as_ptr() as u64;
    for who in [Who::Supervisor, Who::Thread(Role::Vcpu), Who::Thread(Role::Io), Who::Thread(Role::Socket)] {
        forbidden(who, libc::SYS_openat, [libc::AT_FDCWD as u64, path, 0, 0, 0]);
        forbidden(who, libc::SYS_setresuid, [0; 5]);
    }
    for role in [Role::Vcpu, Role::Io, Role::Files, Role::Memory] {
        forbidden(Who::Thread(role), libc::SYS_accept4, [0; 5]);
        forbidden(Who::Thread(role), libc::SYS_recvmsg, [0; 5]);
    }
    // To anybody but the server; the spawner may what any of its threads may.
    for who in EVERYBODY.into_iter().filter(|who| !matches!(who, Who::Spawner | Who::Thread(Role::Vhost))) {
        forbidden(who, libc::SYS_sendmsg, [0; 5]);
    }
    for number in [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_accept4, libc::SYS_openat, libc::SYS_recvfrom] {
        forbidden(Who::Thread(Role::Vhost), number, [0; 5]);
    }
    // KVM_RUN, and a request of which nobody has need once the machine is built: KVM_SET_USER_MEMORY_REGION.
    for role in [Role::Io, Role::Socket, Role::Files, Role::Vhost, Role::Memory] {
        forbidden(Who::Thread(role), libc::SYS_ioctl, [0, 0xae80, 0, 0, 0]);
    }
    forbidden(Who::Thread(Role::Vcpu), libc::SYS_ioctl, [0, 0x4020_ae46, 0, 0, 0]);
    // VHOST_SET_MEM_TABLE and VHOST_NET_SET_BACKEND are for those who move frames, and VHOST_SET_LOG_BASE for nobody.
    for who in EVERYBODY.into_iter().filter(|who| ![Who::Spawner, Who::Thread(Role::Frames)].contains(who)) {
        forbidden(who, libc::SYS_ioctl, [0, vhost(0x03), 0, 0, 0]);
        forbidden(who, libc::SYS_ioctl, [0, vhost(0x30), 0, 0, 0]);
    }
    forbidden(Who::Thread(Role::Frames), libc::SYS_ioctl, [0, vhost(0x04), 0, 0, 0]);
    // The request's own failure is another matter: no descriptor.
    let owner = opcode::none(VHOST, 0x01) as u64;
    let areas = opcode::write::<[u64; 5]>(VHOST, 0x11) as u64;
    for request in [owner, vhost(0x00), vhost(0x03), vhost(0x10), areas, vhost(0x30)] {
        let (said, status) = confined(Who::Thread(Role::Frames), || {
            call(libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0]);
        });
        assert_eq!((said, status.code()), (None, Some(0)), "{request:#x}");
    }
    for who in EVERYBODY.into_iter().filter(|who| *who != Who::Spawner) {
        forbidden(who, libc::SYS_seccomp, [0; 5]);
        forbidden(who, libc::SYS_clone3, [0; 5]);
    }
}

#[test]
fn blocking_the_signal_is_no_way_out() {
    let (said, status) = confined(Who::Thread(Role::Io), || {
        // SAFETY: blocks all signals of this thread.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        }
        call(libc::SYS_execve, [0; 5]);
    });
    assert_eq!((said, status.signal()), (None, Some(libc::SIGSYS)));
}

#[test]
fn a_server_that_reads_nothing_sees_the_end_all_the_same() {
    let (said, status) = child(|channel| {
        while channel.send_console(b"flood").is_ok() {}
        confine(Who::Thread(Role::Io), Facts::new(channel.as_fd().as_raw_fd())).unwrap();
        call(libc::SYS_execve, [0; 5]);
    });
    assert_eq!((said, status.signal()), (None, Some(libc::SIGSYS)));
}

#[test]
fn everybody_can_allocate_log_and_end() {
    for who in EVERYBODY {
        let (said, status) = child(|channel| {
            confine(who, Facts::new(channel.as_fd().as_raw_fd())).unwrap();
            // Freed first, the large one keeps the heap from shrinking: a test's is not the process's only one, as a VMM's is, and
            // would look into /proc for it.
            let large = vec![1_u8; 16 << 20];
            let mut small: Vec<Vec<u8>> = (10..15).map(|power| vec![1; 1 << power]).collect();
            small.iter_mut().for_each(|block| block.extend_from_within(..));
            drop(large);
            drop(small);
            std::thread::yield_now();
            assert!(std::time::Instant::now().elapsed().as_secs() < 60);
            let map: std::collections::HashMap<u8, u8> = [(1, 2)].into();
            channel.send_console(&[map[&1]]).unwrap();
        });
        assert_eq!((said, status.code()), (None, Some(0)), "{who:?}");
    }
}

#[test]
fn threads_start_confined_whoever_asks_for_them() {
    for (role, number) in
        [(Role::Vcpu, libc::SYS_openat), (Role::Socket, libc::SYS_getdents64), (Role::Files, libc::SYS_execve)]
    {
        let (said, status) = child(|channel| {
            let threads = VmmThreads::confined(channel.as_fd()).unwrap();
            confine(Who::Supervisor, Facts::new(channel.as_fd().as_raw_fd())).unwrap();
            let again = threads.clone();
            // As a vCPU's thread starts a device's, which may do what the vCPU's may not.
            let body = move || {
                let inner =
                    again.spawn("inner", Role::Files, Box::new(|| assert!(call(libc::SYS_geteuid, [0; 5]) >= 0)));
                inner.unwrap().join().unwrap();
                let last = again.spawn("last", role, Box::new(move || assert!(call(number, [0; 5]) != 0)));
                last.unwrap().join().unwrap();
            };
            threads.spawn("outer", Role::Vcpu, Box::new(body)).unwrap().join().unwrap();
        });
        let said = said.expect("a report");
        assert_eq!((said.call, &said.thread[..5]), (number as u32, &b"last\0"[..]));
        assert_eq!(status.signal(), Some(libc::SIGSYS));
    }
}

#[test]
fn programs_are_of_a_size_that_the_kernel_takes() {
    // BPF_MAXINSNS is 4096; each thread's own and its starter's count against 32768 in all.
    for who in EVERYBODY {
        let rules = rules(&calls::of(who), Facts { control: 3, process: 1 }).unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, FILTERED.0).unwrap();
        let length = BpfProgram::try_from(filter).unwrap().len();
        assert!((100..1500).contains(&length), "{who:?}: {length}");
    }
}
