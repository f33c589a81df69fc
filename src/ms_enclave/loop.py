"""The one private event-loop thread on which all our I/O lives.

People start a manager in one ``asyncio.run``, use it in a second and stop it from another thread,
and whatever is bound to a loop (connections, locks, tasks) dies with the loop that made it. So
nothing of ours is bound to a caller's loop: public coroutines hop onto this thread once and wait
for the answer. The thread is started on first use, stopped at exit after everything that asked
for it (``add_closer``) was closed, and made anew in a forked child.

A hop carries the caller's context variables, cancellation and exceptions. A cancelled caller
cancels the inner task and waits until it has ended, so shielded clean-up is complete before the
cancellation goes on; a result that arrives in the same moment is lost, as with any coroutine.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import anyio
import anyio.lowlevel

from ms_enclave.errors import SandboxLostError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterator,
    )
    from contextlib import AbstractAsyncContextManager
    from types import CoroutineType

__all__ = [
    "add_closer",
    "call",
    "enter",
    "iterate",
    "iterate_on_loop",
    "on_loop",
    "on_loop_thread",
    "remove_closer",
    "run",
    "shutdown",
    "to_the_end",
]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CLOSE_TIMEOUT = 15.0
"""Seconds that all closers together may take at shutdown."""
_CANCEL_TIMEOUT = 5.0
"""Seconds that tasks still alive after the closers get for their clean-up."""


class _Job(Generic[T]):
    """One call on its way over the loop thread and back. Used once."""

    __slots__ = (
        "_cancelled",
        "_error",
        "_fn",
        "_portal",
        "_scope",
        "_value",
        "_wake",
        "context",
        "submitted",
        "task",
    )

    def __init__(self, fn: Callable[[], Awaitable[T]], wake: Callable[[], object]) -> None:
        self._fn = fn
        self._wake = wake
        self.context = contextvars.copy_context()
        self._portal: _Portal | None = None
        self.task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self.submitted = False

    def begin(self, portal: _Portal) -> None:
        """On the loop thread, in the caller's context."""
        if "sniffio" in sys.modules:
            # The caller may live under trio; below this line it is asyncio.
            sys.modules["sniffio"].current_async_library_cvar.set("asyncio")
        self._portal = portal
        self.task = portal.loop.create_task(self._run())
        self.task.add_done_callback(self._finish)

    async def _run(self) -> None:
        try:
            # A scope and not `Task.cancel`, which would go through a shield.
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                self._value = await self._fn()
                return
            self._error = asyncio.CancelledError()
        except BaseException as error:  # noqa: BLE001 - carried to the caller, who raises it
            # SystemExit and KeyboardInterrupt too: in a task they would end the loop itself.
            self._error = error

    def _finish(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before its first step
            self._error = asyncio.CancelledError()
        self.task = None
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.jobs.discard(self)
        self._wake()

    def abandon(self) -> None:
        """The loop ended before the call began."""
        self._error = asyncio.CancelledError()
        self._wake()

    def cancel(self) -> None:
        """Ask the inner task to end; from any thread, harmless when it already has."""
        portal = self._portal
        if portal is None:
            with _lock:
                portal = _state.portal
        if portal is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nothing runs any more
                portal.loop.call_soon_threadsafe(self.cancel_here)

    def cancel_here(self) -> None:
        """The same, on the loop thread."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    @property
    def error(self) -> BaseException | None:
        return self._error

    def take(self) -> T:
        """The value, or raise the error; holds neither afterwards, so that no cycle is left."""
        error, self._error = self._error, None
        if isinstance(error, asyncio.CancelledError):
            # The caller was not cancelled, so it must not look as if it had been.
            error = SandboxLostError("the call was ended from inside: ms-enclave has shut down")
        if error is not None:
            try:
                raise error
            finally:
                del error
        value, self._value = self._value, None
        return cast("T", value)


class _Portal:
    """One loop, its thread, the calls on it and what has to be closed before it ends."""

    def __init__(self) -> None:
        # Not from the policy: what our I/O runs on must not depend on the host program.
        self.loop: asyncio.AbstractEventLoop = (
            asyncio.ProactorEventLoop() if sys.platform == "win32" else asyncio.SelectorEventLoop()
        )
        self.loop.set_exception_handler(_report_stray_error)
        self.jobs: set[_Job[Any]] = set()
        self.closers: dict[object, tuple[Callable[[], Awaitable[object]], bool]] = {}
        self._stop = asyncio.Event()
        self._lock = threading.RLock()  # collected generators are closed wherever they were
        self._closed = False
        # A daemon, or the interpreter would wait for it before it calls `atexit`; the worker
        # threads that it starts inherit that.
        self.thread = threading.Thread(target=self._main, name="ms-enclave-loop", daemon=True)

    def submit(self, job: _Job[Any]) -> bool:
        """Queue a call; False where this loop takes none any more."""
        with self._lock:
            if self._closed:
                return False
            job.submitted = True  # from here on its end will be heard
            self.jobs.add(job)
            self.loop.call_soon_threadsafe(job.begin, self, context=job.context)
            return True

    def close(self) -> None:
        """Close what asked for it, cancel the rest, end the thread; bounded."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(_CLOSE_TIMEOUT + _CANCEL_TIMEOUT + 5)
        if self.thread.is_alive():
            logger.warning("the event-loop thread did not end in time")

    def _main(self) -> None:
        _here.portal = self
        try:
            self.loop.run_until_complete(self._serve())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            for job in list(self.jobs):
                job.abandon()
            self.loop.close()

    async def _serve(self) -> None:
        await self._stop.wait()
        with self._lock:
            self._closed = True
        for last in (False, True):
            await self._run_closers(last=last)
        await self._cancel_rest()

    async def _cancel_rest(self) -> None:
        await asyncio.sleep(0)  # whatever was submitted before the door closed has begun then
        calls = {job.task for job in self.jobs if job.task is not None}
        for job in list(self.jobs):
            job.cancel_here()
        if calls:
            await asyncio.wait(calls, timeout=_CANCEL_TIMEOUT)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=_CANCEL_TIMEOUT)

    async def _run_closers(self, *, last: bool) -> None:
        async def close(fn: Callable[[], Awaitable[object]]) -> None:
            try:
                await fn()
            except Exception:  # the boundary: one that fails must not keep the others open
                logger.exception("closing at shutdown failed")

        todo = [fn for fn, is_last in list(self.closers.values()) if is_last is last]
        tasks = [asyncio.ensure_future(close(fn)) for fn in reversed(todo)]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT)
            if late:
                logger.warning("%d resources were not closed in time", len(late))


