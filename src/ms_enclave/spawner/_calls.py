"""The system calls that Python's library does not have, by number. Nothing here decides anything.

Each raises OSError with the call's name as its text. Flags are the kernel's, from linux/mount.h,
linux/sched.h and linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "CLONE_PARENT",
    "EVERY_NAMESPACE",
    "MOUNT_NODEV",
    "MOUNT_NOEXEC",
    "MOUNT_NOSUID",
    "MOUNT_READ_ONLY",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "NO_CAPABILITIES",
    "TREE_COPY",
    "call",
    "capabilities",
    "child_events",
    "clone",
    "close_range",
    "come_back",
    "copy_of",
    "drop_all_capabilities",
    "drop_bounding_set",
    "end_at_once",
    "make_filesystem",
    "mount",
    "mount_setattr",
    "move_mount",
    "number",
    "open_tree",
    "openat2",
    "pidfd_getfd",
    "pidfd_open",
    "pivot_root",
    "prctl",
    "program_header",
    "reconfigure",
    "set_listening_seccomp",
    "set_seccomp",
    "setns",
    "umount",
]

_X86 = platform.machine() == "x86_64"
_NUMBERS = (
    {
        "capset": 126, "chdir": 80, "clone": 56, "ioctl": 16, "mount": 165, "openat": 257,
        "pivot_root": 155, "prctl": 157, "sched_setaffinity": 203, "seccomp": 317,
        "sethostname": 170, "setns": 308, "setresgid": 119, "setresuid": 117, "setsid": 112,
        "signalfd4": 289, "socket": 41, "umount2": 166, "utimensat": 280, "write": 1,
    }
    if _X86
    else {
        "capset": 91, "chdir": 49, "clone": 220, "ioctl": 29, "mount": 40, "openat": 56,
        "pivot_root": 41, "prctl": 167, "sched_setaffinity": 122, "seccomp": 277,
        "sethostname": 161, "setns": 268, "setresgid": 149, "setresuid": 147, "setsid": 157,
        "signalfd4": 74, "socket": 198, "umount2": 39, "utimensat": 88, "write": 64,
    }
)  # fmt: skip
_NUMBERS.update(
    open_tree=428, move_mount=429, fsopen=430, fsconfig=431, fsmount=432, fspick=433,
    pidfd_open=434, mount_setattr=442, close_range=436, landlock_create_ruleset=444,
    landlock_add_rule=445, landlock_restrict_self=446, openat2=437, pidfd_getfd=438,
)  # fmt: skip

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
EVERY_NAMESPACE = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID
    | CLONE_NEWNET
)  # fmt: skip
_SIGCHLD = 17

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MOUNT_READ_ONLY, MOUNT_NOSUID, MOUNT_NODEV, MOUNT_NOEXEC = 1, 2, 4, 8

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_O_CLOEXEC = os.O_CLOEXEC
TREE_COPY = _OPEN_TREE_CLONE | _O_CLOEXEC | _AT_RECURSIVE
"""Flags of `open_tree`: a detached copy of what is mounted at a path and below it."""
_FSCONFIG_FLAG, _FSCONFIG_STRING, _FSCONFIG_FD, _FSCONFIG_CREATE, _FSCONFIG_RECONFIGURE = (
    0,
    1,
    5,
    6,
    7,
)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call by name; integers go as longs, bytes as pointers to them."""
    values = [
        ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_long(value or 0)
        for value in arguments
    ]
    result = _syscall(ctypes.c_long(_NUMBERS[name]), *values)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def number(name: str) -> int:
    """A system call's number on this machine."""
    return _NUMBERS[name]


def clone(flags: int) -> int:
    """A plain `fork` with namespace flags: 0 in the child. Only from a single-threaded process."""
    return call("clone", flags | _SIGCHLD, 0, 0, 0, 0)


def close_range(first: int, last: int = 2**32 - 1) -> None:
    call("close_range", first, last, 0)


def child_events() -> int:
    """A descriptor that is readable while a SIGCHLD, which the caller has blocked, is pending."""
    mask = struct.pack("=Q", 1 << (_SIGCHLD - 1))
    return call("signalfd4", -1, mask, 8, os.O_CLOEXEC | os.O_NONBLOCK)


def setns(descriptor: int, kinds: int) -> None:
    call("setns", descriptor, kinds)


def come_back(descriptor: int, kind: int) -> None:
    """Step into a namespace of our own again, or end: whoever goes on in somebody else's makes
    every next step in the wrong place."""
    try:
        setns(descriptor, kind)
    except OSError as error:
        end_at_once(f"there is no way back into the own namespaces: {error}")


def end_at_once(text: str) -> NoReturn:
    """End where to go on would open a wall; with a station all of its sandboxes end, too."""
    os.write(2, f"{text}\n".encode())
    os._exit(125)


def pidfd_open(pid: int) -> int:
    return call("pidfd_open", pid, 0)


def pidfd_getfd(process: int, descriptor: int) -> int:
    """A copy of another process's descriptor; needs the right to trace it."""
    return call("pidfd_getfd", process, descriptor, 0)


