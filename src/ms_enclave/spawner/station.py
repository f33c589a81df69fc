"""The station: pid 1 of its own namespaces, parent of everything in every sandbox.

`python -I -S station.py CONTROL LIFE PLAN`, executed by the launcher's child inside the finished
root. Single-threaded, because ptrace belongs to a thread. It speaks JSON packets with descriptors
over CONTROL and never reads a byte that user code wrote: what a program is, reads and prints
passes through descriptors, or in a message, that it only hands on. It ends when CONTROL (the owner)
or LIFE (the launcher) closes, and the kernel then ends everything else.

Requests: `open`, `network`, `terminal`, `look`, `spawn`, `signal`, `kill`, `freeze`, `close`;
`checkpoint`, from which `open` and `spawn` can begin, `thin`, `drop`, `diff` and `replace`; `copy`,
`layer` and `hold`, for files that come from elsewhere and go there; and, for sandboxes that outlive
their owner, `keep`, `list`, `recall`, `renew`, `end`; each with a number `q` that the answer
repeats. Events: `ready`, `exit`, `lost`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, "/run/enclave/code")

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner import (
    ahead,
    alone,
    cgroups,
    checkpoints,
    greedy,
    layer,
    network,
    reopening,
    rooms,
    root,
    seed,
    slot,
    survey,
    terminals,
    tracer,
    zygote,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from resource import struct_rusage
    from typing import Any, TypeVar

    from ms_enclave.spawner._shapes import (
        Answer,
        BoxLimits,
        BoxRequest,
        CheckpointRequest,
        DiffRequest,
        ExitRow,
        FreezeRequest,
        HoldRequest,
        KeepRequest,
        LayerRequest,
        NewRun,
        OpenRequest,
        PrepareRequest,
        ProcessRequest,
        RenewRequest,
        ReplaceRequest,
        RunRequest,
        SignalRequest,
        SpawnRequest,
        StationPlan,
        TerminalRequest,
        Trees,
        User,
    )
    from ms_enclave.spawner.carrier import Carrier
    from ms_enclave.spawner.store import Store

    _N = TypeVar("_N", int, float)

__all__ = ["Station", "main"]

_PACKET = 1 << 17
_DESCRIPTORS = 8
_TICK = 0.003  # s between looks at something that is ending
_WATCH = 0.02  # s between looks at something that is limited by being watched
_MOST_LOOKS = 12  # processes that are looked at in a row
_MOST_BLIND = 100  # looks at one in a row that may fail: not every limit is held meanwhile
_MOST_MISSED = 1000  # the same of one that is to end: it outlives its time meanwhile
_LATELY = 0.008  # s for which the kernel lets processes join control groups without waiting
_REST = 0.004  # s without a request after which making something ahead holds up nobody
_IDLE = 0.02  # s without a request after which something is made ahead
_SPARE_AGAIN = 1.0  # s before a slot is made ahead again after that failed
_FSIZE = 1  # RLIMIT_FSIZE
_COARSE = 0.02  # s that a file's time may be behind the clock
_GIVE_UP = 2.0  # s after which a group that the kernel still counts is left to the launcher


class Box:
    """A sandbox: its slot, its store, its control group, its live processes by number."""

    def __init__(
        self,
        name: str,
        place: slot.Slot,
        store: Store,
        group: cgroups.Group,
    ) -> None:
        self.name = name
        self.slot = place
        self.store = store
        self.group = group
        self.processes: dict[int, Process] = {}
        self.closing: int | None = None
        self.user: User = (0, 0)
        self.pids_limit: int | None = None
        self.kept: alone.Kept | None = None
        self.ending = False
        self.frozen = False
        """Whether its processes stand still, or are about to."""

        self.once = False
        """Whether it ends with its first process, and nobody asks for that."""

        self.replaced = False
        """Whether another one has its place, so that it is to end with all that runs in it."""

        self.room: rooms.Room | None = None

        self.mourning: list[int] = []
        """Requests to be told that it is lost, when nothing of it is left."""

    def close(self) -> None:
        """Let go of what it stores in while its slot still has that. Idempotent."""
        if self.room is not None:
            self.room.close()
        self.store.close()


class Process:
    """A process that a request made: the main one of a run, with all that descends from it."""

    def __init__(
        self, number: int, box: Box, pid: int, group: cgroups.Group, request: SpawnRequest
    ) -> None:
        self.number = number
        self.box = box
        self.pid = pid
        self.group = group
        self.cpu_limit = request.get("cpu_time")
        self.memory_limit = request.get("memory")
        self.pids_limit = request.get("pids")
        self.processors: set[int] | None = None  # the only ones it may use
        self.stays = request["kind"] in ("guest", "kernel")  # it mostly waits: nobody's run
        self.serves = request["kind"] == "guest"
        self.shadow: Carrier | None = None
        self.copier: Carrier | None = None  # its twin, in the station's own group
        self.look_again = 0.0  # when it is next to be looked at, if it is
        self.blind = 0  # looks in a row that have failed
        self.missed = 0  # the same since it is to end
        self.disk = request["disk"]
        self.inodes = request["inodes"]
        self.largest_file = request["rlimits"][str(_FSIZE)][0]
        self.began = time.time()
        self.before: dict[int, int] | None = {}  # who was in the slot already
        self.cause: str | None = None
        self.ended = False
        self.was_alone = False  # it ended well, and the group had no other process
        self.peak = 0
        self.count = 0
        self.cpu_each: dict[tuple[int, int], float] = {}  # s, of whom was seen last
        self.cpu_gone = 0.0  # s, of whom was seen before
        self.crowded = False  # seen with as many processes as it may have
        self.struck = False  # the kernel was told to kill its group
        self.killed: survey.Members = {}  # one by one, and maybe still about to end
        self.kill_requests: list[int] = []
        self.last_words: ExitRow | None = None

    def let_go_of_shadow(self) -> None:
        """End what could copy it. Its memory is gone when all have ended. Idempotent."""
        copiers = (self.copier, self.shadow)
        self.copier = self.shadow = None
        for carrier in copiers:
            if carrier is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(carrier.pid, signal.SIGKILL)  # which the loop reaps

    def remember(self, each: dict[tuple[int, int], float]) -> None:
        """Keep what was seen of processes that nobody will wait for."""
        self.cpu_gone += sum(cpu for key, cpu in self.cpu_each.items() if key not in each)
        self.cpu_each = each

    @property
    def cpu_seen(self) -> float:
        """Seconds of processor time of everybody who was seen, each for itself."""
        return self.cpu_gone + sum(self.cpu_each.values())

    @property
    def ending(self) -> bool:
        """Whether it is being killed with all that descends from it."""
        return bool(self.kill_requests) or self.last_words is not None


class Station:
    """The state of a station and its one loop."""

    def __init__(self, control: int, life: int, plan: StationPlan) -> None:
        self.control = socket.socket(fileno=control)
        self.life = socket.socket(fileno=life)
        self.plan = plan
        self.processors = os.sched_getaffinity(0)
        self.own_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.groups = cgroups.Station(plan["groups"])
        self.boxes: dict[str, Box] = {}
        self.processes: dict[int, Process] = {}
        self.by_pid: dict[int, Process] = {}
        self.ending: dict[Process, None] = {}
        self.watching: dict[Process, None] = {}
        """Those that are limited by being looked at, in the order in which that is to happen."""

        self.busy: set[Process] = set()
        """Those that run somebody's program now."""

        self.by_init: dict[int, Box] = {}
        self.networks: dict[str, network.Network] = {}
        self.leaving: list[tuple[network.Network, int | None]] = []
        self.spare: list[slot.Slot] = []
        self.free_numbers = set(range(1, plan["slots"]))
        self.unused: dict[int, slot.Slot] = {}
        """Slots that no sandbox has, by their inits: spare, empty or about to end."""

        self.no_spare_before = 0.0
        self.inits: seed.Forks | seed.Seed | None = None
        self.ahead = ahead.Ahead(self)
        self.checkpoints = checkpoints.Checkpoints(self)
        self.shadows: dict[int, Process] = {}
        """Kernels by the processes that share their memory."""
        self.rooms = rooms.Rooms(self)
        self.greedy = greedy.Greedy(self)
        self.last_request = self.last_birth = 0.0
        self.leftovers: list[tuple[cgroups.Group, float]] = []
        self.events = -1
        self.zygotes = self.make_zygotes()
        self.alone = alone.Alone(self, keeps=plan["keep"] is not None)

    def make_zygotes(self) -> zygote.Zygotes:
        return zygote.Zygotes(self)

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        self.events = self.listen()
        self.zygotes.start()
        self.settle_down()
        self.send({"event": "ready", **self.describe()})
        while self.turn():
            pass

    def turn(self) -> bool:
        """Wait for something and see to it; False when it is time to end."""
        preparing = {p.channel.fileno(): key for key, p in self.zygotes.preparing.items()}
        own = {self.life.fileno(), self.events}
        if self.alone.since is None:
            own.add(self.control.fileno())
        poll = select.poll()
        for descriptor in (*own, *preparing):
            poll.register(descriptor, select.POLLIN)
        for descriptor, kinds in self.network_descriptors():
            poll.register(descriptor, kinds)
        events = {descriptor for descriptor, _ in poll.poll(self.patience()) or self.rest()}
        for descriptor in events & preparing.keys():
            self.zygotes.advance(preparing[descriptor])
        for descriptor in events & own:
            if not self.see_to(descriptor):
                return False
        tracer.signals_taken()
        self.reap()
        self.advance_networks(events)
        self.look_after()
        return self.alone.look()

    def see_to(self, descriptor: int) -> bool:
        """Take what came; False when it is time to end."""
        if descriptor == self.life.fileno():
            return self.alone.take_owner()
        if descriptor == self.events:
            self.drain()
            return True
        return self.receive() or self.alone.begin()

    def settle_down(self) -> None:
        """Stay on one processor together with the carriers: a stop seen from another one takes
        several times as long. What is made of them gets all processors back before it runs."""
        if self.zygotes.bare is None:
            return
        chosen = sorted(self.processors)[os.urandom(1)[0] % len(self.processors)]
        self.greedy.home = chosen
        for pid in (0, self.zygotes.bare.pid, self.source().pid):
            os.sched_setaffinity(pid, {chosen})

    def rest(self) -> list[tuple[int, int]]:
        """There is nothing to read: time for what may be asked for next. Returns no events."""
        if not self.processes:
            self.zygotes.use_idle_time()
        return []

    def listen(self) -> int:
        """What is readable when something of the sandboxes' has happened; `drain` empties it."""
        return calls.child_events()

    def drain(self) -> None:
        """Take the pending SIGCHLD; a wait for a stop may have taken it before."""
        try:
            os.read(self.events, 4096)
        except BlockingIOError:
            return

    def patience(self) -> float | None:
        """Milliseconds until something has to be looked at again; None for never."""
        if tracer.signals_taken():
            return 0
        if self.leftovers or self.ending:
            return _TICK * 1000
        if self.alone.since is not None:
            return self.alone.patience()
        if self.watching:
            return _WATCH * 1000
        if self.zygotes.asked and not self.processes:
            return _IDLE * 1000
        waits = [way.wait for way in self.networks.values() if way.wait is not None]
        if self.greedy.patience is not None:
            waits.append(self.greedy.patience)
        return min(waits) * 1000 if waits else self.leisure()

    def leisure(self) -> float | None:
        """The same when nothing is under way: until something is to be made ahead, or let go."""
        few = len(self.spare) < self.plan["spare_slots"] or self.ahead.wants
        if few and time.monotonic() >= self.no_spare_before:
            return _REST * 1000 + 1
        if few or self.zygotes.preparing:
            return _SPARE_AGAIN * 1000
        waits = [each.patience for each in (self.ahead, self.rooms) if each.patience is not None]
        return min(waits) * 1000 + 1 if waits else None

    def describe(self) -> dict[str, object]:
        return {
            "root_mode": self.plan["root_mode"],
            "cgroups": self.groups.source,
            "controllers": sorted(self.groups.controllers),
            "kills_by_group": self.groups.killing is not None,
            "traced": self.zygotes.reason is None,
            "cold_reason": self.zygotes.reason,
            "key": self.plan["key"],
            "release": self.plan["release"],
        }

    def send(self, row: Mapping[str, object]) -> None:
        if self.alone.since is not None:
            return
        try:
            self.control.send(json.dumps(row).encode())
        except (BrokenPipeError, ConnectionResetError):
            if not self.alone.begin():
                raise SystemExit(0) from None

    def receive(self) -> bool:
        """Take one packet; False when the owner is gone."""
        if self.alone.since is not None:
            return True  # it went while something was told to it
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, _PACKET, _DESCRIPTORS)
        except ConnectionResetError:
            return False
        if not data:
            return False
        request = _parsed(data)
        self.last_request = time.monotonic()
        try:
            do: Callable[[Any, list[int]], Answer | None] = getattr(self, f"do_{request['op']}")
            answer = do(request, descriptors)
        except (OSError, tracer.TraceError, tracer.InterferedError, slot.SlotError) as error:
            number = getattr(error, "errno", None) or getattr(error, "number", None)
            answer = {"error": {"errno": number, "text": str(error)}}
        except Exception as error:  # noqa: BLE001 - the boundary: one bad request must not end every sandbox
            answer = {"error": {"errno": None, "text": f"{type(error).__name__}: {error}"}}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if answer is not None:
            self.send({"q": request["q"], **answer})
        return True

    # --- sandboxes ------------------------------------------------------------------------------

    def do_open(self, request: OpenRequest, _descriptors: list[int]) -> Answer:
        return {"ok": self.facts_of(self.open_box(request))}

    def open_box(self, request: OpenRequest, run: RunRequest | None = None) -> Box:
        """Give a sandbox a slot. One for a single run has no use for layers, and one group."""
        once = run is not None
        limits = request["limits"]
        user = self.inner_user(request["user"])
        kind = limits["disk"], limits["inodes"], user
        origin = self.begins_from(request)
        room = self.rooms.take(kind) if once else None
        place = self.take_slot() if room is None else room.place
        group: cgroups.Group | None = None
        try:
            group = self.groups.lend(*(_held(limits) if run is None else _held_once(run)))
            store = room.store if room is not None else slot.furnish(
                place, self.own_mounts, self.plan["work"], limits["disk"], limits["inodes"], user,
                self.volumes(place, user), layers=self.plan["layers"] and not once,
                below=None if origin is None else origin.layer,
            )  # fmt: skip
            if once and room is None and self.rooms.can_last(place):
                room = rooms.Room(place, store, kind, slot.folder_names(self.plan["work"]))
        except BaseException:
            if group is not None:
                self.let_go(group)
            if room is not None:
                room.close()
            self.discard(place)
            raise
        box = Box(request["box"], place, store, group)
        box.room = room
        self.boxes[box.name] = box
        self.by_init[place.init] = box
        box.user = user
        box.pids_limit = limits["pids"]
        box.once = once
        return box

    def facts_of(self, box: Box) -> dict[str, object]:
        first = box.slot.first_id
        host_user = None if first is None else first + box.user[0]
        return {"init": box.slot.init, "layered": box.store.layered, "user": host_user}

    def inner_user(self, wanted: list[int]) -> User:
        """Who a sandbox's user is for the kernel inside: with a one-id map there is only one."""
        uid, gid = wanted
        return (uid, gid) if self.plan["root_mode"] else (0, 0)

    def volumes(self, place: slot.Slot, user: User) -> Trees:
        """Folders of the host that go into one slot: those below its own file systems, and the
        writable ones, which the launcher maps to its user.

        With a one-id map the user is who owns the station, and what is writable is in the root.
        """
        trees: Trees = []
        first = self.plan["first_id"]
        try:
            for row in self.plan["late"]:
                trees.append((calls.open_tree(row["source"]), row["target"]))
            if first is None or place.first_id is None:
                return trees
            outside = first + place.first_id + user[0]
            for index, volume in enumerate(self.plan["volumes"]):
                self.life.send(f"{index} {outside}".encode())
                answer, descriptors, _, _ = socket.recv_fds(self.life, 4096, 1)
                if not descriptors:
                    number, _, text = answer.decode().partition("|")
                    raise OSError(int(number or 32), text)
                trees.append((descriptors[0], volume["target"]))
        except BaseException:
            for tree, _ in trees:
                os.close(tree)
            raise
        return trees

    def do_network(self, request: BoxRequest, _descriptors: list[int]) -> Answer | None:
        """Give a sandbox a way out; answered when it is there, or with why it cannot be."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "the sandbox is gone"}
        helpers = len(self.plan["helpers"])
        refused = self.plan["refused"]
        way = network.Network(box.slot, self.life, helpers, refused, self.own_network)
        if box.slot.home is not None:
            box.slot.home.spoiled = True
        way.question = request["q"]
        self.networks[box.name] = way
        network.show_resolver(box.slot, self.own_mounts)
        return None

    def do_terminal(self, request: TerminalRequest, descriptors: list[int]) -> Answer:
        """Make a terminal of a sandbox and send both ends of it to whoever holds the channel."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "the sandbox is gone"}
        try:
            ends = self.make_terminal(box, self.inner_user(request["user"]))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return {"ok": {"refused": "terminals"}}
        try:
            _send_through(descriptors[0], list(ends))
        finally:
            for end in ends:
                os.close(end)
        return {"ok": {}}

    def make_terminal(self, box: Box, user: User) -> tuple[int, int]:
        place = box.slot
        base = place.first_id
        owner = (0, 0) if base is None else (base + user[0], base + user[1])
        return terminals.open_inside(place.init, self.own_mounts, owner)

    def network_descriptors(self) -> Iterator[tuple[int, int]]:
        for way in (*self.networks.values(), *(way for way, _ in self.leaving)):
            yield from way.descriptors.items()

    def advance_networks(self, events: set[int]) -> None:
        for way, question in [row for row in self.leaving if row[0].gone]:
            self.leaving.remove((way, question))
            way.close()
            if question is not None:
                self.send({"q": question, "ok": {}})
        for way in self.networks.values():
            due = way.wait == 0.0 and self.alone.since is None  # the launcher talks of owners then
            if not due and events.isdisjoint(way.descriptors):
                continue
            answer: Answer | None = None
            try:
                way.advance()
            except OSError as error:
                answer = {"error": {"errno": error.errno, "text": str(error.strerror)}}
            if way.up:
                answer = {"ok": {}}
            if answer is not None and way.question is not None:
                self.send({"q": way.question, **answer})
                way.question = None

    def take_slot(self) -> slot.Slot:
        if not self.spare:
            return self.make_slot()
        place = self.spare.pop()
        del self.unused[place.init]
        return place

    def make_slot(self) -> slot.Slot:
        if not self.free_numbers:
            self.rooms.let_go()
        if not self.free_numbers:
            raise slot.SlotError("every slot of this station is in use", 87)  # EUSERS
        number = self.free_numbers.pop()
        try:
            return slot.make_slot(number, self.plan["root_mode"], self.source())
        except BaseException:
            self.free_numbers.add(number)
            raise

    def source(self) -> seed.Forks | seed.Seed:
        """Where inits come from, made at its first use and again when it was killed."""
        if self.inits is None:
            plan, traced = self.plan, self.zygotes.bare is not None
            kind = seed.Seed if traced else seed.Forks
            steps = slot.init_steps(
                plan["root_mode"], plan["hostname"], self.processors, root.EMPTY,
                "" if plan["image"] is None else root.IMAGE,
                bytes.fromhex(plan["reaper_filter"] if traced else plan["init_filter"]),
                kind.descriptors,
            )  # fmt: skip
            self.inits = kind(steps, slot.network_steps())
        return self.inits

    def discard(self, place: slot.Slot) -> None:
        """End a slot that no sandbox has."""
        self.unused.pop(place.init, None)
        if tracer.kill(place.init):
            self.free(place)
        else:
            self.unused[place.init] = place  # its ids are free when it is reaped

    def free(self, place: slot.Slot) -> None:
        """A slot's init is reaped, so every process of it is gone."""
        self.free_numbers.add(place.number)
        if place.home is not None:
            place.home.leave()

    def do_keep(self, request: KeepRequest, descriptors: list[int]) -> Answer:
        """Let a sandbox outlive its owner, who has made all of it."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "its init has ended"}
        box.kept = alone.Kept(request, descriptors[0])
        return {"ok": {}}

    def do_list(self, _request: BoxRequest, _descriptors: list[int]) -> Answer:
        """The sandboxes that a last owner left."""
        return {
            "ok": {
                "boxes": [
                    box.name for box in self.boxes.values() if box.closing is None and not box.once
                ]
            }
        }

    def do_recall(self, request: BoxRequest, descriptors: list[int]) -> Answer:
        """Copy out what a last owner noted of a sandbox; the seconds that it was promised still."""
        box = self.boxes.get(request["box"])
        if box is None or box.kept is None or box.closing is not None:
            return {"error": {"errno": None, "text": "the sandbox is gone"}}
        box.kept.copy_note(descriptors[0])
        if box.frozen:  # nobody is left who would know of it
            box.group.freeze(False)
            box.frozen = False
        until = box.kept.expires
        left = None if until is None else until - time.monotonic()
        return {"ok": {"left": left, **self.facts_of(box)}}

    def do_renew(self, request: RenewRequest, _descriptors: list[int]) -> Answer:
        """Let a sandbox live for so many seconds from now."""
        box = self.boxes.get(request["box"])
        if box is not None and box.kept is not None:
            box.kept.expires = time.monotonic() + request["ttl"]
        return {"ok": {}}

    def do_end(self, _request: BoxRequest, _descriptors: list[int]) -> Answer:
        """From now on the end of the owner is the end of the station."""
        self.alone.keeps = False
        return {"ok": {}}

    def do_look(self, request: BoxRequest, _descriptors: list[int]) -> Answer | None:
        """Whether a sandbox is there; one whose init has begun to end is not."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "its init has ended"}
        if not survey.is_alive(box.slot.init):
            box.mourning.append(request["q"])
            return None
        return {"ok": {}}

    def do_freeze(self, request: FreezeRequest, _descriptors: list[int]) -> Answer:
        """Have a sandbox's processes stand still, or go on; whether all of them do by now."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "its init has ended"}
        box.frozen = request["frozen"]
        done = box.group.freeze(box.frozen)
        if done and box.frozen:
            box.group.give_back()
        return {"ok": {"done": done}}

    def do_run(self, request: NewRun, descriptors: list[int]) -> Answer | None:
        """A sandbox for one process. Answered only where that does not start: its end is news."""
        process = self.ahead.take(request["like"], request["message"], descriptors)
        if process is None:
            row: Any = {
                **json.loads(request["like"]), "q": request["q"],
                "box": request["box"], "process": request["process"],
            }  # fmt: skip
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with ours, theirs:
                socket.send_fds(ours, [request["message"]], descriptors)
                answer = self.try_run(row, theirs.fileno())
            return None if isinstance(answer, Process) else answer
        box = self.boxes.pop(process.box.name)
        box.name = request["box"]
        self.boxes[box.name] = box
        self.processes.pop(process.number)
        box.processes.pop(process.number)
        process.number = request["process"]
        self.count_as_busy(process)
        self.processes[process.number] = box.processes[process.number] = process
        return None

    def begin_run(self, request: RunRequest, channel: int) -> Process:
        """A run whose program comes later. Raises slot.SlotError or what starting it raises."""
        answer = self.try_run(request, channel)
        if not isinstance(answer, Process):
            raise slot.SlotError("a run could not be begun", errno.ESRCH)
        return answer

    def try_run(self, request: RunRequest, channel: int) -> Process | Answer | None:
        box = self.open_box(request, request)
        try:
            answer = self.do_spawn(request, [channel])
        except BaseException:
            self.end(box)
            raise
        if request["process"] in self.processes:
            return self.processes[request["process"]]
        self.end(box)
        return answer

    def end(self, box: Box) -> None:
        """Begin the end of a sandbox: the kernel takes its whole namespace with the init."""
        box.ending = True
        if box.frozen:
            with contextlib.suppress(OSError):  # the init's end is the others', frozen or not
                box.group.kill()  # which also keeps it from being another sandbox's
        box.close()
        os.kill(box.slot.init, signal.SIGKILL)
        self.checkpoints.drop_all_of(box)

    def leave(self, process: Process) -> None:
        """The run of a sandbox for one is over: keep its room for the next one, or end it."""
        box = process.box
        wanted = box.ending or box.mourning  # its end
        if wanted or not self.rooms.keep(box, process):
            self.end(box)
            return
        del self.boxes[box.name]
        del self.by_init[box.slot.init]
        self.let_go(box.group)

    def do_close(self, request: BoxRequest, _descriptors: list[int]) -> Answer | None:
        box = self.boxes.get(request["box"])
        if box is None:
            return {"ok": {}}
        self.end_box(box, request["q"])
        return None

    def end_box(self, box: Box, question: int) -> None:
        """Begin to end a sandbox; the question is answered when it is gone."""
        box.closing = question
        if box.name in self.networks:
            self.networks[box.name].leave()
        self.end(box)

    def closed(self, box: Box) -> None:
        """The init is reaped, so every process of the sandbox is gone."""
        del self.boxes[box.name]
        self.free(box.slot)
        self.checkpoints.drop_all_of(box)
        for process in box.processes.values():
            self.pass_over(process)
            self.ending.pop(process, None)
            self.tell_end(process)
            self.processes.pop(
                process.number, None
            )  # its group may be another sandbox's from now on
        box.close()
        if box.kept is not None:
            box.kept.close()
        self.let_go(box.group)
        way = self.networks.pop(box.name, None)
        if way is not None:
            way.leave()
            self.leaving.append((way, box.closing))  # answered when its helper is gone, too
        for number in box.mourning:
            self.send({"q": number, "lost": "its init has ended"})
        if box.closing is not None and way is None:
            self.send({"q": box.closing, "ok": {}})
        elif box.closing is None and not box.ending:
            self.send({"event": "lost", "box": box.name, "text": "its init has ended"})

    def let_go(self, group: cgroups.Group) -> None:
        """Remove a group, now or when the kernel has forgotten its last process."""
        if not self.groups.take_back(group):
            self.leftovers.append((group, time.monotonic() + _GIVE_UP))

    def let_go_of_run(self, box: Box, group: cgroups.Group) -> None:
        """The same for the group of a run that was not started: its sandbox's own stays."""
        if group is not box.group:
            self.let_go(group)

    def do_prepare(self, request: PrepareRequest, _descriptors: list[int]) -> Answer | None:
        """Import modules ahead of need; answered when they are in, or with why they are not."""
        key = json.dumps(request["preload"])
        if self.zygotes.bare is None or key in self.zygotes.ready:
            return {"ok": {}}
        if key not in self.zygotes.preparing:
            self.zygotes.failed.pop(key, None)
            self.zygotes.prepare(key)
        if key in self.zygotes.failed:
            return {"error": {"errno": None, "text": self.zygotes.failed[key]}}
        self.zygotes.preparing[key].waiting.append(request["q"])
        return None

    def do_checkpoint(self, request: CheckpointRequest, _descriptors: list[int]) -> Answer:
        """Keep what a kernel and its sandbox's files are, for forks; or say what is in the way."""
        box, number = self.boxes.get(request["box"]), request.get("process")
        if box is None:
            return {"lost": "the sandbox is gone"}
        try:
            if number is None:
                return {"ok": self.checkpoints.take_files(request["checkpoint"], box)}
            process = box.processes.get(number)
            if process is None or process.ended:
                return {"ok": {"blockers": ["the kernel has ended"]}}
            passing, drop = request.get("passing", False), request.get("drop", False)
            name = request["checkpoint"]
            return {"ok": self.checkpoints.take(name, process, passing=passing, drop=drop)}
        except checkpoints.RefusedError as error:
            return {"ok": {"blockers": error.reasons}}

    def do_drop(self, request: CheckpointRequest, _descriptors: list[int]) -> Answer:
        """Let go of what was kept for forks."""
        self.checkpoints.drop(request["checkpoint"])
        return {"ok": {}}

    def do_copy(self, request: BoxRequest, descriptors: list[int]) -> Answer:
        """Copy what a sandbox has stored, for whoever holds the channel."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "the sandbox is gone"}
        try:
            made = self.checkpoints.copy_files(box)
        except checkpoints.RefusedError as error:
            return {"ok": {"blockers": error.reasons}}
        return self.give(made, descriptors[0])

    def do_layer(self, request: LayerRequest, descriptors: list[int]) -> Answer:
        """Make an empty layer, for whoever holds the channel, where one can be shared at all."""
        made = layer.Layer(request["disk"], request["inodes"], None)
        try:
            os.close(calls.copy_of(made.descriptor))
        except OSError as error:
            made.close()
            if error.errno != errno.EINVAL:
                raise
            return {"ok": {"refused": "layers"}}
        return self.give(made, descriptors[0])

    @staticmethod
    def give(made: layer.Layer, channel: int) -> Answer:
        """Give a layer away, with the user namespace whose ids it has."""
        try:
            users = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _send_through(channel, [made.descriptor, users])
            finally:
                os.close(users)
        finally:
            made.close()
        return {"ok": {}}

    def do_hold(self, request: HoldRequest, descriptors: list[int]) -> Answer:
        """Keep a layer that the owner has filled."""
        self.checkpoints.hold(request["checkpoint"], descriptors[0])
        return {"ok": {}}

    def do_thin(self, request: CheckpointRequest, _descriptors: list[int]) -> Answer:
        """Let go of the memory of what was kept."""
        self.checkpoints.thin(request["checkpoint"])
        return {"ok": {}}

    def do_diff(self, request: DiffRequest, descriptors: list[int]) -> Answer:
        """Write into a file what differs between two checkpoints' files, or one's and now."""
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "the sandbox is gone"}
        try:
            found = self.checkpoints.changes(request["checkpoint"], request.get("by"), box)
        except checkpoints.RefusedError as error:
            return {"ok": {"blockers": error.reasons}}
        with open(os.dup(descriptors[0]), "w", encoding="ascii") as file:
            json.dump(found, file)
        return {"ok": {}}

    def do_replace(self, request: ReplaceRequest, _descriptors: list[int]) -> Answer:
        """Have a sandbox be another one from now on, and that one be it, which is to be closed."""
        old, new = self.boxes.get(request["box"]), self.boxes.get(request["by"])
        if old is None or new is None or old.closing is not None:
            return {"lost": "the sandbox is gone"}
        old.name, new.name = new.name, old.name
        self.boxes[old.name], self.boxes[new.name] = old, new
        ways = {box.name: self.networks.pop(name) for box, name in
                ((old, new.name), (new, old.name)) if name in self.networks}  # fmt: skip
        self.networks.update(ways)
        new.kept, old.kept = old.kept, None
        old.replaced = True
        self.checkpoints.move(old, new)
        return {"ok": self.facts_of(new)}

    # --- processes ------------------------------------------------------------------------------

    def do_spawn(self, request: SpawnRequest, descriptors: list[int]) -> Answer | None:
        box = self.boxes.get(request["box"])
        if box is None:
            return {"lost": "the sandbox is gone"}
        if not box.once and self.is_full(box):
            return {"ok": {"pid": 0, "refused": "process_limit"}}
        before = self.before(request, box)
        group = box.group if box.once else box.group.child(*_held(request))
        try:
            self.bound_store(box, (request["disk"], request["inodes"]))
            user = self.inner_user(request["user"])
            limits = {int(kind): (soft, hard) for kind, (soft, hard) in request["rlimits"].items()}
            processors = self.choose_processors(box, request["cpu"])
            pid, shadow = self.zygotes.spawn(
                request, box.slot, descriptors[0], user, group, limits, processors,
                single=box.room is not None, checkpoint=self.begins_from(request),
            )  # fmt: skip
        except BaseException as error:
            starved = False
            with contextlib.suppress(OSError):
                starved = group.oom_kills() > 0
            self.let_go_of_run(box, group)
            with contextlib.suppress(OSError):
                self.bound_store(box)
            if not survey.is_alive(box.slot.init) and not _is_refused(error):
                box.mourning.append(request["q"])
                return None
            said = _said_of(error, starved)
            if said is None:
                raise
            return {"ok": {"pid": 0, **said}}
        self.last_birth = time.monotonic()
        process = Process(request["process"], box, pid, group, request)
        process.before = before
        self.note_shadow(process, shadow)
        if "cpu" not in self.groups.controllers and processors != self.processors:
            process.processors = processors
        self.attend_to(process)
        box.processes[process.number] = process
        self.processes[process.number] = process
        self.by_pid[pid] = process
        return {"ok": {"pid": 0 if box.once else survey.inner_pid(pid)}}

    def begins_from(self, request: OpenRequest | SpawnRequest) -> checkpoints.Checkpoint | None:
        """What it goes on from, if that is named. Raises OSError where that is gone."""
        name = request.get("checkpoint")
        return None if name is None else self.checkpoints.find(name)

    def before(self, request: SpawnRequest, box: Box) -> dict[int, int] | None:
        """Who is in the sandbox already, and so none of a new run's daemons. None for what serves
        the files: it starts none, and those of every later run were born in its time, too."""
        if request["kind"] == "guest":
            return None
        return {} if self.groups.complete else survey.standing(box.slot)

    def is_full(self, box: Box) -> bool:
        """Whether a sandbox has as many processes as it may, not counting one that is moved in."""
        if "pids" in self.groups.controllers:
            return box.group.is_full()
        most = box.pids_limit
        return most is not None and survey.tasks(box.slot.members()) >= most

    def choose_processors(self, box: Box, cores: float | None) -> set[int]:
        """Which a process may use: all, or where no group holds its time, as many as it may have
        cores, rounded up; for all runs of a sandbox from the same few."""
        if "cpu" in self.groups.controllers:
            return self.greedy.kept.get(box, self.processors)
        if cores is None:
            return self.processors
        first = box.slot.number
        ordered = sorted(self.processors)
        number = min(len(ordered), max(1, math.ceil(cores)))
        return {ordered[(first + place) % len(ordered)] for place in range(number)}

    @staticmethod
    def bound_store(box: Box, *more: tuple[int, int]) -> None:
        """Hold what a sandbox stores to the least that one of its live calls may, or it itself."""
        asked = [(process.disk, process.inodes) for process in box.processes.values()]
        asked += [*more, (box.store.disk, box.store.inodes)]
        box.store.bound(min(disk for disk, _ in asked), min(inodes for _, inodes in asked))

    def do_signal(self, request: SignalRequest, _descriptors: list[int]) -> Answer:
        process = self.processes.get(request["process"])
        if process is not None and not process.ended:
            os.kill(process.pid, request["signal"])
        return {"ok": {}}

    def do_kill(self, request: ProcessRequest, _descriptors: list[int]) -> Answer | None:
        """Kill a run with every descendant; answered when they are gone."""
        process = self.processes.get(request["process"])
        if process is None:
            return {"ok": {}}
        self.end_run(process, request["q"])
        return None

    def end_run(self, process: Process, question: int) -> None:
        """Begin to kill a run; the question is answered when it is gone."""
        process.kill_requests.append(question)
        self.kill_run(process, None)

    def kill_run(self, process: Process, cause: str | None) -> None:
        """Kill a run, now or as soon as that can be done: until it is gone it is tried again."""
        if cause is not None and process.cause is None:
            process.cause = cause
        if process.number in self.processes:
            self.ending[process] = None
        with contextlib.suppress(OSError):  # no descriptor is to be had, say
            self.strike(process)

    def strike(self, process: Process) -> None:
        """Kill whoever is there of a run. Raises OSError, and then somebody may be missed."""
        process.struck = process.group.kill()
        if not process.struck:
            self.kill_one_by_one(process)

    def kill_one_by_one(self, process: Process) -> None:
        """Kill whoever is seen of a run, and remember whom."""
        process.killed |= survey.kill_descendants(
            process.box.slot, process.pid, process.before, self.others(process)
        )

    def others(self, process: Process) -> set[int]:
        """Main processes in the same sandbox that are not this one's business."""
        return {other.pid for other in process.box.processes.values() if other is not process}

    def gone(self, process: Process) -> bool:
        """Whether nobody is left of a run that is being killed. Raises OSError where that cannot be
        seen."""
        if self.groups.killing is not None:
            if not process.struck:
                self.strike(process)
            return process.ended and process.group.empty()
        process.killed = survey.not_ended(process.killed)
        self.kill_one_by_one(process)
        left = 0
        if process.before is not None:
            known = {*process.before, *self.others(process), *self.servants_of(process.box)}
            left = survey.kill_children(process.box.slot.init, known)
        return process.ended and not process.killed and not left

    def is_seen_gone(self, process: Process) -> bool:
        """The same; False, for a while, where that cannot be seen."""
        try:
            gone = self.gone(process)
        except OSError:  # no descriptor is to be had, say
            process.missed += 1
            if process.missed > _MOST_MISSED:
                raise
            return False
        process.missed = 0
        return gone

    def servants_of(self, _box: Box) -> set[int]:
        """Processes in a sandbox that are ours, beside its init."""
        return set()

    # --- what ends ------------------------------------------------------------------------------

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | tracer.WALL)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if os.WIFSTOPPED(status):  # a carrier's stop that nobody waited for: it stays stopped
                self.checkpoints.see_stopped(pid, status)
                continue
            if pid in self.by_pid:
                self.ended(self.by_pid.pop(pid), status, usage)
            elif pid in self.by_init:
                self.closed(self.by_init.pop(pid))
            elif pid in self.unused:
                self.rooms.ended(pid)
                self.spare = [place for place in self.spare if place.init != pid]
                self.free(self.unused.pop(pid))
            else:
                self.helper_ended(pid)

    def helper_ended(self, pid: int) -> None:
        """What processes are made from was killed: it is made again when it is needed."""
        if self.inits is not None and self.inits.ended(pid):
            self.inits = None
        elif pid in self.shadows:
            self.shadow_ended(self.shadows.pop(pid))
        else:
            self.checkpoints.ended(pid)
            self.zygotes.ended(pid)

    def note_shadow(self, process: Process, shadow: Carrier | None) -> None:
        process.shadow = shadow
        if shadow is not None:
            self.shadows[shadow.pid] = process

    def shadow_ended(self, process: Process) -> None:
        """Nothing but a kernel's own process has its memory any more."""
        process.shadow = None
        box = process.box
        if box.ending or self.boxes.get(box.name) is not box:
            return  # its groups go with it
        with contextlib.suppress(OSError):  # no descriptor is to be had, say
            process.group.make_room(-1)
        if process.number not in self.processes:
            process.group.put_away()

    def ended(self, process: Process, status: int, usage: struct_rusage) -> None:
        """It is reaped. What cannot be seen of it, for want of a descriptor, say, is not told."""
        process.ended = True
        process.let_go_of_shadow()
        self.checkpoints.stopping.pop(process.pid, None)
        self.pass_over(process)
        figures, left = cgroups.Figures(), None
        with contextlib.suppress(OSError):
            figures = process.group.figures()
        with contextlib.suppress(OSError):
            left = None if self.groups.complete else self.look_at(process)
        cause = process.cause
        with contextlib.suppress(OSError):
            cause = cause or self.limit_hit(process, status, usage, figures)
            if cause is None and self.went_with_its_box(process, status):
                cause = "infra"
        known = usage.ru_utime + usage.ru_stime + (0.0 if left is None else left.cpu)
        cpu = max(known, process.cpu_seen) if figures.cpu is None else figures.cpu
        cpu_user, cpu_system = _split(usage, cpu)
        peak = figures.peak_memory or max(process.peak, usage.ru_maxrss * 1024)
        row: ExitRow = {
            "event": "exit", "process": process.number, "status": status, "cause": cause,
            "cpu_user": cpu_user, "cpu_system": cpu_system,
            "peak_memory": peak, "processes": figures.processes or process.count or None,
            "source": self.groups.source,
        }  # fmt: skip
        if cause is not None and cause != "infra":
            # It ran into a limit: what it left behind holds what the next one needs.
            self.kill_run(process, cause)
            process.last_words = row
            return
        if figures.refused_forks or process.crowded:
            self.kill_run(process, None)  # it ended well, but leaves no room for the next
        process.was_alone = (
            figures.processes == 1 and not figures.refused_forks and not process.ending
        )
        self.send(row)
        if not process.kill_requests:
            self.forget(process)

    def went_with_its_box(self, process: Process, status: int) -> bool:
        """Whether nobody wanted its end, but the end of all that was in the sandbox."""
        if process.box.replaced:
            return False
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return killed and not process.ending and not survey.is_alive(process.box.slot.init)

    def limit_hit(
        self, process: Process, status: int, usage: struct_rusage, figures: cgroups.Figures
    ) -> str | None:
        """The limit that a process ended for, if what counts it says so.

        Nothing but a control group counts the forks that were refused. Without one, a run that
        fails and had as many processes as it may have counts as having been refused one more.
        """
        if figures.oom_kills:
            return "oom"
        if status == 0:
            return None
        out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        if out_of_time and process.cpu_limit is not None:
            return "cpu_timeout"
        if figures.refused_forks or process.crowded:
            return "process_limit"
        most = None if "memory" in self.groups.controllers else process.memory_limit
        if most is not None and usage.ru_maxrss * 1024 > 2 * most:
            return "oom"  # it was refused more (RLIMIT_DATA) before anybody looked
        return "disk_limit" if self.is_stored_out(process) else None

    @staticmethod
    def is_stored_out(process: Process) -> bool:
        """Whether there is no room left, or a file is as large as one may be."""
        store = process.box.store
        return store.full() or (
            process.largest_file <= process.disk
            and store.has_file_of(process.largest_file, process.began - _COARSE)
        )

    def forget(self, process: Process) -> None:
        self.pass_over(process)
        self.ending.pop(process, None)
        self.processes.pop(process.number, None)
        process.box.processes.pop(process.number, None)
        if process.box.once:
            self.leave(process)
        else:
            with contextlib.suppress(OSError):  # the next run asks again for what it may store
                self.bound_store(process.box)
            if process not in self.shadows.values():  # else when that is reaped
                process.group.put_away()  # one with daemons in it goes when the sandbox does

    def attend_to(self, process: Process) -> None:
        """From now on it runs, and there may be something to see."""
        if self.is_watched(process):
            process.look_again = self.last_birth + _WATCH
            self.watching[process] = None
        if not process.stays and process.number > 0:
            self.count_as_busy(process)

    def count_as_busy(self, process: Process) -> None:
        self.busy.add(process)
        self.greedy.attend_to(process)

    def pass_over(self, process: Process) -> None:
        """From now on it runs nothing, and there is nothing to see."""
        self.busy.discard(process)
        self.greedy.pass_over(process)
        self.watching.pop(process, None)

    def tell_end(self, process: Process) -> None:
        """Say that a run is gone that was being killed."""
        if process.last_words is not None:
            self.send(process.last_words)
        for number in process.kill_requests:
            self.send({"q": number, "ok": {}})

    def look_after(self) -> None:
        now = time.monotonic()
        for process in list(self.ending):
            if self.is_seen_gone(process):
                self.tell_end(process)
                self.forget(process)
        due = self.due(now)
        if due:
            self.watch_some(due, now)
        self.greedy.look(now)
        self.leftovers = [
            (group, until) for group, until in self.leftovers if now < until and not group.remove()
        ]
        if self.alone.since is not None:
            self.ahead.drop()
            self.rooms.let_go()
            self.checkpoints.drop_all()
        else:
            self.ahead.look()
            self.rooms.look()
            self.stock_up(now)
        self.zygotes.give_up_late()

    def is_at_rest(self, now: float) -> bool:
        """Whether what is made ahead holds up nobody: the first process in a while that joins a
        control group waits for the kernel for milliseconds, and the station with it."""
        if now - self.last_birth < _LATELY:
            return True
        return not self.busy and now - self.last_request > _REST

    def stock_up(self, now: float) -> None:
        """Make one thing ahead of need, if nothing else is asked for."""
        few = len(self.spare) < self.plan["spare_slots"]
        wanted = few or self.ahead.wants
        if (
            not wanted
            or now < self.no_spare_before
            or not self.is_at_rest(now)
            or select.select([self.control], [], [], 0)[0]
        ):
            return
        try:
            if self.ahead.wants:
                self.ahead.begin()
            else:
                place = self.make_slot()
                self.spare.append(place)
                self.unused[place.init] = place
        except (OSError, tracer.TraceError, tracer.InterferedError, slot.SlotError):
            # Only a head start is missing; whoever needs a slot will hear why there is none.
            self.no_spare_before = now + _SPARE_AGAIN

    def is_watched(self, process: Process) -> bool:
        """Limits that no control group holds, or tells of, are held by looking."""
        unheld = not {"memory", "pids"} <= self.groups.controllers.keys()
        one_by_one = self.groups.kills_one_by_one and process.memory_limit is not None
        pinned = process.processors is not None
        return process.cpu_limit is not None or unheld or one_by_one or pinned

    def due(self, now: float) -> list[Process]:
        """Those that are to be looked at now, who waited longest first: where groups hold what
        matters, a crowd must not hold up requests."""
        held = {"memory", "pids"} <= self.groups.controllers.keys()
        found: list[Process] = []
        for process in self.watching:
            if process.look_again > now or (held and len(found) == _MOST_LOOKS):
                break
            found.append(process)
        return found

    def watch_some(self, due: list[Process], now: float) -> None:
        """Look at them, and put them at the end of those that wait for it."""
        crowd = survey.Crowd()
        for process in due:
            process.look_again = now + _WATCH
            del self.watching[process]
            self.watching[process] = None
            try:
                self.watch(process, crowd)
                process.blind = 0
            except OSError:  # no descriptor is to be had, say
                process.blind += 1
                if process.blind > _MOST_BLIND:
                    raise

    def watch(self, process: Process, crowd: survey.Crowd) -> None:
        if self.groups.kills_one_by_one and process.group.oom_kills():
            self.kill_run(process, "oom")  # the rest may wait for ever for the one that it lost
        pinned = process.processors is not None
        held = {"memory", "pids"} <= self.groups.controllers.keys()
        if held and not pinned and process.cpu_limit is None:
            return
        cpu = process.group.cpu()
        if cpu is None or pinned or not held:
            seen = self.look_at(process, crowd)
            cpu = max(seen.cpu, process.cpu_seen) if cpu is None else cpu
        if process.cpu_limit is not None and cpu > process.cpu_limit:
            self.kill_run(process, "cpu_timeout")

    def look_at(self, process: Process, crowd: survey.Crowd | None = None) -> survey.Usage:
        """Look at what a run uses, remember the most of it, and end it for too much memory."""
        most = None if "memory" in self.groups.controllers else process.memory_limit
        members = process.box.slot.members(crowd)
        seen = survey.usage(members, process.pid, process.before, self.others(process), most)
        if process.processors is not None:
            for pid in seen.pids:
                survey.pin(pid, process.processors)  # any program can widen what it was given
        process.remember(seen.each)
        process.peak = max(process.peak, seen.memory)
        process.count = max(process.count, seen.processes)
        if "pids" not in self.groups.controllers and process.pids_limit is not None:
            # The main one is not among them when it has just ended.
            tasks = seen.tasks + process.ended + process.box.slot.servants
            process.crowded = process.crowded or tasks >= process.pids_limit
        if most is not None and seen.memory > most and not process.ended:
            self.kill_run(process, "oom")
        return seen


