"""The filter of system calls: one table, compiled to classic BPF for x86-64 and aarch64.

What is in no list does not exist for a sandbox (ENOSYS, on which C libraries fall back), so a new
kernel's calls are denied until somebody has looked at them; what is denied by name gives EPERM;
another architecture's numbers end the program. Arguments are compared as the kernel takes them: by
their low 32 bits, or a request with high bits set would slip through. `docs/security.md` says what
the rules are for.

Formats: linux/filter.h and linux/seccomp.h. Pure; nothing here changes the caller.
"""

from __future__ import annotations

import platform
import struct
from functools import cache

from ._call_numbers import AARCH64, X86_64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    Setting = Literal["carrier", "namespaces", "host"]
    """A carrier, whose calls a station orders; a process in namespaces of its own; one that shares
    the host's namespaces."""

__all__ = [
    "ALLOW",
    "ALLOWED",
    "ARCHITECTURES",
    "CHECKED",
    "DENIED",
    "ENOSYS",
    "ENOTSUP",
    "EPERM",
    "KILL",
    "LISTEN",
    "LISTENED",
    "TRACE",
    "TRACED",
    "action_of",
    "checked_calls",
    "compile_filter",
    "filter_for",
    "listening_filter",
]

ALLOW = 0x7FFF0000
TRACE = 0x7FF00000
"""ENOSYS for whoever has no tracer; the station's carriers do."""
KILL = 0x80000000
LISTEN = 0x7FC00000
EPERM = 0x00050001
ENOSYS = 0x00050026
ENOTSUP = 0x0005005F

ARCHITECTURES = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}
"""Machine to its audit number and its system calls."""

_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000

_ALL = 0xFFFFFFFF
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM = 1, 2
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58

# Families, and of the internet's only the protocols that programs use: a family's number is not
# the only way to SCTP, SMC or MPTCP, each of which the host's kernel would load a module for.
_SOCKETS = [
    [(0, _ALL, _UNIX)],
    [(0, _ALL, _NETLINK), (2, _ALL, 0)],  # NETLINK_ROUTE
    *(
        [(0, _ALL, family), (1, 0xF, kind), (2, _ALL, protocol)]
        for family, echo in ((_INET, _ICMP), (_INET6, _ICMP6))
        for kind, protocol in (
            (_STREAM, 0), (_STREAM, _TCP), (_DATAGRAM, 0), (_DATAGRAM, _UDP), (_DATAGRAM, echo),
        )
    ),
]  # fmt: skip

# Name to (action if one of the alternatives holds, action if none does, alternatives). An
# alternative is a list of (argument, mask, value) that all have to hold.
CHECKED = {
    "clone": (ALLOW, EPERM, [[(0, _NEW_NAMESPACES, 0)]]),
    "personality": (
        ALLOW, EPERM, [[(0, 0xFFFFFFFF, value)] for value in (0, 0x40000, 0xFFFFFFFF)],
    ),
    "seccomp": (ALLOW, EPERM, [[(1, 8, 0)]]),  # no listener that would answer for others
    "socket": (ALLOW, EPERM, _SOCKETS),
    "socketpair": (ALLOW, EPERM, [[(0, 0xFFFFFFFF, 1)]]),
    # TIOCSTI and TIOCLINUX, which put words into somebody else's terminal
    "ioctl": (EPERM, ALLOW, [[(1, 0xFFFFFFFF, 0x5412)], [(1, 0xFFFFFFFF, 0x541C)]]),
    "mknod": (ALLOW, EPERM, [[(1, 0o170000, kind)] for kind in (0, 0o100000, 0o010000, 0o140000)]),
    "mknodat": (
        ALLOW, EPERM, [[(2, 0o170000, kind)] for kind in (0, 0o100000, 0o010000, 0o140000)],
    ),
    "fcntl": (EPERM, ALLOW, [[(1, 0xFFFFFFFF, 1024)], [(1, 0xFFFFFFFF, 1026)]]),  # SETLEASE, NOTIFY
}  # fmt: skip

