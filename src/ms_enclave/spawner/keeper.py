"""The two processes that serve a sandbox of tier `landlock`: its keeper and its door.

Both are copies of the station that have become the sandbox's user, and neither ever executes what
a user wrote. Everything in the sandbox descends from the keeper, a subreaper: it waits for all of
them, tells the station how each ended, and kills them and removes their files when it is told to or
the station is gone. The door stands in the walls that the sandbox's processes share (one Landlock
domain for signals) and makes each of them, as a child of the keeper. A program that kills
everything it can reach reaches the door, and there is a new one; the keeper it cannot reach where
Landlock scopes signals.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import time

from . import _calls as calls
from . import broker, cold, folders, landlock, survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from ._shapes import User

__all__ = ["Place", "clean", "keep", "take_user"]

_PACKET = 1 << 16
_SETPCAP = 1 << 8
_PAUSE = 0.002
_SHARED_MEMORY = "/dev/shm"
_LEAST_PAUSE = 0.05  # s between two looks at what is stored, while that changes
_MOST_PAUSE = 1.0  # the same, while it does not
_MOST_DOORS = 3  # doors in a row that may not stand
_MOST_BLIND = 20  # looks in a row that may fail: no limit is held meanwhile
_MOST_FILES = 1 << 20
_SHARE = 20  # a look may take one part in so many of the time


class Place:
    """What a keeper is told of its sandbox.

    `folder` is its own on the host; `writable` are those that its programs may write in; `rules` is
    their Landlock ruleset and `program` their seccomp filter; `own_user` says whether the user is
    the sandbox's alone, and not the caller.
    """

    __slots__ = (
        "disk", "folder", "inodes", "own_user", "program", "rules", "user", "version", "writable",
    )  # fmt: skip

    def __init__(
        self, writable: list[str], folder: str, user: User, own_user: bool, rules: int,
        program: bytes, version: int, disk: int, inodes: int,
    ) -> None:  # fmt: skip
        self.writable = writable
        self.folder = folder
        self.user = user
        self.own_user = own_user
        self.rules = rules
        self.program = program
        self.version = version
        self.disk = disk
        self.inodes = inodes


def keep(place: Place, station: int, line: int, orders: int) -> NoReturn:
    """The keeper's life, in a new child of the station. Never returns.

    `line` leads to the station, `orders` from it to whoever is the door.
    """
    status = 125
    try:
        _leave_the_rest(place, line, orders)
        os.setsid()
        calls.prctl(36, 1)  # SET_CHILD_SUBREAPER
        take_user(place.user if place.own_user else None)
        scope = landlock.scope_wall(place.version)
        if scope >= 0:
            landlock.restrict_self(scope)
        keeper = _Keeper(place, station, line, orders, scope)
        try:
            keeper.run()
            status = 0
        except OSError as error:
            keeper.hang_up(error)
        finally:
            keeper.end()  # whatever it ends for: nobody else knows who is in the sandbox
    except BaseException as error:  # noqa: BLE001 - its only report
        os.write(line, json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(status)


def _leave_the_rest(place: Place, *wanted: int) -> None:
    """Close every descriptor of the station's but those three and the standard ones."""
    kept = sorted({*wanted, place.rules})
    for before, after in zip([2, *kept], [*kept, 1 << 31], strict=True):
        if before + 1 < after:
            calls.close_range(before + 1, min(after - 1, 2**32 - 1))


def take_user(user: User | None) -> None:
    """Become a user, if one is given, and give up for good whatever this process could do more."""
    if user is not None:
        if calls.capabilities() & _SETPCAP:
            calls.drop_bounding_set()
        os.setgroups([])
        os.setresgid(user[1], user[1], user[1])
        os.setresuid(user[0], user[0], user[0])
    calls.drop_all_capabilities()
    calls.prctl(38, 1)  # NO_NEW_PRIVS: nobody's execve gives any of them back
    calls.prctl(4, 0)  # SET_DUMPABLE: what it remembers is the station's


