"""Kernels of a sandbox on a server."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes.kernels import Kernel
from ms_enclave.errors import ConfigError, SandboxLostError, SandboxStateError
from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.model.enums import Verdict
from ms_enclave.model.kernels import Execution, KernelEvent, KernelInfo, KernelStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from ms_enclave.manager._remote_commands import Limited
    from ms_enclave.manager._remote_link import Link

__all__ = ["RemoteKernel"]


class RemoteKernel(Kernel):
    """A kernel on a server: `status` and `death` are as the server said last, and reading them has
    it asked anew in the background."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        events: Callable[..., AsyncGenerator[Any, None]],
        link: Link,
        found: dict[str, Any],
        sandbox: Limited,
    ) -> None:  # no `super()`: there is no process here
        self._call = call
        self._told = events
        self._link = link
        self._sandbox = sandbox
        self._told_at = 0
        self.learn(found)
        self.id = self._info.id
        self.name = self._info.name
        self.created_at = self._info.created_at

    def learn(self, found: dict[str, Any]) -> None:
        """What the server says of it."""
        self._info = KernelInfo.model_validate(found["info"])
        self._reason = str(found["death_reason"])

    async def _do(self, method: str, *parts: str, **more: Any) -> Any:
        try:
            said = await self._call(method, "kernels", self.id, *parts, **more)
        except SandboxStateError:
            await self.look()
            raise
        self._told_at += 1
        self.learn(said["kernel"])
        return said

    async def look(self) -> None:
        """Have the server say how it is."""
        began = self._told_at
        try:
            found = await self._call("GET", "kernels", self.id)
            if self._told_at == began:  # else something newer was said meanwhile
                self.learn(found["kernel"])
        except (SandboxStateError, SandboxLostError) as error:
            self._end(error.message)

    def _end(self, reason: str) -> None:
        if self._info.status != "dead":
            self._info = self._info.model_copy(
                update={"status": "dead", "death": Verdict.CANCELLED, "cell_since": None}
            )
            self._reason = reason

    def _fresh(self) -> KernelInfo:
        if self._sandbox.is_over():
            self._end("its sandbox has ended")
        else:
            self._link.look((self.id, "kernel"), self.look)
        return self._info

    @property
    @override
    def status(self) -> KernelStatus:
        """Whether it can take a cell, has one, or none will ever be taken."""
        return self._fresh().status

    @property
    @override
    def death(self) -> Verdict | None:
        """Why it is dead; None while it lives."""
        return self._fresh().death

    @property
    @override
    def death_reason(self) -> str:
        """The same in words; empty while it lives."""
        self._fresh()
        return self._reason

    @override
    def get_info(self) -> KernelInfo:
        """A description of it, as the server said last."""
        return self._fresh()

    @on_loop
    @override
    async def _run(self, code: str, timeout: float | None, *, atomic: bool | None) -> Execution:
        if not isinstance(code, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"code must be text, not {type(code).__name__}")
        seconds = inputs.validate_timeout(timeout)
        body = {"code": code, "timeout": seconds, "atomic": atomic}
        said = await self._do(
            "POST", "run", body=body, extra=self._sandbox.seconds_of(seconds) + 10.0
        )
        return Execution.model_validate(said["execution"])

    @override
    async def _events(
        self, code: str, timeout: float | None, body: dict[str, Any], *, atomic: bool | None
    ) -> AsyncGenerator[KernelEvent, None]:
        seconds = inputs.validate_timeout(timeout)
        asked: dict[str, Any] = {"code": code, "timeout": seconds, "atomic": atomic}
        for name in ("silent", "store_history", "user_expressions"):
            asked[name] = body[name]
        asked["allow_input"] = body["allow_stdin"]
        told = self._told("POST", "kernels", self.id, "events", body=asked)
        try:
            async for event in told:
                if "kernel" in event:
                    self.learn(event["kernel"])
                else:
                    yield KernelEvent.model_validate(event)
        finally:
            await told.aclose()

    @on_loop
    @override
    async def answer(self, text: str) -> None:
        """Answer the `input` that the running cell waits in; nothing where it does not."""
        await self._do("POST", "answer", body={"text": text})

    @on_loop
    @override
    async def request(self, operation: str, **body: Any) -> dict[str, Any]:
        """Ask what an editor asks: `complete`, `inspect` or `is_complete`."""
        said = await self._do(
            "POST", "request", body={"operation": operation, "body": body}, extra=None
        )
        return said["reply"]

    @on_loop
    @override
    async def interrupt(self) -> None:
        """Interrupt the cell that runs, as Ctrl-C would; nothing where none does."""
        await self._do("POST", "interrupt")

    @on_loop
    @override
    async def restart(self) -> None:
        """End what it is, if it lives, and start it anew with nothing in it."""
        await self._do("POST", "restart", extra=60.0)

    @to_the_end
    @override
    async def delete(self) -> None:
        """End it for good, with all that it started. May be called twice."""
        with suppress(SandboxStateError):  # it is gone, or its sandbox is
            await self._call("DELETE", "kernels", self.id, extra=30.0)
        self._end("it was deleted")
