"""Programs whose supervisors are there before anybody asks for them.

A fork that copies an interpreter stands between a request and its program, and what it shares with
the guest has to be copied page by page as either goes on. So a supervisor that has nothing more to
look after is there for the next program, and needs no more than to be told what to start. One that
cannot be is replaced in advance, while nothing runs.
"""

from __future__ import annotations

from . import execution
from .loop import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .loop import Loop, Steps

__all__ = ["Starter"]


class Starter:
    """Starts programs, and owns what waits for the next one.

    One waits, and only when no program runs, so that it takes no room from what does: as a part of
    a limited number of processes, or of a fork that is refused for it.
    """

    def __init__(self, loop: Loop, ahead: bool) -> None:
        self._loop = loop
        self._ahead = ahead
        self._next: execution.Waiting | None = None
        self._running: dict[execution.Child, execution.Waiting | None] = {}

    def start(
        self, program: execution.Program, stdin: bool, on_gone: Callable[[int], None]
    ) -> execution.Child:
        """Start a program; fails only where a fork, a pipe or a terminal does.

        Args:
            on_gone: told the wait status of its supervisor, unless that goes on to another program.
        """
        waiting = self._take(program)
        child = None if waiting is None else waiting.start(program, stdin)
        if waiting is not None and child is None:
            waiting.close()
            waiting = None
        if waiting is not None:
            waiting.on_gone = on_gone
        if child is None:
            child = execution.start(program, stdin)
            self._loop.own_child(child.supervisor, lambda status, _usage: on_gone(status))
        self._running[child] = waiting
        return child

    def leave(self, child: execution.Child) -> None:
        """Have the supervisor of a program that is to be killed end with it."""
        waiting = self._running.get(child)
        if waiting is not None:
            waiting.close()

    def ended(self, child: execution.Child) -> None:
        """A program has ended, whatever it left behind. May be said twice."""
        waiting = self._running.pop(child, None)
        is_wanted = self._ahead and not self._running and self._next is None
        if waiting is not None:
            if is_wanted and waiting.is_open and child.gone:
                waiting.on_gone, self._next = None, waiting
                return
            waiting.close()
        if is_wanted:
            self._loop.start(Task(self._prepare(), lambda _failure, _result: None))

    def close(self) -> None:
        """Let go of what waits, and have nothing wait from now on."""
        self._ahead = False
        self._drop()

    def _take(self, program: execution.Program) -> execution.Waiting | None:
        if not self._ahead or not execution.can_wait(program):
            return None
        waiting = self._next
        if waiting is not None and not waiting.fits(program):
            self._drop()
            waiting = None
        self._next = None
        return waiting or self._make()

    def _make(self) -> execution.Waiting:
        waiting = execution.wait()
        self._loop.own_child(waiting.supervisor, lambda status, _usage: self._gone(waiting, status))
        return waiting

    def _prepare(self) -> Steps[None]:
        yield from ()  # it begins only when what is to be said of the one that has ended was sent
        if self._ahead and not self._running and self._next is None:
            self._next = self._make()

    def _gone(self, waiting: execution.Waiting, status: int) -> None:
        waiting.has_ended = True
        if self._next is waiting:
            self._drop()
        if waiting.on_gone is not None:
            waiting.on_gone(status)

    def _drop(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.close()
