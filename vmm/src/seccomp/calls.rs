//! Which system calls which thread may make: the lists, and nothing else.
//!
//! Whoever gives a thread new work adds the calls that it needs to its role's list, with the arguments that it needs where
//! others could do harm. `strace -f` on the server of a running sandbox shows what a thread does; one that was forgotten ends
//! the VMM with its name. Numbers are libc's, so that other architectures have theirs; what they do not have in common
//! stands in `kvm/ARCH/calls.rs`.

use libc::c_long;
use rustix::ioctl::opcode;
use tatami_devices::virtio::Role;

use super::Who;
use crate::kvm::{OLD_CALLS, OLD_TRANSFERS, RESUME_REQUESTS, SAVE_REQUESTS, VCPU_REQUESTS};

/// A call that may be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Its number.
    pub(super) number: i64,
    /// All must hold.
    pub(super) tests: &'static [Test],
}

/// What an argument, counted from 0, must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Test {
    /// This value.
    Is(u8, u64),
    /// A pointer to nothing.
    IsNull(u8),
    /// Without any of these bits.
    Lacks(u8, u64),
    /// The socket to the server.
    IsControl(u8),
    /// This process's id.
    IsSelf(u8),
}

/// With any arguments.
pub(crate) const fn any(number: c_long) -> Call {
    Call { number, tests: &[] }
}

/// With arguments for which all tests hold.
pub(crate) const fn when(number: c_long, tests: &'static [Test]) -> Call {
    Call { number, tests }
}

/// What `who` may do.
pub(super) fn of(who: Who) -> Vec<&'static [Call]> {
    match who {
        Who::Supervisor => vec![ALL, OLD_CALLS, EVENTS, ACTIVATION, TAP, SUPERVISOR, SAVE_REQUESTS, RESUME_REQUESTS],
        Who::Thread(Role::Vcpu) => vec![ALL, ACTIVATION, TAP, VCPU_REQUESTS],
        Who::Thread(Role::Io) => vec![ALL, OLD_CALLS, EVENTS, IO],
        Who::Thread(Role::Frames) => vec![ALL, OLD_CALLS, EVENTS, TAP, VHOST, OLD_TRANSFERS, FRAMES],
        Who::Thread(Role::Socket) => vec![ALL, OLD_CALLS, EVENTS, OLD_TRANSFERS, SOCKET],
        Who::Thread(Role::Files) => vec![ALL, OLD_CALLS, EVENTS, FILES],
        Who::Thread(Role::Vhost) => vec![ALL, OLD_CALLS, EVENTS, CONVERSATION],
        Who::Thread(Role::Memory) => vec![ALL, OLD_CALLS, EVENTS, MEMORY],
        Who::Spawner => {
            let roles = [Role::Vcpu, Role::Io, Role::Frames, Role::Socket, Role::Files, Role::Vhost, Role::Memory];
            let mut lists: Vec<_> = roles.into_iter().flat_map(|role| of(Who::Thread(role))).collect();
            lists.push(SPAWNER);
            lists
        }
    }
}

/// No memory that can be executed.
const NOT_EXECUTABLE: &[Test] = &[Test::Lacks(2, libc::PROT_EXEC as u64)];
/// Another descriptor for the same file.
const DUPLICATE: &[Test] = &[Test::Is(1, libc::F_DUPFD_CLOEXEC as u64)];

/// What Rust, its allocator and its locks do anywhere, what it takes to log, to panic and to end; descriptors that are open
/// may be read, written and closed.
const ALL: &[Call] = &[
    any(libc::SYS_brk),
    any(libc::SYS_clock_gettime),
    any(libc::SYS_close),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // A build that checks itself asks whether a descriptor is open before it closes it.
    when(libc::SYS_fcntl, &[Test::Is(1, libc::F_GETFD as u64)]),
    any(libc::SYS_futex),
    any(libc::SYS_getpid),
    any(libc::SYS_getrandom),
    any(libc::SYS_gettid),
    any(libc::SYS_madvise),
    when(libc::SYS_mmap, NOT_EXECUTABLE),
    when(libc::SYS_mprotect, NOT_EXECUTABLE),
    any(libc::SYS_mremap),
    any(libc::SYS_munmap),
    any(libc::SYS_read),
    any(libc::SYS_restart_syscall),
    // Who fails so badly gives the signal back to the system, so that the process dies of what it did.
    when(libc::SYS_rt_sigaction, &[Test::Is(0, libc::SIGABRT as u64)]),
    when(libc::SYS_rt_sigaction, &[Test::Is(0, libc::SIGBUS as u64)]),
    when(libc::SYS_rt_sigaction, &[Test::Is(0, libc::SIGSEGV as u64)]),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sched_yield),
    when(libc::SYS_sendmsg, &[Test::IsControl(0)]),
    any(libc::SYS_sigaltstack),
    when(libc::SYS_tgkill, &[Test::IsSelf(0)]),
    any(libc::SYS_write),
    any(libc::SYS_writev),
];

