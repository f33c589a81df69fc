"""The launcher's part of a sandbox's network: programs that speak for sandboxes on the host.

`pasta` or `slirp4netns`, one process per sandbox with a network: in the host's network namespace,
with the user and the rights of a user namespace of its own that holds nothing but the router. Never
root of the host. A helper ends when the station closes its line, when the station ends, and, by the
kernel, when the launcher does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import stat

from . import _calls as calls
from .network import GATEWAY, MTU, SANDBOX, TAP
from .root import DNS
from .rtnetlink import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Helpers"]

_TUN = "/dev/net/tun"
_TUN_NUMBER = (10, 200)
_NAMESPACE = "/proc/self/fd/0"  # the router's, handed over as standard input
_GET_OWNER, _GET_PARENT = 0xB701, 0xB702  # NS_GET_USERNS, NS_GET_PARENT
_OPEN_FILES = 4096  # bounds the connections of a sandbox
_ARGUMENTS = {
    "pasta": (
        "--foreground", "--quiet", "--ipv4-only", "--netns-only", "--netns", _NAMESPACE,
        "--no-netns-quit", "--ns-ifname", TAP, "--address", SANDBOX, "--netmask", "24",
        "--gateway", GATEWAY, "--dns-forward", DNS, "--no-map-gw", "--mtu", str(MTU),
        "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra",
        "-t", "none", "-u", "none", "-T", "none", "-U", "none",
    ),
    "slirp4netns": (
        "--netns-type=path", "--cidr=192.0.2.0/24", f"--mtu={MTU}", "--disable-host-loopback",
        "--enable-sandbox", "--enable-seccomp", _NAMESPACE, TAP,
    ),
}  # fmt: skip


class Helpers:
    """The helpers of one station, each with its line to it. `programs` are absolute paths."""

    def __init__(self, programs: list[str], station: int, root_mode: bool) -> None:
        self._programs = programs
        self._root_mode = root_mode
        self._owner = os.stat(f"/proc/{station}/ns/user").st_ino
        self._station = station
        self._helpers: dict[int, tuple[int, socket.socket]] = {}  # pidfd to pid and line
        calls.prctl(36, 1)  # SET_CHILD_SUBREAPER: what a helper leaves is ours to bury

    def start(self, choice: int, spaces: list[int]) -> tuple[socket.socket, list[str]]:
        """Start a program by its number, for a router given by its user and network namespaces.

        Returns the station's end of the line and the host's own addresses. Raises OSError.
        """
        self._check(spaces)
        program = self._programs[choice]
        addresses = _own_addresses()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)  # nobody reads what a helper says while it works
            pid = calls.clone(calls.CLONE_NEWNS if self._root_mode else 0)
            if pid == 0:
                _become_helper(program, spaces, ours.fileno(), self._root_mode)
            self._helpers[calls.pidfd_open(pid)] = (pid, ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs, addresses

    def _check(self, spaces: list[int]) -> None:
        """Only a namespace that belongs to the station, and what that one owns, is ever joined."""
        if len(spaces) != 2:
            raise OSError(errno.EINVAL, "a router is two namespaces")
        user, network = spaces
        parent = fcntl.ioctl(user, _GET_PARENT)
        owner = -1
        try:
            owner = fcntl.ioctl(network, _GET_OWNER)
            ours = os.fstat(parent).st_ino == self._owner
            if not ours or os.fstat(owner).st_ino != os.fstat(user).st_ino:
                raise OSError(errno.EPERM, "not a router of this station")
        finally:
            os.close(parent)
            if owner >= 0:
                os.close(owner)

    def descriptors(self) -> list[int]:
        """What becomes readable when a helper has ended, or is to be ended."""
        return [*self._helpers, *(line.fileno() for _, line in self._helpers.values())]

    def look_after(self) -> None:
        """End the helpers whose line is closed, and close the lines of those that have ended."""
        for pidfd, (pid, line) in list(self._helpers.items()):
            if os.waitpid(pid, os.WNOHANG)[0] or (_is_closed(line) and _kill(pid)):
                del self._helpers[pidfd]
                os.close(pidfd)
                line.close()
        self._bury()

    def _bury(self) -> None:
        """Wait for children that helpers have left behind; others are waited for elsewhere."""
        known = {self._station, *(pid for pid, _ in self._helpers.values())}
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)

    def end(self) -> None:
        for pidfd, (pid, line) in self._helpers.items():
            _kill(pid)
            os.close(pidfd)
            line.close()
        self._helpers.clear()
        self._bury()


def _kill(pid: int) -> bool:
    """Kill a child and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def _is_closed(line: socket.socket) -> bool:
    try:
        return line.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _own_addresses() -> list[str]:
    """The IPv4 addresses of the host, loopback included."""
    control = Control()
    try:
        rows = control.addresses()
    finally:
        control.close()
    return [socket.inet_ntoa(packed) for family, packed in rows if family == socket.AF_INET]


# --- the child's side ---------------------------------------------------------------------------


def _become_helper(program: str, spaces: list[int], line: int, root_mode: bool) -> NoReturn:
    """From a copy of the launcher to the helper's own program; never returns."""
    try:
        user, network = spaces
        if root_mode:
            _show_tun()
            os.setgroups([])
        calls.setns(user, calls.CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        calls.prctl(1, signal.SIGKILL)  # SET_PDEATHSIG; after the ids, which take it back
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and so by what it becomes
            signal.signal(ignored, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(network, 0)
        os.dup2(null, 1)
        os.dup2(line, 2)
        calls.close_range(3)
        calls.prctl(38, 1)  # NO_NEW_PRIVS
        os.execve(program, [program, *_ARGUMENTS[os.path.basename(program)]], {})
    except BaseException as error:  # noqa: BLE001 - nobody else would hear of it
        os.write(line, f"{program}: {error!r}".encode())
    finally:
        os._exit(125)


def _show_tun() -> None:
    """In mounts of our own: a /dev/net/tun that others than root may open, as on most machines.

    A tun device gives no power by itself: what can be done with one is decided by the namespace.
    """
    if os.stat(_TUN).st_mode & 0o006 == 0o006:
        return
    calls.mount("", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    devices = calls.make_filesystem("tmpfs", {"size": "4k", "mode": "0755"}, calls.MOUNT_NOSUID)
    os.mknod("tun", stat.S_IFCHR | 0o666, os.makedev(*_TUN_NUMBER), dir_fd=devices)
    os.chmod(f"/proc/self/fd/{devices}/tun", 0o666)  # noqa: S103 - as on most machines
    calls.move_mount(devices, os.path.dirname(_TUN))
    os.close(devices)