# Where the host's namespaces are shared, everything that these reach is the host's: its sockets (an
# address in a folder is held by no rule of Landlock's), its queues and segments, its processes by
# their number. A pair of connected sockets reaches nobody, except that a datagram can be sent from
# one of them to anywhere.
_SHARED_CHECKED = {
    **{name: row for name, row in CHECKED.items() if name != "socket"},
    "socketpair": (ALLOW, EPERM, [[(0, _ALL, 1), (1, 0xF, kind)] for kind in (1, 5)]),
    "prlimit64": (ALLOW, EPERM, [[(0, _ALL, 0)]]),
    "setpriority": (ALLOW, EPERM, [[(0, _ALL, which), (1, _ALL, 0)] for which in (0, 1)]),
    "ioprio_set": (ALLOW, EPERM, [[(0, _ALL, which), (1, _ALL, 0)] for which in (1, 2)]),
    **{
        name: (ALLOW, EPERM, [[(0, _ALL, 0)]])
        for name in (
            "sched_setattr", "sched_setparam", "sched_setscheduler",
        )
    },
}  # fmt: skip

_SHARED_DENIED = frozenset(
    """
    bind chown connect fchown fchownat file_setattr inotify_add_watch lchown listen mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
    semctl semget semop semtimedop shmat shmctl shmdt shmget socket
    sched_setaffinity
    """.split()  # noqa: SIM905
)

# What changes a file without opening it for writing is held by no rule of Landlock's.
_SHARED_UNSUPPORTED = frozenset(
    """
    fremovexattr fsetxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """.split()  # noqa: SIM905
)

LISTENED = frozenset(
    {
        "chmod", "fchmod", "fchmodat", "fchmodat2", "futimesat", "utime", "utimensat", "utimes",
    }
)  # fmt: skip
"""The rest of those, which a keeper does for the program (`listening_filter`)."""

TRACED = {"setns": EPERM, "unshare": EPERM, "capset": EPERM, "clone3": ENOSYS}
"""What only the station may make a carrier do, and what it is where there is no station to trace:
C libraries want to hear of `clone3` that there is none, since its flags cannot be looked at."""

DENIED = frozenset(
    """
    ptrace process_vm_readv process_vm_writev kcmp keyctl add_key request_key io_uring_setup
    io_uring_enter io_uring_register bpf perf_event_open userfaultfd mount umount2 pivot_root
    chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
    name_to_handle_at open_by_handle_at memfd_secret modify_ldt pidfd_getfd vmsplice mbind
    set_mempolicy
    get_mempolicy migrate_pages move_pages set_mempolicy_home_node fanotify_init fanotify_mark
    quotactl quotactl_fd lookup_dcookie syslog vhangup acct swapon swapoff reboot sethostname
    setdomainname settimeofday clock_settime adjtimex clock_adjtime create_module
    delete_module init_module finit_module query_module get_kernel_syms kexec_load
    kexec_file_load iopl ioperm uselib ustat sysfs listmount statmount process_madvise
    lsm_set_self_attr
    """.split()  # noqa: SIM905 - a list of a hundred lines reads worse
)

ALLOWED = frozenset(
    """
    accept accept4 access alarm arch_prctl bind brk cachestat capget chdir chmod chown
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat
    dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
    eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate
    fchdir fchmod fchmodat fchmodat2 fchown fchownat fdatasync fgetxattr file_getattr
    file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync
    ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list
    getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
    io_getevents io_pgetevents io_setup io_submit ioprio_get ioprio_set kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr
    lsm_list_modules lstat madvise membarrier memfd_create mincore mkdir mkdirat mlock mlock2
    mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat
    readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield select semctl semget semop semtimedop
    sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit
    setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown
    sigaltstack signalfd signalfd4 splice stat statfs statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes
    vfork wait4 waitid write writev
    """.split()  # noqa: SIM905 - a list of a hundred lines reads worse
)


def checked_calls(setting: Setting) -> dict[str, tuple[int, int, list[list[tuple[int, int, int]]]]]:
    """The calls whose arguments count: as `CHECKED`."""
    return _SHARED_CHECKED if setting == "host" else CHECKED