def _report_stray_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio does with an error that nobody awaits, but for one that is none.

    A receive that is cancelled in the moment in which its data comes: the data stays in the socket
    for the next receive, and anyio sets the result of a future that has ended.
    """
    if not (
        isinstance(context.get("exception"), asyncio.InvalidStateError) and "handle" in context
    ):
        loop.default_exception_handler(context)


class _State:
    """What the process has: at most one portal in use, and those of before a fork."""

    portal: _Portal | None = None
    exiting = False
    hooked = False
    inherited: list[_Portal] = []  # noqa: RUF012 # kept: collecting one would touch the parent's


class _Here(threading.local):
    portal: _Portal | None = None


_state = _State()
_here = _Here()
_lock = threading.RLock()


def _current() -> _Portal:
    with _lock:
        if _state.exiting:
            msg = "the interpreter is exiting"
            raise RuntimeError(msg)
        portal = _state.portal
        if portal is None:
            portal = _Portal()
            _hook_exit()
            portal.thread.start()
            _state.portal = portal
        return portal


def _hook_exit() -> None:
    if not _state.hooked:
        # Not threading's own hook: that one runs before the threads of the program, which may
        # still be using sandboxes, are joined. `atexit` runs after.
        atexit.register(_exit)
        _state.hooked = True
    if "multiprocessing.util" in sys.modules:
        # A multiprocessing child leaves without `atexit`; its finalisers do run.
        sys.modules["multiprocessing.util"].Finalize(None, shutdown, exitpriority=10)


def _submit(job: _Job[Any]) -> None:
    while not _current().submit(job):
        pass  # that loop was shut down in between; the next is a new one


def on_loop_thread() -> bool:
    """Whether the caller already runs on the private loop's thread."""
    return _here.portal is not None


