"""A kernel of a sandbox behind Jupyter's sockets: any Jupyter client can use it.

The process that a kernel spec starts. It makes a sandbox with one kernel, speaks Jupyter's wire
protocol on the ports of its connection file, and translates: what goes to the kernel is a cell,
what comes back are Jupyter's messages already. It ends, and the sandbox with it, when it is told
to, when whoever started it is gone, or when the kernel has died: the client then starts a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import zmq
import zmq.asyncio
from jupyter_client.session import Session

from ms_enclave.boxes.factory import SandboxFactory
from ms_enclave.errors import EnclaveError
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ms_enclave.boxes import Kernel
    from ms_enclave.model import Execution, KernelEvent

__all__ = ["Bridge", "main"]

NO_TIMEOUT = 10 * 365 * 86400.0
"""Seconds that a cell may take: a person interrupts."""

_ORPHAN_SECONDS = 1.0
_PUBLISHED = frozenset({
    "execute_input", "stream", "display_data", "update_display_data", "execute_result",
    "clear_output", "error",
})  # fmt: skip

Message = dict[str, Any]


class Bridge:
    """One kernel on five sockets. Owns the sockets; the kernel is its caller's.

    Args:
        connection: what Jupyter's connection file holds.
    """

    def __init__(self, kernel: Kernel, connection: Mapping[str, Any]) -> None:
        self._kernel = kernel
        self._context = zmq.asyncio.Context()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        scheme = str(connection.get("signature_scheme", "hmac-sha256"))
        self._session = Session(
            key=str(connection.get("key", "")).encode(), signature_scheme=scheme,
            username="kernel",
        )  # fmt: skip
        self._ended = asyncio.Event()
        self._waiting: asyncio.Queue[tuple[list[bytes], Message]] = asyncio.Queue()
        for name, kind in _KINDS.items():
            self._sockets[name] = self._bind(name, kind, connection)

    def _bind(self, name: str, kind: int, connection: Mapping[str, Any]) -> zmq.asyncio.Socket:
        opened = self._context.socket(kind)
        opened.linger = 1000
        if kind == zmq.ROUTER:
            opened.router_handover = 1  # a client that comes back has its name again
        where, port = connection["ip"], connection[f"{name}_port"]
        separator = ":" if connection["transport"] == "tcp" else "-"
        opened.bind(f"{connection['transport']}://{where}{separator}{port}")
        return opened

    async def serve(self) -> None:
        """Serve until a client shuts the kernel down or the kernel is dead."""
        self._publish("status", {"execution_state": "starting"}, None)
        tasks = [
            asyncio.ensure_future(work())
            for work in (self._echo, self._listen_control, self._listen_shell, self._run_cells)
        ]
        tasks.append(asyncio.ensure_future(self._wait_for_end()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._context.destroy(linger=1000)

    async def _wait_for_end(self) -> None:
        await self._ended.wait()

    # --- sockets ---

    async def _echo(self) -> None:
        """The heart beat."""
        while True:
            await self._sockets["hb"].send(await self._sockets["hb"].recv())

    async def _receive(self, channel: str) -> tuple[list[bytes], Message]:
        while True:
            parts = await self._sockets[channel].recv_multipart()
            identities, rest = self._session.feed_identities(parts)
            try:
                message = self._session.deserialize(rest)
            except ValueError:
                continue  # not signed by who has the key, or no message at all
            return identities, message

    async def _listen_control(self) -> None:
        while True:
            identities, message = await self._receive("control")
            await self._answer("control", identities, message)

    async def _listen_shell(self) -> None:
        while True:
            await self._waiting.put(await self._receive("shell"))

    async def _run_cells(self) -> None:
        while True:
            identities, message = await self._waiting.get()
            await self._answer("shell", identities, message)

    def _publish(self, kind: str, content: Mapping[str, Any], parent: Message | None) -> None:
        self._send("iopub", kind, content, parent, [f"kernel.{kind}".encode()])

    def _send(
        self, channel: str, kind: str, content: Mapping[str, Any], parent: Message | None,
        identities: Sequence[bytes],
    ) -> None:  # fmt: skip
        session: Any = self._session
        message = session.msg(kind, content=dict(content), parent=parent)
        parts: list[bytes] = session.serialize(message, ident=list(identities))
        opened: Any = self._sockets[channel]
        # Its future is of interest to nobody: what cannot be sent has no reader.
        asyncio.ensure_future(opened.send_multipart(parts))  # noqa: RUF006

    # --- requests ---

    async def _answer(self, channel: str, identities: list[bytes], message: Message) -> None:
        kind = str(message["header"]["msg_type"])
        self._publish("status", {"execution_state": "busy"}, message)
        try:
            handler = self._handlers.get(kind)
            if handler is not None:
                content = await handler(self, message, identities)
                reply = kind.replace("_request", "_reply")
                self._send(channel, reply, content, message, identities)
        except EnclaveError as error:
            self._fail(channel, kind, identities, message, error)
        finally:
            self._publish("status", {"execution_state": "idle"}, message)
        if self._kernel.death is not None:
            await asyncio.sleep(0.1)  # let it be told
            self._ended.set()

    def _fail(
        self, channel: str, kind: str, identities: list[bytes], message: Message,
        error: EnclaveError,
    ) -> None:  # fmt: skip
        content = {
            "status": "error", "ename": type(error).__name__, "evalue": str(error),
            "traceback": [str(error)],
        }  # fmt: skip
        self._send(channel, kind.replace("_request", "_reply"), content, message, identities)

    async def _kernel_info(self, _message: Message, _identities: list[bytes]) -> Message:
        info = self._kernel.get_info()
        version = info.python_version
        lexer = "ipython3" if info.implementation == "ipython" else "python3"
        return {
            "status": "ok",
            "protocol_version": "5.3",
            "implementation": "ms-enclave",
            "implementation_version": __version__,
            "language_info": {
                "name": "python",
                "version": version,
                "mimetype": "text/x-python",
                "codemirror_mode": {"name": "ipython", "version": 3},
                "pygments_lexer": lexer,
                "nbconvert_exporter": "python",
                "file_extension": ".py",
            },
            "banner": f"Python {version} in a sandbox of ms-enclave {__version__}",
            "help_links": [],
            "supported_features": [],
        }

    async def _execute(self, message: Message, identities: list[bytes]) -> Message:
        content = message["content"]
        code, silent = str(content.get("code", "")), bool(content.get("silent"))
        may_ask = bool(content.get("allow_stdin", True))
        done: Execution | None = None
        last: Message = {}
        async with contextlib.aclosing(
            self._kernel.run_stream(
                code,
                timeout=NO_TIMEOUT,
                on_input=self._asker(message, identities) if may_ask else None,
                silent=silent,
                store_history=bool(content.get("store_history", not silent)),
                user_expressions=content.get("user_expressions") or {},
            )
        ) as events:
            async for event in events:
                self._relay(event, message, silent=silent)
                if event.execution is not None:
                    done, last = event.execution, event.content
        if done is not None and not done.success:
            if self._kernel.death is not None:
                self._tell_of_death(message)
            if content.get("stop_on_error", True):
                self._abort_what_waits()
        return last

    def _relay(self, event: KernelEvent, message: Message, *, silent: bool) -> None:
        if event.type in _PUBLISHED and not (silent and event.type == "execute_input"):
            self._publish(event.type, event.content, message)

    def _tell_of_death(self, message: Message) -> None:
        text = f"The kernel died: {self._kernel.death_reason}\n"
        self._publish("stream", {"name": "stderr", "text": text}, message)

    def _asker(self, message: Message, identities: list[bytes]) -> Callable[[str], Awaitable[str]]:
        """Asks the client that runs the cell, which answers on a socket of its own."""

        async def ask(prompt: str) -> str:
            content = {"prompt": prompt, "password": False}
            self._send("stdin", "input_request", content, message, identities)
            _, answer = await self._receive("stdin")
            return str(answer["content"].get("value", ""))

        return ask

    def _abort_what_waits(self) -> None:
        """After an error, cells that were asked for before it are not run."""
        kept: list[tuple[list[bytes], Message]] = []
        while not self._waiting.empty():
            identities, message = self._waiting.get_nowait()
            if message["header"]["msg_type"] != "execute_request":
                kept.append((identities, message))
                continue
            self._publish("status", {"execution_state": "busy"}, message)
            self._send("shell", "execute_reply", {"status": "aborted"}, message, identities)
            self._publish("status", {"execution_state": "idle"}, message)
        for row in kept:
            self._waiting.put_nowait(row)

    async def _complete(self, message: Message, _identities: list[bytes]) -> Message:
        content = message["content"]
        return await self._kernel.request(
            "complete", code=content["code"], cursor_pos=content["cursor_pos"]
        )

    async def _inspect(self, message: Message, _identities: list[bytes]) -> Message:
        content = message["content"]
        return await self._kernel.request(
            "inspect", code=content["code"], cursor_pos=content["cursor_pos"],
            detail_level=content.get("detail_level", 0),
        )  # fmt: skip

    async def _is_complete(self, message: Message, _identities: list[bytes]) -> Message:
        return await self._kernel.request("is_complete", code=message["content"]["code"])

    async def _history(self, _message: Message, _identities: list[bytes]) -> Message:
        return {"status": "ok", "history": []}

    async def _comm_info(self, _message: Message, _identities: list[bytes]) -> Message:
        return {"status": "ok", "comms": {}}

    async def _interrupt(self, _message: Message, _identities: list[bytes]) -> Message:
        await self._kernel.interrupt()
        return {"status": "ok"}

    async def _shut_down(self, message: Message, _identities: list[bytes]) -> Message:
        content = {"status": "ok", "restart": bool(message["content"].get("restart"))}
        self._publish("shutdown_reply", content, message)
        asyncio.get_running_loop().call_later(0.05, self._ended.set)
        return content

    def interrupt(self) -> None:
        """Interrupt the cell that runs; for clients that send a signal."""
        asyncio.ensure_future(self._kernel.interrupt())  # noqa: RUF006 - nobody waits for it

    def end(self) -> None:
        """Have `serve` return."""
        self._ended.set()

    _handlers: ClassVar[Mapping[str, Callable[..., Awaitable[Message]]]] = {
        "kernel_info_request": _kernel_info,
        "execute_request": _execute,
        "complete_request": _complete,
        "inspect_request": _inspect,
        "is_complete_request": _is_complete,
        "history_request": _history,
        "comm_info_request": _comm_info,
        "interrupt_request": _interrupt,
        "shutdown_request": _shut_down,
    }


_KINDS = {
    "shell": zmq.ROUTER,
    "control": zmq.ROUTER,
    "stdin": zmq.ROUTER,
    "iopub": zmq.PUB,
    "hb": zmq.REP,
}


async def _run(connection: Mapping[str, Any], kind: str, config: Mapping[str, Any]) -> int:
    async with SandboxFactory.create_sandbox(kind, config) as sandbox:
        kernel = await sandbox.kernel()
        bridge = Bridge(kernel, connection)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, bridge.interrupt)
        loop.add_signal_handler(signal.SIGTERM, bridge.end)
        orphaned = asyncio.ensure_future(_end_when_orphaned(bridge))
        try:
            await bridge.serve()
        finally:
            orphaned.cancel()
        return 0 if kernel.death is None else 1


async def _end_when_orphaned(bridge: Bridge) -> None:
    """Whoever started us is to end us; where it is gone, nobody will."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_ORPHAN_SECONDS)
    bridge.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Be the kernel of a connection file until it is shut down; exits with 1 if it died."""
    parser = argparse.ArgumentParser(prog="python -m ms_enclave.jupyter")
    parser.add_argument("-f", "--connection-file", required=True)
    parser.add_argument("--type", default="process")
    parser.add_argument("--config", default="{}", help="the sandbox's config as JSON")
    given = parser.parse_args(arguments)
    with open(given.connection_file, encoding="utf-8") as file:
        connection = json.load(file)
    sys.exit(asyncio.run(_run(connection, given.type, json.loads(given.config))))
