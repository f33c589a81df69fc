"""Kernels of a sandbox: Pythons that remember, which take one cell after the other.

`Kernel` is a handle on one, `Kernels` what a sandbox has of them. A kernel's process is the box's
affair (`Sandbox._start_kernel`); what it says is read the whole time, within bounds, so that its
threads can print between cells. What they print then comes with the next cell.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import time
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._cell import Cell, Ending
from ms_enclave.boxes._execution import format_seconds, judge
from ms_enclave.channel import kernel as channel
from ms_enclave.errors import (
    ConfigError,
    ForkRefusedError,
    SandboxLostError,
    SandboxStartError,
    SandboxStateError,
)
from ms_enclave.loop import iterate_on_loop, on_loop, to_the_end
from ms_enclave.model import ExecutionStatus, Verdict
from ms_enclave.model.kernels import Execution, KernelEvent, KernelInfo, KernelStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.channel.process import Exit, KernelProcess, KernelRequest
    from ms_enclave.model import ResolvedLimits
    from ms_enclave.model.kernels import OnInput

__all__ = ["INTERRUPT_GRACE", "Home", "Kernel", "Kernels"]

logger = logging.getLogger(__name__)

INTERRUPT_GRACE = 2.0
"""Seconds that an interrupted cell has to end before its kernel is killed."""

_START_BOUND = 60.0
"""Seconds that a kernel may take to say that it is there: it may have much to import."""

_GO_ON_BOUND = 10.0
"""Seconds that a fork may take to say that it has what its original had."""

_END_BOUND = 10.0
_MOST_LATE = 1 << 20
"""Bytes of each stream, printed between cells, that are held for the next one."""

_LAST_WORDS = 2000


class Savepoint(Protocol):
    """How a sandbox was before a cell."""

    async def keep(self) -> None:
        """The cell's doings stay."""
        ...

    async def undo(self) -> None:
        """Nothing of them does."""
        ...


@dataclass(frozen=True)
class Home:
    """What kernels need of their sandbox."""

    using: Callable[[], AbstractAsyncContextManager[None]]
    """A call on the running sandbox."""
    start: Callable[[KernelRequest], Awaitable[KernelProcess]]
    limits: Callable[[float | None], ResolvedLimits]
    own: Callable[[Callable[[], Awaitable[object]]], None]
    """Has something undone with the sandbox."""
    tier: Callable[[], str | None]
    atomic: Callable[[], bool]
    """Whether cells are atomic of which it is not said."""
    savepoint: Callable[[Kernel], Awaitable[Savepoint]]
    """Keeps how the sandbox is before a cell of a kernel that has its turn. Raises CapabilityError
    or ForkRefusedError."""


