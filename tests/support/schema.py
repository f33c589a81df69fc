"""Calls made out of what `/openapi.json` says, right ones and wrong ones, each compared with it."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ms_enclave import wire
from ms_enclave.loop import call
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.server import Policy, create_server
from tests.support.served import KEY, OnLoopback

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ENDLESS", "Tried", "operations"]

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
ENDLESS = frozenset({
    "GET /v1/events",
    "GET /v1/sandboxes/{sandbox_id}/files/watch",
    "POST /v1/pool/loans",
    "POST /v1/sandboxes/{sandbox_id}/ports/{port}/connect",
})  # fmt: skip
"""Answers that go on until somebody goes: each has tests of its own."""


def operations() -> list[str]:
    """`METHOD path` of everything that answers at some time."""
    paths = create_server(LocalSandboxManager()).app.openapi()["paths"]
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert found >= ENDLESS
    return sorted(found - ENDLESS)


class _Strict(OnLoopback):
    """Under the policy that a server has where nobody says anything."""

    kept_open = 0
    policy = Policy()


class Tried:
    """A server to be tried, with a sandbox in it that is made again where a call has ended it. The
    sandbox has walls: what it is told to do is anything."""

    NAME = "tried"

    def __init__(self) -> None:
        self._manager = _Strict(sandbox_config={"timeout": 2, "memory_limit": "256m"})

    def __enter__(self) -> Tried:
        # What is called a snapshot here is none of the user's.
        self._folder = tempfile.TemporaryDirectory()
        self._data_home = os.environ.get("XDG_DATA_HOME")
        os.environ["XDG_DATA_HOME"] = self._folder.name
        call(self._manager.start)
        schema = schemathesis.openapi.from_dict(self._manager.server.app.openapi())
        schema.config.update(base_url=str(self._manager.config.base_url))
        self._operations: dict[str, Any] = {
            found.ok().label: found.ok() for found in schema.get_all_operations()
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        call(self._manager.stop)
        del os.environ["XDG_DATA_HOME"]
        if self._data_home is not None:
            os.environ["XDG_DATA_HOME"] = self._data_home
        self._folder.cleanup()

    async def _have_one(self) -> None:
        found = await self._manager.get_sandbox_info(self.NAME)
        if found is not None and found.status.value != "running":
            await self._manager.delete_sandbox(self.NAME)
            found = None
        if found is None:
            await self._manager.create_sandbox("process", sandbox_id=self.NAME)

    def check(self, label: str, examples: int, number: int | None = None) -> None:
        """Try one operation with so many right calls, and as many wrong ones.

        Args:
            number: what the calls are drawn from; another one each time where None.
        """
        operation = self._operations[label]
        known = {"sandbox_id": self.NAME} if "{sandbox_id}" in label else None
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(mode, path_parameters=known)

            @settings(
                max_examples=examples, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            @given(cases)
            def attempt(case: Any) -> None:
                call(self._have_one)
                headers = {wire.KEY_HEADER: KEY}
                answer = case.call(headers=headers, timeout=30)
                case.validate_response(answer, checks=CHECKS, headers=headers)

            try:
                (attempt if number is None else seed(number)(attempt))()
            except Unsatisfiable:
                if mode is GenerationMode.POSITIVE:
                    raise  # else there is nothing about it that could be wrong
