"""Programs whose supervisors are there before anybody asks for them.

A fork that copies an interpreter stands between a request and its program. Where nothing else runs
it is made in advance: what waits then needs no more than to be told what to start.
"""

from __future__ import annotations

from . import execution
from .loop import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop, Steps

__all__ = ["Starter"]


class Starter:
    """Starts programs, and owns what waits for the next one.

    It is made when the last program that ran has ended, so that it takes no room from what runs: as
    a part of a limited number of processes, or of a fork that is refused for it.
    """

    def __init__(self, loop: Loop, ahead: bool) -> None:
        self._loop = loop
        self._ahead = ahead
        self._next: execution.Waiting | None = None
        self._running: set[execution.Child] = set()

    def start(self, program: execution.Program, stdin: bool) -> execution.Child:
        """Start a program; fails only where a fork, a pipe or a terminal does."""
        child = self._take(program, stdin) or execution.start(program, stdin)
        self._running.add(child)
        return child

    def ended(self, child: execution.Child) -> None:
        """A program has ended, whatever it left behind. May be said twice."""
        self._running.discard(child)
        if self._ahead and not self._running and self._next is None:
            self._loop.start(Task(self._prepare(), lambda _failure, _result: None))

    def close(self) -> None:
        """Let go of what waits, and have nothing wait from now on."""
        self._ahead = False
        self._drop()

    def _take(self, program: execution.Program, stdin: bool) -> execution.Child | None:
        waiting = self._next
        if waiting is None or not execution.can_wait(program):
            return None
        child = waiting.become(program, stdin)
        if child is None:
            self._drop()
        else:
            self._next = None
        return child

    def _prepare(self) -> Steps[None]:
        yield from ()  # it begins only when what is to be said of the one that has ended was sent
        if not self._ahead or self._running or self._next is not None:
            return
        waiting = self._next = execution.wait()
        self._loop.own_child(waiting.supervisor, lambda _status, _usage: self._gone(waiting))

    def _gone(self, waiting: execution.Waiting) -> None:
        if self._next is waiting:
            self._drop()

    def _drop(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.close()