class Kernel:
    """A Python in a sandbox that keeps its variables from one cell to the next.

    A handle that may be used from any thread and event loop; the kernel lives until it or its
    sandbox is ended. Cells run one at a time, in the order in which they were asked for. A cell
    that is cancelled, or whose time is over, is interrupted and keeps the variables; one that does
    not yield within two seconds is killed with its kernel. A kernel that died stays dead, with
    `death` saying why, until it is restarted.
    """

    def __init__(self, name: str, home: Home, request: KernelRequest) -> None:
        self.id = inputs.new_sandbox_id()
        self.name = name
        self.created_at = datetime.now(timezone.utc)
        self._home = home
        self._request = request
        self._session: _Session | None = None
        self._deleted = False
        self._turn = asyncio.Lock()
        self._restarted: asyncio.Event | None = None
        self._count = 0
        self._forget: Callable[[], object] = lambda: None

    # --- what it is ---

    @property
    def status(self) -> KernelStatus:
        """Whether it can take a cell, has one, or none will ever be taken."""
        if self._session is None or self._session.death is not None:
            return "dead"
        return "idle" if self._session.cell is None else "busy"

    @property
    def death(self) -> Verdict | None:
        """Why it is dead, by the word of who is outside; None while it lives."""
        return Verdict.CANCELLED if self._session is None else self._session.death

    @property
    def death_reason(self) -> str:
        """The same in words; empty while it lives."""
        return "it was deleted" if self._session is None else self._session.reason

    def get_info(self) -> KernelInfo:
        """A description of it, as of now."""
        session = self._session
        greeting = {} if session is None else session.greeting
        cell = None if session is None else session.cell
        return KernelInfo(
            id=self.id,
            name=self.name,
            status=self.status,
            death=self.death,
            execution_count=self._count,
            preload=list(self._request.preload),
            implementation=str(greeting.get("implementation", ""))[:100],
            implementation_version=str(greeting.get("implementation_version", ""))[:100],
            python_version=str(greeting.get("python", ""))[:100],
            created_at=self.created_at,
            cell_since=None if cell is None else cell.began,
        )

    # --- cells ---

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        atomic: bool | None = None,
        on_input: OnInput | None = None,
    ) -> Execution:
        """Run a cell and wait for its end. What the cell does is a result, whatever it is.

        Args:
            timeout: seconds; the sandbox's own where None.
            atomic: whether nothing of a cell stays that does not succeed, whatever became of it:
                variables, open files, folder and the sandbox's files are then as before it, and a
                kernel that it killed lives. What lies outside of the sandbox is not undone. As
                the sandbox's config says where None.
            on_input: called with the prompt when the cell calls `input`; what it gives is the
                answer. One that is not async may block. Without it `input` raises in the cell.

        Raises:
            ConfigError: the code is none, or longer than 8 MiB.
            SandboxStateError: the kernel is dead, or the sandbox is not running.
            SandboxLostError: the sandbox failed.
            CapabilityError, ForkRefusedError: the cell cannot be atomic; it has not run.
        """
        if on_input is None:
            return await self._run(code, timeout, atomic=atomic)
        last: Execution | None = None
        stream = self.run_stream(code, timeout=timeout, atomic=atomic, on_input=on_input)
        async with aclosing(stream) as events:
            async for event in events:
                last = event.execution
        if last is None:
            raise SandboxLostError("A cell ended without an outcome")
        return last

    async def run_stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        atomic: bool | None = None,
        on_input: OnInput | None = None,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[KernelEvent, None]:
        """Run a cell and give what it says as it says it, in Jupyter's messages.

        The last event is the `execute_reply`, which has the whole outcome as `execution`. Left
        early, the cell is interrupted. Arguments and exceptions are those of `run`.

        Args:
            silent: whether the cell has no number and shows no result and no error.
            store_history: whether the cell is counted.
            user_expressions: by name, what to evaluate after the cell; the values are in the
                content of the `execute_reply`.
        """
        body = _execute_body(code, allow_input=on_input is not None)
        body |= {"silent": silent, "store_history": store_history and not silent}
        body["user_expressions"] = dict(user_expressions or {})
        events = self._events(code, timeout, body, atomic=atomic)
        async with aclosing(events):
            async for event in events:
                yield event
                if event.type == "input_request" and on_input is not None:
                    await self.answer(await _ask(on_input, event.content["prompt"]))

    @on_loop
    async def answer(self, text: str) -> None:
        """Answer the `input` that the running cell waits in; nothing where it does not."""
        session = self._session
        if session is not None and session.cell is not None and session.cell.input_asked:
            session.cell.input_asked = False
            await session.process.send(channel.encode_input(session.cell.number, text))

    @on_loop
    async def _run(self, code: str, timeout: float | None, *, atomic: bool | None) -> Execution:
        body = _execute_body(code, allow_input=False)
        async with self._home.using(), self._turn:
            session = await self._living()
            cell = self._new_cell(session, code, timeout, streamed=False)
            async with self._saved_before(cell, atomic):
                await self._see_through(session, cell, body)
            return cell.execution()

    async def _see_through(self, session: _Session, cell: Cell, body: dict[str, Any]) -> None:
        await session.begin(cell, body)
        try:
            await session.see_to_its_end(cell)
        except BaseException:
            await session.break_off(cell, Verdict.CANCELLED)
            raise
        finally:
            self._count_cell(cell)

    @asynccontextmanager
    async def _saved_before(self, cell: Cell, atomic: bool | None) -> AsyncGenerator[None, None]:
        """Have nothing of what happens in the block stay, unless the cell succeeds in it."""
        if not (self._home.atomic() if atomic is None else atomic):
            yield
            return
        saved = await self._home.savepoint(self)
        succeeded = False
        try:
            yield
            succeeded = cell.ended.is_set() and cell.execution().success
        finally:
            with anyio.CancelScope(shield=True):
                await (saved.keep() if succeeded else saved.undo())

    @iterate_on_loop
    async def _events(
        self, code: str, timeout: float | None, body: dict[str, Any], *, atomic: bool | None
    ) -> AsyncGenerator[KernelEvent, None]:
        async with self._home.using():
            await self._turn.acquire()
        try:
            session = await self._living()
            cell = self._new_cell(session, code, timeout, streamed=True)
            events = self._tell(session, cell, body)
            async with self._saved_before(cell, atomic), aclosing(events):
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def _tell(
        self, session: _Session, cell: Cell, body: dict[str, Any]
    ) -> AsyncGenerator[KernelEvent, None]:
        await session.begin(cell, body)
        watcher = asyncio.ensure_future(session.see_to_its_end(cell))
        try:
            while True:
                event = cell.next_event()
                if event is not None:
                    yield event
                elif cell.ended.is_set():
                    break
                else:
                    async with self._home.using():
                        await cell.news.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await session.break_off(cell, Verdict.CANCELLED)
                await watcher
            self._count_cell(cell)

    def _new_cell(
        self, session: _Session, code: str, timeout: float | None, *, streamed: bool
    ) -> Cell:
        limits = self._home.limits(inputs.validate_timeout(timeout))
        return Cell(
            channel.new_number(), code, session.count + 1, limits, streamed=streamed,
            isolation=self._home.tier(),
        )  # fmt: skip

    def _count_cell(self, cell: Cell) -> None:
        if cell.ended.is_set():
            self._count += 1

    async def _living(self) -> _Session:
        if self._restarted is not None:
            await self._restarted.wait()  # who asked for a cell before that gets it after
        session = self._session
        if session is None:
            raise SandboxStateError(f"Kernel {self.name} was deleted")
        if session.death is not None:
            raise SandboxStateError(
                f"Kernel {self.name} is dead ({session.death.value}): {session.reason}; "
                "restart() makes a new one"
            )
        return session

    @on_loop
    async def request(self, operation: str, **body: Any) -> dict[str, Any]:
        """Ask what an editor asks: `complete`, `inspect` or `is_complete`, as Jupyter's requests.

        Waits for its turn behind cells. What it gives is the kernel's word.
        """
        async with self._home.using(), self._turn:
            session = await self._living()
            cell = self._new_cell(session, "", None, streamed=False)
            await session.begin(cell, {"op": operation, **body})
            try:
                await session.see_to_its_end(cell)
            except BaseException:
                await session.break_off(cell, Verdict.CANCELLED)
                raise
            return cell.reply

    # --- forks ---

    def _be_seen(self) -> Was:
        """What it is now, beside its memory."""
        session = self._session
        greeting, count = ({}, 0) if session is None else (session.greeting, session.count)
        return Was(self.name, self._request, greeting, count, self._count)

    async def _be_over(self, reason: str) -> None:
        """Be dead, for a reason that is not its own."""
        if self._session is not None:
            await self._session.end(Verdict.CANCELLED, reason)

    @asynccontextmanager
    async def _at_rest(self) -> AsyncGenerator[KernelProcess, None]:
        """Its process between two cells: whoever asks for the next one waits.

        Raises:
            ForkRefusedError: it has a cell.
            SandboxStateError: it is dead.
        """
        if self._turn.locked():
            raise ForkRefusedError(blockers=[f"kernel {self.name} is running a cell"])
        async with self._turn:
            yield (await self._living()).process

    def _put(self, session: _Session, count: int) -> _Session | None:
        """Be another process from now on; returns what it was."""
        before, self._session = self._session, session
        self._count = count
        return before

    # --- its life ---

    @on_loop
    async def interrupt(self) -> None:
        """Interrupt the cell that runs, as Ctrl-C would; nothing where none does."""
        async with self._home.using():
            session = self._session
            if session is not None and session.cell is not None:
                await session.process.process.send_signal(signal.SIGINT)

    @on_loop
    async def restart(self) -> None:
        """End what it is, if it lives, and start it anew with nothing in it. A cell that is
        running ends as cancelled."""
        async with self._home.using():
            if self._session is None:
                raise SandboxStateError(f"Kernel {self.name} was deleted")
            if self._restarted is not None:
                await self._restarted.wait()
                return
            self._restarted = asyncio.Event()
            try:
                await self._session.end(Verdict.CANCELLED, "it was restarted")
                self._count = 0
                self._session = await _start(self._home, self._request)
            finally:
                self._restarted.set()
                self._restarted = None

    @to_the_end
    async def delete(self) -> None:
        """End it for good, with all that it started. May be called twice."""
        session, self._session = self._session, None
        self._forget()
        if session is not None:
            await session.end(Verdict.CANCELLED, "it was deleted")


