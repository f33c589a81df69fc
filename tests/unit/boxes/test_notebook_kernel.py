"""A notebook's kernel, by what its gateway and its process say of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from ms_enclave.boxes._notebook_kernel import GatewayKernel
from ms_enclave.errors import SandboxLostError
from ms_enclave.guest import protocol
from tests.support.scripted import ScriptedProcess, an_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.boxes._notebook_client import Channels

BOUND = 20.0


class Gateway:
    """What passes a kernel's words on, as a test says them, and keeps what the kernel is told."""

    def __init__(self) -> None:
        self._say, self._heard = anyio.create_memory_object_stream[str | None](100)
        self._sent, self._asked = anyio.create_memory_object_stream[dict[str, Any]](100)

    def say(self, asked: dict[str, Any], kind: str, **content: Any) -> None:
        header = {"msg_id": "theirs", "msg_type": kind}
        body = {"header": header, "parent_header": asked["header"], "content": content}
        self._say.send_nowait(json.dumps(body))

    def hang_up(self) -> None:
        self._say.send_nowait(None)

    async def asked(self, kind: str) -> dict[str, Any]:
        """The next message to the kernel."""
        message = await self._asked.receive()
        assert (message["header"]["msg_type"], message["channel"]) == (kind, "shell")
        return message

    async def receive(self) -> str | None:
        return await self._heard.receive()

    async def send(self, text: str) -> None:
        self._sent.send_nowait(json.loads(text))

    async def aclose(self) -> None:
        for end in (self._say, self._heard, self._sent, self._asked):
            end.close()


class Held:
    """One kernel and everything around it."""

    def __init__(self) -> None:
        self.gateway, self.process = Gateway(), ScriptedProcess()
        self.forgotten = 0
        self._tell, self._told = anyio.create_memory_object_stream[bytes](100)
        self.kernel = GatewayKernel(self.process, self._open, self._forget)
        self.kernel.listen(self._take)

    async def _open(self, _session: str) -> Channels:
        return cast("Channels", self.gateway)

    def _forget(self) -> None:
        self.forgotten += 1

    def _take(self, source: str, data: bytes) -> None:
        if source == "channel":
            self._tell.send_nowait(data)

    async def result(self) -> dict[str, Any]:
        """Of the request that is done next."""
        decoder = protocol.Decoder()
        while True:
            for kind, _, _, payload in decoder.feed(await self._told.receive()):
                if kind == protocol.RESULT:
                    return json.loads(payload)

    async def aclose(self) -> None:
        await self.kernel.aclose()
        await self.gateway.aclose()
        self._tell.close()
        self._told.close()


@pytest.fixture
async def held() -> AsyncGenerator[Held]:
    made = Held()
    yield made
    await made.aclose()


async def test_a_kernel_that_is_done_and_has_not_answered_is_asked_and_the_cell_ends(
    held: Held,
) -> None:
    """As ipykernel is, where an interrupt meets it between its news and the code of the cell."""
    with anyio.fail_after(BOUND):
        await held.gateway.asked("kernel_info_request")
        body = protocol.dump({"op": "execute", "code": "while True: pass"})
        await held.kernel.send(protocol.encode(protocol.REQUEST, 1, body))
        cell = await held.gateway.asked("execute_request")
        held.gateway.say(cell, "execute_input", code="while True: pass")
        held.gateway.say(cell, "status", execution_state="idle")
        question = await held.gateway.asked("kernel_info_request")
        held.gateway.say(question, "kernel_info_reply", status="ok")
        assert (await held.result())["ename"] == "KeyboardInterrupt"


async def test_its_own_end_says_more_than_that_of_its_gateway(held: Held) -> None:
    with anyio.fail_after(BOUND):
        await held.gateway.asked("kernel_info_request")
        waiting = asyncio.ensure_future(held.kernel.process.wait())
        await held.process.waiting.wait()
        held.gateway.hang_up()
        for _ in range(10):  # turns in which it hears of that before it hears of its own end
            await anyio.sleep(0)
        held.process.end(an_end(137, 9, cause="oom"))
        assert (await waiting).cause == "oom"


async def test_one_that_runs_on_without_its_gateway_is_lost_and_ended(held: Held) -> None:
    with anyio.fail_after(BOUND):
        await held.gateway.asked("kernel_info_request")
        held.gateway.hang_up()
        with pytest.raises(SandboxLostError, match="its gateway has ended"):
            await held.kernel.process.wait()
        assert held.process.kills == 1


async def test_its_gateway_forgets_it_when_it_is_closed_and_once() -> None:
    held = Held()
    await held.aclose()
    await held.kernel.aclose()
    assert held.forgotten == 1
