"""What forks begin from: a kernel's memory and its sandbox's files as they are at one moment.

`take` stops a kernel where it waits for its next cell, looks from outside at all that its forks
would share with it or would miss, and copies its memory by its shadow and its files into a layer;
the kernel goes on then. Nothing that runs in the sandbox is asked, and nothing is believed of it.
A shadow that shares memory with a program makes one kind of call, which has no pointer in it, and
that call is looked at before the kernel makes it (`tracer.system_call`). Code of ours runs freely
only in the copy, in which nobody else has a part: that is compared, too.
"""

from __future__ import annotations

import errno
import os

from . import _calls as calls
from . import blockers, changes, inner, layer, reopening, slot, survey, tracer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._shapes import FileRow
    from .carrier import Carrier
    from .station import Box, Process, Station

__all__ = ["Checkpoint", "Checkpoints", "RefusedError"]

_MOST_TEXT = 8 << 20
_TMP = "/tmp"
_IN_ROOT = 0x02 | 0x04 | 0x10  # RESOLVE_NO_MAGICLINKS, NO_SYMLINKS, IN_ROOT
_MOST = 256
"""Checkpoints that a station has at once: each is a process with somebody's memory."""
_LONGEST_NAME = 3000
"""Bytes of the path of a file that is opened again: a fork has so much room for it."""
_MOST_CHANGES = 1 << 21
"""Characters of the paths of what has changed; each is six bytes at most when it is told."""
_CHANNEL = 3
_MOST_REASONS, _LONGEST = 24, 300
_MOST_THREADS = 64


class Checkpoint:
    """A stopped copy of a kernel, if it was of one, and of its sandbox's files. `number` is the
    kernel's pid inside; `box` is None for files that are no sandbox's."""

    __slots__ = ("box", "carrier", "layer", "number")

    def __init__(
        self, box: Box | None, carrier: Carrier | None, files: layer.Layer, number: int
    ) -> None:
        self.box = box
        self.carrier = carrier
        self.layer = files
        self.number = number