async def _ask(on_input: OnInput, prompt: str) -> str:
    if inspect.iscoroutinefunction(on_input):
        answer: Any = on_input(prompt)
    else:
        answer = await anyio.to_thread.run_sync(on_input, prompt)
    return str(await answer if inspect.isawaitable(answer) else answer)


def _execute_body(code: object, *, allow_input: bool) -> dict[str, Any]:
    if not isinstance(code, str):
        raise ConfigError(f"code must be text, not {type(code).__name__}")
    return {"op": "execute", "code": code, "allow_stdin": allow_input}


class Kernels:
    """The kernels of one sandbox, by name."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._kernels: dict[str, Kernel] = {}
        self._making: dict[str, asyncio.Lock] = {}
        self._spare: tuple[KernelRequest, _Session] | None = None
        self._owned = False

    async def prepare(self, request: KernelRequest) -> None:
        """Start one that nobody has asked for yet. The next that is to be just so is this one.

        Raises:
            SandboxStartError: it does not start.
        """
        self._own_all()
        self._spare = (request, await _start(self._home, request))

    async def get(self, name: str, request: KernelRequest) -> Kernel:
        """The kernel of that name, made where there is none."""
        async with self._making.setdefault(name, asyncio.Lock()):
            found = self._kernels.get(name)
            if found is not None:
                return found
            self._own_all()
            kernel = Kernel(name, self._home, request)
            kernel._session = self._take_spare(request) or await _start(self._home, request)  # pyright: ignore[reportPrivateUsage]
            kernel._forget = lambda: self._drop(kernel)  # pyright: ignore[reportPrivateUsage]
            self._kernels[name] = kernel
            return kernel

    def _own_all(self) -> None:
        if not self._owned:
            self._home.own(self.aclose)
            self._owned = True

    def _take_spare(self, request: KernelRequest) -> _Session | None:
        """The one that was prepared, if it is what is wanted and lives."""
        if self._spare is None or self._spare[0] != request or self._spare[1].death is not None:
            return None
        session = self._spare[1]
        self._spare = None
        return session

    async def to_fork(self) -> Kernel:
        """The only one that lives, with nothing beside it that nobody has asked for.

        Raises:
            ForkRefusedError: there is none, or more.
        """
        found = await self.at_most_one()
        if found is None:
            raise ForkRefusedError(blockers=["it has no kernel that lives"])
        return found

    async def at_most_one(self) -> Kernel | None:
        """The same where there may be none."""
        await self._end_spare()
        living = [kernel for kernel in self._kernels.values() if kernel.status != "dead"]
        if len(living) > 1:
            raise ForkRefusedError(blockers=[f"kernel {kernel.name}" for kernel in living])
        return living[0] if living else None

    async def begin(
        self, was: Was, start: Callable[[KernelRequest], Awaitable[KernelProcess]]
    ) -> Another:
        """Start what goes on from where a kernel was. The caller ends it, or puts it in place."""
        self._own_all()
        limits = self._home.limits(None)
        process = await start(replace(was.request, limits=limits))
        return Another(was, _Session(process, limits, was), limits)

    async def put(self, another: Another | None) -> None:
        """Have it in the place of all kernels that there are, which end; none, if it is None."""
        was = None if another is None else another.was
        for kernel in [*self._kernels.values()]:
            if was is None or kernel.name != was.name:
                await kernel._be_over("its sandbox was rolled back")  # pyright: ignore[reportPrivateUsage]
        if was is None or another is None:
            return
        kernel = self._kernels.get(was.name)
        if kernel is None:
            kernel = Kernel(was.name, self._home, was.request)
            kernel._forget = lambda: self._drop(kernel)  # pyright: ignore[reportPrivateUsage]
            self._kernels[was.name] = kernel
        before = kernel._put(another.session, was.cells)  # pyright: ignore[reportPrivateUsage]
        if before is not None:
            await before.end(Verdict.CANCELLED, "its sandbox was rolled back")

    def list(self) -> list[KernelInfo]:
        """What there is."""
        return [kernel.get_info() for kernel in self._kernels.values()]

    def _drop(self, kernel: Kernel) -> None:
        if self._kernels.get(kernel.name) is kernel:
            del self._kernels[kernel.name]

    async def aclose(self) -> None:
        """End all of them."""
        for kernel in [*self._kernels.values()]:
            await kernel.delete()
        await self._end_spare()

    async def _end_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare[1].end(Verdict.CANCELLED, "nobody has asked for it")


@dataclass(frozen=True)
class Was:
    """What a kernel was at one moment, beside its memory."""

    name: str
    request: KernelRequest
    greeting: dict[str, Any]
    count: int
    cells: int


class Another:
    """A process that goes on from where a kernel was, and is nobody's kernel yet."""

    def __init__(self, was: Was, session: _Session, limits: ResolvedLimits) -> None:
        self.was = was
        self.session = session
        self._limits = limits

    async def go_on(self, body: Mapping[str, Any]) -> None:
        """Have it be what the kernel was; `body` says what a copy of memory does not bring.

        Raises:
            ForkRefusedError: it cannot be that, or does not answer.
            SandboxStartError: it has died.
        """
        session, name = self.session, self.was.name
        cell = Cell(
            channel.new_number(), "", self.was.count, self._limits, streamed=False, isolation=None
        )
        await session.begin(cell, {"op": "forked", **body})
        with anyio.move_on_after(_GO_ON_BOUND):
            await cell.ended.wait()
        session.count = self.was.count
        if session.death is not None:
            raise SandboxStartError(f"A fork of kernel {name} died: {session.reason}")
        if not cell.ended.is_set():
            raise ForkRefusedError(blockers=[f"kernel {name} is busy with what no cell does"])
        if cell.reply.get("status") != "ok":
            said = str(cell.reply.get("evalue", ""))[:_LAST_WORDS]
            raise ForkRefusedError(blockers=[f"what kernel {name} has open: {said}"])

    async def end(self) -> None:
        """It is not wanted. Idempotent."""
        await self.session.end(Verdict.CANCELLED, "it was not wanted")


