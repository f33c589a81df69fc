"""Sandboxes without a life inside: each run is a new place, of which nothing is left afterwards."""

from __future__ import annotations

from abc import abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import anyio.to_thread
from typing_extensions import override

from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes._execution import Job
    from ms_enclave.boxes._settings import Settings
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process, SpawnRequest
    from ms_enclave.model import CommandResult, SandboxConfig

__all__ = ["StatelessSandbox"]

_NOTHING: Mapping[str, str] = MappingProxyType({})

_OUT_OF_REACH = ("isolation", "require", "network_enabled", "seed", "on_owner_death")
"""What a config may ask of a box and nobody can see to in a place that somebody else makes."""

_LIMITS = ("cpu_time_limit", "disk_limit", "file_size_limit", "cpu_limit", "pids_limit",
           "nofile_limit")  # fmt: skip
"""Limits that are that place's own."""


class StatelessSandbox(Sandbox):
    """A handle of a service that runs programs, each by itself.

    It runs Python, shell lines and programs to their end. It has no files, no commands that run on,
    no shells, kernels or ports: asking for them is a `CapabilityError` that names the types that
    have them. A subclass writes `_open` and `_run_there`, and sets `_capabilities`.

    A run that the service fails costs that run and not the sandbox: there is nothing to lose.
    """

    basics: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        super().__init__(config, sandbox_id)
        self._environment = _NOTHING  # whoever makes the place gives it one

    @abstractmethod
    async def _run_there(self, request: SpawnRequest, job: Job) -> CommandResult:
        """Run one program to its end, by the service's own user."""

    @override
    async def _see_through(self, request: SpawnRequest, job: Job) -> CommandResult:
        if request.user is not None:
            await self._refuse("users")
        result = await self._run_there(request, job)
        if job.on_output is not None:
            for stream, text in (("stdout", result.stdout), ("stderr", result.stderr)):
                if text:
                    await anyio.to_thread.run_sync(job.on_output, stream, text.encode())
        return result

    @override
    async def _plan_command(
        self, given: str | list[str], settings: Settings
    ) -> tuple[SpawnRequest, Job]:
        """A shell line stays one: which shell there is, is the service's affair."""
        argv = ("bash", "-c", given) if isinstance(given, str) else tuple(given)
        metadata: dict[str, Any] = {"shell": "bash"} if isinstance(given, str) else {}
        return self._planned(settings, given, metadata, argv=argv)

    @override
    async def _spawn(self, request: SpawnRequest) -> Process:
        """Nothing runs on between calls."""
        await self._refuse("commands")

    @override
    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        """There is nothing to look into."""
        await self._refuse("files")

    async def _refuse(self, capability: str) -> NoReturn:
        from ms_enclave.boxes.factory import types_offering  # it knows all boxes

        offering = await anyio.to_thread.run_sync(types_offering, capability)
        raise CapabilityError(capability, available_in=offering)

    @override
    async def _prepare(self) -> None:
        _refuse_what_is_out_of_reach(self.config)
        await super()._prepare()

    @override
    async def _check(self) -> None:
        """Refuse tools that need what it lacks, also those that are made for its type."""
        for tool in filter(None, map(self.get_tool, self.list_tools())):
            lacking = sorted((tool.required_capabilities or frozenset()) - self.capabilities)
            if lacking:
                raise CapabilityError(
                    lacking[0],
                    message=f"Tool {tool.name} needs the capability {lacking[0]}, which a "
                    f"{self.sandbox_type} sandbox lacks",
                )
        await super()._check()

    @override
    async def _reset(self) -> bool:
        """It is as new: no run leaves anything to the next."""
        return True

    @override
    def _lost(self, reason: str) -> None:
        """What was lost is a run, of which the caller is told."""
        del reason


def _refuse_what_is_out_of_reach(config: SandboxConfig) -> None:
    said = config.said()
    fresh = type(config)()
    names = [n for n in (*_OUT_OF_REACH, *_LIMITS) if n in said and said[n] != getattr(fresh, n)]
    names += sorted(set(config.resource_limits) & set(_LIMITS))
    if names:
        raise ConfigError(
            f"{', '.join(names)}: the service that runs the programs decides that",
            remedy="leave it out, or use a sandbox of type process or docker",
        )
