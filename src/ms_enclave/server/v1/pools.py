"""The pool: made, lent from, worked in."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Response
from fastapi.requests import HTTPConnection

from ms_enclave.model import ToolResult
from ms_enclave.server.answers import document, events
from ms_enclave.server.finding import Manager
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import EVENTS, PoolSaid, Returned
from ms_enclave.server.v1.sandboxes import ToolCall, describe

__all__ = ["Loans", "router"]

router = APIRouter(tags=["pools"])


class PoolStart(Body):
    """What the pool is to be."""

    pool_size: int | None = None
    sandbox_type: str | None = None
    config: dict[str, Any] | None = None


class Borrowing(Body):
    """How long one waits for a sandbox."""

    timeout: float | None = None


class Returning(Body):
    """How the work in it went."""

    failed: bool = False


class Loans:
    """Loans that are open, by id: each ends when it is returned, or when its answer is not read
    any more, and then costs the sandbox its life as a failed one does."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[asyncio.Future[bool], asyncio.Event]] = {}

    def begin(self) -> tuple[str, "asyncio.Future[bool]", asyncio.Event]:
        """An id that nobody can guess, what says that it is returned, and whether it has ended."""
        name = secrets.token_hex(16)
        self._open[name] = (asyncio.get_running_loop().create_future(), asyncio.Event())
        return name, *self._open[name]

    def end(self, name: str) -> None:
        """It has ended."""
        _, ended = self._open.pop(name)
        ended.set()

    async def give_back(self, name: str, *, failed: bool) -> bool:
        """Return it, and wait until the pool has it. False: there is none of that id."""
        found = self._open.get(name)
        if found is None:
            return False
        returned, ended = found
        if not returned.done():
            returned.set_result(failed)
        await ended.wait()
        return True


class _FailedError(Exception):
    """What ends a loan that failed."""


@router.post("/pool", response_model=PoolSaid)
async def initialize_pool(body: PoolStart, manager: Manager) -> Response:
    """Make a pool of equal sandboxes, or find it made."""
    made = await manager.initialize_pool(body.pool_size, body.sandbox_type, body.config)
    return document({"sandbox_ids": made})


@router.post("/pool/execute", response_model=ToolResult)
async def execute_tool_in_pool(
    body: ToolCall,
    manager: Manager,
    waiting: Annotated[float | None, Query(allow_inf_nan=False)] = None,
) -> Response:
    """Run a tool in a sandbox of the pool."""
    return document(await manager.execute_tool_in_pool(body.tool_name, body.parameters, waiting))


@router.post("/pool/loans", **EVENTS)
async def borrow(body: Borrowing, manager: Manager, connection: HTTPConnection) -> Response:
    """Borrow a sandbox for as long as the answer is read: its first event says which."""
    return await events(_lent(manager, body.timeout, connection.app.state.loans))


async def _lent(
    manager: Any, timeout: float | None, loans: Loans
) -> AsyncGenerator[dict[str, Any], None]:
    stack = AsyncExitStack()
    sandbox = await stack.enter_async_context(manager.borrow(timeout=timeout))
    name, returned, _ = loans.begin()
    failed = True
    try:
        yield {"loan": name, "sandbox": describe(sandbox)}
        failed = await returned
    finally:
        with anyio.CancelScope(shield=True):
            error = _FailedError() if failed else None
            with suppress(_FailedError):
                await stack.__aexit__(type(error) if error else None, error, None)
            loans.end(name)


@router.delete("/pool/loans/{loan_id}", response_model=Returned)
async def give_back(
    loan_id: str, connection: HTTPConnection, failed: Annotated[bool, Query()] = False
) -> Response:
    """Return what was borrowed."""
    done = await connection.app.state.loans.give_back(loan_id, failed=failed)
    return document({"returned": done})
