"""Ways out: of the file system, of the namespaces, of the ids, and into the kernel."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
import shutil
import stat
import subprocess
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .prelude import attempt, call, call_number, in_a_copy, saw

NEW_USER = 0x10000000
CHILD = 17  # SIGCHLD
INITIAL = {"cgroup": 4026531835, "pid": 4026531836, "user": 4026531837, "uts": 4026531838,
           "ipc": 4026531839}  # fmt: skip
"""The numbers of the namespaces that the machine began with (linux/proc_ns.h)."""

PASSED: set[int] = set()
"""Numbers of system calls that there are for a sandbox; whoever sends this fills it in."""

UNASKED = {"x86_64": {335, 336}}
"""Those for which kernels ask no filter: `uretprobe` and `uprobe`, which do nothing where it was
not the kernel that had put the call there (arch/x86/include/asm/seccomp.h)."""


def can_write(path: str) -> None:
    """Open it for writing, and write nothing."""
    opens(path, os.O_WRONLY | os.O_NONBLOCK)


def opens(path: str, flags: int) -> None:
    """Open it, and nothing more."""
    os.close(os.open(path, flags | os.O_CLOEXEC))


def settings_of_the_kernel() -> None:
    opened: list[str] = []
    tries = 0
    for folder, _, names in os.walk("/proc/sys"):
        for name in [*names, "../sysrq-trigger"]:
            tries += 1
            try:
                can_write(os.path.join(folder, name))
                opened.append(os.path.join(folder, name))
            except OSError:
                continue
    saw(f"a setting that can be written, of {tries}", opened)


def lines_of(path: str) -> list[str]:
    with open(path) as file:
        return file.readlines()


def ids() -> None:
    rows = [[int(word) for word in line.split()] for line in lines_of("/proc/self/uid_map")]
    own = {outside + os.geteuid() - inside for inside, outside, count in rows
           if inside <= os.geteuid() < inside + count}  # fmt: skip
    saw("being root outside", 0 in own, guard="own_ids")


def rows_of(path: str) -> dict[str, str]:
    with open(path) as file:
        return {name: rest.strip() for name, _, rest in (line.partition(":") for line in file)}


def privileges() -> None:
    for task in os.listdir("/proc/self/task"):
        rows = rows_of(f"/proc/self/task/{task}/status")
        # A bounding set is what a program could be given, which without new rights is nothing.
        # Some kernels (gVisor's) do not show all of it.
        no_more = rows.get("NoNewPrivs") == "1"
        bound = () if no_more else ("CapBnd",)
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", *bound):
            held = rows.get(name, "0")
            saw(f"{name} of a thread", int(held, 16) and held, guard="no_capabilities")
        saw("a thread that may gain rights", not no_more, guard="no_new_privs")
        saw("a thread without a filter", rows["Seccomp"] != "2", guard="seccomp")


def setuid_programs() -> None:
    tries = 0
    for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin"):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            mode = os.stat(path).st_mode if os.path.exists(path) else 0
            if not (stat.S_ISREG(mode) and mode & stat.S_ISUID):
                continue
            tries += 1
            with subprocess.Popen(
                [path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as child:
                users = set(rows_of(f"/proc/{child.pid}/status")["Uid"].split())
                saw(f"other ids in {path}", len(users) > 1, guard="no_new_privs")
                child.kill()
    saw(f"rights gained from {tries} programs", False, guard="no_new_privs")


def user_namespaces() -> None:
    in_a_copy("unshare", call, "unshare", NEW_USER)
    in_a_copy("clone", call, "clone", NEW_USER | CHILD, 0, 0, 0, 0)
    attempt("clone3", call, "clone3", 0, 0, harmless="EINVAL EFAULT")
    attempt("setns", call, "setns", -1, 0, harmless="EBADF EINVAL")


def mounts() -> None:
    none = ctypes.c_char_p(None)
    folder = os.fsencode(tempfile.mkdtemp())
    attempt("mount", call, "mount", b"x", folder, b"tmpfs", 0, none)
    attempt("remount", call, "mount", b"", b"/usr", b"", 0x20 | 0x1000, none)  # REMOUNT, BIND
    attempt("mount of control groups", call, "mount", b"x", folder, b"cgroup", 0, none)
    attempt("umount", call, "umount2", b"/proc", 0, harmless="EBUSY")
    attempt("fsopen", call, "fsopen", b"tmpfs", 0)
    attempt("open_tree", call, "open_tree", -100, b"/", 1)
    attempt("move_mount", call, "move_mount", -1, b"", -100, folder, 4, harmless="EBADF")
    attempt("mount_setattr", call, "mount_setattr", -1, b"/usr", 0, 0, 0, harmless="EINVAL")


def other_roots() -> None:
    before = os.stat("/").st_ino
    in_a_copy("chroot", call, "chroot", os.fsencode(tempfile.gettempdir()))
    attempt("pivot_root", call, "pivot_root", b"/", b"/", harmless="EBUSY EINVAL")
    saw("another root", os.stat("/").st_ino != before)


def devices() -> None:
    for kind, number in (("block", 0o060600), ("char", 0o020600)):
        path = os.path.join(tempfile.gettempdir(), kind)
        attempt(f"mknod of a {kind} device", os.mknod, path, number, os.makedev(1, 1))
        if os.path.exists(path):
            os.unlink(path)
    for name in ("mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "loop0", "loop-control",
                 "kvm", "fuse", "vsock", "vhost-net", "net/tun", "mapper/control", "uinput",
                 "hpet", "console", "tty0", "watchdog"):  # fmt: skip
        path = f"/dev/{name}"
        attempt(path, opens, path, os.O_RDONLY | os.O_NONBLOCK)


def control_groups() -> None:
    opened: list[str] = []
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            try:
                can_write(os.path.join(folder, name))
                opened.append(os.path.join(folder, name))
            except OSError:
                continue
    saw("a control group that can be written", opened)


def first_process() -> None:
    for name, flags in (("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY),
                        ("root/etc/passwd", os.O_RDONLY), ("cwd", os.O_RDONLY)):  # fmt: skip
        attempt(f"/proc/1/{name}", opens, f"/proc/1/{name}", flags, guard="hidden_guest")
    attempt("/proc/1/fd", os.readlink, "/proc/1/fd/0", guard="hidden_guest")


def core_dumps() -> None:
    saw("a core file", resource.getrlimit(resource.RLIMIT_CORE)[1] > 1, guard="rlimits")


def other_architectures() -> None:
    if platform.machine() != "x86_64":
        saw("another architecture's calls", False)
        return
    in_a_copy("int 0x80", _int_80)
    in_a_copy("x32", call_number, 0x40000000 + 39)


def _int_80() -> None:
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def every_other_call() -> None:
    went: list[int] = []
    passed = PASSED | UNASKED.get(platform.machine(), set())
    others = [number for number in range(600) if number not in passed]
    for number in others:
        pid = os.fork()  # of some the kernel thinks so little that it ends whoever makes them
        if pid == 0:
            os._exit(_is_refused(number))
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            went.append(number)
    saw(f"a call that there is not to be, of {len(others)}", went, guard="own_seccomp")


def _is_refused(number: int) -> bool:
    try:
        call_number(number, 0, 0, 0, 0, 0, 0)
    except OSError as error:
        return error.errno in (1, 38)  # EPERM, ENOSYS
    return False


def terminals() -> None:
    try:
        _, slave = os.openpty()
    except OSError:
        slave = 0  # no terminal is made here: there may still be one
    for name, request in (("TIOCSTI", 0x5412), ("TIOCSTI with high bits", 0x100005412),
                          ("TIOCLINUX", 0x541C)):  # fmt: skip
        attempt(name, call, "ioctl", slave, request, b"x", harmless="ENOTTY EIO EINVAL EFAULT")


def other_processes() -> None:
    in_a_copy("ptrace", call, "ptrace", 0, 0, 0, 0)
    attempt("process_vm_readv", call, "process_vm_readv", 1, 0, 0, 0, 0, 0)
    attempt("process_vm_writev", call, "process_vm_writev", 1, 0, 0, 0, 0, 0)
    attempt("pidfd_getfd", call, "pidfd_getfd", -1, 0, 0, harmless="EBADF")
    attempt("kcmp", call, "kcmp", 1, 1, 0, 0, 0)


def keys() -> None:
    attempt("add_key", call, "add_key", b"user", b"x", b"y", 1, -3)
    attempt("request_key", call, "request_key", b"user", b"x", 0, -3, harmless="ENOKEY")
    attempt("keyctl", call, "keyctl", 0, -3, 0, 0, 0, harmless="ENOKEY")
    try:
        with open("/proc/keys") as file:
            saw("keys", file.read())
    except OSError:
        saw("keys", "")


def rings() -> None:
    attempt("io_uring_setup", call, "io_uring_setup", 1, 0, harmless="EFAULT")
    attempt("io_uring_enter", call, "io_uring_enter", -1, 0, 0, 0, 0, harmless="EBADF")
    attempt("io_uring_register", call, "io_uring_register", -1, 0, 0, 0, harmless="EBADF EINVAL")


def weak_spots() -> None:
    bad = "EFAULT EINVAL EBADF ENOENT E2BIG"
    attempt("bpf", call, "bpf", 0, 0, 0, harmless=bad)
    attempt("perf_event_open", call, "perf_event_open", 0, 0, -1, -1, 0, harmless=bad)
    attempt("userfaultfd", call, "userfaultfd", 0, harmless=bad)
    attempt("fanotify_init", call, "fanotify_init", 0, 0, harmless=bad)
    attempt("name_to_handle_at", call, "name_to_handle_at", -100, b"/", 0, 0, 0, harmless=bad)
    attempt("open_by_handle_at", call, "open_by_handle_at", -1, 0, 0, harmless=bad)
    attempt("memfd_secret", call, "memfd_secret", 0, harmless=bad)
    attempt("vmsplice", call, "vmsplice", -1, 0, 0, 0, harmless=bad)
    attempt("kexec_load", call, "kexec_load", 0, -1, 0, 0x0F0F, harmless=bad)
    attempt("init_module", call, "init_module", 0, 0, b"", harmless=bad)
    attempt("swapon", call, "swapon", b"none", 0, harmless=bad)
    attempt("syslog", call, "syslog", 10, 0, 0, harmless=bad)
    attempt("personality", call, "personality", 0x0400000)  # ADDR_COMPAT_LAYOUT and the like


def socket_families() -> None:
    rows = {"ALG": (38, 5, 0), "VSOCK": (40, 1, 0), "PACKET": (17, 3, 0), "XDP": (44, 3, 0),
            "KEY": (15, 3, 2), "RXRPC": (33, 2, 2), "TIPC": (30, 4, 0), "RDS": (21, 5, 0),
            "CAN": (29, 3, 1), "BLUETOOTH": (31, 3, 1), "SMC": (43, 1, 0)}  # fmt: skip
    for name, numbers in rows.items():
        attempt(name, call, "socket", *numbers, harmless="EPROTONOSUPPORT ESOCKTNOSUPPORT")
    for protocol in range(1, 23):
        attempt(f"NETLINK {protocol}", call, "socket", 16, 3, protocol,
                harmless="EPROTONOSUPPORT")  # fmt: skip
    attempt("raw ICMP", call, "socket", 2, 3, 1)
    attempt("socketpair of another family", call, "socketpair", 16, 3, 0, 0, harmless="EOPNOTSUPP")


def listening_filters() -> None:
    attempt("a filter that listens", call, "seccomp", 1, 8, 0, harmless="EFAULT EINVAL")


def programs_in_memory() -> None:
    source = shutil.which("cat")
    if source is None or not hasattr(os, "memfd_create"):
        saw("a program in memory that is free", False)
        return
    memory = os.memfd_create("program")
    with open(source, "rb") as file:
        os.write(memory, file.read())
    with subprocess.Popen(["cat", "/proc/self/status"], executable=f"/proc/self/fd/{memory}",
                          pass_fds=[memory], stdout=subprocess.PIPE) as child:  # fmt: skip
        said = (child.stdout.read() if child.stdout else b"").decode()
    rows = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    saw("a program in memory without a filter", rows.get("Seccomp") != "2", guard="seccomp")
    saw("one that may gain rights", rows.get("NoNewPrivs") != "1", guard="no_new_privs")


def clocks() -> None:
    attempt("settimeofday", call, "settimeofday", 0, 0)
    attempt("clock_settime", call, "clock_settime", 0, 0, harmless="EFAULT")
    attempt("adjtimex", call, "adjtimex", 0, harmless="EFAULT")
    attempt("sethostname", call, "sethostname", b"x", 1)


def priorities() -> None:
    attempt("nice -20", os.setpriority, os.PRIO_PROCESS, 0, -20)
    attempt("a real-time class", lambda: os.sched_setscheduler(0, os.SCHED_FIFO,
                                                               os.sched_param(1)))  # fmt: skip
    saw("more memory that is locked", resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] > 1 << 26,
        guard="rlimits")  # fmt: skip


def namespaces() -> None:
    for name, number in INITIAL.items():
        path = f"/proc/self/ns/{name}"
        same = os.path.exists(path) and os.stat(path).st_ino == number
        saw(f"the machine's own {name} namespace", same, guard=f"{name}_namespace")
