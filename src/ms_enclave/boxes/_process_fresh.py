"""Runs of Python code that each get a fresh process sandbox, and nobody a handle of it.

What does not change from run to run (the station, the limits, the environment) is worked out once
for each config; a run is then one request to the station and one event back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ms_enclave.boxes import _execution as execution
from ms_enclave.boxes import _process_request as requests
from ms_enclave.boxes._inputs import merge_environment
from ms_enclave.boxes._process_watch import follow
from ms_enclave.channel.process import SpawnRequest

if TYPE_CHECKING:
    from ms_enclave.model import CommandResult, ProcessSandboxConfig
    from ms_enclave.model.limits import ResolvedLimits
    from ms_enclave.spawner.client import StationClient

__all__ = ["MOST_STDIN", "Fresh"]

MOST_STDIN = 1 << 16
"""Bytes of input that surely fit into a pipe at once."""


class Fresh:
    """Runs of one config on one station."""

    def __init__(
        self, config: ProcessSandboxConfig, station: StationClient, environment: dict[str, str],
        user: tuple[int, int],
    ) -> None:  # fmt: skip
        self.station = station
        self._config = config
        self._limits = config.resolve_limits()
        self._box_limits = requests.box_limits(self._limits)
        self._environment = merge_environment(environment, config.env_vars)
        self._user = user
        self._last: tuple[float | None, ResolvedLimits, bytes] | None = None

    async def run(self, code: str, *, stdin: bytes | None, timeout: float | None) -> CommandResult:
        """Run a program to its end; when this returns or raises, it has ended.

        Raises:
            SandboxStartError: the sandbox could not be made.
            SandboxLostError: the sandbox failed.
        """
        config = self._config
        limits, like = self._held(timeout)
        job = execution.Job(command=code, limits=limits, isolation="namespace")
        request = SpawnRequest(
            argv=None, code=code, cwd=config.working_dir, env=self._environment,
            stdin=stdin is not None, limits=limits,
        )  # fmt: skip
        document = requests.code_document(request, list(config.preload or ()), config.seed)
        return await follow(lambda: self.station.run(document, like, stdin), job)

    def _held(self, timeout: float | None) -> tuple[ResolvedLimits, bytes]:
        """The limits of a run, and what the station is told of them: mostly those of the last."""
        if self._last is None or self._last[0] != timeout:
            limits = self._config.resolve_limits(timeout=timeout)
            fields = requests.station_fields(limits, self._user, self.station.facts)
            fields["preload"] = list(self._config.preload or ())
            self._last = timeout, limits, self.station.run_like(fields, self._box_limits)
        return self._last[1:]