def prctl(option: int, *arguments: int) -> int:
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))


def capabilities() -> int:
    """The effective capabilities of this process, a bit each."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


NO_CAPABILITIES = (struct.pack("=Ii", 0x20080522, 0), bytes(24))
"""The arguments of `capset` that empty the permitted, effective and inheritable sets."""


def drop_bounding_set() -> None:
    """Have no program that this process becomes get a capability back. Takes CAP_SETPCAP."""
    for capability in range(64):
        try:
            prctl(24, capability)  # CAPBSET_DROP
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # the kernel knows no more of them


def drop_all_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets of the calling thread."""
    call("capset", *NO_CAPABILITIES)


def program_header(program: bytes) -> bytes:
    """The struct sock_fprog of a classic BPF program, which has to live as long as it is used."""
    space = ctypes.create_string_buffer(program, len(program))
    _programs[program] = space
    return struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(space))


_programs: dict[bytes, ctypes.Array[ctypes.c_char]] = {}


def set_seccomp(program: bytes) -> None:
    """Install a classic BPF program (an array of struct sock_filter) for good."""
    prctl(38, 1)  # NO_NEW_PRIVS
    call("seccomp", 1, 0, program_header(program))  # SET_MODE_FILTER


def set_listening_seccomp(program: bytes) -> int:
    """The same for one that hands calls over; the descriptor on which they are heard."""
    prctl(38, 1)
    return call("seccomp", 1, 8, program_header(program))  # FILTER_FLAG_NEW_LISTENER


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        flags,
        None if data is None else data.encode(),
    )


def umount(target: str, flags: int = 2) -> None:
    """Detach what is mounted at `target` (flag 2: MNT_DETACH)."""
    call("umount2", os.fsencode(target), flags)


def pivot_root(new: str, old: str) -> None:
    call("pivot_root", os.fsencode(new), os.fsencode(old))


def open_tree(path: str, *, links: bool = True) -> int:
    """A detached copy of what is mounted at and below `path`; the descriptor owns it.

    Without `links` none is followed anywhere in the path (ELOOP): for what was resolved before,
    and somebody may have changed since.
    """
    flags = TREE_COPY
    if links:
        return call("open_tree", _AT_FDCWD, os.fsencode(path), flags)
    found = openat2(_AT_FDCWD, os.fsencode(path), os.O_PATH | _O_CLOEXEC, 0x04)  # NO_SYMLINKS
    try:
        return call("open_tree", found, b"", flags | _AT_EMPTY_PATH)
    finally:
        os.close(found)


def copy_of(tree: int) -> int:
    """A detached copy of the mount that a descriptor is the root of, and of what is below it."""
    return call("open_tree", tree, b"", TREE_COPY | _AT_EMPTY_PATH)


def openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    how = struct.pack("=QQQ", flags, 0, resolve)
    return call("openat2", folder, path, how, len(how))


def mount_setattr(tree: int, attributes: int, *, id_map: int | None = None) -> None:
    """Set mount attributes on a whole detached tree and cut its propagation.

    `id_map` is a descriptor of a user namespace whose map the mount then has.
    """
    if id_map is not None:
        attributes |= 0x00100000  # MOUNT_ATTR_IDMAP
    request = struct.pack("=QQQQ", attributes, 0, MS_PRIVATE, id_map or 0)
    call("mount_setattr", tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, request, len(request))


def move_mount(tree: int, target: str) -> None:
    """Attach a detached tree at `target` of the calling process's mount namespace."""
    call("move_mount", tree, b"", _AT_FDCWD, os.fsencode(target), 4)  # F_EMPTY_PATH


def make_filesystem(kind: str, options: Mapping[str, str | int | None], attributes: int) -> int:
    """A new file system that is mounted nowhere; returns the descriptor of its detached mount.

    An option's value is text, a descriptor (int) or None for a flag. A key may carry a `#n` that
    is cut off, so that an option can be given several times (overlay's `lowerdir+`).
    """
    context = call("fsopen", kind.encode(), 1)
    try:
        for key, value in options.items():
            name = key.split("#")[0].encode()
            if value is None:
                call("fsconfig", context, _FSCONFIG_FLAG, name, None, 0)
            elif isinstance(value, int):
                call("fsconfig", context, _FSCONFIG_FD, name, None, value)
            else:
                call("fsconfig", context, _FSCONFIG_STRING, name, value.encode(), 0)
        call("fsconfig", context, _FSCONFIG_CREATE, None, None, 0)
        return call("fsmount", context, 1, attributes)
    finally:
        os.close(context)


def reconfigure(mount: int, options: Mapping[str, str]) -> None:
    """Change options of a file system by the descriptor of the root of a mount of it."""
    context = call("fspick", mount, b"", 0x9)  # FSPICK_CLOEXEC, EMPTY_PATH
    try:
        for key, value in options.items():
            call("fsconfig", context, _FSCONFIG_STRING, key.encode(), value.encode(), 0)
        call("fsconfig", context, _FSCONFIG_RECONFIGURE, None, None, 0)
    finally:
        os.close(context)