/// Waiting for descriptors.
const EVENTS: &[Call] = &[any(libc::SYS_epoll_ctl), any(libc::SYS_epoll_pwait), any(libc::SYS_ppoll)];

/// Starting a device's thread, as the driver's writes to its registers have it: what the thread waits with, and duplicates of
/// descriptors for it.
const ACTIVATION: &[Call] = &[
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_eventfd2),
    when(libc::SYS_fcntl, DUPLICATE),
    any(libc::SYS_timerfd_create),
];

/// Disks and entropy. A disk's ring (io_uring) was made before, and takes nothing but what a disk does.
const IO: &[Call] = &[
    any(libc::SYS_fallocate),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fsync),
    any(libc::SYS_io_uring_enter),
    any(libc::SYS_pread64),
    any(libc::SYS_preadv),
    any(libc::SYS_preadv2),
    any(libc::SYS_pwrite64),
    any(libc::SYS_pwritev),
    any(libc::SYS_pwritev2),
    any(libc::SYS_timerfd_settime),
];

/// What of a tap follows its driver: offloads, and which queues are attended.
const TAP: &[Call] = &[
    when(libc::SYS_ioctl, &[Test::Is(1, libc::TUNSETOFFLOAD)]),
    when(libc::SYS_ioctl, &[Test::Is(1, libc::TUNSETQUEUE)]),
];

/// What vhost-net is told: whose it is, what the driver knows, where RAM and rings are, how far they have come, how to be heard, and
/// which tap (`VHOST_SET_OWNER` to `VHOST_NET_SET_BACKEND` of `linux/vhost.h`).
const VHOST: &[Call] = &[
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::none(0xaf, 0x01) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<u64>(0xaf, 0x00) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u64; 1]>(0xaf, 0x03) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x10) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u64; 5]>(0xaf, 0x11) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x12) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x20) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x21) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x22) as u64)]),
    when(libc::SYS_ioctl, &[Test::Is(1, opcode::write::<[u32; 2]>(0xaf, 0x30) as u64)]),
];

/// Frames between a network's queues and a tap or a stream.
const FRAMES: &[Call] =
    &[any(libc::SYS_readv), any(libc::SYS_recvfrom), any(libc::SYS_sendto), any(libc::SYS_timerfd_settime)];

/// Streams between sockets: those that are there, those of clients, and pairs for what the guest connects to.
const SOCKET: &[Call] = &[
    any(libc::SYS_accept4),
    when(libc::SYS_ioctl, &[Test::Is(1, libc::FIONBIO)]),
    any(libc::SYS_readv),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    when(libc::SYS_socketpair, &[Test::Is(0, libc::AF_UNIX as u64)]),
    any(libc::SYS_timerfd_settime),
];