def action_of(
    machine: str, number: int, arguments: tuple[int, ...] = (0,) * 6, *, setting: Setting
) -> int:
    """What the policy says of one call: the reference that the compiled filter is tested with."""
    names = {known: name for name, known in ARCHITECTURES[machine][1].items()}
    if machine == "x86_64" and number >= _X32:
        return KILL
    name = names.get(number)
    checked = checked_calls(setting)
    if name in checked:
        match, otherwise, alternatives = checked[name]
        held = any(
            all(arguments[index] & mask == value for index, mask, value in alternative)
            for alternative in alternatives
        )
        return match if held else otherwise
    return _plain_action(name, setting)


def _plain_action(name: str | None, setting: Setting) -> int:
    if setting == "host" and name in _SHARED_DENIED:
        return EPERM
    if setting == "host" and name in _SHARED_UNSUPPORTED:
        return ENOTSUP  # as of a file system without them: programs then do what they can
    if name in ALLOWED:
        return ALLOW
    if name in DENIED:
        return EPERM
    if name in TRACED:
        return TRACE if setting == "carrier" else TRACED[name]
    return ENOSYS


def listening_filter() -> bytes:
    """The program that hands the calls of `LISTENED` over to whoever listens, and allows the rest.

    It stands before another one, which wins wherever that says anything but ALLOW.
    """
    return _two_fates(LISTENED, LISTEN, ALLOW)


# --- compiling ----------------------------------------------------------------------------------

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST = 0x15, 0x25, 0x35
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]


@cache
def filter_for(setting: Setting) -> bytes:
    """The program for this machine.

    Raises:
        KeyError: a machine that there is no table for.
    """
    return compile_filter(platform.machine(), setting)


@cache
def reaper_filter() -> bytes:
    """The program for an init without an interpreter: it waits for children, and nothing else."""
    return _two_fates(("wait4", "rt_sigtimedwait", "restart_syscall"), ALLOW, KILL)


def _two_fates(names: Iterable[str], theirs: int, others: int) -> bytes:
    """A program with one action for some calls and one for all others."""
    audit_number, numbers = ARCHITECTURES[platform.machine()]
    found = sorted(numbers[name] for name in names if name in numbers)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, audit_number),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *[(_JUMP_EQUAL, len(found) - place, 0, number) for place, number in enumerate(found)],
        (_RETURN, 0, 0, others),
        (_RETURN, 0, 0, theirs),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def compile_filter(machine: str, setting: Setting) -> bytes:
    """The policy as an array of `struct sock_filter`, for one machine."""
    audit_number, numbers = ARCHITECTURES[machine]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, audit_number),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        code += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, KILL)]
    for first, last, block in _ranges(numbers, setting):
        # Ranges come in order, so what is below this one is in none.
        code += [(_JUMP_AT_LEAST, 1, 0, first), (_RETURN, 0, 0, ENOSYS)]
        code += [(_JUMP_GREATER, len(block), 0, last), *block]
    code.append((_RETURN, 0, 0, ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _ranges(numbers: dict[str, int], setting: Setting) -> list[tuple[int, int, list[Instruction]]]:
    """Runs of numbers with the same fate, in order, and the code that decides it."""
    checked = checked_calls(setting)
    found: list[tuple[int, int, list[Instruction]]] = []
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        if name in checked:
            block = _check(*checked[name])
        else:
            block = [(_RETURN, 0, 0, _plain_action(name, setting))]
        if found and found[-1][1] == number - 1 and found[-1][2] == block:
            found[-1] = (found[-1][0], number, block)
        else:
            found.append((number, number, block))
    return found


def _check(
    match: int, otherwise: int, alternatives: list[list[tuple[int, int, int]]]
) -> list[Instruction]:
    """Code that compares arguments: the alternatives one after the other."""
    code: list[Instruction] = []
    for alternative in alternatives:
        length = 3 * len(alternative) + 1
        for place, (index, mask, value) in enumerate(alternative):
            code += [
                (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index),  # the low word: both are little-endian
                (_AND, 0, 0, mask),
                (_JUMP_EQUAL, 0, length - 3 * (place + 1), value),
            ]
        code.append((_RETURN, 0, 0, match))
    return [*code, (_RETURN, 0, 0, otherwise)]