class RefusedError(Exception):
    """It cannot be forked as it is; `reasons` say why."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = [reason[:_LONGEST] for reason in reasons[:_MOST_REASONS]]
        super().__init__("; ".join(self.reasons))


class Checkpoints:
    """Those of a station."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.kept: dict[str, Checkpoint] = {}
        self.stopping: dict[int, int] = {}
        """Threads of kernels, with the kernels' pids, that did not stop in time: they are let go
        when they do."""
        self.copiers: dict[int, Process] = {}
        """Kernels by the pid of what they are copied by."""

    def find(self, name: str) -> Checkpoint:
        """Raises OSError (ESRCH) where there is none: its sandbox has ended, or its memory."""
        found = self.kept.get(name)
        if found is None:
            raise OSError(errno.ESRCH, "what it was to be forked from is gone")
        return found

    def take_files(self, name: str, box: Box) -> dict[str, object]:
        """Keep what a sandbox has stored in which nothing runs. Raises as `take` does."""
        self._require_room(box)
        reasons = blockers.others((), self._other_processes(box, None))
        if reasons:
            raise RefusedError(reasons)
        self.kept[name] = Checkpoint(box, None, self._layer(box), 0)
        return {}

    def changes(self, before: str, after: str | None, box: Box) -> list[tuple[str, str, str]]:
        """What differs between the files of a checkpoint and those of another one, or of a sandbox
        as they are now: see `changes.find`. Raises RefusedError, and OSError as `find` does."""
        first = self.find(before).layer
        if after is not None:
            return self._compare(first, self.find(after).layer)
        now = self._layer(box)  # a copy: of what somebody writes to nothing could be said
        try:
            return self._compare(first, now)
        finally:
            now.close()

    def _compare(self, before: layer.Layer, after: layer.Layer) -> list[tuple[str, str, str]]:
        work = self.station.plan["work"]
        found: list[tuple[str, str, str]] = []
        size = 0
        for name in slot.folder_names(work):
            shown = _TMP if name == "tmp" else work
            for row in changes.find(before.descriptor, after.descriptor, name, shown):
                found.append(row)
                size += len(row[0])
                if size > _MOST_CHANGES:
                    raise RefusedError([f"changes with more than {_MOST_CHANGES} bytes of names"])
        return found

    def copy_files(self, box: Box) -> layer.Layer:
        """What a sandbox has stored, whoever runs in it; the caller's. Raises RefusedError."""
        try:
            return self._layer(box)
        except FileNotFoundError:
            raise RefusedError(["what is stored changes while it is copied"]) from None

    def hold(self, name: str, descriptor: int) -> None:
        """Keep a layer that is no sandbox's, in the place of one of that name. Raises OSError."""
        self.drop(name)
        if len(self.kept) >= _MOST:
            raise OSError(errno.ENOSPC, f"{_MOST} of its kind are there already")
        self.kept[name] = Checkpoint(None, None, layer.Layer.of(os.dup(descriptor)), 0)

    def _require_room(self, box: Box) -> None:
        if len(self.kept) >= _MOST:
            raise RefusedError([f"{_MOST} checkpoints and forks are there already"])
        if not box.store.layered:
            raise RefusedError(["this kernel of the machine's has no layers of files to share"])

    def take(
        self, name: str, process: Process, *, passing: bool, drop: bool = False
    ) -> dict[str, object]:
        """Keep how a kernel and its sandbox are; with `passing` for a moment only, as long as the
        kernel itself lives. With `drop` without those descriptors and processes that would be in
        the way. Returns what was left out.

        Raises RefusedError, and OSError or tracer.TraceError for what is not the program's doing.
        """
        self._require_room(process.box)
        shadow = process.shadow
        if shadow is None:
            raise RefusedError(["the kernel has no second process of ours to copy it by"])
        pid = process.pid
        held = {pid: self._hold(pid)}
        dropped: list[str] | None = [] if drop else None
        try:
            self._hold_threads(pid, held)
            opened = self._look(process, shadow, held, dropped)
            made = self._copy(process, shadow, [*held.values()], opened, passing)
        finally:
            for thread in reversed(held):
                if not tracer.release(thread):
                    self.stopping[thread] = pid
        self.kept[name] = made
        return {"dropped": RefusedError(dropped or []).reasons}

    def see_stopped(self, pid: int, status: int) -> None:
        """A thread has stopped that nobody waited for: a carrier, which stays so, or one of ours to
        let go."""
        kernel = self.stopping.get(pid)
        if kernel is None or not os.path.exists(f"/proc/{kernel}/task/{pid}"):
            return
        if tracer.release(pid, status):
            del self.stopping[pid]

    def drop(self, name: str) -> None:
        """Let go of one; nothing happens where there is none."""
        self.thin(name)
        found = self.kept.pop(name, None)
        if found is not None:
            found.layer.close()

    def thin(self, name: str) -> None:
        """Let go of the memory of one, and keep its files; nothing happens where there is none."""
        found = self.kept.get(name)
        if found is not None and found.carrier is not None:
            os.kill(found.carrier.pid, 9)  # which the loop reaps
            found.carrier = None

    def move(self, old: Box, new: Box) -> None:
        """What was of one sandbox is of another one, which takes its place."""
        for found in self.kept.values():
            if found.box is old:
                found.box = new

    def drop_all(self) -> None:
        """There is nobody who knows of them any more. Idempotent."""
        for name in [*self.kept]:
            self.drop(name)

    def drop_all_of(self, box: Box) -> None:
        for name in [name for name, found in self.kept.items() if found.box is box]:
            self.drop(name)

    def ended(self, pid: int) -> None:
        """A process was reaped."""
        self.stopping.pop(pid, None)
        copied = self.copiers.pop(pid, None)
        if copied is not None and copied.copier is not None and copied.copier.pid == pid:
            copied.copier = None
        for found in self.kept.values():
            if found.carrier is not None and found.carrier.pid == pid:
                found.carrier = None  # it was killed, for memory say

    def _hold(self, pid: int) -> tracer.State:
        try:
            return tracer.hold(pid)
        except tracer.TraceError as error:
            if error.lingers:
                self.stopping[pid] = pid
            text = f"the kernel's process does not wait for a cell: {error}"
            raise RefusedError([text]) from None

    # --- looking --------------------------------------------------------------------------------

    def _other_processes(self, box: Box, kernel: int | None) -> list[str]:
        """Who is in the sandbox but the kernel and those that serve its files."""
        known = {kernel} | {one.pid for one in box.processes.values() if one.serves}
        return [
            f"{survey.inner_pid(pid)} ({_comm(f'/proc/{pid}')})"
            for pid in box.slot.members()
            if pid not in known
        ]

    def _hold_threads(self, pid: int, held: dict[int, tracer.State]) -> None:
        """Hold all other threads, by the order of their ids, those too that are just being made."""
        while new := sorted({int(one) for one in os.listdir(f"/proc/{pid}/task")} - held.keys()):
            if len(held) + len(new) > _MOST_THREADS:
                raise RefusedError([f"more than {_MOST_THREADS} threads"])
            for thread in new:
                try:
                    held[thread] = tracer.hold_thread(thread)
                except tracer.TraceError as error:
                    if error.lingers:
                        self.stopping[thread] = pid
                    if os.path.exists(f"/proc/{pid}/task/{thread}"):
                        text = f"thread {_named(pid, thread)} does not stop: {error}"
                        raise RefusedError([text]) from None

    def _look(
        self,
        process: Process,
        shadow: Carrier,
        held: dict[int, tracer.State],
        dropped: list[str] | None,
    ) -> reopening.Opened:
        """What its forks have to open, its folder and its umask.

        Raises RefusedError for whatever they could not have, or not for themselves, but for what
        can be `dropped`.
        """
        pid, box = process.pid, process.box
        if not tracer.shares_memory(pid, shadow.pid):
            raise RefusedError(["the kernel has become another program"])
        volumes = [row["target"] for row in self.station.plan["volumes"]]
        carried = [_TMP, self.station.plan["work"]]
        mounts = blockers.Mounts(_text(f"/proc/{box.slot.init}/mountinfo"), carried, volumes)
        first = _text(f"/proc/{shadow.pid}/status")
        status = _text(f"/proc/{pid}/status")
        odd = [
            _named(pid, one)
            for one in held
            if not tracer.shares_files(pid, one)
            or blockers.status(_text(f"/proc/{pid}/task/{one}/status"), status)
        ]
        processes = self._other_processes(box, pid)
        if dropped is not None:
            dropped += blockers.others((), processes)
            processes = []
        reasons = blockers.others(odd, processes)
        reasons += blockers.status(status, first)
        reasons += blockers.maps(_text(f"/proc/{pid}/maps"), mounts)
        descriptors = _descriptors(pid, box.slot)
        closed, files = blockers.files(descriptors, mounts, dropped, self._inner(pid, descriptors))
        reasons += closed
        cwd = os.readlink(f"/proc/{pid}/cwd")
        if not _leads(box.slot, cwd, os.stat(f"/proc/{pid}/cwd")) or not mounts.carries(cwd):
            reasons.append(f"its folder is one that has no name any more: {cwd}")
        names = [cwd, *(row["path"] for row in files if "path" in row)]
        if any(len(os.fsencode(name)) > _LONGEST_NAME for name in names):
            reasons.append("the name of an open file or of its folder is too long")
        if reasons:
            raise RefusedError(reasons)
        return reopening.Opened(files, cwd, _mask(status))

    def _inner(self, pid: int, descriptors: Sequence[blockers.Descriptor]) -> dict[int, FileRow]:
        """What it has for itself alone, as far as that can be made anew."""
        others = [one for one in descriptors if one.number > _CHANNEL]
        pairs: dict[int, tuple[int, int]] = {}
        if any(one.target.startswith("socket:") for one in others):
            pairs = inner.pairs(pid, self.station.own_network)
        return inner.plan(descriptors, inner.Seen(inner.unread(pid, others), pairs))

    # --- copying --------------------------------------------------------------------------------

    def _copy(
        self,
        process: Process,
        shadow: Carrier,
        states: list[tracer.State],
        opened: reopening.Opened,
        passing: bool,
    ) -> Checkpoint:
        files = self.copy_files(process.box)  # processes that are left out may be writing
        try:
            carrier = self._carrier(process, shadow, states[0], passing)
            carrier.threads, carrier.opened = states[1:], opened
        except BaseException:
            files.close()
            raise
        return Checkpoint(process.box, carrier, files, survey.inner_pid(process.pid))

    def _layer(self, box: Box) -> layer.Layer:
        work = self.station.plan["work"]
        place = f"/proc/{box.slot.init}/root"
        try:
            made = layer.Layer(box.store.disk, box.store.inodes, box.slot.first_id)
            try:
                for name in slot.folder_names(work):
                    made.take(name, place + (_TMP if name == "tmp" else work))
            except BaseException:
                made.close()
                raise
        except layer.TooMuchError as error:
            raise RefusedError([f"what is stored: {error}"]) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENAMETOOLONG, errno.EDQUOT):
                raise
            raise RefusedError([f"what is stored: {error.strerror}"]) from None
        return made

    def _carrier(
        self, process: Process, shadow: Carrier, state: tracer.State, passing: bool
    ) -> Carrier:
        try:
            origin = shadow if passing else self._copier(process, shadow)
            copy = origin.copy()
        except tracer.TraceError as error:
            # It was made to try something else, or was just killed: nobody knows what it is now.
            known = [one.pid for one in (shadow, process.copier) if one is not None]
            process.let_go_of_shadow()
            if error.pid in known and not os.WIFSTOPPED(error.status):
                self.station.helper_ended(error.pid)  # whoever waited for its stop has reaped it
            text = f"the kernel has changed what it is copied by, and is not copied again: {error}"
            raise RefusedError([text]) from None
        try:
            apart = not tracer.shares_memory(copy, process.pid)
        except tracer.TraceError:
            apart = False
        if not apart:
            tracer.kill(copy)
            raise tracer.TraceError(f"{copy} would run in memory that is not its own")
        return self.station.zygotes.carrier_of(
            copy, shadow, state, placed=True, shares_nothing=True
        )

    def _copier(self, process: Process, shadow: Carrier) -> Carrier:
        """A twin of the shadow in the station's own group, in which its copies are born: what is
        kept is not to be killed for the memory that the sandbox takes, and to move each copy there
        would wait for every processor of the machine (cgroup_threadgroup_rwsem)."""
        if process.copier is None:
            twin = shadow.twin()
            try:
                self.station.zygotes.service.admit(twin.pid, stays=True)
            except OSError:
                tracer.kill(twin.pid)
                raise
            process.copier = twin
            self.copiers[twin.pid] = process
        return process.copier


