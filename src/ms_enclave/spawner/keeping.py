"""Where stations that outlive their owner are found: a folder with a record and a socket of each.

One owner at a time has the folder, by a lock of its own. A station's launcher listens on the
socket, which gives the next owner a connection once the last one has gone; the record says which
process that launcher is, for the case that it cannot be reached any more. A process is only taken
for the one that a record names if its start time and the machine's boot are the same: pids are
used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Peer",
    "Survivor",
    "announce",
    "find",
    "hold_process",
    "identity",
    "peer_of",
    "withdraw",
]

_NAMES = re.compile(r"station-([0-9a-f]{1,32})\.(json|sock)")
_BACKLOG = 8
_START_TIME = 19  # field 22 of /proc/PID/stat, counted from behind the name


# --- who a process is ---------------------------------------------------------------------------


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from every other one that ever has its pid. Raises OSError: none."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        start = int(file.read().rpartition(b")")[2].split()[_START_TIME])
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"pid": pid, "start": start, "boot": file.read().strip()}


def hold_process(row: dict[str, Any]) -> int:
    """A descriptor of the process that a record names, or -1: it has ended, or is another one."""
    try:
        held = os.pidfd_open(row["pid"])
    except OSError:
        return -1
    try:
        if identity(row["pid"]) == row and os.stat(f"/proc/{row['pid']}").st_uid == os.geteuid():
            return held
    except OSError:
        pass
    os.close(held)
    return -1


class Peer:
    """Who is at the other end of a connection, as the kernel says."""

    __slots__ = ("pid", "user")

    def __init__(self, pid: int, user: int) -> None:
        self.pid = pid
        self.user = user


def peer_of(connection: socket.socket) -> Peer:
    row = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", row)
    return Peer(pid, user)


# --- the launcher's side ------------------------------------------------------------------------


def announce(folder: str, instance: str) -> socket.socket:
    """Make the record of this process, and the socket that it listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.makedirs(folder, 0o700, exist_ok=True)
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        text = json.dumps(identity(os.getpid())).encode()
        whole = os.open(
            f".{instance}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=held
        )
        try:
            os.write(whole, text)
            os.fsync(whole)
        finally:
            os.close(whole)
        name = f"station-{instance}.json"
        os.rename(f".{instance}", name, src_dir_fd=held, dst_dir_fd=held)
        listener.bind(f"/proc/self/fd/{held}/station-{instance}.sock")  # however long the path is
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        withdraw(folder, instance)
        raise
    finally:
        os.close(held)
    return listener


def withdraw(folder: str, instance: str) -> None:
    """Remove what `announce` made."""
    for name in (f".{instance}", f"station-{instance}.sock", f"station-{instance}.json"):
        with contextlib.suppress(OSError):  # the folder may have been removed meanwhile
            os.unlink(f"{folder}/{name}")


# --- the owner's side ---------------------------------------------------------------------------


class Survivor:
    """One launcher that is there still: a connection to it, and what ends it if need be.

    Stands in for the `Popen` of one that this process has started itself.
    """

    def __init__(self, connection: socket.socket, pid: int, instance: str) -> None:
        """Raises OSError: it has just ended."""
        self.connection = connection
        self.pid = pid
        self.instance = instance
        self.returncode = 0
        self._held = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        poll = select.poll()
        poll.register(self._held, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("launcher", timeout or 0.0)
        return self.returncode

    def kill(self) -> None:
        self.returncode = -signal.SIGKILL
        _kill(self._held)

    def close(self) -> None:
        os.close(self._held)


def find(path: str) -> tuple[list[Survivor], list[str]]:
    """Connections to all stations of a folder that can be reached, and what was wrong with others.

    Nothing is left of those that cannot be: a launcher without a socket would wait for ever.
    """
    found: list[Survivor] = []
    complaints: list[str] = []
    instances: dict[str, None] = {}
    for name in sorted(os.listdir(path)):
        match = _NAMES.fullmatch(name)
        if match is not None:
            instances[match[1]] = None
    for instance in instances:
        row = _read(path, instance, complaints)
        survivor = _connect(path, instance)
        if survivor is not None:
            found.append(survivor)
            continue
        held = -1 if row is None else hold_process(row)
        if held >= 0:
            complaints.append(f"station {instance} could not be reached and was ended")
            _kill(held)
            os.close(held)
        withdraw(path, instance)
    return found, complaints


def _read(path: str, instance: str, complaints: list[str]) -> dict[str, Any] | None:
    """A station's record; one that is not whole is put aside."""
    name = f"{path}/station-{instance}.json"
    try:
        with open(name, "rb") as file:
            return _checked(json.loads(file.read(4096)))
    except OSError:
        return None
    except ValueError:
        complaints.append(f"{name} is not a record, and is now {name}.corrupt")
        os.replace(name, f"{name}.corrupt")
        return None


def _checked(row: Any) -> dict[str, Any]:
    """A record as `identity` makes it. Raises ValueError."""
    match row:
        case {"pid": int(pid), "start": int(start), "boot": str(boot)} if pid > 0:
            return {"pid": pid, "start": start, "boot": boot}
        case _:
            raise ValueError("not a record")


def _connect(path: str, instance: str) -> Survivor | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{held}/station-{instance}.sock")
        peer = peer_of(connection)
        if peer.user == os.geteuid():
            connection.setblocking(False)
            return Survivor(connection, peer.pid, instance)
    except OSError:
        pass  # nobody listens
    finally:
        os.close(held)
    connection.close()
    return None


def _kill(held: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(held, signal.SIGKILL)