def _said_of(error: BaseException, starved: bool) -> dict[str, object] | None:
    """What is said of a process that could not be made; None for a fault of ours."""
    if _is_refused(error):
        return {"refused": "process_limit"}
    if isinstance(error, reopening.ReopenError):
        return {"blockers": [f"what the kernel has open: {error}"]}
    if isinstance(error, tracer.InterferedError):
        return {"killed": error.signal, "cause": "oom" if starved else None}
    return None


def _is_refused(error: BaseException) -> bool:
    """Whether the kernel has refused one more process."""
    return getattr(error, "errno", None) == errno.EAGAIN


def _send_through(channel: int, descriptors: list[int]) -> None:
    with socket.socket(fileno=os.dup(channel)) as line:
        socket.send_fds(line, [b"T"], descriptors)


def _parsed(packet: bytes) -> dict[str, Any]:
    """A request: JSON, and for a new run two lines more that are not looked into."""
    first, *more = packet.split(b"\n", 2)
    request = json.loads(first)
    if more:
        request["like"], request["message"] = more
    return request


def _held(limits: BoxLimits | SpawnRequest) -> tuple[int | None, int | None, float | None]:
    return limits["memory"], limits["pids"], limits["cpu"]


def _held_once(run: RunRequest) -> tuple[int | None, int | None, float | None]:
    """What holds a sandbox and what holds its only run hold the same processes."""
    (memory, pids, cpu), (memory_too, pids_too, cpu_too) = _held(run["limits"]), _held(run)
    return _least(memory, memory_too), _least(pids, pids_too), _least(cpu, cpu_too)


