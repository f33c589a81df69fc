"""Interpreters that are started once and copied: the bare one, and one a set of preloaded modules.

The bare zygote has read nothing but our guest and the standard library that it needs, under the
full seccomp filter; it holds the station's capabilities and so never runs anybody's code. A set of
modules is imported by an instance of it in a slot of its own, where importing can do no more than
any program in a sandbox, and a copy of that instance is what later runs start from.
Where ptrace cannot be had, every process starts from a new interpreter (`cold`).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
from time import monotonic

from . import _calls as calls
from . import carrier, cold, packing, root, slot, survey, tracer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ._shapes import Answer, ResourceLimits, SpawnRequest, User
    from .cgroups import Group
    from .checkpoints import Checkpoint
    from .station import Station

__all__ = ["ENVIRONMENT", "Zygotes"]

_START_SECONDS = 10.0
_LOOK = 0.05
_MOST_SETS = 16
_IMPORT_DISK = 64 << 20
_IMPORT_FILES = 1024
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_AT_ONCE = {"LD_BIND_NOW": "1"}  # what copies call is found once, and not by each
_IMPORT_SECONDS = 25.0  # less than whoever asked waits for an answer
_IMPORT_MEMORY = 8 << 30
_IMPORT_PROCESSES = 256
_IMPORT_LIMITS = {4: (1, 1), 6: (_IMPORT_PROCESSES, _IMPORT_PROCESSES), 8: (65536, 65536)}
_OPTIONS = ("-I", "-S", "-X", "utf8")


class _Preparation:
    """An instance of the bare zygote that imports a set of modules in a slot of its own."""

    def __init__(
        self,
        key: str,
        place: slot.Slot,
        group: Group,
        kernel: int,
        shadow: carrier.Carrier,
        channel: socket.socket,
    ) -> None:
        self.key = key
        self.slot = place
        self.group = group
        self.kernel = kernel
        self.shadow = shadow
        self.channel = channel
        self.waiting: list[int] = []
        self.deadline = monotonic() + _IMPORT_SECONDS


class Zygotes:
    """What a station starts processes from."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.plan = station.plan
        self.reason: str | None = self.plan["cold_reason"]
        self.bare: carrier.Carrier | None = None
        self.ready: dict[str, carrier.Carrier] = {}
        self.failed: dict[str, str] = {}
        self.preparing: dict[str, _Preparation] = {}
        self.asked: set[str] = set()
        self.line = carrier.Line()
        self.packs = True
        self.service = station.groups.group("carriers")
        self.traced_filter = bytes.fromhex(self.plan["filter"])
        self.plain_filter = bytes.fromhex(self.plan["init_filter"])

    def start(self) -> None:
        """Start the bare zygote; where that cannot be traced, remember why."""
        if self.reason is not None:
            return
        pid = -1
        try:
            pid = self._start_bare()
            self.bare = carrier.Carrier.of_parked(pid)
        except (tracer.TraceError, OSError) as error:
            self.reason = str(error)
            if pid > 0:
                tracer.kill(pid)

    def _start_bare(self) -> int:
        line = self.line  # the same for all, or what was made of a last one would hear of nothing
        line.clear()
        pid = calls.clone(0)
        if pid == 0:
            line.ours.close()
            self._execute_bare(line.theirs.fileno())
        deadline = monotonic() + _START_SECONDS
        while not select.select([line.ours], [], [], _LOOK)[0]:
            if monotonic() > deadline or not survey.is_alive(pid):  # it could not be executed
                tracer.kill(pid)
                raise tracer.TraceError("the interpreter did not start")
        line.ours.recv(1)
        return pid

    def _words(self, how: str) -> list[str]:
        return [*self.plan["python"], *_OPTIONS, f"{root.guest_folder(self.plan)}/boot.py", how]

    def _execute_bare(self, channel: int) -> NoReturn:
        try:
            nothing = os.open("/dev/null", os.O_RDWR)
            for descriptor in range(3):
                os.dup2(nothing, descriptor)
            os.dup2(channel, 3)
            calls.close_range(4)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            calls.set_seccomp(self.traced_filter)
            words = self._words("zygote")
            os.execve(words[0], words, {**ENVIRONMENT, **_AT_ONCE})
        finally:
            os._exit(125)

    # --- processes ------------------------------------------------------------------------------

    def spawn(
        self,
        request: SpawnRequest,
        place: slot.Slot,
        channel: int,
        user: User,
        group: Group,
        limits: ResourceLimits,
        processors: set[int],
        *,
        single: bool,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[int, carrier.Carrier | None]:
        """Start a process in a slot; what it is to do it reads from its channel itself, or it goes
        on where a kernel was when a checkpoint was made. A kernel has a shadow, the caller's."""
        if self.bare is None and self.reason is None:
            self.start()  # it was killed
        if self.bare is None:
            return cold.spawn(
                self._words("cold"), ENVIRONMENT, place, channel, user, group, limits,
                self.plain_filter, processors,
            ), None  # fmt: skip
        source = self._source_of(request, self.bare, checkpoint)
        try:
            birth = carrier.Birth(
                place, channel, user, group, limits, processors, single=single,
                taken=self.station.greedy.taken,
                number=None if checkpoint is None else checkpoint.number,
                streams=checkpoint is not None,
            )  # fmt: skip
            if request["kind"] == "kernel":
                return self._with_shadow(source, birth)
            return carrier.instantiate(source, birth, self.line), None
        except tracer.TraceError:
            if not survey.is_alive(source.pid):
                self.station.helper_ended(source.pid)  # who waited for its stop has reaped it
            raise

    def _source_of(
        self, request: SpawnRequest, bare: carrier.Carrier, checkpoint: Checkpoint | None
    ) -> carrier.Carrier:
        """What a process is to be a copy of. Raises OSError where that is gone."""
        if checkpoint is not None:
            if checkpoint.carrier is None:
                raise OSError(errno.ESRCH, "the memory that it was to go on from is gone")
            return checkpoint.carrier
        if request["kind"] in ("python", "kernel"):
            return self.ready.get(self._wanted(request["preload"]), bare)
        return bare

    def _with_shadow(
        self, source: carrier.Carrier, birth: carrier.Birth
    ) -> tuple[int, carrier.Carrier]:
        birth.group.make_room(1)
        try:
            return carrier.instantiate_with_shadow(source, birth, self.line)
        except BaseException:
            birth.group.make_room(-1)
            raise

    def _wanted(self, preload: list[str]) -> str:
        """The key of a set of modules; asked for once, it is made in the background when there is
        nothing else to do, and asked for again, at once."""
        key = json.dumps(preload)
        if key not in self.ready and key not in self.failed and key not in self.preparing:
            if key in self.asked:
                self.prepare(key)
            else:
                self.asked.add(key)
        return key

    def use_idle_time(self) -> None:
        """Prepare what somebody may ask for again."""
        for key in list(self.asked):
            self.prepare(key)

    # --- a set of modules -----------------------------------------------------------------------

    def prepare(self, key: str) -> None:
        """Begin to import a set of modules (JSON list) in a slot of its own."""
        self.asked.discard(key)
        if self.bare is not None and not self.bare.packed and not self._pack(self.bare):
            self.start()
        if self.bare is None:
            return
        try:
            self.preparing[key] = self._begin_to_import(key, self.bare)
        except (OSError, tracer.TraceError, tracer.InterferedError, slot.SlotError) as error:
            self.failed[key] = str(error)

    def _begin_to_import(self, key: str, bare: carrier.Carrier) -> _Preparation:
        """Raises OSError, slot.SlotError or what is said of `instantiate_with_shadow`, and then
        nothing of it is left."""
        place = self.station.take_slot()
        group: Group | None = None
        ours: socket.socket | None = None
        theirs: socket.socket | None = None
        try:
            group = self.station.groups.group(f"zygote-{place.number}")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            group.limit(memory=_IMPORT_MEMORY, pids=_IMPORT_PROCESSES, cpu=None)
            late = [
                (calls.open_tree(row["source"]), row["target"])
                for row in self.plan["late"]
                if not row["source"].startswith(root.WRITABLE)
            ]
            slot.furnish(
                place, self.station.own_mounts, self.plan["work"], _IMPORT_DISK, _IMPORT_FILES,
                self.user(), late, layers=False,
            ).close()  # fmt: skip
            request = {"op": "prepare", "preload": json.loads(key), "env": self.plan["environment"]}
            ours.sendall(b"\2" + json.dumps(request).encode())
            birth = carrier.Birth(
                place, theirs.fileno(), self.user(), group, _IMPORT_LIMITS, self.station.processors
            )
            kernel, shadow = carrier.instantiate_with_shadow(bare, birth, self.line)
        except BaseException:
            if ours is not None:
                ours.close()
            self.station.discard(place)
            if group is not None:
                self.station.let_go(group)
            raise
        finally:
            if theirs is not None:
                theirs.close()
        return _Preparation(key, place, group, kernel, shadow, ours)

    def user(self) -> User:
        return (1000, 1000) if self.plan["root_mode"] else (0, 0)

    def advance(self, key: str) -> None:
        """A preparation has something to say: it is ready, or it has failed."""
        preparation = self.preparing[key]
        answer = preparation.channel.recv(4096)
        try:
            if answer != b"R":
                raise tracer.TraceError(_reason(answer))
            self.ready[key] = self._checkpoint(preparation)
            self.station.ahead.let_go()
        except (OSError, tracer.TraceError) as error:
            self.failed[key] = str(error)
        self._finish(key)

    def give_up_late(self) -> None:
        """End the preparations that take too long: whoever asked for them waits."""
        now = monotonic()
        for key, preparation in list(self.preparing.items()):
            if now > preparation.deadline:
                self.failed[key] = f"importing took longer than {_IMPORT_SECONDS} s"
                self._finish(key)

    def _finish(self, key: str, reaped: int = 0) -> None:
        """End what a preparation ran in, and tell its outcome to whoever waits for it."""
        preparation = self.preparing.pop(key)
        preparation.channel.close()
        for pid in (preparation.shadow.pid, preparation.kernel):
            if pid != reaped:  # that number may be somebody else's by now
                tracer.kill(pid)
        self._drop(preparation.slot, preparation.group)
        for number in preparation.waiting:
            text = self.failed.get(key)
            row: Answer = {"ok": {}} if text is None else {"error": {"errno": None, "text": text}}
            self.station.send({"q": number, **row})

    def _forget_the_oldest(self) -> None:
        """Keep no more sets of modules than are likely to be asked for again."""
        while len(self.ready) > _MOST_SETS:
            tracer.kill(self.ready.pop(next(iter(self.ready))).pid)
        while len(self.failed) > _MOST_SETS:
            self.failed.pop(next(iter(self.failed)))

    def _checkpoint(self, preparation: _Preparation) -> carrier.Carrier:
        """A carrier from a parked process: its shadow is copied, its thread's state saved."""
        _refuse_threads(preparation.kernel)
        state = tracer.seize_parked(preparation.kernel, trusted=False)
        shadow = preparation.shadow
        made = self.carrier_of(shadow.copy(), shadow, state)
        if not self._pack(made):
            made = self.carrier_of(shadow.copy(), shadow, state)
        return made

    def carrier_of(
        self,
        copy: int,
        shadow: carrier.Carrier,
        state: tracer.State,
        *,
        placed: bool = False,
        shares_nothing: bool = False,
    ) -> carrier.Carrier:
        """A carrier, which is the caller's to kill, from a copy of a shadow; `state` is where what
        is made of it goes on. It is moved to the station's own groups unless it is `placed`: there
        already, or to be gone soon. Raises OSError or tracer.TraceError, and then the copy is
        gone."""
        try:
            if not placed:
                self.service.admit(copy, stays=True)  # what copies share with it is nobody's run
            return carrier.Carrier.of_copy(copy, shadow, state, shares_nothing=shares_nothing)
        except BaseException:
            tracer.kill(copy)
            raise

    def _pack(self, made: carrier.Carrier) -> bool:
        """Make a carrier quick to copy; False if it had to be killed, and then none is from now on:
        they are as good without, if slower."""
        if self.packs:
            try:
                packing.pack(made)
            except (OSError, tracer.TraceError):
                self.packs = False
                tracer.kill(made.pid)
        return self.packs or survey.is_alive(made.pid)

    def _drop(self, place: slot.Slot, group: Group) -> None:
        self.station.discard(place)
        self.station.let_go(group)

    def ended(self, pid: int) -> None:
        """A process of ours was reaped: a preparation that died says so on its channel."""
        if self.bare is not None and pid == self.bare.pid:
            self.bare = None  # the next process is started from a new one
        for key, ready in list(self.ready.items()):
            if ready.pid == pid:
                del self.ready[key]
        for key, preparation in list(self.preparing.items()):
            if pid in (preparation.shadow.pid, preparation.kernel):
                # It may have said why just before, and be reaped before anybody has listened.
                self.failed[key] = _last_words(preparation.channel)
                self._finish(key, pid)


def _refuse_threads(pid: int) -> None:
    """Raises tracer.TraceError for a process with more than one: its copies would have the books of
    the others, and wait for them for ever."""
    others = [number for number in os.listdir(f"/proc/{pid}/task") if int(number) != pid]
    names: set[str] = set()
    for number in others:
        with open(f"/proc/{pid}/task/{number}/comm", errors="replace") as file:
            names.add(file.read().strip())
    if others:
        count = f"{len(others)} thread{'s' if len(others) > 1 else ''}"
        raise tracer.TraceError(f"it left {count} running ({', '.join(sorted(names))})")


def _last_words(channel: socket.socket) -> str:
    try:
        return _reason(channel.recv(4096, socket.MSG_DONTWAIT))
    except OSError:
        return _reason(b"")


def _reason(answer: bytes) -> str:
    """What a preparation that failed said, or that it said nothing."""
    said = answer[1:].decode("utf-8", "replace") if answer[:1] == b"E" else ""
    return said or "it ended"
