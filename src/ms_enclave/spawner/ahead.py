"""Runs that are begun before anybody asks: sandboxes with a process that waits for its program.

Each is made like the last run that was asked for, when there is nothing else to do, is used once,
and is let go when no such run is asked for any more.
"""

from __future__ import annotations

import json
import os
import socket
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import RunRequest
    from .station import Process, Station

__all__ = ["Ahead"]

_KEPT_SECONDS = 3.0
_MESSAGE = 1 << 16
_DESCRIPTORS = 8
_OWN = ("q", "op", "box", "process")  # what each run has for itself


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
        self.kind: str = ""
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

    def take(self, request: RunRequest, descriptors: list[int]) -> Process | None:
        """The process for a run, with its program; None where none was begun like it."""
        asked: dict[str, object] = dict(request)
        for name in _OWN:
            del asked[name]
        kind = json.dumps(asked)
        if kind != self.kind:
            self.drop()
        self.request, self.kind, self.used = request, kind, monotonic()
        while self.waiting:
            found = self.waiting.pop()
            if self._hand_over(found, descriptors[0]):
                return found.process
        return None

    def _hand_over(self, found: _Waiting, channel: int) -> bool:
        """Pass on what waits in a channel for a process; False if that one has ended."""
        with found.channel:
            if found.process.ended:
                return False
            with socket.socket(fileno=channel) as theirs:
                try:
                    data, passed, _, _ = socket.recv_fds(theirs, _MESSAGE, _DESCRIPTORS)
                finally:
                    theirs.detach()
            try:
                socket.send_fds(found.channel, [data], passed)
            finally:
                for descriptor in passed:
                    os.close(descriptor)
        return True

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
