"""TCP ports of the sandbox: what listens, and a way to it from outside.

A connection is made here, to the loopback address that programs of the sandbox serve each other
on, and its bytes go through the channel: the sandbox needs no network for that.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time

from .call import Refused
from .loop import READ, WRITE, Cancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from .call import Call
    from .loop import Steps

__all__ = ["OPERATIONS"]

_PAGE = 100
_MOST_LISTENERS = 4096
_NAME = 64
_LISTENING = "0A"
_LINGER = 2.0
"""Seconds that what was sent before the end has to reach whoever listens."""
_LOOPBACK = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))


# --- what listens -------------------------------------------------------------------------------


def list_ports(call: Call) -> Steps[dict[str, Any]]:
    """Pages of `[port, address, pid or None, name of the process or None]`."""
    found: dict[tuple[int, str], str] = {}
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for port, address, inode in _listeners("/proc/self/net/" + table, size):
            found.setdefault((port, address), inode)
        yield 0
    owners = yield from _owners(set(found.values()))
    entries: list[list[Any]] = []
    for (port, address), inode in sorted(found.items()):
        pid = owners.get(inode)
        entries.append([port, address, pid, None if pid is None else _name_of(pid)])
    for start in range(0, len(entries), _PAGE):
        yield from call.send_page(entries[start : start + _PAGE])
    return {}


def _listeners(table: str, size: int) -> Iterator[tuple[int, str, str]]:
    """Port, address and inode of each listening socket in a table of the kernel's."""
    family = _socket.AF_INET if size == 4 else _socket.AF_INET6
    try:
        file = open(table, encoding="ascii", errors="replace")  # noqa: SIM115 - closed below
    except OSError:
        return  # a kernel without that family
    with file:
        next(file, None)
        count = 0
        for line in file:
            words = line.split()
            if len(words) < 10 or words[3] != _LISTENING:
                continue
            address, _, port = words[1].partition(":")
            yield int(port, 16), _socket.inet_ntop(family, _address(address)), words[9]
            count += 1
            if count >= _MOST_LISTENERS:
                return


def _address(text: str) -> bytes:
    """The kernel writes an address as words of 32 bits, each a number of this machine's."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "big":
        return raw
    return b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))


def _owners(inodes: set[str]) -> Steps[dict[str, int]]:
    """Which process has which of the sockets, as far as we may look."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if wanted else []
    for pid in pids:
        for target in _open_files(pid):
            inode = wanted.get(target)
            if inode is not None:
                found.setdefault(inode, pid)
        if len(found) == len(wanted):
            break
        yield 0
    return found


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return  # it has ended, or is another user's
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue


def _name_of(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(_NAME).rstrip(b"\n").decode("utf-8", "replace")
    except OSError:
        return None


# --- a connection -------------------------------------------------------------------------------


def connect(call: Call) -> Steps[dict[str, Any]]:
    """Connect to a port and pass bytes both ways, until both sides have ended or one breaks."""
    port = call.number_of("port")
    if port is None or not 0 < port < 1 << 16:
        raise Refused("a port is a number from 1 to 65535")
    connection = yield from _connected(call, port)
    try:
        call.send_event({"connected": True})
        relay = _Relay(call, connection)
        try:
            yield from relay.run()
        except Cancelled:
            yield from relay.linger()
            raise
    finally:
        call.loop.unwatch(connection.fileno())
        connection.close()
    return {}


def _connected(call: Call, port: int) -> Steps[_socket.socket]:
    """A connected socket. Raises what the first address gives where none can be connected to."""
    failure: OSError | None = None
    for family, address in _LOOPBACK:
        try:
            connection = _socket.socket(family, _socket.SOCK_STREAM)
        except OSError as error:
            failure = failure or error
            continue
        try:
            yield from _connect(call, connection, address, port)
        except OSError as error:
            connection.close()
            failure = failure or error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure or OSError(errno.EAFNOSUPPORT, "no TCP")


def _connect(call: Call, connection: _socket.socket, address: str, port: int) -> Steps[None]:
    connection.setblocking(False)
    failed = connection.connect_ex((address, port))
    if failed == errno.EINPROGRESS:
        try:
            while True:
                call.loop.watch(connection.fileno(), WRITE, call.task)
                yield None
                failed = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                if failed or _has_peer(connection):
                    break
        finally:
            call.loop.unwatch(connection.fileno())
    if failed:
        raise OSError(failed, os.strerror(failed))
    connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)


def _has_peer(connection: _socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


class _Relay:
    """Bytes both ways between a call and a socket, each way ending by itself."""

    def __init__(self, call: Call, connection: _socket.socket) -> None:
        self._call = call
        self._connection = connection
        self._pending = memoryview(b"")
        self._inward = True
        self._outward = True
        self._events = 0

    def run(self) -> Steps[None]:
        """Go on until both ways have ended. Raises OSError where the connection breaks."""
        while self._inward or self._outward:
            self._events = 0
            moved = self._outward and self._move_out()
            moved = (self._inward and self._move_in()) or moved
            if moved:
                yield 0
                continue
            if self._events:
                self._call.loop.watch(self._connection.fileno(), self._events, self._call.task)
            else:
                self._call.loop.unwatch(self._connection.fileno())
            yield None

    def linger(self) -> Steps[None]:
        """Deliver what the host had sent before it closed its end, as a closed socket would."""
        deadline = time.monotonic() + _LINGER
        while self._inward and time.monotonic() < deadline:
            self._events = 0
            try:
                moved = self._move_in()
            except OSError:
                return
            if moved:
                yield 0
            elif not self._events:
                return  # all that came is delivered, and no end was announced
            else:
                self._call.loop.watch(self._connection.fileno(), self._events, self._call.task)
                yield deadline - time.monotonic()

    def _move_out(self) -> bool:
        """Towards the host."""
        room = self._call.credit()
        if not room:
            return False
        try:
            data = self._connection.recv(room)
        except BlockingIOError:
            self._events |= READ
            return False
        if data:
            self._call.send(data)
        else:
            self._outward = False
            self._call.send_end(0)
        return True

    def _move_in(self) -> bool:
        """Towards whoever listens."""
        if not self._pending:
            data = self._call.take()
            if data is None:
                return False
            if not data:
                self._inward = False
                self._shut_down()
                return True
            self._pending = memoryview(data)
        try:
            sent = self._connection.send(self._pending)
        except BlockingIOError:
            self._events |= WRITE
            return False
        except (BrokenPipeError, ConnectionResetError):
            # Nobody reads there any more; what they wrote before can still be read.
            self._inward = False
            self._pending = memoryview(b"")
            self._call.send_event({"deaf": True})
            return True
        self._pending = self._pending[sent:]
        self._call.consumed(sent)
        return True

    def _shut_down(self) -> None:
        try:
            self._connection.shutdown(_socket.SHUT_WR)
        except OSError:
            return  # it is not connected any more, which reading says better


OPERATIONS = {"ports": list_ports, "connect": connect}
