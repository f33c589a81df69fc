"""Runs that are begun before anybody asks: sandboxes with a process that waits for its program.

Each is made like the last run that was asked for, when there is nothing else to do, is used once,
and is let go when no such run is asked for any more.
"""

from __future__ import annotations

import json
import socket
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import RunRequest
    from .station import Process, Station

__all__ = ["Ahead"]

_KEPT_SECONDS = 3.0


class _Waiting:
    """A process that waits, and our end of its channel."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self.process = process
        self.channel = channel


class Ahead:
    """What a station has begun."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.waiting: list[_Waiting] = []
        self.request: RunRequest | None = None
        self.like = b""
        self.used = 0.0
        self.made = 0

    @property
    def wants(self) -> bool:
        """Whether one more is to be begun."""
        most = self.station.plan["spare_slots"]
        return self.request is not None and len(self.waiting) < most

    @property
    def patience(self) -> float | None:
        """Seconds until what is there is to be let go; None for never."""
        return max(0.0, self.used + _KEPT_SECONDS - monotonic()) if self.waiting else None

    def take(self, like: bytes, message: bytes, descriptors: list[int]) -> Process | None:
        """The process for a run, with its program; None where none was begun like it."""
        if like != self.like:
            self.drop()
        if self.request is None:
            self.request, self.like = json.loads(like), like
        self.used = monotonic()
        while self.waiting:
            found = self.waiting.pop()
            with found.channel:
                if not found.process.ended:
                    socket.send_fds(found.channel, [message], descriptors)
                    return found.process
        return None

    def begin(self) -> None:
        """Begin one. Raises what `Station.begin_run` raises, and then none is wanted any more."""
        request = self.request
        if request is None:
            return
        self.made += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        own: RunRequest = {**request, "box": f"ahead-{self.made}", "process": -self.made}
        try:
            with theirs:
                process = self.station.begin_run(own, theirs.fileno())
        except BaseException:
            ours.close()
            self.request = None
            raise
        self.waiting.append(_Waiting(process, ours))

    def look(self) -> None:
        """Let go of what nobody has asked for in a while."""
        if self.waiting and monotonic() > self.used + _KEPT_SECONDS:
            self.drop()

    def drop(self) -> None:
        """Let go of everything, and begin none before the next is asked for."""
        self.request = None
        self.let_go()

    def let_go(self) -> None:
        """Let go of what was begun: from now on there is something better to begin with."""
        for found in self.waiting:
            found.channel.close()
            if found.process.box.name in self.station.boxes:
                self.station.end(found.process.box)
        self.waiting = []
