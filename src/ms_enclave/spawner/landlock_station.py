"""The station of tier `landlock`: the same requests and events, for sandboxes without namespaces.

Started by `landlock_launcher`. What differs from the other station is where a sandbox is and how
its processes are made: it is a folder and a keeper (see `keeper`), and every process is an
interpreter of its own that goes behind its walls before it executes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import select
import signal
import socket
import time

from . import _calls as calls
from . import cold, keeper, landlock, station, survey, terminals, tracer, zygote
from .store import has_file_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage
    from typing import Any

    from ._shapes import (
        Answer,
        BindRow,
        LandlockPlan,
        OpenRequest,
        ResourceLimits,
        SpawnRequest,
        User,
    )
    from .cgroups import Figures, Group
    from .checkpoints import Checkpoint
    from .slot import Slot
    from .store import Store

__all__ = ["LandlockStation", "Yard"]

_PACKET = 1 << 16
_OPEN_SECONDS = 10.0
_END_SECONDS = 5.0
_LOOK = 0.05
_MOST_DOORS = 3
"""How often a process is begun anew that was killed before it was one: what a program has just sent
to everybody can still meet the door that has the order in its hands."""
_FOLDERS = ("work", "tmp")
_READ = landlock.EXECUTE | landlock.READ_FILE | landlock.READ_DIR
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_USE_DEVICE = landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV
_STORE = (
    _READ | landlock.WRITE_FILE | landlock.TRUNCATE | landlock.REFER
    | landlock.MAKE_DIR | landlock.MAKE_REG | landlock.MAKE_SOCK | landlock.MAKE_FIFO
    | landlock.MAKE_SYM | landlock.REMOVE_DIR | landlock.REMOVE_FILE
)  # fmt: skip
_SHARE = (
    landlock.READ_FILE | landlock.WRITE_FILE | landlock.TRUNCATE | landlock.MAKE_REG
    | landlock.REMOVE_FILE | landlock.REFER
)  # fmt: skip
_SERVANTS = 2
"""A sandbox's processes that are ours: its keeper and its door."""