def _least(one: _N | None, other: _N | None) -> _N | None:
    """The smaller of two limits; None is none."""
    return other if one is None else one if other is None else min(one, other)


def _split(usage: struct_rusage, cpu: float) -> tuple[float, float]:
    """Seconds of processor time in the program and in the kernel: `cpu` in all, divided as it is
    known of the main process and whom it has waited for."""
    known = usage.ru_utime + usage.ru_stime
    if known <= 0:
        return cpu, 0.0
    return cpu * usage.ru_utime / known, cpu * usage.ru_stime / known


def main(control: int, life: int, plan_file: int) -> None:
    with open(plan_file, "rb") as file:
        plan = json.load(file)
    for descriptor in (control, life, *(group["fd"] for group in plan["groups"])):
        os.set_inheritable(descriptor, False)
    # A launcher that is killed takes along even a station that hangs and so does not see LIFE end.
    calls.prctl(1, signal.SIGKILL)  # SET_PDEATHSIG
    calls.prctl(4, 1)  # SET_DUMPABLE: a carrier's copies fetch their channel from here
    os.umask(0o022)
    calls.umount(root.CODE + "/ms_enclave")
    flags = calls.MS_BIND | calls.MS_REMOUNT | calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV
    calls.mount("", "/", None, flags)
    try:
        Station(control, life, plan).run()
    except (OSError, tracer.TraceError, slot.SlotError) as error:
        row = {"event": "failed", "step": "station", "errno": getattr(error, "errno", None)}
        socket.socket(fileno=os.dup(control)).send(json.dumps({**row, "text": str(error)}).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # what is left the kernel ends faster than the interpreter
