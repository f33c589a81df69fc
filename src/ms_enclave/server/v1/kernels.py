"""Kernels: Pythons that remember."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from ms_enclave.boxes.base import Sandbox
from ms_enclave.boxes.kernels import Kernel
from ms_enclave.errors import SandboxStateError
from ms_enclave.server.answers import document, events
from ms_enclave.server.finding import Box
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import (
    EVENTS,
    KernelAndExecution,
    KernelAndReply,
    KernelFound,
    KernelListed,
    KernelSaid,
    Nothing,
)

__all__ = ["Known", "router"]

router = APIRouter(tags=["kernels"])


class KernelStart(Body):
    """A kernel by name, and how it is made where there is none."""

    name: str = "default"
    preload: list[str] = Field(default_factory=list[str])
    ipython: bool = True
    cwd: str | None = None
    env: dict[str, str] | None = None


class CellRun(Body):
    """A cell."""

    code: Any
    timeout: float | None = None
    atomic: bool | None = None
    """As the config of the sandbox says where null."""


class CellTold(CellRun):
    """A cell that tells what it says."""

    allow_input: bool = False
    silent: bool = False
    store_history: bool = True
    user_expressions: dict[str, str] = Field(default_factory=dict[str, str])


class InputAnswer(Body):
    """What a cell asked for."""

    text: str


class EditorRequest(Body):
    """What an editor asks."""

    operation: str
    body: dict[str, Any] = Field(default_factory=dict[str, Any])


class Known:
    """The kernels that were asked for, by id: a handle goes on meaning the one that it was of.

    They are noted in their sandbox, which they know: a table here would keep both for ever.
    """

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[str]] = {}
        """Answers that cells wait for, by kernel."""

    def add(self, sandbox: Sandbox, kernel: Kernel) -> None:
        """Remember one."""
        self._of(sandbox)[kernel.id] = kernel

    @staticmethod
    def _of(sandbox: Sandbox) -> dict[str, Kernel]:
        return vars(sandbox).setdefault("_kernels_asked_for", {})

    async def get(self, sandbox: Sandbox, kernel_id: str) -> Kernel:
        """The one of that id. Raises SandboxStateError."""
        found = self._of(sandbox).get(kernel_id)
        if found is not None:
            return found
        for info in await sandbox.list_kernels():
            if info.id == kernel_id:
                kernel = await sandbox.kernel(info.name)
                if kernel.id == kernel_id:
                    self.add(sandbox, kernel)
                    return kernel
        raise SandboxStateError(f"Kernel {kernel_id} was deleted, or never was there")

    def forget(self, sandbox: Sandbox, kernel: Kernel) -> None:
        """It is gone for good."""
        self._of(sandbox).pop(kernel.id, None)


def describe(kernel: Kernel) -> dict[str, Any]:
    """What a handle on another machine knows of its kernel."""
    return {"info": kernel.get_info(), "death_reason": kernel.death_reason}


async def find_kernel(kernel_id: str, sandbox: Box, request: Request) -> Kernel:
    """The kernel of the path."""
    return await request.app.state.kernels.get(sandbox, kernel_id)


Found = Annotated[Kernel, Depends(find_kernel)]


@router.post("/sandboxes/{sandbox_id}/kernels", response_model=KernelSaid)
async def open_kernel(body: KernelStart, sandbox: Box, request: Request) -> Response:
    """The kernel of that name, made where there is none."""
    kernel = await sandbox.kernel(
        body.name, preload=body.preload, ipython=body.ipython, cwd=body.cwd, env=body.env
    )
    request.app.state.kernels.add(sandbox, kernel)
    return document(describe(kernel))


@router.get("/sandboxes/{sandbox_id}/kernels", response_model=list[KernelListed])
async def list_kernels(sandbox: Box) -> Response:
    """The kernels that it has, the dead ones too."""
    return document([{"info": info} for info in await sandbox.list_kernels()])


@router.get("/sandboxes/{sandbox_id}/kernels/{kernel_id}", response_model=KernelFound)
async def get_kernel(kernel: Found) -> Response:
    """How a kernel is."""
    return document({"kernel": describe(kernel)})


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/run", response_model=KernelAndExecution)
async def run(body: CellRun, kernel: Found) -> Response:
    """Run a cell and wait for its end."""
    execution = await kernel.run(body.code, timeout=body.timeout, atomic=body.atomic)
    return document({"execution": execution, "kernel": describe(kernel)})


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/events", **EVENTS)
async def run_stream(body: CellTold, kernel: Found, request: Request) -> Response:
    """Run a cell and give what it says as it says it, in Jupyter's messages. Left early, the cell
    is interrupted."""
    return await events(_told(kernel, body, request.app.state.kernels.asked), eager=False)


async def _told(
    kernel: Kernel, body: CellTold, asked: dict[str, "asyncio.Future[str]"]
) -> AsyncGenerator[Any, None]:
    async def wait_for_answer(prompt: str) -> str:
        del prompt
        return await asked[kernel.id]

    stream = kernel.run_stream(
        body.code,
        timeout=body.timeout,
        atomic=body.atomic,
        on_input=wait_for_answer if body.allow_input else None,
        silent=body.silent,
        store_history=body.store_history,
        user_expressions=body.user_expressions,
    )
    try:
        async with aclosing(stream):
            async for event in stream:
                if event.type == "input_request":  # an answer may come before the next step
                    asked[kernel.id] = asyncio.get_running_loop().create_future()
                yield event
    finally:
        asked.pop(kernel.id, None)
    yield {"kernel": describe(kernel)}


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/answer", response_model=KernelFound)
async def answer(body: InputAnswer, kernel: Found, request: Request) -> Response:
    """Answer the `input` that the running cell waits in; nothing where it does not."""
    waiting = request.app.state.kernels.asked.get(kernel.id)
    if waiting is not None and not waiting.done():
        waiting.set_result(body.text)
    return document({"kernel": describe(kernel)})


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/request", response_model=KernelAndReply)
async def ask(body: EditorRequest, kernel: Found) -> Response:
    """Ask what an editor asks: `complete`, `inspect` or `is_complete`."""
    reply = await kernel.request(body.operation, **body.body)
    return document({"reply": reply, "kernel": describe(kernel)})


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/interrupt", response_model=KernelFound)
async def interrupt(kernel: Found) -> Response:
    """Interrupt the cell that runs."""
    await kernel.interrupt()
    return document({"kernel": describe(kernel)})


@router.post("/sandboxes/{sandbox_id}/kernels/{kernel_id}/restart", response_model=KernelFound)
async def restart(kernel: Found) -> Response:
    """End it and start it anew."""
    await kernel.restart()
    return document({"kernel": describe(kernel)})


@router.delete("/sandboxes/{sandbox_id}/kernels/{kernel_id}", response_model=Nothing)
async def delete(kernel: Found, sandbox: Box, request: Request) -> Response:
    """End it for good."""
    await kernel.delete()
    request.app.state.kernels.forget(sandbox, kernel)
    return document({})