class Yard:
    """Where a sandbox is: its folder on the host, its user, and the two processes that serve it.

    It is to the station what a slot is, and the store, too.
    """

    first_id = None
    layered = False
    home = None
    servants = 0  # they are allowed for in the limit itself

    def __init__(
        self, number: int, folder: str, user: User, disk: int, inodes: int,
        line: socket.socket, orders: socket.socket,
    ) -> None:  # fmt: skip
        self.number = number
        self.folder = folder
        self.user = user
        self.disk = disk
        self.inodes = inodes
        self.held = (disk, inodes)
        self.line = line
        self.orders = orders
        self.init = 0
        self.door = 0
        self.used = self.files = 0
        self.allowed: dict[int, tuple[int, int] | None] = {}
        """Bytes and files stored beyond which a run is ended although it found the yard full; None
        until the first look after its begin."""

    def members(self, crowd: survey.Crowd | None = None) -> survey.Members:
        return survey.descendants(self.init, self.door, crowd)

    def outside(self, _user: User) -> int:
        """0: whoever made this station may also move its processes between its groups."""
        return 0

    def full(self) -> bool:
        """Whether more is stored than may be."""
        return self.overfills((0, 0))

    def overfills(self, allowed: tuple[int, int]) -> bool:
        """Whether more than is allowed and may be is stored, of bytes or of files. Each for itself:
        there are file systems on which an empty file takes no bytes, nor the folder it is in."""
        return self.used >= max(self.held[0], allowed[0] + 1) or self.files >= max(
            self.held[1], allowed[1] + 1
        )

    def bound(self, disk: int, inodes: int) -> None:
        """Hold it to so many bytes and files for now, and never to more than its own."""
        self.held = (min(disk, self.disk), min(inodes, self.inodes))

    def has_file_of(self, size: int, since: float) -> bool:
        """Whether a file has grown to exactly `size` bytes since then."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return has_file_of(folder, size, since)
        finally:
            os.close(folder)

    def close(self) -> None:
        self.line.close()
        self.orders.close()


class _Usage:
    """What a keeper tells of a process that it has reaped, named as in `struct_rusage`."""

    def __init__(self, user: float = 0.0, system: float = 0.0, memory: int = 0) -> None:
        self.ru_utime = user
        self.ru_stime = system
        self.ru_maxrss = memory


class LandlockStation(station.Station):
    """A station whose sandboxes are yards."""

    def __init__(self, control: int, life: int, plan: LandlockPlan) -> None:
        self.walls = plan
        self.own_user = plan["first_id"] is not None
        self.child_events = -1
        self.ends = select.epoll()
        self.yards: dict[int, Yard] = {}  # by the descriptor of its line
        self.cleaners: dict[int, Yard] = {}
        self.haunted: dict[station.Box, None] = {}
        """Those whose keeper is gone, and whose processes perhaps are not."""

        self.users: set[int] = set()
        self.made = 0
        self.program = bytes.fromhex(plan["filter"])
        super().__init__(control, life, plan)

    def make_zygotes(self) -> zygote.Zygotes:
        return _Doors(self)

    def describe(self) -> dict[str, object]:
        return {
            **super().describe(),
            "root_mode": self.own_user,
            "landlock": self.walls["version"],
        }

    def inner_user(self, wanted: list[int]) -> User:
        """There is one user to a sandbox, whoever is wanted."""
        return (wanted[0], wanted[1])

    # --- hearing --------------------------------------------------------------------------------

    def listen(self) -> int:
        self.child_events = calls.child_events()
        self.ends.register(self.child_events, select.EPOLLIN)
        return self.ends.fileno()

    def drain(self) -> None:
        for descriptor, _ in self.ends.poll(0):
            if descriptor in self.yards:
                self.hear(self.yards[descriptor])
        try:
            os.read(self.child_events, 4096)
        except BlockingIOError:
            return

    def hear(self, yard: Yard) -> None:
        """Take everything that a keeper has said."""
        while True:
            try:
                data = yard.line.recv(_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.deafen(yard)
                return
            self.take(yard, json.loads(data))

    def deafen(self, yard: Yard) -> None:
        """Its keeper is gone or going; the end of the process says the rest."""
        if self.yards.pop(yard.line.fileno(), None) is not None:
            self.ends.unregister(yard.line)

    def take(self, yard: Yard, row: dict[str, Any]) -> None:
        if "door" in row:
            yard.door = row["door"]
        elif "ended" in row:
            process = self.by_pid.pop(row["ended"], None)
            if process is not None:
                usage = _Usage(row["user"], row["system"], row["memory"])
                self.ended(process, row["status"], usage)  # pyright: ignore[reportArgumentType]
        elif "bytes" in row:
            yard.used, yard.files = row["bytes"], row["files"]
            if yard.full():
                self.stop_storing(yard)

    def stop_storing(self, yard: Yard) -> None:
        """End the runs that have stored more than they may; not one that only finds it full."""
        box = self.by_init.get(yard.init)
        for process in list(box.processes.values()) if box is not None else ():
            allowed = yard.allowed.get(process.number, (0, 0))
            if allowed is None:
                yard.allowed[process.number] = (yard.used, yard.files)
            elif not process.ended and yard.overfills(allowed):
                self.kill_run(process, "disk_limit")

    # --- sandboxes ------------------------------------------------------------------------------

    def do_open(self, request: OpenRequest, _descriptors: list[int]) -> Answer:
        limits = request["limits"]
        group = self.groups.group(request["box"])
        try:
            group.limit(memory=limits["memory"], pids=limits["pids"], cpu=limits["cpu"])
            yard = self.make_yard(limits["disk"], limits["inodes"])
        except BaseException:
            self.let_go(group)
            raise
        place: Slot = yard  # pyright: ignore[reportAssignmentType] - what the loop asks of a slot
        store: Store = yard  # pyright: ignore[reportAssignmentType]
        box = station.Box(request["box"], place, store, group)
        self.boxes[box.name] = box
        self.by_init[yard.init] = box
        return {"ok": self.facts_of(box)}

    def facts_of(self, box: station.Box) -> dict[str, object]:
        yard = self.yard_of(box)
        folders = {name: f"{yard.folder}/{name}" for name in _FOLDERS}
        return {"init": yard.init, "layered": False, "user": yard.user[0], **folders}

    def make_yard(self, disk: int, inodes: int) -> Yard:
        """A new folder with a keeper. Raises OSError, and then nothing of it is left."""
        if not self.free_numbers:
            raise OSError(errno.EUSERS, "this station has no room for one more sandbox")
        number = self.free_numbers.pop()
        user = self.take_user()
        self.made += 1
        folder = f"{self.walls['scratch']}/{self.made}"
        line, far_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        orders, far_orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        yard = Yard(number, folder, user, disk, inodes, line, orders)
        rules = -1
        try:
            for path in (folder, *(f"{folder}/{name}" for name in _FOLDERS)):
                os.mkdir(path, 0o700)
            rules = landlock.only_wall(self.walls["version"], self.paths(yard))
            self.give_away(yard)  # now: root that is no more than its ids cannot enter it any more
            writable = [f"{folder}/{name}" for name in _FOLDERS]
            writable += [volume["source"] for volume in self.plan["volumes"]]
            place = keeper.Place(
                writable, folder, user, self.own_user, rules, self.program,
                self.walls["version"], disk, inodes,
            )  # fmt: skip
            me = os.getpid()
            yard.init = calls.clone(0)
            if yard.init == 0:
                keeper.keep(place, me, far_line.fileno(), far_orders.fileno())
            self.await_door(yard, far_line)
        except BaseException:
            if yard.init:
                tracer.kill(yard.init)
            yard.close()
            self.forget_yard(yard)
            self.free_numbers.add(number)
            raise
        finally:
            far_line.close()
            far_orders.close()
            if rules >= 0:
                os.close(rules)
        self.yards[line.fileno()] = yard
        self.ends.register(line, select.EPOLLIN)
        return yard

    def await_door(self, yard: Yard, far_line: socket.socket) -> None:
        """The keeper stands, and says so. Raises OSError with what it failed with."""
        far_line.close()
        stands = False
        while not stands:
            if not select.select([yard.line], [], [], _OPEN_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, "a sandbox's keeper did not start")
            row = json.loads(yard.line.recv(_PACKET) or b'{"failed": "it ended"}')
            if "failed" in row:
                raise OSError(errno.EPERM, f"a sandbox's keeper: {row['failed']}")
            yard.door = row.get("door", yard.door)  # who of its children has ended says it, too
            stands = "stands" in row

    def take_user(self) -> User:
        """A user of the host that no other sandbox is; ourselves where we cannot become another.

        Anywhere in the range, so that two containers with a range each hardly meet.
        """
        first = self.walls["first_id"]
        if first is None:
            return os.geteuid(), os.getegid()
        while True:
            number = first + secrets.randbelow(self.walls["ids"])
            if number not in self.users:
                self.users.add(number)
                return number, number

    def give_away(self, yard: Yard) -> None:
        for path in (*(f"{yard.folder}/{name}" for name in _FOLDERS), yard.folder):
            if self.own_user:
                os.chown(path, *yard.user)

    def paths(self, yard: Yard) -> list[tuple[str, int]]:
        """What the sandbox's processes may do where."""
        binds = [*self.plan["binds"], *self.plan["volumes"]]
        found = [(bind["source"], _rights(bind)) for bind in binds]
        found += [
            (os.path.dirname(self.walls["guest"]), _READ),
            ("/proc", landlock.READ_FILE | landlock.READ_DIR),
        ]
        found += [(f"/dev/{name}", _USE_DEVICE) for name in _DEVICES]
        found += [(f"{yard.folder}/{name}", _STORE) for name in _FOLDERS]
        if self.own_user:  # the caller's own would be somebody else's there
            found.append(("/dev/shm", _SHARE))
        return found

    def make_terminal(self, box: station.Box, user: User) -> tuple[int, int]:
        """From the devpts that we have: there is no other. No path leads the sandbox to it."""
        del user
        return terminals.open_terminal(
            terminals.MULTIPLEXER, self.yard_of(box).user if self.own_user else None
        )

    def end_box(self, box: station.Box, question: int) -> None:
        box.closing = question
        yard = self.yard_of(box)
        self.hear(yard)
        yard.line.shutdown(socket.SHUT_WR)

    def servants_of(self, box: station.Box) -> set[int]:
        return {self.yard_of(box).door}

    def yard_of(self, box: station.Box) -> Yard:
        yard: Any = box.slot
        return yard

    def closed(self, box: station.Box) -> None:
        """Its keeper is reaped; one that was killed has left the rest to us, now or as soon as that
        can be done."""
        yard = self.yard_of(box)
        self.hear(yard)
        self.deafen(yard)
        for process in [process for process in box.processes.values() if not process.ended]:
            self.by_pid.pop(process.pid, None)
            usage: struct_rusage = _Usage()  # pyright: ignore[reportAssignmentType]
            self.ended(process, signal.SIGKILL, usage)
        try:
            self.kill_strangers()
        except OSError:  # no descriptor is to be had, say: it is gone when they are
            self.haunted[box] = None
            return
        self.forget_yard(yard)
        super().closed(box)

    def patience(self) -> float | None:
        return _LOOK * 1000 if self.haunted else super().patience()

    def look_after(self) -> None:
        haunted, self.haunted = self.haunted, {}
        for box in haunted:
            self.closed(box)
        super().look_after()

    def kill_strangers(self) -> None:
        """Kill those of our children that are nobody's: what descends from a killed keeper."""
        mine = set(self.by_init) | set(self.cleaners)

        def look() -> survey.Members:
            found: survey.Members = {}
            for pid in survey.children_of(os.getpid()) - mine:
                found |= {pid: [], **survey.descendants(pid)}
            return found

        survey.stop_and_kill(look)

    def forget_yard(self, yard: Yard) -> None:
        """Remove a yard's folder: as its user, if there is anything in it."""
        self.users.discard(yard.user[0])
        for name in _FOLDERS:
            try:
                os.rmdir(f"{yard.folder}/{name}")
            except OSError:
                break
        try:
            os.rmdir(yard.folder)
        except OSError:
            self.clean(yard)

    def clean(self, yard: Yard) -> None:
        try:
            pid = calls.clone(0)
        except OSError:
            return  # the launcher removes what is left
        if pid == 0:
            try:
                keeper.take_user(yard.user if self.own_user else None)
                keeper.clean(yard.folder, yard.user[0] if self.own_user else None)
            finally:
                os._exit(0)
        self.cleaners[pid] = yard

    def cleaned(self, pid: int) -> None:
        yard = self.cleaners.pop(pid, None)
        if yard is not None:
            try:
                os.rmdir(yard.folder)
            except OSError:
                return  # the launcher removes what is left

    def end_everything(self) -> None:
        """End every sandbox and wait, within bounds, until it is gone with its files."""
        for box in list(self.boxes.values()):
            self.yard_of(box).close()
        deadline = time.monotonic() + _END_SECONDS
        waited = {*self.by_init, *self.cleaners}
        while waited and time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            waited.discard(pid)
            if pid == 0:
                signal.sigtimedwait({signal.SIGCHLD}, _LOOK)
        survey.stop_and_kill(lambda: survey.descendants(os.getpid()))

    # --- processes ------------------------------------------------------------------------------

    def do_spawn(self, request: SpawnRequest, descriptors: list[int]) -> Answer | None:
        box = self.boxes.get(request["box"])
        if box is not None:
            yard = self.yard_of(box)
            self.hear(yard)
            if yard.full():
                yard.allowed[request["process"]] = None
            if request["kind"] != "guest":
                self.tell_begun(yard)
        return super().do_spawn(request, descriptors)

    @staticmethod
    def tell_begun(yard: Yard) -> None:
        try:
            yard.line.send(b"begun", socket.MSG_DONTWAIT)
        except OSError:
            return  # a keeper that is gone, which the loop will hear of

    def limit_hit(
        self, process: station.Process, status: int, usage: struct_rusage, figures: Figures
    ) -> str | None:
        self.yard_of(process.box).allowed.pop(process.number, None)
        return super().limit_hit(process, status, usage, figures)


