"""The life of a sandbox: its states, its start and stop, and the calls that live within."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ms_enclave.errors import (
    CapabilityError,
    EnclaveError,
    SandboxLostError,
    SandboxStartError,
    SandboxStateError,
)
from ms_enclave.loop import add_closer, on_loop, remove_closer, to_the_end
from ms_enclave.model import SandboxStatus
from ms_enclave.utils.tracing import span

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Life"]

logger = logging.getLogger(__name__)

CLOSE_BOUND = 10.0
"""Seconds that the undoing of a failed start, or a stop, may take."""

CALLS_BOUND = 2.0
"""Seconds that calls have to end by themselves when the sandbox is stopped under them."""

_NEXT: Mapping[SandboxStatus, frozenset[SandboxStatus]] = {
    SandboxStatus.CREATED: frozenset({SandboxStatus.STARTING, SandboxStatus.STOPPING}),
    SandboxStatus.STARTING: frozenset(
        {SandboxStatus.RUNNING, SandboxStatus.ERROR, SandboxStatus.STOPPING}
    ),
    SandboxStatus.RUNNING: frozenset({SandboxStatus.STOPPING, SandboxStatus.ERROR}),
    SandboxStatus.STOPPING: frozenset({SandboxStatus.STOPPED, SandboxStatus.ERROR}),
    SandboxStatus.ERROR: frozenset({SandboxStatus.STOPPING}),
    SandboxStatus.STOPPED: frozenset(),
}


class Life(ABC):
    """`CREATED → STARTING → RUNNING → STOPPING → STOPPED`, or `ERROR`.

    It owns what `_open` acquired, from a successful start until `stop`. Its state changes on the
    private loop only and may be read from anywhere.
    """

    def __init__(self, name: str) -> None:
        self.id = name
        self.metadata: dict[str, Any] = {}
        self.created_at = datetime.now(timezone.utc)
        self.updated_at = self.created_at
        self._status = SandboxStatus.CREATED
        self._resources = AsyncExitStack()
        self._lost_reason: str | None = None
        self._lock = anyio.Lock()
        self._start_scope: anyio.CancelScope | None = None
        self._started_by: object | None = None
        self._stopping: anyio.Event | None = None
        self._calls: set[anyio.CancelScope] = set()
        self._calls_ended: anyio.Event | None = None
        self._last_used = time.monotonic()
        self._paused = False
        self._on_status: Callable[[Any, SandboxStatus], object] | None = None
        """Told of every change; must not raise."""

    @abstractmethod
    async def _open(self, stack: AsyncExitStack) -> None:
        """Make the box; push the undoing of every acquisition on `stack` as it happens.

        Sets `_capabilities` and `_isolation`. Called once, on the private loop. A failure or a
        cancellation anywhere in it unwinds the stack.

        Raises:
            SandboxStartError, IsolationUnavailableError: the box cannot be made.
        """

    @abstractmethod
    async def _prepare(self) -> None:
        """What a start does before there is a box: whatever fails here costs nothing."""

    @abstractmethod
    async def _check(self) -> None:
        """What a start does last: refuse a box that cannot do what was asked for."""

    @property
    def status(self) -> SandboxStatus:
        """The state it is in."""
        return self._status

    @property
    def paused(self) -> bool:
        """Whether everything in it stands still, until `resume`."""
        return self._paused

    @property
    def idle_seconds(self) -> float:
        """Seconds since it started or the last call ended; 0 while it starts or one is running."""
        if self._calls or self._status is SandboxStatus.STARTING:
            return 0.0
        return time.monotonic() - self._last_used

    async def start(self) -> None:
        """Make the box. A second call finds it running and does nothing.

        The config is copied: changing the caller's object afterwards changes nothing.

        Raises:
            SandboxStateError: it was stopped before, or while it was starting.
            SandboxStartError, IsolationUnavailableError, ConfigError: it cannot be made here.
        """
        start = object()
        try:
            await self._begin(start)
        except anyio.get_cancelled_exc_class():
            # It may have been done in the moment in which its caller was cancelled.
            with anyio.CancelScope(shield=True):
                await self._take_back(start)
            raise

    @on_loop
    async def _take_back(self, start: object) -> None:
        if self._started_by is start and self._status is SandboxStatus.RUNNING:
            await self.stop()

    @on_loop
    async def _begin(self, start: object) -> None:
        async with self._lock:
            if self._status is SandboxStatus.RUNNING:
                return
            if self._status is not SandboxStatus.CREATED:
                raise SandboxStateError(
                    f"Sandbox {self.id} cannot start: it is {self._status.value}"
                )
            self._set_status(SandboxStatus.STARTING)
            try:
                with anyio.CancelScope() as self._start_scope:
                    await self._make()
            except BaseException as error:
                self._set_status(SandboxStatus.ERROR, _reason(error))
                raise
            if self._start_scope.cancelled_caught:
                self._set_status(SandboxStatus.ERROR, "stopped while it was starting")
                raise SandboxStateError(f"Sandbox {self.id} was stopped while it was starting")
            self._started_by = start

    async def _make(self) -> None:
        try:
            await self._prepare()
            await self._open(self._resources)
            await self._check()
            # What the box waited for last may have been out of a cancellation's reach.
            await anyio.lowlevel.checkpoint_if_cancelled()
        except OSError as error:
            await self._undo()
            if isinstance(error, EnclaveError):
                raise
            text = f"Sandbox {self.id} cannot start: {_reason(error)}"
            raise SandboxStartError(text) from error
        except BaseException:
            await self._undo()
            raise
        if self._lost_reason is not None:
            await self._undo()
            raise SandboxStartError(self._lost_reason)
        # No await from here on: either all is undone above, or stop() owns it.
        add_closer(self, self._at_exit)
        self._last_used = time.monotonic()
        self._set_status(SandboxStatus.RUNNING)

    async def _at_exit(self) -> None:
        """What becomes of it when the interpreter ends."""
        if not await self._leave():
            await self.stop()

    async def _leave(self) -> bool:
        """Let go of the box without ending it; False: it does not outlive this handle."""
        return False

    async def _undo(self) -> None:
        stack, self._resources = self._resources, AsyncExitStack()
        with anyio.move_on_after(CLOSE_BOUND, shield=True):
            try:
                await stack.aclose()
            except Exception:  # there may be a failure that led here: that is the one to report
                logger.warning("letting go of sandbox %s failed", self.id, exc_info=True)

    @to_the_end
    async def stop(self) -> None:
        """Destroy the box and everything in it. Always finishes, and may be called again.

        Raises:
            EnclaveError: something of the box could not be removed; its status is ERROR then.
        """
        if self._stopping is not None:
            await self._stopping.wait()
            return
        if self._status is SandboxStatus.STOPPED:
            return
        self._stopping = anyio.Event()
        try:
            with anyio.CancelScope(shield=True):
                if self._start_scope is not None:
                    self._start_scope.cancel()
                async with self._lock:
                    await self._close()
        finally:
            self._stopping.set()
            self._stopping = None

    async def _close(self) -> None:
        self._set_status(SandboxStatus.STOPPING)
        remove_closer(self)
        for scope in list(self._calls):
            scope.cancel()
        if self._calls:
            self._calls_ended = anyio.Event()
            with anyio.move_on_after(CALLS_BOUND):
                await self._calls_ended.wait()
        resources, self._resources = self._resources, AsyncExitStack()
        try:
            with anyio.fail_after(CLOSE_BOUND):
                if self._paused:
                    await self._thaw_to_end()
                await resources.aclose()
        except TimeoutError:
            text = f"Sandbox {self.id} could not be destroyed within {CLOSE_BOUND:g} seconds"
            self._set_status(SandboxStatus.ERROR, text)
            raise SandboxLostError(text) from None
        except BaseException as error:
            self._set_status(SandboxStatus.ERROR, _reason(error))
            raise
        self._set_status(SandboxStatus.STOPPED)

    async def _thaw_to_end(self) -> None:
        """What stands still does not everywhere hear that it is to end."""
        try:
            await self._set_frozen(False)
        except EnclaveError:  # it ends by force, or that fails and says why
            logger.debug("sandbox %s could not be resumed for its end", self.id, exc_info=True)
        self._paused = False

    async def pause(self) -> None:
        """Have everything in it stand still: it uses no processor time until `resume`.

        The memory that the kernel can read again, such as files, is given back to the machine; the
        rest stays as it is. Time goes on: a `ttl`, and the time-outs of calls that are under way,
        which wait until it is resumed and are judged then. New calls are refused; `stop` works. A
        paused sandbox stays so when it is paused again.

        Raises:
            CapabilityError: the box cannot do that here: without control groups, say.
            SandboxStateError: it is not running, or did not come to a halt: then it goes on.
        """
        await self._pause(True)

    async def resume(self) -> None:
        """Let it go on after `pause`. One that is not paused just goes on.

        Raises:
            CapabilityError, SandboxStateError, SandboxLostError: as `pause`.
        """
        await self._pause(False)

    @on_loop
    async def _pause(self, wanted: bool) -> None:
        async with self._lock:
            self._require_running()
            await self._require("pause")
            if self._paused is wanted:
                return
            self._paused = True  # from now on no call begins
            try:
                await self._set_frozen(wanted)
            except BaseException:
                if wanted:
                    with anyio.move_on_after(CLOSE_BOUND, shield=True):
                        await self._thaw_to_end()
                raise
            self._paused = wanted
            self._last_used = time.monotonic()
            self.updated_at = datetime.now(timezone.utc)

    async def _set_frozen(self, frozen: bool) -> None:
        """Freeze the box, or thaw it: for boxes that have the capability `pause`.

        Raises:
            SandboxStateError: it went on for too long.
        """
        del frozen
        raise CapabilityError("pause")

    @abstractmethod
    async def _require(self, capability: str) -> None:
        """Refuse what the box cannot do."""

    async def cleanup(self) -> None:
        """Leave nothing behind: the same as `stop`."""
        await self.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _set_status(self, status: SandboxStatus, error: str | None = None) -> None:
        """The only place where the status changes."""
        if status not in _NEXT[self._status]:
            raise SandboxStateError(
                f"Sandbox {self.id} cannot go from {self._status.value} to {status.value}"
            )
        self._status = status
        self.updated_at = datetime.now(timezone.utc)
        if error is not None:
            self.metadata["error"] = error
        if self._on_status is not None:
            self._on_status(self, status)

    def _lost(self, reason: str) -> None:
        """The box has gone by itself: running calls end with `SandboxLostError(reason)`.

        Precondition: called on the private loop. What is left of it is removed by `stop`.
        """
        if self._status is SandboxStatus.STARTING:
            self._lost_reason = reason
        if self._status is not SandboxStatus.RUNNING:
            return
        self._lost_reason = reason
        self._set_status(SandboxStatus.ERROR, reason)
        for scope in list(self._calls):
            scope.cancel()

    def _lost_already(self, reason: str) -> None:
        """The box had gone before this handle could take it over.

        Precondition: it was never started. Called on the private loop.
        """
        self._set_status(SandboxStatus.STARTING)
        self._lost_reason = reason
        self._set_status(SandboxStatus.ERROR, reason)

    def _own(self, undo: Callable[[], Awaitable[object]]) -> None:
        """Have something undone with the box, before what it was made from.

        Raises:
            SandboxStateError, SandboxLostError: it is too late for that.
        """
        if self._status is not SandboxStatus.STARTING:
            self._require_running()
        self._resources.push_async_callback(undo)

    @asynccontextmanager
    async def _using(self) -> AsyncGenerator[None, None]:
        """A call on the running box: ended by a stop or a loss, which it reports."""
        self._require_running()
        if self._paused:
            raise SandboxStateError(f"Sandbox {self.id} is paused", remedy="resume() it first")
        scope = anyio.CancelScope()
        self._calls.add(scope)
        try:
            with scope, span("sandbox.call", sandbox__id=self.id):
                yield
        except SandboxLostError as error:
            self._lost(str(error))
            raise
        finally:
            self._calls.discard(scope)
            self._last_used = time.monotonic()
            if not self._calls and self._calls_ended is not None:
                self._calls_ended.set()
        if scope.cancelled_caught:
            self._require_running()

    def _require_running(self) -> None:
        if self._status is SandboxStatus.RUNNING:
            return
        if self._lost_reason is not None:
            raise SandboxLostError(self._lost_reason)
        raise SandboxStateError(f"Sandbox {self.id} is not running: it is {self._status.value}")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
