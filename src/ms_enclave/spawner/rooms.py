"""Rooms: slots with a store for one run each, and for another where the run has left no trace.

Most runs start no process, write no file and open no socket. To end seven namespaces and some
forty mounts after each and make them anew takes longer than such a run itself, so a slot in which
everything is as it was before stays for the next run. What a run could change there is little: it
has no capability, and what it can is looked at from outside, so that nothing has to be put back:

- the kernel counted one process in its group, refused it no other, and has reaped it: nobody is
  left, and no number was given to anybody;
- the folders that it can write to have the times, owners, modes and links that they had, and no
  attributes: nothing was made in them, also nothing that is gone again;
- its network namespace looks as new (`seed.Home`).

What could not be seen is not shared: such a run is born in an IPC namespace of its own, as process
2, with the counter of process numbers set to what it is in a new slot (`carrier`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic, time, time_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import User
    from .slot import Slot
    from .station import Box, Process, Station
    from .store import Store

    Kind = tuple[int, int, User]

__all__ = ["Room", "Rooms"]

_MOST = 16
_KEPT_SECONDS = 3.0
_AGE = 1_000_000_000
"""Nanoseconds that a folder's times lie behind the clock: what is done in it shows although the
kernel takes the time of its last tick for now."""
_TICK = 0.02
"""Seconds: more than there are from one of the kernel's ticks to the next."""
_SHOWN = ("dev/shm", "dev/pts", "dev/pts/ptmx")


class Room:
    """A slot and its store. `kind` is what a run must want alike to have it: bytes, files, user;
    `names` are the store's folders that are seen in the slot. Raises OSError; it owns the store
    then, too.
    """

    __slots__ = ("_folders", "_looks", "_made", "kind", "place", "store")

    def __init__(self, place: Slot, store: Store, kind: Kind, names: tuple[str, ...]) -> None:
        self.place = place
        self.store = store
        self.kind = kind
        self._folders: list[int] = []
        self._made = time()
        try:
            for name in names:
                self._watch(name, store.descriptor)
            for name in _SHOWN:
                self._watch(f"/proc/{place.init}/root/{name}", None)
            self._looks = self._look()
        except BaseException:
            self.close()
            raise

    def _watch(self, path: str, folder: int | None) -> None:
        long_ago = time_ns() - _AGE
        os.utime(path, ns=(long_ago, long_ago), dir_fd=folder, follow_symlinks=False)
        self._folders.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))

    def _look(self) -> list[tuple[int, ...]]:
        return [_facts(os.fstat(folder)) for folder in self._folders]

    def is_untouched(self, since: float) -> bool:
        """Whether nothing tells that somebody was there since a time (s since the epoch) whose only
        process is gone."""
        home = self.place.home
        return (
            home is not None
            and self._look() == self._looks
            and (since - self._made > _TICK or not self._has_attributes())
            and home.is_untouched()
        )

    def _has_attributes(self) -> bool:
        """What is set at once after the folder was made may leave it no other time of change."""
        return any(os.listxattr(f"/proc/self/fd/{folder}") for folder in self._folders)

    def close(self) -> None:
        """Let go of it while the slot still has what it is made of."""
        for folder in self._folders:
            os.close(folder)
        self._folders = []
        self.store.close()


def _facts(found: os.stat_result) -> tuple[int, ...]:
    """All of it: to be equal, results of `stat` need not have the same times."""
    return (
        found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size,
        found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


class Rooms:
    """Those that stand empty."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.empty: list[Room] = []
        self.used = 0.0

    @property
    def patience(self) -> float | None:
        """Seconds until what is there is to be let go; None for never."""
        return max(0.0, self.used + _KEPT_SECONDS - monotonic()) if self.empty else None

    def can_last(self, place: Slot) -> bool:
        """Whether it would be known that a run in a slot has left no trace.

        With a one-id map init is of the same user as the run, who can change how it is scheduled.
        """
        station = self.station
        return (
            place.first_id is not None
            and place.home is not None
            and not station.plan["volumes"]
            and station.groups.complete
            and "pids" in station.groups.controllers
            and station.zygotes.line.counter is not None
        )

    def take(self, kind: Kind) -> Room | None:
        """An empty one for a run that wants it so."""
        for room in reversed(self.empty):
            if room.kind == kind:
                self.empty.remove(room)
                del self.station.unused[room.place.init]
                return room
        return None

    def keep(self, box: Box, process: Process) -> bool:
        """Take over the room of a run that has ended; False where it is not as it was."""
        room = box.room
        if room is None or not process.was_alone or len(self.empty) >= _MOST:
            return False
        with suppress(OSError):
            if room.is_untouched(process.began):
                self.used = monotonic()
                self.empty.append(room)
                self.station.unused[room.place.init] = room.place
                return True
        return False

    def ended(self, pid: int) -> None:
        """An init was reaped that no sandbox had."""
        for room in self.empty:
            if room.place.init == pid:
                self.empty.remove(room)
                room.close()
                return

    def look(self) -> None:
        """Let go of what nobody has had in a while."""
        if self.empty and monotonic() > self.used + _KEPT_SECONDS:
            self.let_go()

    def let_go(self) -> None:
        """End them all."""
        while self.empty:
            room = self.empty.pop()
            room.close()
            self.station.discard(room.place)