/// What virtiofsd does for a guest, all of it below a root that is the shared folder. Deliberately without `open_by_handle_at`,
/// which needs no path: with the right to read everything, it opens any file of a file system of which one folder is shared.
const FILES: &[Call] = &[
    any(libc::SYS_capget),
    any(libc::SYS_capset),
    any(libc::SYS_dup),
    any(libc::SYS_fallocate),
    any(libc::SYS_fchdir),
    any(libc::SYS_fchmod),
    any(libc::SYS_fchmodat),
    any(libc::SYS_fchownat),
    when(libc::SYS_fcntl, DUPLICATE),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fgetxattr),
    any(libc::SYS_flistxattr),
    any(libc::SYS_flock),
    any(libc::SYS_fremovexattr),
    any(libc::SYS_fsetxattr),
    any(libc::SYS_fstat),
    any(libc::SYS_fstatfs),
    any(libc::SYS_fsync),
    any(libc::SYS_ftruncate),
    any(libc::SYS_getdents64),
    any(libc::SYS_getegid),
    any(libc::SYS_geteuid),
    any(libc::SYS_getxattr),
    any(libc::SYS_linkat),
    any(libc::SYS_listxattr),
    any(libc::SYS_lseek),
    // What the guest has open is written into memory and read from there, when the machine is saved.
    any(libc::SYS_memfd_create),
    any(libc::SYS_mkdirat),
    any(libc::SYS_mknodat),
    // Names a file, and opens none: whether a name still leads to the same one.
    any(libc::SYS_name_to_handle_at),
    any(libc::SYS_newfstatat),
    any(libc::SYS_openat),
    any(libc::SYS_openat2),
    // Reading capabilities (libcap-ng), and a limit.
    when(libc::SYS_prctl, &[Test::Is(0, libc::PR_CAPBSET_READ as u64)]),
    when(libc::SYS_prctl, &[Test::Is(0, libc::PR_CAP_AMBIENT as u64), Test::Is(1, libc::PR_CAP_AMBIENT_IS_SET as u64)]),
    when(libc::SYS_prctl, &[Test::Is(0, libc::PR_GET_SECUREBITS as u64)]),
    when(libc::SYS_prlimit64, &[Test::IsNull(2)]),
    any(libc::SYS_pread64),
    any(libc::SYS_preadv),
    any(libc::SYS_preadv2),
    any(libc::SYS_pwrite64),
    any(libc::SYS_pwritev),
    any(libc::SYS_pwritev2),
    any(libc::SYS_readlinkat),
    any(libc::SYS_removexattr),
    any(libc::SYS_renameat2),
    any(libc::SYS_setgroups),
    any(libc::SYS_setresgid),
    any(libc::SYS_setresuid),
    any(libc::SYS_setxattr),
    any(libc::SYS_statx),
    any(libc::SYS_symlinkat),
    any(libc::SYS_syncfs),
    any(libc::SYS_umask),
    any(libc::SYS_unlinkat),
    when(libc::SYS_unshare, &[Test::Is(0, libc::CLONE_FS as u64)]),
    any(libc::SYS_utimensat),
];

/// A conversation with the process that serves a device's queues: messages and descriptors on a socket that is there, and its end.
const CONVERSATION: &[Call] = &[any(libc::SYS_recvmsg), any(libc::SYS_sendmsg), any(libc::SYS_shutdown)];

/// Guest memory that goes back to the host where a file is behind it; otherwise it is what any allocator does.
const MEMORY: &[Call] = &[any(libc::SYS_fallocate)];

/// What the server's orders need: disks, whose sizes are looked at, networks, which must not block, and the machine in two files.
const SUPERVISOR: &[Call] = &[
    when(libc::SYS_fcntl, &[Test::Is(1, libc::F_GETFL as u64)]),
    when(libc::SYS_fcntl, &[Test::Is(1, libc::F_SETFL as u64)]),
    any(libc::SYS_fstat),
    any(libc::SYS_ftruncate),
    any(libc::SYS_lseek),
    any(libc::SYS_mincore),
    any(libc::SYS_pwrite64),
    any(libc::SYS_recvmsg),
    any(libc::SYS_statx),
    any(libc::SYS_sysinfo),
];

/// Threads, and nothing else that `clone` makes; what one does before it has its own filter, and that filter.
const SPAWNER: &[Call] = &[
    any(libc::SYS_clone3),
    when(libc::SYS_clone, &[Test::Is(0, THREAD_FLAGS)]),
    when(libc::SYS_prctl, &[Test::Is(0, libc::PR_SET_NAME as u64)]),
    when(libc::SYS_prctl, &[Test::Is(0, libc::PR_SET_NO_NEW_PRIVS as u64)]),
    any(libc::SYS_rseq),
    any(libc::SYS_sched_getaffinity),
    when(libc::SYS_seccomp, &[Test::Is(0, libc::SECCOMP_SET_MODE_FILTER as u64)]),
    any(libc::SYS_set_robust_list),
];

/// What makes a thread of this process (`pthread_create`).
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