class _Keeper:
    """Its state and its one loop."""

    def __init__(self, place: Place, station: int, line: int, orders: int, scope: int) -> None:
        self.place = place
        self.line = socket.socket(fileno=line)
        self.orders = orders
        self.scope = scope
        self.door = 0
        self.children = calls.child_events()
        self.pause = _LEAST_PAUSE
        self.look_at = time.monotonic()
        self.seen = (0, 0)
        self.blind = 0
        self.at_once = place.own_user or _is_out_of_reach(station)
        self.brokers: dict[int, broker.Broker] = {}
        self.poll = select.poll()

    def run(self) -> None:
        self.open_door()
        self.poll.register(self.line, select.POLLIN)
        self.poll.register(self.children, select.POLLIN)
        while True:
            for descriptor, event in self.poll.poll(self.patience()):
                if descriptor == self.children:
                    _drain(self.children)
                elif descriptor in self.brokers:
                    self.serve(descriptor, event)
                elif self.hear() == b"begun":
                    self.look_now()
                else:  # it is to end, or the station has ended
                    return
            self.reap()
            self.watch()

    def patience(self) -> float:
        return max(0.0, self.look_at - time.monotonic()) * 1000

    def hear(self) -> bytes:
        """What the station says; nothing if it has ended, perhaps with unread words of ours."""
        try:
            return self.line.recv(_PACKET)
        except ConnectionResetError:
            return b""

    def say(self, **row: object) -> None:
        try:
            self.line.send(json.dumps(row).encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the station is gone, which the loop will hear of

    def hang_up(self, error: OSError) -> None:
        """Say why, and no more: what the programs are going to end with is not their own doing."""
        self.say(failed=f"{type(error).__name__}: {error}")
        self.line.shutdown(socket.SHUT_RDWR)

    def open_door(self) -> None:
        """Make a door. Raises OSError if it does not get so far: more than once, for who kills a
        run process by process may take it for one of those before we have said that it is none."""
        for _ in range(_MOST_DOORS):
            if self.make_door():
                return
        raise OSError(errno.EPERM, "the door did not get behind its walls")

    def make_door(self) -> bool:
        """The same once; False where it was killed, or failed, before it stood."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door = os.fork()
        if self.door == 0:
            ours.close()
            _stand_at_the_door(self, theirs)
        self.say(door=self.door)
        theirs.close()
        with ours:
            ready, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not ready:
            return False
        for listener in descriptors:
            self.brokers[listener] = broker.Broker(listener, self.place.writable)
            self.poll.register(listener, select.POLLIN)
        self.say(stands=True)
        return True

    def serve(self, listener: int, event: int) -> None:
        """Do what a program may not do itself; forget a listener when its last program is gone."""
        if not event & select.POLLIN or not self.brokers[listener].serve():
            self.poll.unregister(listener)
            self.brokers.pop(listener).close()

    def reap(self) -> None:
        """Collect whoever has ended; the station knows which of them it has asked for."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.door:
                self.open_door()  # in a domain of its own: signals of the others do not reach it
                continue
            self.say(
                ended=pid, status=status, user=usage.ru_utime, system=usage.ru_stime,
                memory=usage.ru_maxrss,
            )  # fmt: skip

    def look_now(self) -> None:
        """A program begins: the station is told what it finds."""
        self.pause = _LEAST_PAUSE
        self.seen = (-1, -1)
        self.look_at = time.monotonic()

    def watch(self) -> None:
        """Look at what is stored: often while it changes, and never so often that looking takes
        more than a small part of the time."""
        begun = time.monotonic()
        if begun < self.look_at:
            return
        try:
            seen = self.stored()
        except OSError:  # no descriptor is to be had, say
            self.blind += 1
            if self.blind > _MOST_BLIND:
                raise
            self.look_at = begun + _LEAST_PAUSE
            return
        self.blind = 0
        self.pause = min(2 * self.pause, _MOST_PAUSE) if seen == self.seen else _LEAST_PAUSE
        if seen != self.seen:
            self.say(bytes=seen[0], files=seen[1])
        self.seen = seen
        now = time.monotonic()
        self.look_at = now + max(self.pause, _SHARE * (now - begun))

    def stored(self) -> tuple[int, int]:
        most = 2 * self.place.inodes
        used, files = folders.usage(self.place.folder, most)
        while files >= most and most < _MOST_FILES:  # or whoever adds some would not be seen
            most *= 4
            used, files = folders.usage(self.place.folder, most)
        if self.place.own_user:
            more, others = folders.usage(_SHARED_MEMORY, most, self.place.user[0])
            return used + more, files + others
        return used, files

    def strike(self) -> None:
        """Kill everything in the sandbox: at once where the kernel knows who is in it."""
        if self.at_once:
            try:
                os.kill(-1, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return  # nobody is left
        else:
            survey.stop_and_kill(lambda: survey.descendants(os.getpid()))

    def end(self) -> None:
        """Kill everything, wait until it is gone, and remove its files."""
        self.door = -1
        while True:
            self.strike()
            self.reap()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:
                break
            time.sleep(_PAUSE)
        clean(self.place.folder, self.place.user[0] if self.place.own_user else None)


def _is_out_of_reach(station: int) -> bool:
    """Whether our domain keeps signals from whoever is not in it: then all that we can reach is
    the sandbox."""
    try:
        os.kill(station, 0)
    except PermissionError:
        return True
    return False


def _drain(events: int) -> None:
    try:
        os.read(events, 4096)
    except BlockingIOError:
        return


def clean(folder: str, user: int | None) -> None:
    """Remove what a sandbox has stored: its folder's content, and its user's shared memory."""
    folders.empty(folder)
    if user is not None:
        folders.empty(_SHARED_MEMORY, user)


# --- the door -----------------------------------------------------------------------------------


def _stand_at_the_door(keeper: _Keeper, ready: socket.socket) -> NoReturn:
    """Make processes for the station until it hangs up. Never returns."""
    try:
        calls.prctl(1, signal.SIGKILL)  # SET_PDEATHSIG: the keeper's
        keeper.line.close()
        os.close(keeper.children)
        if keeper.scope >= 0:
            landlock.restrict_self(keeper.scope)
        listener = broker.install()
        socket.send_fds(ready, [b"."], [listener])
        ready.close()
        for descriptor in (listener, *keeper.brokers):
            os.close(descriptor)
        orders = socket.socket(fileno=keeper.orders)
        while True:
            data, descriptors, _, _ = socket.recv_fds(orders, _PACKET, 3)
            if not data:
                break
            if calls.clone(calls.CLONE_PARENT) == 0:
                orders.close()
                _become(keeper.place, json.loads(data), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
    finally:
        os._exit(0)


def _become(
    place: Place, request: Mapping[str, object], channel: int, told: int, go: int
) -> NoReturn:
    """From a copy of the door to an interpreter in the walls. Never returns."""
    step = "start"
    try:
        calls.prctl(1, 0)
        os.write(told, str(os.getpid()).encode())
        if os.read(go, 1) != b"g":
            os._exit(125)
        os.setsid()
        step = "set limits"
        processors: list[int] = request["processors"]  # pyright: ignore[reportAssignmentType]
        os.sched_setaffinity(0, processors)
        limits: dict[str, tuple[int, int]] = request["rlimits"]  # pyright: ignore[reportAssignmentType]
        for kind, (soft, hard) in limits.items():
            cold.set_limit(int(kind), (soft, hard))
        step = "landlock"
        landlock.restrict_self(place.rules)
        step = "descriptors"
        go, told = cold.only(channel, go, told)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "seccomp"
        calls.set_seccomp(place.program)
        os.write(told, b"0")
        os.read(go, 1)
        step = "execute the interpreter"
        words: list[str] = request["words"]  # pyright: ignore[reportAssignmentType]
        environment: dict[str, str] = request["env"]  # pyright: ignore[reportAssignmentType]
        os.execve(words[0], words, environment)
    except OSError as error:
        os.write(told, f"!{step}|{error.errno}".encode())
    finally:
        os._exit(125)
