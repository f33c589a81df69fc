"""A loop that runs operations in turn, in one thread: each does a little and yields.

An operation is a generator. It yields 0 to go on soon, None to wait until something wakes it, or a
number of seconds to wait for that long at most. It must look again at what it waits for whenever it
is resumed: being woken is only a hint.
"""

from __future__ import annotations

import collections
import os
import selectors
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Generator, Optional, TypeVar

    T = TypeVar("T")
    Steps = Generator[Optional[float], None, T]

__all__ = ["READ", "WRITE", "Cancelled", "Loop", "Task"]

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_POLL = 3600.0


class Cancelled(BaseException):
    """Raised inside an operation that nobody wants any more."""


class Task:
    """One operation under way."""

    def __init__(self, steps: Steps[Any], on_end: Callable[[object, Any], None]) -> None:
        self.steps = steps
        self.on_end = on_end
        self.ready = False
        self.ended = False
        self.cancelled = False
        self.deadline: float | None = None


class Loop:
    """Runs tasks, watches descriptors for them and collects ended child processes.

    Owns its selector and the pipe that signals wake it by; `close` undoes both.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ready: collections.deque[Task] = collections.deque()
        self._sleeping: dict[Task, float] = {}
        self._children: dict[int, Callable[[int, Any], None]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, READ, self._drain_wakes)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGCHLD, _ignore)

    def close(self) -> None:
        signal.signal(signal.SIGCHLD, self._old_handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # --- tasks ---

    def start(self, task: Task) -> None:
        self.wake(task)

    def wake(self, task: Task) -> None:
        """Let a task look again. May be called at any time, also for an ended one."""
        if not task.ready and not task.ended:
            task.ready = True
            self._sleeping.pop(task, None)
            self._ready.append(task)

    def cancel(self, task: Task) -> None:
        """Raise `Cancelled` in the task the next time it runs; it may still take its time."""
        task.cancelled = True
        self.wake(task)

    def run_ready(self) -> None:
        """Let every task that is ready do one step."""
        for _ in range(len(self._ready)):
            task = self._ready.popleft()
            task.ready = False
            self._step(task)

    def _step(self, task: Task) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            if task.cancelled:
                task.cancelled = False
                pause = task.steps.throw(Cancelled())
            else:
                pause = next(task.steps)
        except StopIteration as stop:
            result = stop.value
        except (Exception, Cancelled) as error:  # noqa: BLE001 - the owner of the task judges it
            failure = error
        else:
            if pause is not None and pause <= 0:
                self.wake(task)
            elif pause is not None and not task.ready:
                self._sleeping[task] = time.monotonic() + pause
            return
        task.ended = True
        task.on_end(failure, result)

    # --- waiting ---

    def watch(self, descriptor: int, events: int, task: Task) -> None:
        """Wake a task once, when the descriptor is ready."""
        try:
            self._selector.register(descriptor, events, task)
        except KeyError:
            self._selector.modify(descriptor, events, task)

    def unwatch(self, descriptor: int) -> None:
        """To be called before a descriptor is closed."""
        try:
            self._selector.unregister(descriptor)
        except KeyError:
            return

    def watch_always(
        self, descriptor: int, events: int, callback: Callable[[int], None] | None
    ) -> None:
        """Call back whenever the descriptor is ready, until told otherwise; events 0: never."""
        if not events or callback is None:
            self.unwatch(descriptor)
            return
        try:
            self._selector.register(descriptor, events, callback)
        except KeyError:
            self._selector.modify(descriptor, events, callback)

    def poll(self, timeout: float | None = None) -> None:
        """Wait for the next thing to do; not at all where a task is ready."""
        now = time.monotonic()
        limit = _POLL if timeout is None else timeout
        if self._sleeping:
            limit = min(limit, max(0.0, min(self._sleeping.values()) - now))
        for key, mask in self._selector.select(0 if self._ready else limit):
            if isinstance(key.data, Task):
                self._selector.unregister(key.fd)
                self.wake(key.data)
            else:
                key.data(mask)
        if self._sleeping:
            now = time.monotonic()
            for task in [task for task, when in self._sleeping.items() if when <= now]:
                self.wake(task)

    # --- children ---

    def own_child(self, pid: int, callback: Callable[[int, Any], None]) -> None:
        """Call back with the wait status and the usage of a child when it has ended."""
        self._children[pid] = callback
        try:
            os.write(self._wake_write, b"\0")  # it may have ended, and signalled, before this
        except BlockingIOError:
            return  # full: the loop wakes anyway

    @property
    def owned(self) -> set[int]:
        """Children that somebody waits for."""
        return set(self._children)

    def _drain_wakes(self, _mask: int) -> None:
        try:
            while len(os.read(self._wake_read, 512)) == 512:
                pass
        except BlockingIOError:
            pass
        self.reap()

    def reap(self) -> None:
        """Collect every child that has ended; orphans that were handed to us, too."""
        while True:
            ended = _next_ended()
            if ended is None:
                return
            callback = self._children.pop(ended[0], None)
            if callback is not None:
                callback(ended[1], ended[2])


def _next_ended() -> tuple[int, int, Any] | None:
    try:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status, usage) if pid else None


def _ignore(_number: int, _frame: object) -> None:
    """A signal is only meant to wake the loop."""