async def _start(home: Home, request: KernelRequest) -> _Session:
    """A kernel that has greeted. Raises SandboxStartError where it does not."""
    limits = home.limits(None)
    session = _Session(await home.start(replace(request, limits=limits)), limits)
    try:
        await session.greeted()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await session.end(Verdict.CANCELLED, "it never began")
        raise
    return session


class _Session:
    """One process of a kernel, from its start to its end; one that goes on from where another's
    was (`was`) greets nobody."""

    def __init__(
        self, process: KernelProcess, limits: ResolvedLimits, was: Was | None = None
    ) -> None:
        self.process = process
        self.cell: Cell | None = None
        self.death: Verdict | None = None
        self.reason = ""
        self.count = 0
        self._limits = limits
        self._decoder = channel.KernelDecoder(_most(limits))
        self._greeted = anyio.Event()
        self._late: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._closed = False
        self._gone = anyio.Event()
        if was is not None:
            self._decoder.greeting, self.count = was.greeting, was.count
        process.listen(self._take)
        self._watcher = asyncio.ensure_future(self._watch())

    @property
    def greeting(self) -> dict[str, Any]:
        return self._decoder.greeting or {}

    async def greeted(self) -> None:
        with anyio.move_on_after(_START_BOUND):
            await self._greeted.wait()
        if self._decoder.greeting is None:
            said = bytes(self._late["stderr"])[-_LAST_WORDS:].decode("utf-8", "replace").strip()
            why = self.reason or "it does not answer"
            raise SandboxStartError(f"The kernel did not start: {why}{': ' if said else ''}{said}")

    # --- a cell ---

    async def begin(self, cell: Cell, body: dict[str, Any]) -> None:
        """Have a cell run. Nobody else's may be running."""
        request = channel.encode_request(cell.number, {**body, "display_limit": cell.limits.output})
        self.cell = cell
        for name, late in self._late.items():
            if late:
                cell.take_output(name, bytes(late))
                late.clear()
        try:
            await self.process.send(request)
        except BaseException:
            # Half a request may have been sent: nothing can be said to it any more.
            with anyio.CancelScope(shield=True):
                await self.end(Verdict.CANCELLED, "its cell was cancelled")
            raise

    async def see_to_its_end(self, cell: Cell) -> None:
        """Wait until a cell has ended; when its time is over, end it."""
        with anyio.move_on_after(cell.started + cell.limits.timeout - time.monotonic()):
            await cell.ended.wait()
            return
        await self.break_off(cell, Verdict.WALL_TIMEOUT)

    async def break_off(self, cell: Cell, verdict: Verdict) -> None:
        """End a cell that has not ended: interrupted where it yields, else with its kernel."""
        if cell.ended.is_set() or cell.ending is not None:
            await cell.ended.wait()
            return
        timed_out = verdict is Verdict.WALL_TIMEOUT
        status = ExecutionStatus.TIMEOUT if timed_out else ExecutionStatus.CANCELLED
        text = "The cell was cancelled"
        if timed_out:
            text = f"Cell timed out after {format_seconds(cell.limits.timeout)} seconds"
        cell.ending = Ending(status, verdict, f"{text} and was interrupted")
        with anyio.CancelScope(shield=True):
            with suppress(SandboxLostError):  # whoever waits for the process will hear
                await self.process.process.send_signal(signal.SIGINT)
            with anyio.move_on_after(INTERRUPT_GRACE):
                await cell.ended.wait()
            if not cell.ended.is_set():
                text = f"{text} and did not yield to an interrupt: its kernel was killed"
                cell.ending = Ending(status, verdict, text)
                await self.end(verdict, text)

    # --- what it says ---

    def _take(self, source: str, data: bytes) -> None:
        if self.death is not None:
            return
        if source != "channel":
            self._take_output(source, data)
        elif not data:
            self._hung_up()
        else:
            try:
                for said in self._decoder.feed(data):
                    self._on_said(said)
            except SandboxLostError as error:
                self._break(str(error))
            if self._decoder.greeting is not None:
                self._greeted.set()

    def _on_said(self, said: channel.Output | channel.Message | channel.Result) -> None:
        cell = self.cell
        if cell is None or said.call != cell.number:
            if isinstance(said, channel.Output):  # of a thread, for a cell that is over
                self._take_output(said.stream, said.data)
        elif isinstance(said, channel.Result):
            self.process.drain()
            self._finish(cell, said)
        else:
            cell.take(said)
            self._hold_to_limit(cell)

    def _take_output(self, stream: str, data: bytes) -> None:
        if self.cell is not None:
            self.cell.take_output(stream, data)
            self._hold_to_limit(self.cell)
        else:
            late = self._late[stream]
            late += data[: _MOST_LATE - len(late)]

    def _hold_to_limit(self, cell: Cell) -> None:
        if cell.exceeded and self._limits.output_action == "kill" and cell.ending is None:
            text = f"more than {cell.limits.output} bytes of output"
            cell.ending = Ending(ExecutionStatus.ERROR, Verdict.OUTPUT_LIMIT, text)
            self._break(text, Verdict.OUTPUT_LIMIT)

    def _finish(self, cell: Cell, said: channel.Result | None) -> None:
        self.cell = None
        cell.finish(said)
        if said is not None:
            self.count += 1

    # --- its end ---

    async def _watch(self) -> None:
        """See the process to its end, which nothing that it says can stand for."""
        process = self.process.process
        try:
            ended = await process.wait()
            self.process.drain(channel=True)
            self._die(*_cause(ended, self._limits))
        except (SandboxLostError, anyio.ClosedResourceError) as error:
            self._die(Verdict.INFRA, str(error) or "its sandbox was ended")
        except BaseException:
            self._die(Verdict.CANCELLED, "it was ended")
            raise
        finally:
            self._gone.set()

    def _die(self, verdict: Verdict, reason: str) -> None:
        if self.death is None:
            self.death, self.reason = verdict, reason
        self._greeted.set()
        cell = self.cell
        if cell is not None:
            if cell.ending is None:
                cell.ending = Ending(
                    ExecutionStatus.CANCELLED
                    if self.death is Verdict.CANCELLED
                    else ExecutionStatus.ERROR,
                    self.death,
                    f"The kernel died: {self.reason}",
                )
            self._finish(cell, None)

    def _hung_up(self) -> None:
        """It closed its channel: usually it has just ended, and that is the news."""
        self._ender = asyncio.ensure_future(self._end_if_it_lives())

    async def _end_if_it_lives(self) -> None:
        with anyio.move_on_after(1.0):
            await self._gone.wait()
        if not self._gone.is_set():
            await self.end(Verdict.ERROR, "it closed the channel to its host")

    def _break(self, reason: str, verdict: Verdict = Verdict.ERROR) -> None:
        """It did what none of ours does: nothing more is heard of it, and it is ended."""
        if self.death is None:
            self._die(verdict, reason)
            self._ender = asyncio.ensure_future(self.end(verdict, reason))

    async def end(self, verdict: Verdict, reason: str) -> None:
        """Kill it with all that it started, if it lives, and close its channel. Idempotent."""
        if self.death is None:
            self.death, self.reason = verdict, reason
        if self._closed:
            await self._gone.wait()
            return
        self._closed = True
        with anyio.move_on_after(_END_BOUND, shield=True):
            try:
                await self.process.aclose()
            except SandboxLostError:
                logger.debug("a kernel's sandbox was lost", exc_info=True)
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher
        self._die(verdict, reason)


def _most(limits: ResolvedLimits) -> int:
    """Bytes of one message: a display as large as may be shown, and what surrounds it."""
    return limits.output + (1 << 16)


def _cause(ended: Exit, limits: ResolvedLimits) -> tuple[Verdict, str]:
    """Why a kernel died; ending well is not in its nature."""
    said = judge(ended, limits)
    if said.verdict is Verdict.OK:
        return Verdict.ERROR, "it exited with code 0"
    reason = (said.error or "").partition(": ")[2]
    return said.verdict, reason or f"it exited with code {ended.exit_code}"
