"""Landlock: what no process of a sandbox may do, held by the process itself.

In the tier `landlock` it is the wall around files and ports (`only_wall`) and, from ABI 6 on, what
keeps signals in a sandbox (`scope_wall`).

Rules hang on inodes and every process enters a domain of its own, which decides what can be asked
of it where mount and pid namespaces stand already (`second_wall`):

* Files are left to the mounts. A rule on the work folder would be lost with its next layer.
* Only what nobody may do anywhere is handled: making device nodes, and talking to device files
  outside `/dev`.
* Moving and linking between folders (`REFER`) is forbidden by any ruleset that does not grant it,
  so it is granted from each root down. Kernels that cannot grant it (ABI 1) get no ruleset.
* Signals and abstract sockets are not scoped: two calls of one sandbox are two domains, and one
  may end what the other started. Between sandboxes the namespaces hold that.

Formats: linux/landlock.h. A domain also keeps its processes from looking into others (ptrace and
its relatives), which is why it is entered last; under hidepid=2 they do not even see others in
/proc, so that `ps` of one call does not show what another call left running.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BIND_TCP",
    "CONNECT_TCP",
    "EXECUTE",
    "IOCTL_DEV",
    "MAKE_BLOCK",
    "MAKE_CHAR",
    "MAKE_DIR",
    "MAKE_FIFO",
    "MAKE_REG",
    "MAKE_SOCK",
    "MAKE_SYM",
    "NEWEST",
    "OLDEST",
    "PORTS_SINCE",
    "READ_DIR",
    "READ_FILE",
    "REFER",
    "REMOVE_DIR",
    "REMOVE_FILE",
    "SCOPES_SINCE",
    "SCOPE_ABSTRACT_SOCKETS",
    "SCOPE_SIGNALS",
    "TRUNCATE",
    "WRITE_FILE",
    "abi",
    "create_ruleset",
    "known_rights",
    "only_wall",
    "restrict_self",
    "scope_wall",
    "second_wall",
]

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK = (1 << bit for bit in range(6, 10))
MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(10, 16))
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2

OLDEST = 3
"""The first ABI that is worth having: it can tell truncating from writing."""
NEWEST = 7
"""The newest ABI that somebody has looked at. A newer kernel is used as if it were this one."""

_RIGHTS = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))  # since which ABI
PORTS_SINCE, SCOPES_SINCE = 4, 6
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def abi() -> int:
    """The ABI to go by here: 0 where there is no Landlock, it is off, or a filter forbids it."""
    try:
        found = calls.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise
    return min(found, NEWEST)


def known_rights(version: int) -> int:
    """Every right over files that an ABI can hold."""
    return sum(rights for since, rights in _RIGHTS if since <= version)


def create_ruleset(
    version: int,
    handled: int,
    paths: list[tuple[int, int]],
    *,
    handled_ports: int = 0,
    ports: tuple[tuple[int, int], ...] = (),
    scopes: int = 0,
) -> int:
    """A ruleset; its descriptor. What is `handled` is forbidden except where a rule allows it.

    `paths` are (descriptor, rights): what is allowed for the file, or in the folder and below it.
    `ports` are (TCP port, rights). Whatever the ABI `version` does not know is left out, also of
    what is handled: a caller that cannot do without it compares with `known_rights` first.

    Raises OSError.
    """
    known = known_rights(version)
    header = struct.pack("=Q", handled & known)
    if version >= PORTS_SINCE:
        header += struct.pack("=Q", handled_ports)
    if version >= SCOPES_SINCE:
        header += struct.pack("=Q", scopes)
    ruleset = calls.call("landlock_create_ruleset", header, len(header), 0)
    try:
        for descriptor, rights in paths:
            _allow(ruleset, _PATH_BENEATH, _path_rule(descriptor, rights & handled & known))
        for port, rights in ports if version >= PORTS_SINCE else ():
            _allow(ruleset, _NET_PORT, struct.pack("=QQ", rights & handled_ports, port))
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _path_rule(descriptor: int, rights: int) -> bytes:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _OF_A_FILE  # the kernel refuses the others for a file
    return struct.pack("=Qi", rights, descriptor)


def _allow(ruleset: int, kind: int, rule: bytes) -> None:
    if any(rule[:8]):  # a rule that allows nothing is refused by the kernel
        calls.call("landlock_add_rule", ruleset, kind, rule, 0)


def restrict_self(ruleset: int) -> None:
    """Enter a domain with this ruleset, for good. The thread must have no_new_privs.

    Raises OSError.
    """
    calls.call("landlock_restrict_self", ruleset, 0)


def scope_wall(version: int) -> int:
    """A ruleset that keeps signals and abstract sockets among the processes that enter it together;
    -1 where the kernel has none.

    Raises OSError.
    """
    if version < SCOPES_SINCE:
        return -1
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        scopes = SCOPE_SIGNALS | SCOPE_ABSTRACT_SOCKETS
        return create_ruleset(version, REFER, [(root, REFER)], scopes=scopes)
    finally:
        os.close(root)


def only_wall(version: int, paths: Sequence[tuple[str, int]]) -> int:
    """The ruleset of a sandbox that has nothing but Landlock around its files: what is not below
    one of `paths` (path, rights) cannot be opened, made, removed or renamed, and no TCP port used.

    A path that is not there is left out. Raises OSError.
    """
    opened: list[int] = []
    rules: list[tuple[int, int]] = []
    try:
        for path, rights in paths:
            with contextlib.suppress(FileNotFoundError):
                opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
                rules.append((opened[-1], rights))
        ports = BIND_TCP | CONNECT_TCP
        return create_ruleset(version, known_rights(version), rules, handled_ports=ports)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def second_wall(version: int, roots: list[str]) -> int:
    """The ruleset of every process of the `namespace` tier; -1 where the kernel has none to give.

    `roots` are the folders that are, or will be, the `/` of a sandbox; each has its devices at
    `dev`. One ruleset serves every slot, since the slots share these inodes.

    Raises OSError.
    """
    if version < OLDEST:
        return -1
    opened: list[int] = []
    rules: list[tuple[int, int]] = []
    try:
        for root in roots:
            for path, rights in ((root, REFER), (os.path.join(root, "dev"), IOCTL_DEV)):
                opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
                rules.append((opened[-1], rights))
        return create_ruleset(version, MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV | REFER, rules)
    finally:
        for descriptor in opened:
            os.close(descriptor)