async def run(fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``await fn(*args, **kwargs)`` on the private loop, from a coroutine on any loop.

    Raises what ``fn`` raises, SandboxLostError where a shutdown ends it. Runs inline on the loop's
    own thread.
    """
    if _here.portal is not None:
        return await fn(*args, **kwargs)
    await anyio.lowlevel.checkpoint_if_cancelled()  # else the call might be over before we look
    event = anyio.Event()
    job = _Job(functools.partial(fn, *args, **kwargs), _waker(event))
    try:
        _submit(job)
        await event.wait()
    except anyio.get_cancelled_exc_class():
        job.cancel()
        await _wait_shielded(event)
        if job.error is not None and not isinstance(job.error, asyncio.CancelledError):
            return job.take()  # raises: the clean-up failed, and that is the news
        raise
    except BaseException:  # GeneratorExit: nobody is there to wait
        job.cancel()
        raise
    return job.take()


def _waker(event: anyio.Event) -> Callable[[], object]:
    """A thread-safe ``event.set`` for the loop under which the caller runs."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        schedule = trio.lowlevel.current_trio_token().run_sync_soon
        gone: type[Exception] = trio.RunFinishedError
    else:
        schedule = asyncio.get_running_loop().call_soon_threadsafe
        gone = RuntimeError

    def wake() -> None:
        with contextlib.suppress(gone):  # the caller's loop has ended: nobody waits any more
            schedule(event.set)

    return wake


async def _wait_shielded(event: anyio.Event) -> None:
    with anyio.CancelScope(shield=True):
        while not event.is_set():
            # asyncio can cancel again in spite of the scope; the inner task knows already.
            with contextlib.suppress(asyncio.CancelledError):
                await event.wait()


def call(fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``await fn(*args, **kwargs)`` on the private loop and block until it has ended.

    Ctrl-C cancels the inner work, waits for its clean-up (a second one does not) and goes on as
    KeyboardInterrupt. Raises what ``fn`` raises, RuntimeError on the loop's own thread.
    """
    if _here.portal is not None:
        msg = "a blocking call on the event-loop thread would wait for itself; await instead"
        raise RuntimeError(msg)
    gate = threading.Lock()
    gate.acquire()
    job = _Job(functools.partial(fn, *args, **kwargs), gate.release)
    try:
        _submit(job)
        gate.acquire()
    except BaseException:
        if job.submitted:
            job.cancel()
            gate.acquire()
        raise
    return job.take()


_END: Any = object()


def iterate(
    fn: Callable[P, AsyncGenerator[T, None]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[T]:
    """The items of an async generator, each fetched by a blocking call."""
    generator = fn(*args, **kwargs)

    async def step() -> T:
        return await anext(generator, _END)

    try:
        while (item := call(step)) is not _END:
            yield item
    finally:
        # On the loop's own thread only the garbage collector ends it; the loop closes it then.
        if _here.portal is None:
            call(generator.aclose)


@contextlib.contextmanager
def enter(manager: AbstractAsyncContextManager[T]) -> Generator[T, None, None]:
    """An async context manager for ordinary code, entered and left on the private loop.

    Entering and leaving are tasks of their own: it must not hold a cancel scope or a task group
    across its block.
    """
    value = call(manager.__aenter__)
    try:
        yield value
    except BaseException as error:
        if not call(manager.__aexit__, type(error), error, error.__traceback__):
            raise
    else:
        call(manager.__aexit__, None, None, None)


def on_loop(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, CoroutineType[Any, Any, T]]:
    """Make an async function run on the private loop, whoever awaits it."""

    @functools.wraps(method)
    async def hop(*args: P.args, **kwargs: P.kwargs) -> T:
        if _here.portal is not None:
            return await method(*args, **kwargs)
        return await run(method, *args, **kwargs)

    return hop


def to_the_end(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, CoroutineType[Any, Any, T]]:
    """The same for one that ends or gives back something: who is cancelled has it done first.

    A cancelled scope cancels whatever is awaited in it, so also what the end of a block awaits.
    """
    hop = on_loop(method)

    @functools.wraps(method)
    async def shielded(*args: P.args, **kwargs: P.kwargs) -> T:
        with anyio.CancelScope(shield=True):
            return await hop(*args, **kwargs)
        raise AssertionError("nobody cancels this scope")

    return shielded


def iterate_on_loop(
    method: Callable[P, AsyncGenerator[T, None]],
) -> Callable[P, AsyncGenerator[T, None]]:
    """Make an async generator function run on the private loop, whoever iterates.

    Every step is a task of its own: the generator must not hold a cancel scope or a task group
    across a ``yield`` (no generator should).
    """

    @functools.wraps(method)
    async def hop(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        generator = method(*args, **kwargs)

        async def step() -> T:
            return await anext(generator, _END)

        try:
            while (item := await run(step)) is not _END:
                yield item
        finally:
            with anyio.CancelScope(shield=True):
                await run(generator.aclose)

    return hop


def add_closer(key: object, fn: Callable[[], Awaitable[object]], *, last: bool = False) -> None:
    """Have ``fn`` awaited before the loop ends; only from the loop's own thread.

    ``key`` names it for `remove_closer`. ``last`` ones run when all others have ended (the owner
    of boxes after the boxes).
    """
    portal = _here.portal
    if portal is None:
        msg = "add_closer is for code on the event-loop thread"
        raise RuntimeError(msg)
    portal.closers[key] = (fn, last)


def remove_closer(key: object) -> None:
    """Forget a closer; harmless where there is none. Only from the loop's own thread."""
    if _here.portal is not None:
        _here.portal.closers.pop(key, None)


def shutdown() -> None:
    """Close everything and end the loop thread; blocks, bounded. The next use starts anew.

    Raises RuntimeError on the loop's own thread.
    """
    if _here.portal is not None:
        msg = "the event-loop thread cannot wait for its own end"
        raise RuntimeError(msg)
    with _lock:
        portal, _state.portal = _state.portal, None
    if portal is not None:
        portal.close()


def _exit() -> None:
    with _lock:
        _state.exiting = True
    shutdown()


def _after_fork() -> None:
    """In a forked child: the thread is gone, and its channels belong to the parent."""
    global _lock, _here  # the parent's may be held for ever
    _lock = threading.RLock()
    _here = _Here()
    portal, _state.portal = _state.portal, None
    if portal is not None:
        _state.inherited.append(portal)
        _let_go(portal.loop)


def _let_go(loop: asyncio.AbstractEventLoop) -> None:
    """Release the parent's channels: a child that held them would keep dead owners alive.

    The numbers stay taken (by /dev/null), because objects that still know them close them some
    time. Closing the loop itself would take the parent's own wake-up out of the shared epoll set.
    """
    selector: Any = getattr(loop, "_selector", None)
    if selector is None or not selector.get_map():
        return
    null = os.open(os.devnull, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    numbers = [key.fd for key in selector.get_map().values()]
    with contextlib.suppress(AttributeError, ValueError):
        numbers.append(selector.fileno())
    for number in numbers:
        with contextlib.suppress(OSError):
            os.dup2(null, number, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
