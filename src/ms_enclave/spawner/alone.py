"""What a station does that is to outlive its owner, from the owner's end until the next one.

It ends what the owner was waiting for, keeps the sandboxes with all that runs in them by itself,
removes each when its time is over, and asks the launcher for the next owner. Without a sandbox it
ends.
"""

from __future__ import annotations

import os
import socket
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import KeepRequest
    from .station import Box, Station

__all__ = ["NEXT", "Alone", "Kept"]

NEXT = b"next"
"""What asks the launcher for the next owner."""
_MOST = 48 * 3600.0  # s that a sandbox lives without an owner where nobody set anything else


class Kept:
    """What is known of a sandbox that stays.

    `note` is a file in memory with what the owner wrote for the next one. It is never read here:
    each slot's init is a copy of this process, and is in a sandbox with code of a user.
    """

    __slots__ = ("expires", "idle", "last", "note")

    def __init__(self, row: KeepRequest, note: int) -> None:
        now = monotonic()
        self.note = os.dup(note)
        self.idle = row["idle"]
        self.expires = None if row["ttl"] is None else now + row["ttl"]
        self.last = None if row["most"] is None else now + row["most"]

    def copy_note(self, target: int) -> None:
        """Write the note into a file of the next owner's."""
        size = os.fstat(self.note).st_size
        done = 0
        while done < size:
            done += os.sendfile(target, self.note, done, size - done)

    def close(self) -> None:
        os.close(self.note)

    def until(self, since: float) -> float:
        """When its time is over, if its owner has been gone since then."""
        until = self.expires
        if until is None:
            until = since + _MOST if self.last is None else self.last
        return until if self.idle is None else min(until, since + self.idle)


class Alone:
    """Whether the owner is there, and what is done while it is not."""

    def __init__(self, station: Station, *, keeps: bool) -> None:
        self.station = station
        self.keeps = keeps
        self.since: float | None = None
        self.asked = False

    def begin(self) -> bool:
        """The owner is gone: nobody reads what its commands print, or waits for an answer.

        False: nothing is to outlive it.
        """
        if not self.keeps or self.since is not None:
            return self.keeps
        self.since = monotonic()
        self.asked = False
        self.station.control.close()
        for process in list(self.station.processes.values()):
            self.station.end_run(process, 0)
        for preparation in self.station.zygotes.preparing.values():
            preparation.waiting.clear()
        for way in self.station.networks.values():
            way.question = None
        return True

    def look(self) -> bool:
        """Do what is due; False when there is nothing to stay for."""
        if self.since is None:
            return True
        boxes = list(self.station.boxes.values())
        now = monotonic()
        for box in boxes:
            if box.closing is None and now >= self.until(box):
                self.station.end_box(box, 0)
        # The next owner counts anew, and must not hear of what the last one began.
        waits = self.station.processes or self.station.leaving
        waits = waits or any(box.closing is not None for box in boxes)
        if boxes and not waits and not self.asked:
            self.station.life.send(NEXT)
            self.asked = True
        return bool(boxes)

    def until(self, box: Box) -> float:
        """When a sandbox's time is over: now, if its owner has not finished making it."""
        return 0.0 if box.kept is None or self.since is None else box.kept.until(self.since)

    def patience(self) -> float:
        """Milliseconds until the next sandbox's time is over."""
        until = min(self.until(box) for box in self.station.boxes.values())
        return max(0.0, until - monotonic()) * 1000 + 1

    def take_owner(self) -> bool:
        """The launcher has something to say: here is the next owner. False: it has ended."""
        if self.since is None:
            return False
        _, descriptors, _, _ = socket.recv_fds(self.station.life, 4096, 1)
        if not descriptors:
            return False
        self.since = None
        self.station.control = socket.socket(fileno=descriptors[0])
        self.station.send({"event": "ready", **self.station.describe()})
        return True