def _descriptors(pid: int, place: slot.Slot) -> list[blockers.Descriptor]:
    found: list[blockers.Descriptor] = []
    alike: dict[tuple[int, int], list[int]] = {}
    for number in sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")):
        path = f"/proc/{pid}/fd/{number}"
        target, seen = os.readlink(path), os.stat(path)
        first = alike.setdefault((seen.st_dev, seen.st_ino), [])
        same = next((one for one in first if tracer.same_file(pid, one, number)), None)
        first.append(number)
        text = _text(f"/proc/{pid}/fdinfo/{number}")
        leads = _leads(place, target, seen)
        found.append(
            blockers.Descriptor(number, target, text, seen.st_mode, leads, same, seen.st_ino)
        )
    return found


def _leads(place: slot.Slot, path: str, seen: os.stat_result) -> bool:
    """Whether a path, without any link, leads to a file in a slot."""
    if not path.startswith("/"):
        return False
    root = os.open(f"/proc/{place.init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        file = calls.openat2(root, os.fsencode(path), flags, _IN_ROOT)
    except OSError:
        return False
    finally:
        os.close(root)
    try:
        return os.path.samestat(os.fstat(file), seen)
    finally:
        os.close(file)


def _text(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        pieces: list[bytes] = []
        size = 0
        while piece := file.read(1 << 16):
            size += len(piece)
            if size > _MOST_TEXT:
                raise RefusedError([f"more than {_MOST_TEXT} bytes in {path.rpartition('/')[2]}"])
            pieces.append(piece)
    return os.fsdecode(b"".join(pieces))


def _named(pid: int, thread: int) -> str:
    folder = f"/proc/{pid}/task/{thread}"
    return f"{_inner(folder)} ({_comm(folder)})"


def _comm(folder: str) -> str:
    try:
        return _text(f"{folder}/comm").strip()
    except OSError:
        return "?"


def _inner(folder: str) -> int:
    try:
        text = _text(f"{folder}/status")
    except OSError:
        return 0
    rows = [line.split() for line in text.split("\n") if line.startswith("NSpid:")]
    return int(rows[0][-1]) if rows else 0


def _mask(status: str) -> int:
    rows = [line.split() for line in status.split("\n") if line.startswith("Umask:")]
    return int(rows[0][1], 8)