class _Doors(zygote.Zygotes):
    """Starts processes: each is made by its sandbox's door and becomes a new interpreter."""

    station: LandlockStation

    def __init__(self, owner: LandlockStation) -> None:
        super().__init__(owner)
        self.reason = "without namespaces a new interpreter is started each time"

    def spawn(
        self, request: SpawnRequest, place: Slot, channel: int, user: User, group: Group,
        limits: ResourceLimits, processors: set[int], *, single: bool,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[int, None]:  # fmt: skip
        yard: Any = place
        del user, single, checkpoint
        words = [*self.plan["python"], "-I", "-S", "-X", "utf8"]
        words += [f"{self.station.walls['guest']}/boot.py", "cold"]
        order = {
            "words": words, "env": zygote.ENVIRONMENT, "rlimits": self.limits(limits, yard),
            "processors": sorted(processors),
        }  # fmt: skip
        return self._spawn(yard, json.dumps(order).encode(), channel, group), None

    def _spawn(self, yard: Yard, order: bytes, channel: int, group: Group) -> int:
        """Let a door make a process; returns its pid.

        Raises OSError, or tracer.InterferedError if another of the sandbox's programs kills what is
        made, again and again; leaves nothing.
        """
        for _ in range(_MOST_DOORS):
            pid = self._make(yard, order, channel, group)
            if pid:
                return pid
        raise tracer.InterferedError(signal.SIGKILL)

    def _make(self, yard: Yard, order: bytes, channel: int, group: Group) -> int:
        """The same once; 0 where it was killed, or the door was, before it had said a word."""
        go_read, go_write = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, handle = 0, -1
        try:
            descriptors = [channel, theirs.fileno(), go_read]
            socket.send_fds(yard.orders, [order], descriptors, socket.MSG_DONTWAIT)
            theirs.close()
            self._wait_at_the_door(yard, ours)
            pid = cold.hear(ours)
            if not pid:
                return 0
            handle = calls.pidfd_open(pid)  # once it has ended, its number can be another's
            group.admit(pid)
            os.write(go_write, b"g")
            cold.hear(ours, pid)
            _check_walls(pid, yard)
            group.settle(pid, 0)
            os.write(go_write, b"g")
            cold.hear(ours, pid)  # nothing, from an exec that closed its end
        except BaseException as error:
            told = isinstance(error, cold.ToldError)
            if pid and not told and (not survey.is_alive(pid) or survey.is_killed(pid)):
                cold.hear_last_words(ours)
                raise tracer.InterferedError(signal.SIGKILL) from error
            if handle >= 0:
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            raise
        finally:
            ours.close()
            theirs.close()
            os.close(go_read)
            os.close(go_write)
            if handle >= 0:
                os.close(handle)
        return pid

    def _wait_at_the_door(self, yard: Yard, ours: socket.socket) -> None:
        """Until a process has said something, or is not going to. A door that a program of the
        sandbox has stopped is killed: the next one does what this one has not."""
        deadline = time.monotonic() + _OPEN_SECONDS
        while not select.select([ours], [], [], _LOOK)[0]:
            self.station.hear(yard)
            if survey.is_stopped(yard.door):
                os.kill(yard.door, signal.SIGKILL)
            if time.monotonic() > deadline or not survey.is_alive(yard.init):
                raise OSError(errno.ETIMEDOUT, "a sandbox's door does not answer")

    def limits(self, limits: ResourceLimits, yard: Yard) -> ResourceLimits:
        """The kernel counts a user's processes on the whole machine: ours are two more, and where
        the user is the caller, so is everything else that runs as him."""
        most = limits[6][0] + (_SERVANTS if self.station.own_user else _tasks_of(yard.user[0]))
        return {**limits, 6: (most, most)}

    def ended(self, pid: int) -> None:
        self.station.cleaned(pid)


def _rights(bind: BindRow) -> int:
    return _STORE if bind["writable"] else _READ


def _check_walls(pid: int, yard: Yard) -> None:
    """Read from outside what a process that is about to run still has; raise if it is anything."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        rows = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
    held = [n for n in (b"CapInh", b"CapPrm", b"CapEff", b"CapAmb") if int(rows[n], 16)]
    users = {int(word) for word in rows[b"Uid"].split()}
    if held or users != {yard.user[0]} or rows[b"NoNewPrivs"] != b"1" or rows[b"Seccomp"] != b"2":
        raise tracer.TraceError(f"{pid} would have run as {users} with {held}")


def _tasks_of(user: int) -> int:
    """How many processes and threads a user has on the machine."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it has just gone
    return count
